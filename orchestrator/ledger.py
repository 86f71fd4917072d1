"""The truth of what was decided: every transition of a study, by compare-and-set and checked for legality.

A worker writes only into its attempt's folder; what it did counts once a state's manifest digest is accepted here by
the newest attempt that covers the segment. Whoever comes late changes nothing. All calls may be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.identity import canonical, digest
from jobs.observation import Observation
from jobs.spec import Execution
from orchestrator import schema
from orchestrator.database import LedgerError
from orchestrator.registration import register
from orchestrator.writing import OPEN, LedgerWriter, milliseconds

if TYPE_CHECKING:
    from orchestrator.plan import Plan


# Digits of a digest that people are shown.
SHOWN_DIGITS = 12


def frozen_text(digest_of_record: str, targets: Sequence[str]) -> str:
    """The line that tells of a frozen forecast."""
    return f"forecast {digest_of_record[:SHOWN_DIGITS]}: frozen for {', '.join(targets)}"


class Ledger(LedgerWriter):
    """The ledger of one study, for its controller."""

    def register_plan(self, plan: Plan, now: float) -> None:
        """Add the plan's runs and segments that are new; rename nothing.

        Raises LedgerError where a run of the same name is stored with another identity, naming the fields that differ.
        """
        register(self, plan, now)

    def claim_attempt(
        self,
        state_ids: Sequence[str],
        gang_id: str,
        now: float,
        *,
        execution: Execution | None = None,
        folder_of: Callable[[int], str] = lambda number: "",
        start_step: int = 0,
        above: int = 0,
    ) -> int:
        """Number of a new attempt at a chain, beyond every earlier one and `above`. Only it may accept its states now.

        `folder_of` gives the folder of the attempt with a number. Raises LedgerError if a segment may not be opened, or
        belongs to a target whose forecast is not frozen.
        """
        attempts = schema.attempt
        with self.transaction() as connection:
            self._check_forecast(state_ids)
            known = (
                connection.execute(
                    sa.select(sa.func.max(attempts.c.number)).where(attempts.c.study == self.study_name)
                ).scalar_one()
                or 0
            )
            number = 1 + max(known, above)
            for state_id in state_ids:
                self.move_segment(connection, state_id, OPEN, now, attempt=number)
            connection.execute(
                attempts.insert().values(
                    study=self.study_name,
                    number=number,
                    gang_id=gang_id,
                    state_ids=list(state_ids),
                    execution=execution.model_dump(mode="json") if execution else {},
                    folder=folder_of(number),
                    start_step=start_step,
                    outcome=OPEN,
                    cause="",
                    error="",
                    log_path="",
                    began_ms=milliseconds(now),
                )
            )
        return number

    def _check_forecast(self, state_ids: Sequence[str]) -> None:
        segments = self.segments(state_ids)
        targets = {state_id for state_id, row in segments.items() if row.role == "target"}
        if not targets:
            return
        frozen = {target for forecast in self.forecasts() for target in forecast.targets}
        for run in self.runs():
            unfrozen = sorted(segments[state_id].name for state_id in targets.intersection(run.state_ids))
            if run.role == "target" and run.name not in frozen and unfrozen:
                raise LedgerError(
                    f"segment {', '.join(unfrozen)} belongs to target {run.name}, whose forecast is not frozen: "
                    "`scaling forecast` freezes it once the fitted runs have ended"
                )

    def record_checkpoint(
        self, state_id: str, attempt: int, step: int, path: str, manifest_digest: str, now: float
    ) -> bool:
        """Note a committed state in the middle of a segment. False if a newer attempt covers the segment."""
        with self.transaction() as connection:
            if not self._is_newest(connection, state_id, attempt):
                return False
            self.insert_once(
                connection,
                schema.checkpoint,
                [
                    {
                        "study": self.study_name,
                        "state_id": state_id,
                        "step": step,
                        "attempt": attempt,
                        "path": path,
                        "manifest_digest": manifest_digest,
                        "recorded_ms": milliseconds(now),
                    }
                ],
            )
        return True

    def forget_checkpoint(self, state_id: str, step: int, attempt: int) -> None:
        """A checkpoint is gone, or cannot be read: the one before it is the newest."""
        table = schema.checkpoint
        with self.transaction() as connection:
            connection.execute(
                table.delete().where(
                    table.c.study == self.study_name,
                    table.c.state_id == state_id,
                    table.c.step == step,
                    table.c.attempt == attempt,
                )
            )

    def accept_state(self, state_id: str, attempt: int, path: str, manifest_digest: str, step: int, now: float) -> bool:
        """Accept the state that ends a segment, from the newest attempt that covers it.

        False, and nothing changed, for any other attempt and for a state that was accepted before.
        """
        table = schema.segment
        with self.transaction() as connection:
            accepted = connection.execute(
                table.update()
                .where(
                    table.c.study == self.study_name,
                    table.c.state_id == state_id,
                    table.c.status == OPEN,
                    table.c.attempt == attempt,
                    table.c.end_step == step,
                )
                .values(
                    status="accepted",
                    path=path,
                    manifest_digest=manifest_digest,
                    reason="",
                    changed_ms=milliseconds(now),
                )
            )
            return accepted.rowcount == 1

    def lose_state(self, state_id: str, reason: str, now: float) -> None:
        """An accepted state turned out to be damaged or gone: it must be trained again. Observations stay."""
        with self.transaction() as connection:
            self.move_segment(connection, state_id, "waiting", now, path=None, manifest_digest=None, reason=reason)
            text = f"{self.segments([state_id])[state_id].name}: its state is lost ({reason})"
            self.append_event("state.lost", {"text": text, "state_id": state_id}, now)

    def end_attempt(
        self, attempt: int, outcome: str, now: float, *, cause: str = "", error: str = "", log_path: str = ""
    ) -> bool:
        """Close an attempt; its segments that are still open wait again. False if it had ended before."""
        table = schema.attempt
        segments = schema.segment
        if outcome == OPEN:
            raise LedgerError(f"attempt {attempt}: open -> open is not a way to end it")
        with self.transaction() as connection:
            row = connection.execute(
                sa.select(table.c.outcome, table.c.state_ids).where(
                    table.c.study == self.study_name, table.c.number == attempt
                )
            ).one_or_none()
            if row is None:
                raise LedgerError(f"there is no attempt {attempt} in study {self.study_name}")
            if row.outcome != OPEN:
                return False
            stored = self.segments(row.state_ids)
            unaccepted = [state_id for state_id in row.state_ids if stored[state_id].status != "accepted"]
            connection.execute(
                table.update()
                .where(table.c.study == self.study_name, table.c.number == attempt)
                .values(
                    outcome=outcome,
                    cause=cause,
                    error=error,
                    log_path=log_path,
                    charged_state_id=unaccepted[0] if unaccepted else None,
                    ended_ms=milliseconds(now),
                )
            )
            connection.execute(
                segments.update()
                .where(
                    segments.c.study == self.study_name,
                    segments.c.state_id.in_(unaccepted),
                    segments.c.status == OPEN,
                    segments.c.attempt == attempt,
                )
                .values(status="waiting", changed_ms=milliseconds(now))
            )
        return True

    def record_final(self, run_name: str, observation: Observation, attempt: int, now: float) -> bool:
        """Store a run's final observation; the first one wins. Finishes the run."""
        with self.transaction() as connection:
            run = self.run(run_name)
            if run.status != "waiting":
                return False
            self.insert_once(
                connection,
                schema.observation,
                [
                    {
                        "study": self.study_name,
                        "run": run_name,
                        "attempt": attempt,
                        "content": observation.model_dump(mode="json"),
                        "recorded_ms": milliseconds(now),
                    }
                ],
            )
            self.move_run(connection, run_name, "finished", "", now)
        return True

    def fail_state(self, state_id: str, reason: str, now: float) -> list[str]:
        """Give up a segment: it and every unfinished run through it have failed. Names those runs."""
        return self._close_state(state_id, "failed", reason, now)

    def quarantine(self, state_id: str, reason: str, now: float) -> list[str]:
        """Training to this state diverged: an outcome, not retried. Names the runs that it takes along."""
        return self._close_state(state_id, "diverged", reason, now)

    def _close_state(self, state_id: str, status: str, reason: str, now: float) -> list[str]:
        with self.transaction() as connection:
            self.move_segment(connection, state_id, status, now, reason=reason)
            closed = [run.name for run in self.runs() if state_id in run.state_ids and run.status == "waiting"]
            for name in closed:
                self.move_run(connection, name, status, reason, now)
        return closed

    def reopen_runs(self, run_names: Iterable[str], now: float, *, diverged: bool = False) -> list[str]:
        """Let failed runs (with `diverged` also diverged ones) wait again, their failures forgiven. Names them."""
        statuses = {"failed", "diverged"} if diverged else {"failed"}
        table = schema.segment
        reopened = []
        with self.transaction() as connection:
            segments = self.segments()
            newest = max((row.number for row in self.attempts()), default=0)
            for name in run_names:
                run = self.run(name)
                if run.status not in statuses:
                    continue
                reopened.append(name)
                self.move_run(connection, name, "waiting", "", now)
                for state_id in run.state_ids:
                    if segments[state_id].status in statuses:
                        self.move_segment(connection, state_id, "waiting", now, reason="")
                    connection.execute(
                        table.update()
                        .where(table.c.study == self.study_name, table.c.state_id == state_id)
                        .values(forgiven_attempt=newest)
                    )
                segments = self.segments()
        return reopened

    def freeze_forecast(self, record: Mapping[str, Any], targets: Sequence[str], now: float) -> str:
        """Freeze a forecast of the target runs under the digest of its record; the same record again is the same one.

        The first for a target is the one that is scored. It is marked blind if no segment that belongs to targets alone
        had been opened before.
        """
        frozen_digest = digest(record)
        with self.transaction() as connection:
            if any(row.digest == frozen_digest for row in self.forecasts()):
                return frozen_digest
            for name in targets:
                self.run(name)
            connection.execute(
                schema.forecast.insert().values(
                    study=self.study_name,
                    digest=frozen_digest,
                    targets=list(targets),
                    blind=self._is_blind(targets),
                    record=json.loads(canonical(record)),
                    frozen_ms=milliseconds(now),
                )
            )
            self.append_event(
                "forecast.frozen", {"text": frozen_text(frozen_digest, targets), "digest": frozen_digest}, now
            )
        return frozen_digest

    def _is_blind(self, targets: Sequence[str]) -> bool:
        segments = self.segments()
        own = {
            state_id
            for run in self.runs()
            if run.name in targets
            for state_id in run.state_ids
            if segments[state_id].role == "target" or segments[state_id].is_final
        }
        return all(segments[state_id].attempt == 0 and segments[state_id].status != "accepted" for state_id in own)

    def score_forecast(self, forecast_digest: str, score: Mapping[str, Any], now: float) -> bool:
        """Store how a forecast came out; the first score stands."""
        table = schema.forecast
        with self.transaction() as connection:
            scored = connection.execute(
                table.update()
                .where(
                    table.c.study == self.study_name,
                    table.c.digest == forecast_digest,
                    table.c.scored_ms.is_(None),
                )
                .values(score=dict(score), scored_ms=milliseconds(now))
            )
            if scored.rowcount != 1:
                if all(row.digest != forecast_digest for row in self.forecasts()):
                    raise LedgerError(f"no forecast with digest {forecast_digest} was frozen in {self.study_name}")
                return False
            text = f"forecast {forecast_digest[:SHOWN_DIGITS]}: scored"
            self.append_event("forecast.scored", {"text": text, "digest": forecast_digest}, now)
        return True

    def _is_newest(self, connection: Connection, state_id: str, attempt: int) -> bool:
        table = schema.segment
        found = connection.execute(
            sa.select(table.c.attempt).where(
                table.c.study == self.study_name, table.c.state_id == state_id, table.c.status == OPEN
            )
        ).scalar_one_or_none()
        return found == attempt
