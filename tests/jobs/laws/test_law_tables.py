"""Tables and where-expressions: what is read, what is refused and with which words; the law table's three dresses."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from jobs.laws import lawtable
from jobs.laws.fitting import fit_law
from jobs.laws.holdout import hold_out
from jobs.laws.observations import FitError, Table
from jobs.laws.tables import parse_columns, read_table
from jobs.laws.where import parse_where

ROW = {"split": "train", "params": 2e6, "in fit": 1.0, "outlier": False, "note": ""}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("split == 'train'", True),
        ("split != 'train'", False),
        ("split in ['test', 'train'] and params >= 2e6", True),
        ("not outlier", True),
        ("1e6 < params < 1.5e6", False),
        ("params / 1e6 * 2 - 1 == 3", True),
        ("`in fit` == 1 or split == 'x'", True),
        ("params > -1", True),
        # An empty cell is neither above nor below a number.
        ("note > 3 or note < 3", False),
        ("split not in ('test',)", True),
    ],
)
def test_where_keeps_what_it_says(text, kept):
    assert parse_where(text)(ROW) is kept


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "params.__class__",
        "(lambda: 1)()",
        "[x for x in split]",
        "params ** 99",
        "split[0]",
        "f'{params}'",
        "params if split else 1",
        "print(params)",
    ],
)
def test_where_runs_no_code(text):
    with pytest.raises(ValueError, match="is not allowed"):
        parse_where(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split = 'train'", "cannot be read"),
        ("", "cannot be read"),
        ("spilt == 'train'", "no column 'spilt'; columns are split, params"),
        ("split * 2 == 4", "split is 'train', which is not a number"),
        ("params / 0 == 1", "divides by zero"),
        ("'a' in params", "'in' needs a list"),
    ],
)
def test_where_says_what_is_wrong(text, message):
    def keep(row):
        expression = parse_where(text)
        expression.check_names(row)
        return expression(row)

    with pytest.raises(ValueError, match=message):
        keep(ROW)


def write(path, text):
    path.write_text(text)
    return path


def test_a_table_is_read_by_its_own_column_names(tmp_path):
    path = write(
        tmp_path / "t.csv", "N,D,L,split,trunk\n1e6,2e7,3.5,train,a\n2e6,2e7,3.1,train,b\n4e6,2e7,2.9,test,b\n"
    )
    read = read_table(path, columns="params=N, tokens=D,loss=L", where="split == 'train'", cluster="trunk")
    np.testing.assert_array_equal(read.table.params, [1e6, 2e6])
    assert read.table.clusters == ("a", "b")
    assert read.table.dropped == 1
    assert read.columns["split"] == ("train", "train")
    assert read.table.conventions["params"] == "column 'N' as given"


@pytest.mark.parametrize(
    ("text", "options", "error", "message"),
    [
        ("params,tokens\n1,2\n", {}, ValueError, "no column 'loss' for loss; columns are params, tokens"),
        ("params,tokens,loss\n1e6,1e7,\n", {}, ValueError, "line 2: column 'loss' is empty"),
        ("params,tokens,loss\n1e6,1e7,nan\n", {}, ValueError, "line 2: column 'loss' is nan"),
        ("params,tokens,loss\n1e6,1e7,3\n1e6,many,3\n", {}, ValueError, "line 3: column 'tokens' holds 'many'"),
        ("params,tokens,loss\n-1e6,1e7,3\n", {}, ValueError, "line 2: column 'params' is -1e6; it must be finite"),
        ("params,tokens,loss\n", {}, FitError, "has a header and no rows"),
        ("", {}, ValueError, "is empty"),
        ("params,tokens,loss,loss\n1,1,1,1\n", {}, ValueError, "'loss' appears twice"),
        ("params,tokens,loss\n1e6,1e7,3\n", {"where": "loss > 9"}, FitError, "leaves none of 1 rows"),
        ("params,tokens,loss\n1e6,1e7,3\n", {"where": "x > 9"}, ValueError, "no column 'x'"),
        ("params,tokens,loss\n1e6,1e7,3\n", {"cluster": "trunk"}, ValueError, "no column 'trunk' for --cluster"),
        ("params,tokens,loss\n1e6,1e7,3\n", {"columns": "N=params"}, ValueError, "'N=params' is not one of params="),
    ],
)
def test_a_bad_table_is_refused_by_row_and_column(tmp_path, text, options, error, message):
    with pytest.raises(error, match=message):
        read_table(write(tmp_path / "t.csv", text), **options)


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read the table .*No such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_table(tmp_path / "b.csv")


def test_columns_keep_their_default_names():
    assert parse_columns(None) == {}
    assert parse_columns("loss=L") == {"loss": "L"}


@pytest.fixture(scope="module")
def fitted():
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(5e7, 5e9, 6), np.geomspace(1e9, 1e11, 5)))
    noise = np.exp(0.005 * np.random.default_rng(0).standard_normal(30))
    table = Table(n, d, (1.8 + 480 / n**0.35 + 2100 / d**0.37) * noise)
    fit = fit_law(table, "chinchilla", bootstrap=50)
    return fit.with_holdout(hold_out(table, "chinchilla", bootstrap=50))


def test_a_law_table_tells_the_same_facts_in_every_dress(fitted):
    facts = lawtable.facts(fitted)
    texts = {ending: write([fitted]) for ending, write in lawtable.WRITERS.items()}
    lines = list(csv.reader(io.StringIO(texts["csv"])))[1:]
    assert [tuple(line) for line in lines] == [("chinchilla", *fact) for fact in facts]
    law = json.loads(texts["json"])["laws"][0]
    assert law == fitted.document()
    for section, name, value in facts:
        assert value.replace("|", "\\|") in texts["md"], (section, name)
    assert repr(fitted.params["alpha"]) in texts["csv"]
    assert law["params"]["alpha"] == fitted.params["alpha"]


def test_a_law_table_names_status_conventions_rows_and_holdout(fitted):
    told = {(section, name): value for section, name, value in lawtable.facts(fitted)}
    assert told["law", "status"] == fitted.status
    assert told["rows", "hash"] == fitted.rows.hash
    assert told["conventions", "compute"] == "6 * params * tokens"
    assert float(told["holdout", "mean_abs_rel_error"]) == fitted.holdout.mean_abs_rel_error
    assert float(told["objective", "value"]) == fitted.objective.value
