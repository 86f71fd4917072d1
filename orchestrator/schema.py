"""Tables of the ledger, named `scaling_...`: one database may hold several studies, and may be MLflow's."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# The revision in orchestrator/migrations/versions that these tables stand for.
SCHEMA_REVISION = "first_ledger"
VERSION_TABLE = "scaling_version"

metadata = MetaData()

# SQLite hands out growing numbers only for a column of exactly this type.
GrowingInteger = BigInteger().with_variant(Integer(), "sqlite")

study = Table(
    "scaling_study",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("corpus_digest", String(64), nullable=False),
    # Names this counting of points: a ledger that is rebuilt has another, and its sequences mean something else.
    Column("counting", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

run = Table(
    "scaling_run",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("state_ids", JSON, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("identity", JSON, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("changed_ms", BigInteger, nullable=False),
)

segment = Table(
    "scaling_segment",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("state_id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("parent_id", String(64)),
    Column("curve_id", String(64), nullable=False),
    Column("start_step", BigInteger, nullable=False),
    Column("end_step", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("role", String(16), nullable=False),
    Column("is_final", Boolean, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False, default=""),
    # The newest attempt that covers the segment: nobody else may accept its state. 0 before the first.
    Column("attempt", Integer, nullable=False, default=0),
    # Failures of attempts up to this one are forgiven (a user asked to try again).
    Column("forgiven_attempt", Integer, nullable=False, default=0),
    Column("path", Text),
    Column("manifest_digest", String(64)),
    Column("changed_ms", BigInteger, nullable=False),
)

checkpoint = Table(
    "scaling_checkpoint",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("state_id", String(64), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("path", Text, nullable=False),
    Column("manifest_digest", String(64), nullable=False),
    Column("recorded_ms", BigInteger, nullable=False),
)

attempt = Table(
    "scaling_attempt",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("gang_id", String(64), nullable=False),
    Column("state_ids", JSON, nullable=False),
    Column("execution", JSON, nullable=False),
    Column("folder", Text, nullable=False),
    Column("start_step", BigInteger, nullable=False),
    Column("outcome", String(32), nullable=False),
    Column("cause", Text, nullable=False, default=""),
    Column("error", Text, nullable=False, default=""),
    Column("log_path", Text, nullable=False, default=""),
    # The first segment of the chain that was not accepted when the attempt ended: a failure is counted against it.
    Column("charged_state_id", String(64)),
    Column("began_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
)

observation = Table(
    "scaling_observation",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("run", String(64), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("content", JSON, nullable=False),
    Column("recorded_ms", BigInteger, nullable=False),
)

event = Table(
    "scaling_event",
    metadata,
    Column("sequence", GrowingInteger, primary_key=True, autoincrement=True),
    Column("study", String(64), nullable=False, index=True),
    Column("kind", String(64), nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("content", JSON, nullable=False),
    sqlite_autoincrement=True,
)

point = Table(
    "scaling_point",
    metadata,
    Column("sequence", GrowingInteger, primary_key=True, autoincrement=True),
    Column("study", String(64), nullable=False),
    Column("curve_id", String(64), nullable=False),
    Column("key", String(128), nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("value", Float(53), nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    # The first line of each (curve, key, step) wins: a replay adds nothing.
    UniqueConstraint("study", "curve_id", "key", "step", name="scaling_point_once"),
    Index("scaling_point_curve", "study", "curve_id", "sequence"),
    sqlite_autoincrement=True,
)

forecast = Table(
    "scaling_forecast",
    metadata,
    Column("sequence", GrowingInteger, primary_key=True, autoincrement=True),
    Column("study", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("targets", JSON, nullable=False),
    Column("blind", Boolean, nullable=False),
    Column("record", JSON, nullable=False),
    Column("frozen_ms", BigInteger, nullable=False),
    Column("score", JSON),
    Column("scored_ms", BigInteger),
    Index("scaling_forecast_digest", "study", "digest", unique=True),
    sqlite_autoincrement=True,
)

lease = Table(
    "scaling_lease",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("token", String(64), nullable=False),
    Column("host", String(256), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("boot_id", String(128), nullable=False),
    Column("process_started_ms", BigInteger, nullable=False),
    Column("taken_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
)

mark = Table(
    "scaling_mark",
    metadata,
    Column("study", String(64), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("value", JSON, nullable=False),
)
