"""What becomes of a segment after an attempt at it ended: it waits again, or it and its runs are given up."""

from __future__ import annotations

from pathlib import Path

from jobs.checkpoints import CheckpointError, verify_state
from jobs.spec import Execution, StateRef
from orchestrator.crew import Work
from orchestrator.failures import Ending, policy_of
from orchestrator.ledger import Ledger
from orchestrator.plan import Plan
from orchestrator.state import History, halved_micro_batch, segment_states


def conclude(ledger: Ledger, plan: Plan, work: Work, ending: Ending, log_path: str, now: float) -> list[str]:
    """Close the attempt in the ledger, and its segment where its class allows no further try. Names the runs closed."""
    with ledger.transaction():
        ledger.end_attempt(
            work.claim.attempt, ending.outcome, now, cause=ending.cause, error=ending.error, log_path=log_path
        )
        if not work.unaccepted:
            return []
        state_id = work.unaccepted[0]
        if ending.outcome == "diverged":
            return ledger.quarantine(state_id, ending.cause, now)
        obstacle = _obstacle(ledger, plan, work, ending, state_id)
        if obstacle is None:
            return []
        word = ending.outcome.replace("_", " ")
        return ledger.fail_state(state_id, f"{word}: {ending.cause}{obstacle} (log: {log_path})", now)


def _obstacle(ledger: Ledger, plan: Plan, work: Work, ending: Ending, state_id: str) -> str | None:
    """Why the segment is not tried again; None if it is."""
    if ending.outcome == "out_of_memory":
        attempt = next(row for row in ledger.attempts() if row.number == work.claim.attempt)
        tried = Execution.model_validate(attempt.execution)
        if halved_micro_batch(tried, plan.segments[state_id].spec.recipe.batch_sequences) is None:
            return ", with the smallest micro-batch that cuts the batch evenly"
    failures = segment_states(plan, History.read(ledger))[state_id].failures
    policy = policy_of(ending.outcome)
    if policy.allows(failures):
        return None
    return f", {failures} times without progress" if failures > 1 else ""


def examine(ledger: Ledger, resume: StateRef | None, now: float) -> str:
    """Forget the state that an attempt started from, if it is damaged. Says what was found and what follows, or ""."""
    if resume is None:
        return ""
    try:
        verify_state(Path(resume.path), resume.manifest_digest)
    except CheckpointError as error:
        checkpoint = next((row for row in ledger.checkpoints() if row.path == resume.path), None)
        if checkpoint is not None:
            ledger.forget_checkpoint(checkpoint.state_id, checkpoint.step, checkpoint.attempt)
            return f"{error}; the state before it is used"
        owner = next((row for row in ledger.segments().values() if row.path == resume.path), None)
        if owner is not None:
            ledger.lose_state(owner.state_id, str(error), now)
            return f"{error}; {owner.name} is trained again"
    return ""


def last_word(work: Work, stopping: bool) -> Ending:
    """What the journal says of an attempt whose ranks have all left in peace."""
    if work.end is None:
        return Ending("infrastructure", "all ranks left without an end in the journal")
    outcome, reason = work.end.data["outcome"], str(work.end.data.get("reason", ""))
    if outcome == "finished":
        return Ending("finished", "")
    if outcome == "diverged":
        return Ending("diverged", f"{reason} at step {work.end.step}")
    return Ending("stopped", "asked to leave") if stopping else Ending("preempted", reason)
