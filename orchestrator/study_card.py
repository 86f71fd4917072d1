"""What a person reads first in the MLflow UI: the question, the plan, the corpus, and how to read the runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.numbers import short_number
from orchestrator.rows import flat
from orchestrator.shipping import ShippingCard

if TYPE_CHECKING:
    from jobs.corpus import PreparedCorpus
    from orchestrator.place import Place
    from orchestrator.plan import Plan
    from orchestrator.study import Study

HOW_TO_READ = """
**How to read this experiment.** One parent run holds the study: question, resolved settings, law tables, figures and
the report (open it, then *Artifacts*). Nested below it is one run for each model and token budget, named by size,
budget and seed, with its whole loss curve from step 0, and one for each trunk that several of them share. MLflow's
*step* is **tokens seen**; `optimizer_step` and `train_flops` are metrics beside it and can be chosen as x-axis.
`val/loss` is measured once, after the last step, on the same documents for every run.
"""


def card_of(study: Study, place: Place, plan: Plan, corpus: PreparedCorpus) -> ShippingCard:
    """The shipper's instructions for a study."""
    return ShippingCard(
        study=study.name,
        ledger_url=place.ledger_url,
        report_dir=str(place.paths.report),
        tracking_uri=place.store.uri,
        artifact_root=str(place.store.artifact_root) if place.store.artifact_root else None,
        note=_note(study, plan),
        params=flat(study.model_dump(mode="json", exclude={"execution", "tracking"})),
        dataset={
            "name": str(study.corpus.source if study.corpus.path is None else study.corpus.path),
            "digest": corpus.digest,
            "source": str(corpus.folder),
            "profile": {
                "train_tokens": corpus.train_tokens,
                "validation_tokens": corpus.validation_tokens,
                "vocab_size": corpus.vocab_size,
                "bytes_per_token": corpus.bytes_per_token,
            },
        },
    )


def _note(study: Study, plan: Plan) -> str:
    targets = [run for run in plan.runs if run.role == "target"]
    saved = 1.0 - plan.shared_flops / plan.from_scratch_flops
    held_out = f", {len(targets)} held out and forecast before they start" if targets else ""
    return (
        f"# {study.question or study.name}\n\n"
        f"{len(plan.runs)} runs{held_out}; {short_number(plan.shared_flops)} training FLOPs, "
        f"{saved:.0%} less than from scratch thanks to shared trunks.\n{HOW_TO_READ}"
    )
