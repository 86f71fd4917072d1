"""Opens the ledger's database: connection settings that survive a kill -9, and the schema brought up to date."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from orchestrator.schema import SCHEMA_REVISION, VERSION_TABLE

# Another process may hold the write lock for as long as one transaction of the controller lasts: milliseconds.
BUSY_TIMEOUT_MS = 20_000


class LedgerError(RuntimeError):
    """The ledger refuses: an illegal transition, a fingerprint that differs, or a database that is not ours."""


def sqlite_url(path: Path) -> str:
    """URL of a SQLite ledger in a file."""
    return f"sqlite:///{path}"


def open_engine(url: str, create: bool) -> Engine:
    """An engine on a database whose tables are those of orchestrator.schema.

    With `create` an absent database is made and an older one is migrated. Raises LedgerError where there is none, where
    it does not answer, or where a newer version of this program has written it.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise LedgerError(f"ledger {url!r} is not a database URL (sqlite:///path or postgresql://...)") from error
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite and parsed.database:
        _check_file(Path(parsed.database), create)
    engine = sa.create_engine(parsed)
    shown_url = parsed.render_as_string(hide_password=True)
    if is_sqlite:
        sa.event.listen(engine, "connect", _set_pragmas)
        sa.event.listen(engine, "begin", _begin)
    try:
        _bring_up_to_date(engine, shown_url, create)
    except DatabaseError as error:
        raise LedgerError(f"the ledger at {shown_url} cannot be opened: {error.orig}") from error
    return engine


@contextmanager
def write_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that holds the write lock from its beginning, so that what it read is still so when it writes."""
    with engine.connect().execution_options(ledger_writes=True) as connection, connection.begin():
        yield connection


@contextmanager
def read_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one moment of the ledger."""
    with engine.connect() as connection, connection.begin():
        yield connection


def _check_file(path: Path, create: bool) -> None:
    if not create:
        if not path.is_file():
            raise LedgerError(f"there is no ledger at {path}: `scaling run` makes one")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"the ledger's folder {path.parent} cannot be made: {error.strerror}") from error


def _set_pragmas(connection: Any, _record: object) -> None:
    # The driver's own BEGIN comes too late for us (after the first read): orchestrator.database says it itself.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    # NORMAL would survive a kill -9 as well, but not a power cut; the controller commits a few times a second.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("ledger_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _bring_up_to_date(engine: Engine, shown_url: str, create: bool) -> None:
    if _revision(engine) == SCHEMA_REVISION:
        return
    if not create:
        raise LedgerError(
            f"the ledger at {shown_url} has schema {_revision(engine) or 'none'}, this version needs "
            f"{SCHEMA_REVISION}: `scaling run` brings it up to date"
        )
    # Its log speaks of plugins; what has happened is said by the ledger.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Imported here because only the first opening of a database needs it.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with write_transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('scaling ledger'))")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, SCHEMA_REVISION)
        except CommandError as error:
            raise LedgerError(
                f"the ledger at {shown_url} has a schema unknown to this version ({error}): "
                "use the version of `scaling` that wrote it, or a newer one"
            ) from error


def _revision(engine: Engine) -> str | None:
    with read_transaction(engine) as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one_or_none()
