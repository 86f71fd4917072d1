"""Study files as people write them: right, wrong, and what is said of the wrong ones."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.loading import LARGEST_FILE_BYTES, StudyError, load_study, parse_document, parse_study
from tests.studies import TEXT, refusal, small_study


def refused(text: str) -> list[str]:
    with pytest.raises(StudyError) as error:
        parse_study(text, "f.yaml")
    return str(error.value).splitlines()


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=str)
def test_every_config_is_right(path: Path) -> None:
    assert load_study(path).name == path.stem


def test_numbers_are_read_as_written() -> None:
    document = parse_document("a: 1e18\nb: 3e-4\nc: 1_000\nd: no\ne: 12:30\nf: 010\ng: '5'\nh:\ni: true", "f.yaml")
    assert document.value == {
        "a": 1e18,
        "b": 3e-4,
        "c": 1000,
        "d": "no",
        "e": "12:30",
        "f": 10,
        "g": "5",
        "h": None,
        "i": True,
    }


def test_an_error_names_file_line_field_value_bound_and_way_out() -> None:
    text = TEXT.replace("sizes: [20k, 45k, 95k]", "sizes: [-5, 45k]")
    assert refused(text) == [
        "f.yaml:5: design.sizes[0]: -5 must be 1 or more. Write it like 12, 0.5M, 256k, 1e18 or 1_000_000"
    ]


def test_all_errors_are_shown_at_once_each_at_its_line() -> None:
    text = TEXT.replace("  tokens:", "  tokns:").replace("1024", "1m").replace("python-stdlib", "python-stdlb")
    lines = refused(text)
    assert [line.split(": ")[:2] for line in lines] == [
        ["f.yaml:6", "design.tokns"],
        ["f.yaml:8", "corpus.source"],
        ["f.yaml:11", "recipe.batch_tokens"],
    ]
    assert "Did you mean 'tokens'?" in lines[0]
    assert "Did you mean 'python-stdlib'?" in lines[1]


def test_a_missing_key_is_shown_at_its_group() -> None:
    lines = refused(TEXT.replace("  learning_rate: 0.012\n", ""))
    assert len(lines) == 1
    assert lines[0].startswith("f.yaml:9: recipe.learning_rate: is required. Peak learning rate")


@pytest.mark.parametrize(
    ("text", "place", "reason"),
    [
        ("", "f.yaml", "is empty"),
        ("# only a comment", "f.yaml", "is empty"),
        ("[1, 2]", "f.yaml:1", "must be a mapping of keys"),
        ("just words", "f.yaml:1", "must be a mapping of keys"),
        ("a: 1\na: 2", "f.yaml:2", "'a' is given twice, first at f.yaml:1"),
        ("a: {b: 1, b: 2}", "f.yaml:1", "'b' is given twice"),
        ("a: &x [1]\nb: *x", "f.yaml:1", "anchors and aliases are not read"),
        ("a: !!python/object/apply:os.system ['true']", "f.yaml:1", "is not read. Write the plain value"),
        ("a: 1\n---\nb: 2", "f.yaml:2", "a second document begins here"),
        ("a: " + "[" * 50 + "]" * 50, "f.yaml:1", "nested deeper than 20 levels"),
        ("a: " + "[" * 200_000, "f.yaml:1", "nested deeper than 20 levels"),
        ("? [1]\n: 2", "f.yaml:1", "a key must be a word"),
        ("a: 1\n  b: 2", "f.yaml:2", "is not YAML"),
        ("a: [1", "f.yaml:", "is not YAML"),
        ("a: '\x01'", "f.yaml:1", "is not YAML"),
    ],
)
def test_what_is_no_study_is_refused_with_its_place(text: str, place: str, reason: str) -> None:
    lines = refused(text)
    assert len(lines) == 1
    assert lines[0].startswith(place)
    assert reason in lines[0]


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"none\.yaml: there is no such file"):
        load_study(tmp_path / "none.yaml")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be read"):
        load_study(tmp_path)


def test_a_file_that_is_not_text_or_too_large_is_refused(tmp_path: Path) -> None:
    binary, large = tmp_path / "b.yaml", tmp_path / "l.yaml"
    binary.write_bytes(b"name: \xff\xfe")
    large.write_bytes(b"#" * (LARGEST_FILE_BYTES + 1))
    with pytest.raises(StudyError, match="is not text in UTF-8"):
        load_study(binary)
    with pytest.raises(StudyError, match="is larger than 1,000,000 bytes"):
        load_study(large)


def test_a_long_list_of_problems_is_cut() -> None:
    lines = refused(TEXT.replace("sizes: [20k, 45k, 95k]", f"sizes: [{', '.join(['x'] * 100)}]"))
    assert len(lines) == 21
    assert lines[-1] == "... and 80 more problems"


def test_overrides_change_one_value_and_make_missing_groups() -> None:
    study = small_study("recipe.learning_rate=3e-3", "design.sizes=[20k, 45k]", "execution.max_ranks=2", "name=other")
    assert study.recipe.learning_rate == 3e-3
    assert study.design.sizes == (20_000, 45_000)  # type: ignore[union-attr]
    assert study.execution.max_ranks == 2
    assert study.name == "other"


def test_an_error_of_an_override_is_shown_at_the_override() -> None:
    assert refusal("recipe.learning_rate=-1").startswith(
        "override recipe.learning_rate=-1: recipe.learning_rate: -1 must be > 0"
    )


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("recipe", "must look like a.b=c"),
        ("recipe.=3", "must look like a.b=c"),
        ("name.x=3", "name is the single value 'small' and has no key 'x'. Override name as a whole"),
        ("design.sizes=[1", "is not YAML"),
        ("recipe.learning_rat=1", "Did you mean 'learning_rate'?"),
    ],
)
def test_a_wrong_override_is_refused(override: str, reason: str) -> None:
    text = refusal(override)
    assert text.startswith(f"override {override}: ")
    assert reason in text


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from(
        [
            *("name", "design", "design.sizes", "design.tokens", "design.seeds", "design.kind", "model.head_dim"),
            *("model.aspect", "model.num_layers", "model.vocab_size", "corpus.tokenizer", "corpus.validation_fraction"),
            *("recipe.learning_rate", "recipe.batch_tokens", "recipe.warmup_steps", "recipe.beta2", "recipe.schedule"),
            *("forecast.hold_out", "fit.delta", "execution.micro_batch_sequences", "tracking", "zzz.zzz"),
        ]
    ),
    value=st.one_of(
        st.sampled_from(
            [
                *(
                    "",
                    "{}",
                    "[]",
                    "[[1]]",
                    "{a: 1}",
                    "{size: 45k}",
                    "1e300",
                    ".nan",
                    "-0",
                    "1e30",
                    "cosine",
                    "hf",
                    "auto",
                ),
                *("{rule: tokens_power, value: 1, exponent: 99}", "{rule: constant, value: -3}", "{rule: x, value: y}"),
            ]
        ),
        st.floats().map(repr),
        st.text(max_size=20),
    ),
)
def test_whatever_is_written_is_taken_or_refused_in_lines_of_our_own(key: str, value: str) -> None:
    try:
        said = small_study(f"{key}={value}").warnings
    except StudyError as refusal:
        said = refusal.lines
    assert all("pydantic" not in line for line in said)


def test_an_override_stands_in_for_the_error_that_it_repairs() -> None:
    broken = TEXT.replace("0.012", "oops")
    assert parse_study(broken, "f.yaml", ["recipe.learning_rate=0.01"]).recipe.learning_rate == 0.01
