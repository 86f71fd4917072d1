"""A small study file and its variations, one line each."""

from __future__ import annotations

import pytest

from orchestrator.loading import StudyError, parse_study
from orchestrator.study import Study

SOURCE = "small.yaml"

TEXT = """\
name: small
question: "What loss?"
design:
  kind: grid
  sizes: [20k, 45k, 95k]
  tokens: [0.5M, 1M, 2M, 4M]
model: {base_width: 32, head_dim: 8, aspect: 16, sequence_length: 128}
corpus: {source: python-stdlib}
recipe:
  learning_rate: 0.012
  batch_tokens: 1024
  warmup_steps: 50
  decay_fraction: 0.2
forecast: {hold_out: largest_size}
"""


def small_study(*overrides: str) -> Study:
    """The study with overrides `a.b=c` applied."""
    return parse_study(TEXT, SOURCE, overrides)


def refusal(*overrides: str) -> str:
    """The text with which the study is refused under these overrides."""
    with pytest.raises(StudyError) as refused:
        small_study(*overrides)
    return str(refused.value)
