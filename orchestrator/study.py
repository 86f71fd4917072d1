"""The study file as frozen values: the question, its design and everything that the runs share.

A `Study` that exists is right: fields are checked one by one here, across fields in `checks`. Read one with
`loading.load_study`. Identity (design, model, corpus, recipe, evaluation) is kept apart from execution and tracking,
which may change between two launches of the same study.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from jobs.identity import digest
from jobs.recipe import Rule
from jobs.spec import Frozen, Parametrization, Precision
from orchestrator.checks import find_problems, find_warnings
from orchestrator.designs import Design
from orchestrator.numbers import Count, Fraction, NonNegative, Positive, Real, Step
from orchestrator.shapes import ShapeRule

# Values of a byte, and the token that separates documents.
BYTES_VOCAB_SIZE = 257

# More GPUs than any one run has had.
MOST_RANKS = 1_000_000

# The keys of jobs.laws.forms.FORMS, written out so that reading a study file does not import the fitter.
FormName = Literal["chinchilla", "coupled", "kaplan", "power", "power_no_floor", "power_params", "power_tokens"]


class RuleSettings(Rule):
    """A quantity as a named rule of the run's own N, D or batch (jobs.recipe.RULES)."""

    value: Real = Field(description="The quantity at the reference point")
    reference: Positive = Field(default=1.0, description="N, D or batch tokens at which the quantity is `value`")
    exponent: Real = 0.0
    minimum: Real | None = Field(default=None, description="Cap from below; a cap that is hit is recorded")
    maximum: Real | None = Field(default=None, description="Cap from above; a cap that is hit is recorded")


# Tags of unions stand in pydantic's error locations; with a space they cannot be taken for a key of the file.
def _number_or_rule(value: object) -> str:
    return "a rule" if isinstance(value, (dict, Rule)) else "a number"


_AsRule = Annotated[RuleSettings, Tag("a rule")]
CountOrRule = Annotated[Annotated[Count, Tag("a number")] | _AsRule, Discriminator(_number_or_rule)]
StepOrRule = Annotated[Annotated[Step, Tag("a number")] | _AsRule, Discriminator(_number_or_rule)]
PositiveOrRule = Annotated[Annotated[Positive, Tag("a number")] | _AsRule, Discriminator(_number_or_rule)]
NonNegativeOrRule = Annotated[Annotated[NonNegative, Tag("a number")] | _AsRule, Discriminator(_number_or_rule)]


class ModelSettings(Frozen):
    """The model family and the rule by which one size gives a shape (orchestrator.shapes)."""

    family: Literal["decoder"] = "decoder"
    parametrization: Literal["completep", "mup", "sp"] = Field(
        default="completep", description="How initialisation and learning rates follow the shape"
    )
    base_width: Count = Field(default=32, description="Width at which the recipe's values hold")
    base_layers: Count = Field(default=2, description="Depth at which the recipe's values hold")
    head_dim: Count = Field(default=64, description="Size of an attention head, even; width is a multiple of it")
    sequence_length: Count = Field(default=512, description="Tokens in a training sequence")
    aspect: Positive = Field(default=64.0, description="Width over layers: layers = max(min_layers, width / aspect)")
    min_layers: Count = Field(default=2, description="Fewest layers that `aspect` may give")
    num_layers: Count | None = Field(default=None, description="The same depth for every size, instead of `aspect`")
    mlp_multiple: Count = Field(default=8, description="MLP width is 8/3 width rounded to a multiple of this")
    vocab_size: Count | None = Field(
        default=None, description="Vocabulary of the model; needed with tokenizer hf, given by the others"
    )

    def shape_rule(self, vocab_size: int) -> ShapeRule:
        """The rule by which one size gives a shape."""
        return ShapeRule(
            vocab_size=vocab_size,
            sequence_length=self.sequence_length,
            head_dim=self.head_dim,
            aspect=self.aspect,
            min_layers=self.min_layers,
            num_layers=self.num_layers,
            mlp_multiple=self.mlp_multiple,
        )

    def parametrization_spec(self) -> Parametrization:
        """The part of the identity that says how the recipe scales."""
        return Parametrization(kind=self.parametrization, base_width=self.base_width, base_layers=self.base_layers)


class CorpusSettings(Frozen):
    """The text, and how it becomes tokens (jobs.corpus)."""

    source: Literal["python-stdlib", "files", "hub"] = Field(description="Where the documents come from")
    path: str | None = Field(default=None, description="Folder or file pattern (files), or dataset path (hub)")
    name: str | None = Field(default=None, description="Configuration of the hub dataset")
    split: str = Field(default="train", description="Split of the hub dataset")
    revision: str | None = Field(default=None, description="Commit of the hub dataset; write it down to repeat a study")
    text_column: str = Field(default="text", description="Column of the hub dataset that holds the text")
    tokenizer: Literal["bytes", "bpe", "hf"] = Field(default="bytes", description="What a token is")
    bpe_vocab_size: Count = Field(default=4096, description="Vocabulary of a BPE trained on the corpus")
    hf_tokenizer: str | None = Field(default=None, description="Name of a Hugging Face tokenizer")
    validation_fraction: Fraction = Field(default=0.05, description="Share of documents held out of training")
    split_seed: Step = Field(default=0, lt=2**63, description="Which documents are held out")

    @property
    def vocab_size(self) -> int | None:
        """Vocabulary of the tokenizer, where it is known before the corpus is prepared."""
        return {"bytes": BYTES_VOCAB_SIZE, "bpe": self.bpe_vocab_size, "hf": None}[self.tokenizer]


class RecipeSettings(Frozen):
    """The optimization. A number holds for every run; a rule follows the run's own N, D or batch."""

    learning_rate: PositiveOrRule = Field(description="Peak learning rate of AdamW at the base shape, e.g. 0.012")
    batch_tokens: CountOrRule = Field(description="Tokens of one optimizer step, a multiple of sequence_length")
    warmup_steps: StepOrRule = Field(default=100, description="Steps of linear warm-up, at most half the first fork")
    schedule: Literal["wsd", "cosine"] = Field(
        default="wsd", description="wsd: constant trunk that budgets share, then decay; cosine: nothing is shared"
    )
    decay_fraction: Fraction = Field(default=0.2, description="Share of D spent in the linear decay of wsd")
    final_fraction: NonNegative | None = Field(
        default=None, description="Learning rate at the end over its peak: 0 for wsd and 0.1 for cosine if left out"
    )
    weight_decay: NonNegativeOrRule = Field(default=0.0, description="As torch's AdamW: shrink = learning rate x this")
    beta1: NonNegative = Field(default=0.9, lt=1, description="Use 0.9, as AdamW does by default")
    beta2: NonNegativeOrRule = Field(default=0.98, description="Memory of AdamW's second moment, below 1")
    epsilon: NonNegativeOrRule = Field(default=1e-12, description="AdamW's epsilon at the base shape")
    gradient_clip: NonNegative = Field(default=1.0, description="Global norm; 0 switches clipping off")
    init_std: Positive = Field(default=0.02, description="Standard deviation of initial weights at the base shape")
    embedding_multiplier: Positive = 1.0
    output_multiplier: Positive = 1.0
    precision: Precision = Field(default="fp32", description="Of the training arithmetic; part of a run's identity")

    @property
    def rules(self) -> dict[str, Rule]:
        """The quantities that are given by a rule, by field name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if isinstance(value, Rule)}

    @property
    def horizon_rules(self) -> tuple[str, ...]:
        """Fields whose rule looks at the run's own D, so that every budget trains a trunk of its own."""
        return tuple(name for name, rule in self.rules.items() if rule.looks_at_horizon)


class EvaluationSettings(Frozen):
    """The fixed validation tokens on which every final loss is measured."""

    tokens: Count = Field(default=256_000, description="Validation tokens; the same for all runs")


class SizeHoldOut(Frozen):
    """Hold out one size by name."""

    size: Count = Field(description="A size of the design; its runs wait for the forecast")


def _word_or_size(value: object) -> str:
    return "a size" if isinstance(value, (dict, SizeHoldOut)) else "a word"


HoldOut = Annotated[
    Annotated[Literal["largest_size", "none"], Tag("a word")] | Annotated[SizeHoldOut, Tag("a size")],
    Discriminator(_word_or_size),
]


class ForecastSettings(Frozen):
    """What is forecast before it is trained."""

    hold_out: HoldOut = Field(
        default="largest_size", description="Runs that wait for the forecast: largest_size, none, or {size: 400k}"
    )
    seeds: tuple[Step, ...] | None = Field(
        default=None, min_length=1, description="Seeds of the held-out runs; left out: all of the design's"
    )
    forms: tuple[FormName, ...] = Field(
        default=("chinchilla", "coupled"), min_length=1, description="Forms mixed in the forecast"
    )
    level: Fraction = Field(default=0.9, description="Level of the prediction interval")


def _word_or_number(value: object) -> str:
    return "a word" if isinstance(value, str) and value == "auto" else "a number"


class FitSettings(Frozen):
    """How laws are fitted to the finished runs."""

    forms: tuple[FormName, ...] = Field(
        default=("chinchilla", "coupled"), min_length=1, description="Forms fitted and reported"
    )
    form: FormName = Field(default="coupled", description="The form shown first; one of `forms`")
    bootstrap: Step = Field(default=1000, description="Bootstrap replicates")
    delta: Annotated[
        Annotated[Literal["auto"], Tag("a word")] | Annotated[Positive, Tag("a number")], Discriminator(_word_or_number)
    ] = Field(default="auto", description="Huber's delta in log loss; auto: from the noise of replicates")
    hold_out: str = Field(
        default="compute:0.2",
        pattern=r"^(none|compute:0?\.\d+)$",
        description="Runs held out to judge a fit: compute:0.2 (the dearest fifth) or none",
    )


class ExecutionSettings(Frozen):
    """How runs are carried out. Changes speed and rounding, never what a run is."""

    launcher: Literal["ray", "inline"] = Field(default="ray", description="inline: one run at a time, no cluster")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: GPUs where the cluster has some")
    max_ranks: Count = Field(default=1, le=MOST_RANKS, description="Most worker processes of one gang")
    params_per_rank: Count | None = Field(
        default=None,
        description="One rank for each so many parameters, up to max_ranks; left out: max_ranks",
    )
    threads_per_rank: Count = Field(default=1, description="CPU threads of one rank")
    zero_stage: Literal[1, 2, 3] = Field(default=1, description="Sharding of states among ranks (DeepSpeed ZeRO)")
    micro_batch_sequences: Annotated[
        Annotated[Literal["auto"], Tag("a word")] | Annotated[Count, Tag("a number")], Discriminator(_word_or_number)
    ] = Field(default="auto", description="Sequences of one forward pass on one rank; auto: the most that fit")
    memory_gb_per_rank: Positive = Field(default=8.0, description="Bound on states and activations of one rank")
    checkpoint_interval_s: Positive = Field(default=60.0, description="Seconds between checkpoints in a segment")
    price_per_device_hour: NonNegative | None = Field(default=None, description="Shows the plan's cost in money")
    disk_gb: Positive | None = Field(default=None, description="Most disk that kept states may take; plan refuses more")


class TrackingSettings(Frozen):
    """Where MLflow records go."""

    uri: str | None = Field(
        default=None, description="MLflow tracking URI; left out: MLFLOW_TRACKING_URI, else a local SQLite store"
    )


class Study(Frozen):
    """One study: the question and its design."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="Use 1 to 64 of a-z, 0-9, -; it names folders")
    question: str = Field(default="", max_length=500, description="What the study asks, in one sentence")
    design: Design = Field(description="Sizes, token budgets and seeds: kind grid, isoflop, ladder or points")
    model: ModelSettings = ModelSettings()
    corpus: CorpusSettings = Field(description="The text to train on, e.g. {source: python-stdlib}")
    recipe: RecipeSettings = Field(description="The optimization, e.g. {learning_rate: 0.012, batch_tokens: 1024}")
    evaluation: EvaluationSettings = EvaluationSettings()
    forecast: ForecastSettings = ForecastSettings()
    fit: FitSettings = FitSettings()
    execution: ExecutionSettings = ExecutionSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _check(self) -> Study:
        problems = find_problems(self)
        if problems:
            raise ValidationError.from_exception_data(
                "Study",
                [
                    InitErrorDetails(
                        type=PydanticCustomError("study", "{reason}", {"reason": problem.message}),
                        loc=problem.path,
                        input=None,
                    )
                    for problem in problems
                ],
            )
        return self

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the model: its own setting, else that of the tokenizer."""
        size = self.model.vocab_size or self.corpus.vocab_size
        assert size is not None, "checks refuse tokenizer hf without model.vocab_size"
        return size

    @property
    def digest(self) -> str:
        """Name of the study's content: all but how it is carried out and where it is recorded."""
        return digest(self.model_dump(exclude={"execution", "tracking"}))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Settings that were given and have no effect, one line each."""
        return find_warnings(self)


def study_schema() -> dict[str, Any]:
    """JSON Schema of the study file, for editors."""
    schema = Study.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "scaling study"}
