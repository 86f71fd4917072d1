from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.report import ForecastSummary, LawSummary, render_report
from tests.small_study import small_report

PIXEL = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.addresses = "", [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    path = tmp_path / "law.png"
    path.write_bytes(PIXEL)
    return path


def test_report_says_question_law_forecast_runs_and_what_was_left_out(figure: Path) -> None:
    page = Page(render_report(small_report({"Fitted law": figure})))
    for words in (
        "What loss will a 400k-parameter model of Python source reach?",
        "L = E + A / N^alpha + B / D^beta",
        "[0.2500, 0.3100]",
        "before the target opened",
        "dearest fitted run",
        "inside",
        "n140k-d2M-s0",
        "diverged at step 1,204",
        "kind: grid",
        "torch 2.13.0",
    ):
        assert words in page.text


def test_report_needs_no_other_file(figure: Path) -> None:
    page = Page(render_report(small_report({"Fitted law": figure})))
    assert page.addresses == ["data:image/png;base64,iVBORw0KGgo="]
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_what_a_user_wrote_stays_text(figure: Path) -> None:
    evil = "<script>alert('x')</script>"
    report = small_report(
        {evil: figure}, question=evil, study_yaml=evil, excluded=[(evil, evil)], runs=[{evil: evil}], plan={evil: evil}
    )
    html = render_report(report)
    assert "<script" not in html
    assert evil in Page(html).text


def test_a_target_outside_its_interval_or_not_blind_is_said() -> None:
    missed = ForecastSummary("n1", 1.5, 1.45, 1.55, 0.9, blind=False, outcome=1.6)
    waiting = ForecastSummary("n2", 1.5, 1.45, 1.55, 0.9, blind=True)
    void = ForecastSummary("n3", 1.5, 1.45, 1.55, 0.9, blind=True, verdict="void: diverged at step 80")
    page = Page(render_report(small_report({}, forecasts=[missed, waiting, void])))
    for words in ("outside", "not blind", "-6.25", "not yet run", "void: diverged at step 80"):
        assert words in page.text


def test_a_fit_that_may_not_be_believed_says_why() -> None:
    law = LawSummary(
        "coupled", "L = ...", "BOUND_HIT", ["E stands at its bound 0"], [("E", 0.0, float("nan"), 0)], 0.95, 5
    )
    text = Page(render_report(small_report({}, laws=[law]))).text
    assert "BOUND_HIT" in text
    assert "E stands at its bound 0" in text


def test_a_figure_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "law.html").write_text("<b>")
    with pytest.raises(ValueError, match=r"law\.html: a figure of the report is a \.png or \.svg file"):
        render_report(small_report({"Fitted law": tmp_path / "law.html"}))
