"""What the controller tells while it works: one event a line, in the nouns of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# A step that a gang has reached. Told to the live view only: the ledger keeps the points of the curve instead.
PROGRESS = "progress"


@dataclass(frozen=True)
class Event:
    """Something that happened. `text` is the line that a person reads."""

    kind: str
    text: str
    time_ms: int
    content: Mapping[str, Any] = field(default_factory=dict)


OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Listens to nothing."""
