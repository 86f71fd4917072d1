"""Runs the ledger's migrations on the connection that the ledger hands over; never reads a configuration file."""

from __future__ import annotations

from alembic import context

from orchestrator.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite keeps DDL in the transaction too, once the driver leaves BEGIN to us (orchestrator.database).
    transactional_ddl=True,
)
context.run_migrations()
