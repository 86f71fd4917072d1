"""The law table: a fitted law as CSV, JSON and Markdown with the same facts in each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence

from jobs.laws.fit import Fit


def facts(fit: Fit) -> list[tuple[str, str, str]]:
    """(section, name, value) of everything a law table says; numbers with all their digits."""
    law = fit.law
    rows = [("law", "form", fit.form), ("law", "equation", law.equation), ("law", "paper", law.paper)]
    rows.append(("law", "status", fit.status))
    rows += [("law", "reason", reason) for reason in fit.reasons]
    for name, value in fit.params.items():
        rows.append(("parameter", name, repr(value)))
        if name in fit.se:
            rows.append(("standard error", name, repr(fit.se[name])))
            low, high = fit.intervals[name]
            rows.append((f"{fit.level:g} interval", f"{name} low", repr(low)))
            rows.append((f"{fit.level:g} interval", f"{name} high", repr(high)))
    document = fit.document()
    for section in ("objective", "bootstrap", "certificate", "noise", "rows", "conventions"):
        for name, value in document[section].items():
            rows.append((section, name, _text(value)))
    for name, ends in document["span"].items():
        rows.append(("fitted range", name, f"{ends[0]!r} to {ends[1]!r}"))
    for number, basin in enumerate(fit.basins, start=1):
        rows.append((f"basin {number}", "objective", repr(basin.objective)))
        rows += [(f"basin {number}", name, repr(value)) for name, value in basin.params.items()]
    if fit.holdout is not None:
        for name, value in document["holdout"].items():
            if name == "baselines":
                rows += [("holdout baseline", baseline, repr(error)) for baseline, error in value.items()]
            else:
                rows.append(("holdout", name, _text(value)))
    return rows


def _text(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "; ".join(str(item) for item in value) or "none"
    return value if isinstance(value, str) else "none" if value is None else repr(value)


def to_csv(fits: Sequence[Fit]) -> str:
    """Columns form, section, name, value; one line a fact."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("form", "section", "name", "value"))
    for fit in fits:
        writer.writerows((fit.form, *fact) for fact in facts(fit))
    return out.getvalue()


def to_json(fits: Sequence[Fit]) -> str:
    """{"laws": [document, ...]}, each as `scaling fit --json` prints it."""
    return json.dumps({"laws": [fit.document() for fit in fits]}, indent=2, allow_nan=False) + "\n"


def to_markdown(fits: Sequence[Fit]) -> str:
    """A heading a law, the parameters as one table, everything else as another."""
    blocks = []
    for fit in fits:
        lines = [f"## {fit.form}: `{fit.law.equation}`", "", f"Status **{fit.status}**."]
        lines += [f"- {reason}" for reason in fit.reasons]
        lines += ["", f"| parameter | value | standard error | {fit.level:g} interval |", "|---|---|---|---|"]
        for name, value in fit.params.items():
            if name in fit.se:
                low, high = fit.intervals[name]
                lines.append(f"| {name} | {value!r} | {fit.se[name]!r} | {low!r} to {high!r} |")
            else:
                lines.append(f"| {name} | {value!r} | none | none |")
        lines += ["", "| | | |", "|---|---|---|"]
        told = ("parameter", "standard error", f"{fit.level:g} interval")
        for section, name, text in facts(fit):
            if section not in told and name not in ("status", "reason"):
                lines.append(f"| {section} | {name} | {text.replace('|', chr(92) + '|')} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


# How `scaling export` writes a law table, by the ending of the file.
WRITERS: dict[str, Callable[[Sequence[Fit]], str]] = {"csv": to_csv, "json": to_json, "md": to_markdown}
