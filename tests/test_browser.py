"""The pages that people work with, in a real browser: Prefect's, MLflow's and the report.

What they showed is kept as ``.coppice/screenshots/*.png``, or in the folder ``COPPICE_SCREENSHOTS``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_fixtures import SETTLED_MS, chromium, keep, open_browser
from served_home import ENDED, SMALL, ServedHome, coppice_up, processes_of, small_served
from server_fixtures import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import FrameLocator, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.timeout(900)]  # patience with a busy machine

SEED = 7  # nobody else's, since it is in the names by which a person finds the run
FLOW_RUN, TRACKED_RUN = f"tiny-seed-{SEED}", f"tiny seed {SEED}"
FIRST_STAGES = {"problems 0", "evaluate 0 tiny-word validation", "record 0", "gather 1", "audit 1"}
LAST_STAGES = {"train 1", "evaluate 1 tiny-word validation", "record 1", "search 2 shard 0", "finish"}
ITERATIONS = ("base", "iteration 1", "iteration 2")


@pytest.fixture
def page() -> Iterator[Page]:
    with open_browser() as page:
        yield page


@pytest.fixture(scope="module")
def servers(new_server_home: Callable[[], Path]) -> Iterator[ServedHome]:
    """Servers of their own: what is shown here is counted elsewhere."""
    chromium()
    with coppice_up(new_server_home()) as home:
        yield home


@pytest.fixture(scope="module")
def failed_run(servers: ServedHome, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run whose training failed, for a reason that is gone by now: a file lay where its folder belongs."""
    chromium()
    home = tmp_path_factory.mktemp("run")
    in_the_way = home / "store" / "train-policy"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    config = small_served(f"seed={SEED}", "num_iterations=2").model_dump(mode="json")
    _, run = servers.ask(
        f"/deployments/{servers.deployment('self-training')['id']}/create_flow_run",
        {"parameters": {"config": config}, "job_variables": {"env": {"COPPICE_HOME": str(home)}}},
    )
    wait_until(lambda: servers.run(run["id"])["state"]["type"] in ENDED, f"{FLOW_RUN} ends")
    assert servers.run(run["id"])["state"]["type"] == "FAILED", servers.run(run["id"])["state"]
    in_the_way.unlink()
    wait_until(lambda: not any("prefect.engine" in line for line in processes_of(servers.home)), "its process ends")
    time.sleep(2.0)  # the worker may still report it
    return str(run["id"])


@pytest.fixture
def completed_run(servers: ServedHome, failed_run: str) -> str:
    """The same run once somebody has pressed Retry: the browser, or else this."""
    if servers.run(failed_run)["state"]["type"] == "FAILED":
        servers.ask(f"/flow_runs/{failed_run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
    servers.wait_for(failed_run, "COMPLETED")
    return failed_run


def last_states(servers: ServedHome, flow_run: str, attempt: int) -> dict[str, set[str]]:
    """Names of the states in which the task runs of one attempt ended, by the task run's name."""
    mine = {"flow_runs": {"id": {"any_": [flow_run]}}, "limit": 200}
    states: dict[str, set[str]] = {}
    for run in servers.ask("/task_runs/filter", mine)[1]:
        if run["flow_run_run_count"] == attempt:
            states.setdefault(run["name"], set()).add(run["state"]["name"])
    return states


def test_a_failed_run_completes_after_retry(servers: ServedHome, failed_run: str, page: Page) -> None:
    from playwright.sync_api import expect

    page.goto(f"{servers.prefect}/runs")
    page.get_by_role("link", name=FLOW_RUN).click()
    retry = page.get_by_role("button", name="Retry")
    expect(retry).to_be_visible()
    expect(page.get_by_text("Failed", exact=True)).to_be_visible()
    keep(page, "prefect-failed")
    retry.click()
    page.get_by_role("dialog").get_by_role("button", name="Retry").click()
    wait_until(lambda: servers.run(failed_run)["state"]["type"] != "FAILED", "Retry is taken")
    page.goto("about:blank")  # a run's page draws its timeline all the time, on cores that the run could use
    servers.wait_for(failed_run, "COMPLETED")
    page.go_back()
    expect(page.get_by_text("Completed", exact=True)).to_be_visible()
    keep(page, "prefect-completed")

    assert failed_run in page.url
    assert (servers.run(failed_run)["state"]["type"], servers.run(failed_run)["run_count"]) == ("COMPLETED", 2)
    first, second = (last_states(servers, failed_run, attempt) for attempt in (1, 2))
    assert first["train 1"] == {"Failed"}
    assert {name: second[name] for name in FIRST_STAGES} == {name: {"Cached"} for name in FIRST_STAGES}
    assert {name: second[name] for name in LAST_STAGES} == {name: {"Completed"} for name in LAST_STAGES}


def test_a_run_from_a_terminal_is_seen_with_its_stages(servers: ServedHome, page: Page) -> None:
    from playwright.sync_api import expect

    settings = [argument for setting in SMALL for argument in ("--set", setting)]
    run = servers.coppice("run", "--name", "typed by hand", *settings)
    assert run.returncode == 0, run.stderr
    page.goto(f"{servers.prefect}/runs")
    page.get_by_role("link", name="typed-by-hand").click()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("Beginning flow run 'typed-by-hand'")).to_be_visible()  # its log
    keep(page, "prefect-terminal")
    shown = page.url.partition("?")[0].rpartition("/")[2]
    assert last_states(servers, shown, 1).items() >= {"record 1": {"Completed"}, "finish": {"Completed"}}.items()


def open_tracked_runs(servers: ServedHome, page: Page) -> None:
    """From MLflow's first page to the experiment's runs."""
    page.goto(servers.mlflow)
    page.get_by_text("Model training").first.click()
    page.get_by_label("Close", exact=True).click()  # its assistant
    page.get_by_role("link", name="coppice").first.click()


def unfold_iterations(page: Page) -> None:
    page.get_by_role("row").filter(has_text=TRACKED_RUN).first.get_by_role("button").first.click()


def test_iterations_are_compared(servers: ServedHome, completed_run: str, page: Page) -> None:
    from playwright.sync_api import expect

    open_tracked_runs(servers, page)
    unfold_iterations(page)
    for name in ITERATIONS:
        row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
        row.get_by_role("checkbox").first.check()
    keep(page, "mlflow-selected")
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 3 Runs from 1 Experiment")).to_be_visible()
    expect(page.locator(".parcoords .axis-title")).to_have_text(["iteration", "validation/tiny-word/accuracy"])
    for name in ITERATIONS:
        expect(page.get_by_role("cell", name=name, exact=True).first).to_be_visible()
    keep(page, "mlflow-compared")


def test_accuracy_is_one_curve_over_the_iterations(servers: ServedHome, completed_run: str, page: Page) -> None:
    from playwright.sync_api import expect

    open_tracked_runs(servers, page)
    page.get_by_role("link", name=TRACKED_RUN).click()
    page.get_by_role("tab", name="Model metrics").click()
    chart = page.locator(".js-plotly-plot").first
    expect(chart.locator(".points path")).to_have_count(len(ITERATIONS))
    expect(page.get_by_text(f"{TRACKED_RUN} (eval/tiny-algebra/accuracy)")).to_be_visible()
    keep(page, "mlflow-curve")


def point_at_a_step(page: Page, shown: Page | FrameLocator) -> None:
    """Hovers the step of a tree that most rollouts went through; what it says must be what the policy wrote there."""
    from playwright.sync_api import expect

    node = shown.locator("details.tree[open] .node[data-parent='0']").first
    written = node.locator(".step").inner_text().strip()
    assert written
    expect(shown.locator("#tip")).to_be_hidden()
    node.scroll_into_view_if_needed()
    page.wait_for_timeout(SETTLED_MS)  # pages go on moving for a moment; what moves away from the pointer is left
    node.hover()
    expect(shown.locator("#tip")).to_be_visible()
    expect(shown.locator("#tip")).to_contain_text(written)
    expect(shown.locator("#tip")).to_contain_text("rollouts, value")
    expect(shown.locator(".node.lit")).not_to_have_count(0)


def test_a_tree_among_the_artifacts_can_be_pointed_at(servers: ServedHome, completed_run: str, page: Page) -> None:
    open_tracked_runs(servers, page)
    unfold_iterations(page)
    page.get_by_role("link", name="iteration 1", exact=True).click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("trees.html").click()
    point_at_a_step(page, page.frame_locator("iframe"))
    keep(page, "mlflow-tree")


def test_the_report_opens_from_a_file(servers: ServedHome, completed_run: str, page: Page, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    query = f"tags.`prefect.flow_run_id` = '{completed_run}'"
    [run] = MlflowClient(servers.mlflow).search_runs(["1"], query)
    with servers.inside():
        report = servers.coppice("report", "--run", run.info.run_id, "--output", str(tmp_path / "report.html"))
    assert report.returncode == 0, report.stderr

    heard: Counter[str] = Counter()
    page.on("request", lambda request: heard.update([request.url]))
    page.on("console", lambda message: heard.update([message.text]))
    page.on("pageerror", lambda error: heard.update([str(error)]))
    page.goto((tmp_path / "report.html").as_uri())
    keep(page, "report")
    point_at_a_step(page, page)
    keep(page, "report-tree")
    assert heard == Counter([(tmp_path / "report.html").as_uri()])
