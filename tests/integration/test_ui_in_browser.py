"""A person's way through MLflow's own pages, in a headless Chromium; the screenshots are kept to be looked at."""

import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.tracking import Tracker, read_observations
from orchestrator import ui
from orchestrator.drawing import save
from orchestrator.figures import curves_figure, residual_figure
from orchestrator.law_figure import law_figure
from orchestrator.report import render_report
from orchestrator.shipper import ship_once
from tests.small_study import (
    BUDGETS,
    SIZES,
    STUDY_NAME,
    attach,
    curves,
    finished_study,
    forecasts,
    observations,
    predict,
    small_report,
)

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
PATIENCE_MS = 40_000
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
# MLflow's assistant otherwise covers a third of the page.
WITHOUT_ASSISTANT = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""
QUESTION = "What loss will a 400k-parameter model of Python source reach?"


@dataclass(frozen=True)
class OpenStudy:
    """A study in a running UI."""

    url: str
    experiment_id: str
    parent_run: str
    child_run: str

    @property
    def runs_link(self) -> str:
        return ui.study_link(self.url, self.experiment_id)

    @property
    def report_link(self) -> str:
        return ui.study_link(self.url, self.experiment_id, self.parent_run)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenStudy]:
    root = tmp_path_factory.mktemp("store")
    report = root / "report"
    drawn = {
        "Fitted law": save(law_figure(observations(), predict, forecasts(), title=QUESTION), report, "law")[1],
        "Residuals": save(residual_figure(observations(), predict), report, "residuals")[1],
        "Loss curves": save(curves_figure(curves()), report, "curves")[1],
    }
    (report / "report.html").write_text(render_report(small_report(drawn)), encoding="utf-8")
    shown = finished_study()
    for path in sorted(report.iterdir()):
        attach(shown, path, "" if path.suffix == ".html" else "figures")
    tracker = Tracker(f"sqlite:///{root}/mlflow.db", root / "mlartifacts")
    ship_once(shown, tracker)
    experiment_id = tracker.experiment_of(STUDY_NAME)
    assert experiment_id is not None
    runs = tracker.runs(experiment_id)
    server = ui.start_ui(tracker.uri, root / "mlartifacts", root / "ui.log", ui.free_port())
    yield OpenStudy(server.url, experiment_id, runs[f"study:{STUDY_NAME}"].mlflow_id, runs["run:n140k-d2M"].mlflow_id)
    server.stop()


@pytest.fixture(scope="module")
def page() -> "Iterator[playwright.Page]":
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=list(CHROMIUM_ARGUMENTS))
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        page.add_init_script(WITHOUT_ASSISTANT)
        yield page
        browser.close()


def visit(page: "playwright.Page", link: str, *words: str) -> None:
    """Open an address afresh and wait until the words can be read."""
    page.goto("about:blank")
    page.goto(link)
    for word in words:
        page.get_by_text(word).first.wait_for()


def keep(page: "playwright.Page", name: str) -> None:
    """Store a screenshot, after what is being drawn has come to rest."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.wait_for_timeout(1500)
    page.screenshot(path=ARTIFACTS / f"mlflow-{name}.png")


def test_runs_table_shows_the_question_and_every_run_with_its_columns(
    page: "playwright.Page", study: OpenStudy
) -> None:
    names = [f"{size}-{budget}-s0" for size in SIZES for budget in BUDGETS]
    visit(page, study.runs_link, QUESTION, *names)
    for column in ("N", "D", "C", "val/loss", "val/loss_se"):
        page.get_by_role("columnheader", name=column, exact=True).first.wait_for()
    assert page.get_by_text("trunk", exact=True).count() == 0
    keep(page, "runs")


def test_plain_address_of_the_study_folds_its_runs_under_one_parent(page: "playwright.Page", study: OpenStudy) -> None:
    plain = f"{study.url}/#/experiments/{study.experiment_id}/runs?{ui.MODEL_TRAINING}"
    visit(page, plain, QUESTION, "13 matching runs")
    page.get_by_role("link", name=STUDY_NAME, exact=True).last.wait_for()
    keep(page, "study")


def test_charts_are_laid_out_when_the_page_opens(page: "playwright.Page", study: OpenStudy) -> None:
    visit(page, study.runs_link + "&compareRunsMode=CHART", "n140k-d2M-s0", "train_flops", "N vs. val/loss")
    page.locator(".js-plotly-plot").nth(3).wait_for()
    keep(page, "charts")


def test_a_run_shows_its_loss_over_tokens(page: "playwright.Page", study: OpenStudy) -> None:
    link = f"{study.url}/#/experiments/{study.experiment_id}/runs/{study.child_run}/model-metrics?{ui.MODEL_TRAINING}"
    visit(page, link, "n140k-d2M-s0 (train/loss)")
    page.locator(".js-plotly-plot").first.wait_for()
    keep(page, "run")


def test_report_opens_as_an_artifact_with_its_figures(page: "playwright.Page", study: OpenStudy) -> None:
    visit(page, study.report_link, "report.html")
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name=QUESTION).wait_for()
    report.get_by_text("Forecast against what came out").wait_for()
    image = report.get_by_alt_text("Fitted law")
    image.wait_for()
    assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    keep(page, "report")


def test_a_study_is_shipped_over_http_as_well_as_into_the_file(study: OpenStudy, tmp_path: Path) -> None:
    remote = finished_study({"n14k": SIZES["n14k"]})
    remote.name = "remote"
    (tmp_path / "law.csv").write_text("alpha,0.28")
    attach(remote, tmp_path / "law.csv", "laws")
    tracker = Tracker(study.url)
    assert ship_once(remote, tracker).artifacts == 1
    assert ship_once(remote, tracker).points == 0
    sent = [child.ending.observation for child in remote.runs if child.ending is not None]
    assert read_observations(tracker, "remote") == sorted(sent, key=lambda row: str(row["name"]))


def test_the_server_answers_to_loopback_names_only(study: OpenStudy) -> None:
    request = urllib.request.Request(f"{study.url}/api/2.0/mlflow/experiments/get?experiment_id=0")
    request.add_header("Host", "evil.example")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 403
