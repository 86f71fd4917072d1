"""What the command line prints and how it ends: exit codes, one clear message a failure, JSON alone on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

QUIET_LOGGERS = ("ray", "mlflow", "alembic", "matplotlib", "urllib3", "datasets", "fsspec", "filelock", "asyncio")


class CommandFailed(Exception):
    """A command ends with this code after this message; for what no exception of the parts says already."""

    def __init__(self, exit_code: int, message: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code


def say(text: str = "", end: str = "\n") -> bool:
    """A result, on stdout. False where its reader has left (`| head`): the command still ends with its own code."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is buffered must go somewhere, or the interpreter complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def tell(text: str) -> None:
    """Progress or a remark, on stderr. A reader that has left stops nothing."""
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def say_json(document: Any) -> bool:
    """One stable document on stdout and nothing else."""
    return say(json.dumps(document, indent=2, sort_keys=True, allow_nan=False))


def program() -> str:
    """How a person who types a command here calls this program: by name if that finds it, else by its path."""
    mine, found = Path(sys.argv[0]), shutil.which("scaling")
    if mine.name != "scaling" or (found is not None and Path(found).resolve() == mine.resolve()):
        return "scaling"
    return os.path.relpath(mine)


def is_interactive() -> bool:
    """Whether a live view may be drawn: on a terminal that can move its cursor. NO_COLOR only takes its colours."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def configure_logging(verbose: bool = False) -> None:
    """The story of a study on stderr, one event a line."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what a user can cause or act on into one message and its exit code (DESIGN: 0, 1, 2, 3, 130).

    Anything else is a bug of ours and keeps its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        tell("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        known = known_failure(error)
        if known is None:
            raise
        code, message = known
        if message:
            tell(f"scaling: {message}")
        sys.exit(code)


def known_failure(error: Exception) -> tuple[int, str] | None:
    """Exit code and message of a failure that a user can act on; None for a bug."""
    if isinstance(error, CommandFailed):
        return error.exit_code, str(error)
    # Looked up by name along the class's bases, so that reporting an error of one part imports no other.
    names = {base.__name__ for base in type(error).__mro__}
    if "ClusterUnreachable" in names:
        return EXIT_UNREACHABLE, f"the cluster cannot be reached: {error}"
    if "TrackingUnreachable" in names:
        return EXIT_UNREACHABLE, f"the tracking server cannot be reached: {error}"
    if "FitError" in names:
        return EXIT_FAILED, f"no fit: {error}"
    if names & {"StudyError", "CorpusError", "LedgerError", "TrackingError", "CheckpointError"}:
        return EXIT_USAGE, str(error)
    if "OperationalError" in names:
        # A full disk, a lock that is held too long, a PostgreSQL that went away.
        return EXIT_UNREACHABLE, f"the ledger's database does not work: {getattr(error, 'orig', error)}"
    if isinstance(error, OSError) and error.filename is not None:
        return EXIT_USAGE, f"{error.filename}: {error.strerror}"
    if type(error) is ValueError:
        return EXIT_USAGE, str(error)
    return None
