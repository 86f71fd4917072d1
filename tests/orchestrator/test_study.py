"""A study that exists is right: what is checked across fields, and what is said of it."""

from typing import get_args

import pytest
from pydantic import ValidationError

from jobs.laws.forms import FORMS
from orchestrator.study import FormName, Study, study_schema
from tests.studies import TEXT, refusal, small_study


@pytest.mark.parametrize(
    ("overrides", "place", "reason"),
    [
        (["name=Bad Name"], "name", "Use 1 to 64 of a-z, 0-9, -"),
        (["name=" + "a" * 65], "name", "Use 1 to 64"),
        (["design.kind=gird"], "design", "'gird' is unknown. Did you mean 'grid'?"),
        (["design.tokens=null"], "design", "exactly one of tokens and tokens_per_param, neither given"),
        (["design.tokens_per_param=[20]"], "design", "both given"),
        (["design.sizes=[]"], "design.sizes", "needs at least 1 entry"),
        (["design.sizes=20k"], "design.sizes", "must be a list. Write it in brackets, like [20k]"),
        (["design.sizes=[20k, 45k, 20k]"], "design.sizes[2]", "20000 is listed twice"),
        (["design.sizes=[20k, 20.1k, 95k]"], "design.sizes[1]", "becomes the same shape as 20k"),
        (
            ["design.sizes=[1, 20k]"],
            "design.sizes[0]",
            "cannot be reached with heads of 8 and vocabulary 257: the nearest shapes have 3.72k",
        ),
        (["design.seeds=[0, 0]"], "design.seeds[1]", "is listed twice"),
        (["design.seeds=[1e19]"], "design.seeds[0]", "must be < 9.22337e+18"),
        (
            ["design.tokens=[1M, 1.0001M]"],
            "design.tokens[1]",
            "is the same run as 20k at 1M tokens: both are 977 steps",
        ),
        (["design.tokens=[50k, 1M]"], "recipe.warmup_steps", "must be at most half of its fork at step 39"),
        (["recipe.warmup_steps=0", "design.tokens=[500]"], "design.tokens[0]", "too short to fork"),
        (["recipe.schedule=cosine", "design.tokens=[50k]"], "recipe.warmup_steps", "must be below its 49 steps"),
        (["recipe.batch_tokens=1000"], "recipe.batch_tokens", "multiple of model.sequence_length 128. Use 896 or 1024"),
        (["recipe.batch_tokens=100"], "recipe.batch_tokens", "Use 128"),
        (["recipe.beta2=1"], "recipe.beta2", "1 must be < 1"),
        (["recipe.beta1=1"], "recipe.beta1", "must be < 1. Use 0.9"),
        (["recipe.final_fraction=1"], "recipe.final_fraction", "must be < 1"),
        (["recipe.learning_rate={rule: powr, value: 1}"], "recipe.learning_rate", "unknown rule 'powr'"),
        (["recipe.learning_rate={rule: params_power, value: oops}"], "recipe.learning_rate.value", "is not a number"),
        (
            ["recipe.learning_rate={rule: params_power, value: 1, exponent: 1000}"],
            "recipe",
            "overflows. Use a smaller one",
        ),
        (["recipe.warmup_steps={rule: params_power, value: 1e300, exponent: 2}"], "recipe", "overflows"),
        (["recipe.batch_tokens={rule: constant, value: -1}"], "recipe", "gives -1, must be 1 or more. Use a minimum"),
        (["recipe.beta2={rule: constant, value: 2}"], "recipe", "beta2 = 2.0: input should be less than 1"),
        (["recipe.learning_rate={rule: params_power, value: -1}"], "recipe", "learning_rate = -1.0"),
        (["model.head_dim=7"], "model.head_dim", "must be even"),
        (
            ["corpus={source: python-stdlib, tokenizer: hf, hf_tokenizer: a}", "model.vocab_size=1"],
            "model.vocab_size",
            "2",
        ),
        (["model.vocab_size=100"], "model.vocab_size", "must be 257 or more"),
        (["corpus.source=hub"], "corpus.path", "is needed with source hub"),
        (["corpus.text_column=body"], "corpus.text_column", "means nothing for source python-stdlib"),
        (["corpus.tokenizer=bpe", "corpus.bpe_vocab_size=200"], "corpus.bpe_vocab_size", "must be 258"),
        (["corpus.tokenizer=hf", "corpus.hf_tokenizer=gpt2"], "model.vocab_size", "is needed with tokenizer hf"),
        (["corpus=null"], "corpus", "is empty and must be a mapping of keys"),
        (["evaluation.tokens=100"], "evaluation.tokens", "must be at least one sequence of 128"),
        (["forecast.hold_out={size: 21k}"], "forecast.hold_out.size", "Use one of 20k, 45k, 95k"),
        (["forecast.hold_out=bigest"], "forecast.hold_out", "'bigest' is unknown"),
        (["design.sizes=[20k]"], "forecast.hold_out", "leaves nothing to fit. Add sizes, or use hold_out: none"),
        (["fit.forms=[chinchila]"], "fit.forms[0]", "Did you mean 'chinchilla'?"),
        (["fit.forms=[chinchilla]"], "fit.form", "'coupled' must be one of fit.forms"),
        (["fit.hold_out=compute:0.0"], "fit.hold_out", "holds nothing out"),
        (["fit.hold_out=dearest"], "fit.hold_out", "must match"),
        (["fit.delta=nan"], "fit.delta", "is not a number"),
        (
            ["execution.micro_batch_sequences=3"],
            "execution.micro_batch_sequences",
            "8 sequences in a batch cannot be split by 3 per micro-batch (needs a multiple of 3). Use 2 or 4, or auto",
        ),
        (["execution.max_ranks=1e12"], "execution.max_ranks", "must be at most 1000000"),
        (["execution.zero_stage=0"], "execution.zero_stage", "Use one of 1, 2, 3"),
        (["execution.checkpoint_interval_s=0"], "execution.checkpoint_interval_s", "must be > 0"),
        (["tracking.uri=5"], "tracking.uri", "must be text"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(overrides: list[str], place: str, reason: str) -> None:
    lines = refusal(*overrides).splitlines()
    assert len(lines) == 1
    assert f": {place}: " in lines[0]
    assert reason in lines[0]


def test_a_grid_of_a_billion_cells_is_refused_before_it_is_made() -> None:
    many = f"[{', '.join(map(str, range(1000, 2000)))}]"
    text = refusal(f"design.sizes={many}", f"design.tokens={many}", f"design.seeds={many}")
    assert "asks for 1,000,000,000 runs; at most 100,000 are planned" in text


def test_a_python_caller_is_refused_like_a_file() -> None:
    good = small_study()
    with pytest.raises(ValidationError, match="leaves nothing to fit"):
        Study.model_validate(good.model_dump() | {"design": {"kind": "grid", "sizes": [20_000], "tokens": [10**6]}})


def test_every_form_of_a_law_may_be_named() -> None:
    assert set(get_args(FormName)) == set(FORMS)


def test_the_digest_ignores_execution_and_spelling() -> None:
    study = small_study()
    assert small_study("execution.max_ranks=2", "tracking.uri=sqlite:///x.db").digest == study.digest
    assert small_study("design.sizes=[20_000, 4.5e4, 95k]").digest == study.digest
    assert small_study("recipe.learning_rate=0.011").digest != study.digest


def test_a_study_survives_its_own_json() -> None:
    study = small_study("recipe.learning_rate={rule: params_power, value: 0.012, reference: 50k, exponent: -0.1}")
    assert Study.model_validate_json(study.model_dump_json()) == study


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (["model.num_layers=3"], "model.aspect has no effect: model.num_layers fixes the depth"),
        (
            ["recipe.schedule=cosine"],
            "recipe.decay_fraction has no effect: a cosine schedule decays over the whole run",
        ),
        (["corpus.bpe_vocab_size=512"], "corpus.bpe_vocab_size has no effect: the tokenizer is bytes"),
        (["corpus.revision=main"], "corpus.revision has no effect: the source is python-stdlib"),
        (
            ["execution.launcher=inline", "execution.max_ranks=2"],
            "execution.max_ranks has no effect: the inline launcher runs one rank",
        ),
    ],
)
def test_a_setting_without_effect_is_told(overrides: list[str], warning: str) -> None:
    assert warning in small_study(*overrides).warnings


def test_a_plain_study_has_no_warnings() -> None:
    assert small_study().warnings == ()


def test_the_schema_takes_what_the_reader_takes_and_refuses_an_unknown_key() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    schema = study_schema()
    written = yaml.safe_load(TEXT)
    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"desing": {}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | {"evaluation": {"tokens": "twelve"}}, schema)
