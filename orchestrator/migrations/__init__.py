"""Alembic environment of the ledger: `versions/` holds one file a change of the tables."""
