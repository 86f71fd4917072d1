"""What text a study trains on and how it becomes tokens, as a frozen value that knows which fields go together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jobs.spec import Frozen

# The 256 bytes, the boundary, and one merge.
MIN_BPE_VOCAB_SIZE = 258


class CorpusError(ValueError):
    """A corpus that cannot be prepared, opened or read as asked; the message has the way out."""


class CorpusSpec(Frozen):
    """What text a study trains on, and how it becomes tokens."""

    source: Literal["python-stdlib", "files", "hub"]
    path: str | None = None
    """Of `files`: a file, folder or glob. Of `hub`: owner/name, or a local folder in the hub's layout."""
    name: str | None = None
    """Configuration of a hub data set that has several."""
    split: str | None = None
    """Split of a hub data set to read ("train" by default); validation documents are taken out of it."""
    revision: str | None = None
    """Commit of a hub data set. Without it the newest is looked up, pinned and reported."""
    text_column: str = "text"
    tokenizer: Literal["bytes", "bpe", "hf"] = "bytes"
    bpe_vocab_size: int | None = Field(default=None, ge=MIN_BPE_VOCAB_SIZE, le=1 << 24)
    """Ids in all, boundary included; of the tokenizer `bpe`."""
    hf_tokenizer: str | None = None
    """Path of a tokenizer.json, or owner/name@revision on the hub; of the tokenizer `hf`."""
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of documents, in expectation."""
    split_seed: int = Field(default=0, ge=0, lt=1 << 63)

    @model_validator(mode="after")
    def _check(self) -> CorpusSpec:
        def need(field: str, wanted: bool, whose: str) -> None:
            given = getattr(self, field) is not None
            if wanted and not given:
                raise ValueError(f"{whose} needs {field}")
            if given and not wanted:
                raise ValueError(f"{field} means nothing for {whose}: remove it")

        source = f"source {self.source}"
        need("path", self.source != "python-stdlib", source)
        for field in ("name", "split", "revision"):
            if self.source != "hub":
                need(field, False, source)
        if self.source == "python-stdlib" and self.text_column != "text":
            raise ValueError(f"text_column means nothing for {source}: remove it")
        need("bpe_vocab_size", self.tokenizer == "bpe", f"tokenizer {self.tokenizer}")
        need("hf_tokenizer", self.tokenizer == "hf", f"tokenizer {self.tokenizer}")
        return self
