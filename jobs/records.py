"""What a run leaves for later reading: the steps whose gauges are kept, and its final loss with its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from jobs.spec import Frozen
from jobs.storage import sha256_of_bytes, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# About 40 to 100 points in each factor of e of the steps: dense where the curve bends, sparse where it is slow.
POINTS_PER_SCALE = 40


def is_recorded(num_steps_done: int) -> bool:
    """Whether the gauges of this optimizer step (from 1) are kept: a function of the step alone.

    So a run that is resumed, or cut into other segments, records the same points. All of the first 79 steps, then
    every 2nd, 5th, 10th, ... such that about 120 points come in every factor of ten.
    """
    return num_steps_done % _spacing(num_steps_done) == 0


def _spacing(num_steps_done: int) -> int:
    """Largest of 1, 2, 5, 10, 20, ... that is at most steps / POINTS_PER_SCALE."""
    bound = max(1, num_steps_done // POINTS_PER_SCALE)
    decade: int = 10 ** int(math.log10(bound) + 1e-9)
    return next(factor * decade for factor in (5, 2, 1) if factor * decade <= bound)


@dataclass(frozen=True)
class DocumentLosses:
    """Losses of one evaluation by document, from which its mean and every paired comparison follow.

    Each array has one entry a document, in the order of the evaluation set, which is the same for all runs.
    """

    nats: npt.NDArray[np.float64]
    """Summed loss of the document's targets."""
    tokens: npt.NDArray[np.int64]
    """Targets of the document."""
    text_bytes: npt.NDArray[np.int64]
    """Bytes of text that the targets stand for."""

    @property
    def loss(self) -> float:
        """Mean loss in nats per token, L = sum(nats) / sum(tokens)."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Code length per byte of text, sum(nats) / ln 2 / sum(bytes)."""
        return float(self.nats.sum() / math.log(2.0) / self.text_bytes.sum())

    @property
    def standard_error(self) -> float:
        """Standard error of `loss` in nats per token, with documents as the sampling unit (0 for one document).

        Ratio estimator: se^2 = K / (K - 1) sum_d (nats_d - L tokens_d)^2 / (sum tokens)^2 over K documents
        (Cochran 1977, sec. 6.4), since tokens of one document are not independent.
        """
        num_documents = len(self.nats)
        if num_documents < 2:
            return 0.0
        residuals = self.nats - self.loss * self.tokens
        correction = num_documents / (num_documents - 1)
        return float(math.sqrt(correction * float(residuals @ residuals)) / self.tokens.sum())

    def save(self, path: Path) -> str:
        """Write as safetensors (`nats`, `tokens`, `text_bytes`). Returns the sha256 of the file."""
        from safetensors.numpy import save

        content: bytes = save({"nats": self.nats, "tokens": self.tokens, "text_bytes": self.text_bytes})
        write_atomically(path, content)
        return sha256_of_bytes(content)

    @classmethod
    def load(cls, path: Path, sha256: str) -> DocumentLosses:
        """Read a file of `save`. Raises ValueError if its digest is another one."""
        from safetensors.numpy import load

        content = path.read_bytes()
        found = sha256_of_bytes(content)
        if found != sha256:
            raise ValueError(f"{path}: damaged, expected sha256 {sha256}, found {found}")
        arrays = load(content)
        return cls(nats=arrays["nats"], tokens=arrays["tokens"], text_bytes=arrays["text_bytes"])


class FinalLoss(Frozen):
    """Held-out loss of a run after its last step, on a fixed set of validation tokens."""

    loss_nats_per_token: float
    loss_standard_error: float = Field(ge=0)
    bits_per_byte: float
    tokens: int = Field(gt=0)
    documents: int = Field(gt=0)
    evaluation_digest: str
    path: str
    """File of the losses by document."""
    sha256: str

    def journal_data(self, state_id: str) -> dict[str, Any]:
        """The data of the journal's `final` line."""
        return {
            "state_id": state_id,
            "val/loss": self.loss_nats_per_token,
            "val/loss_se": self.loss_standard_error,
            "val/bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "documents": self.documents,
            "evaluation_digest": self.evaluation_digest,
            "path": self.path,
            "sha256": self.sha256,
        }
