"""The pages of Prefect and MLflow in a real browser: start, watch, read, run again, and browse what was registered.

Screenshots lie in the test's folder, or where ATALAIA_SCREENSHOTS says: those of docs/pages.md are made so.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium
from platforms import PATIENCE, Platform, eventually, get, post, running_platform

pytestmark = [pytest.mark.long, pytest.mark.timeout(4000)]

ROUNDS, BLOCKS = 30, 300


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Everything up, with an empty home folder; afterwards nothing of it is left."""
    with running_platform(tmp_path_factory.mktemp("home"), "--no-gpu") as started:
        yield started


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One window for all tests."""
    pictures = Path(os.environ.get("ATALAIA_SCREENSHOTS", tmp_path_factory.mktemp("screenshots")))
    with chromium(tmp_path_factory.mktemp("profile"), pictures) as window:
        yield window


def _runs(platform: Platform) -> list[dict[str, Any]]:
    """The runs that were started by hand, in the order of their start."""
    wanted = {"flow_runs": {"tags": {"all_": ["atalaia"]}}, "sort": "START_TIME_ASC"}
    return [run for run in post(platform.prefect, "flow_runs/filter", wanted) if not run["auto_scheduled"]]


def _artifacts(platform: Platform, run_id: str) -> dict[str, dict[str, Any]]:
    wanted = {"artifacts": {"flow_run_id": {"any_": [run_id]}}, "limit": 200}
    found = post(platform.prefect, "artifacts/filter", wanted)
    assert len({artifact["key"] for artifact in found}) == len(found), "nothing is shown twice"
    return {artifact["key"]: artifact for artifact in found}


@pytest.fixture(scope="module")
def started(platform: Platform, browser: Browser, tiny_model: Path) -> str:
    """A run that was started from the form of the deployment `experiment`: its id."""
    deployment = platform.deployment("experiment")
    browser.open(f"{platform.prefect}/v2/deployments", "nightly-retrain", "weekly-sweep")
    browser.picture("deployments")
    browser.open(f"{platform.prefect}/v2/deployments/deployment/{deployment['id']}/run", "Preset (Optional)", "demo")
    browser.picture("form")
    browser.fill(str(tiny_model), "Model", "Name")
    browser.fill(str(BLOCKS), "Dataset", "Blocks")
    browser.fill(str(ROUNDS), "Federation", "Rounds")
    # What cannot be is refused beside its field, and nothing is started.
    browser.fill("2", "Federation", "Fraction")
    browser.press("Submit")
    assert "1" in browser.wait(browser.complaint, "a complaint about the fraction")
    browser.show("Federation", "Fraction")
    browser.picture("form-refused")
    assert _runs(platform) == []
    browser.fill("0.5", "Federation", "Fraction")

    def started_run() -> list[dict[str, Any]]:
        """The press that only closes the browser's complaint starts nothing, and the form stays."""
        if not (runs := _runs(platform)) and browser.address.endswith("/run"):
            browser.press("Submit")
            time.sleep(5)
        return runs

    [run] = browser.wait(started_run, "a run is started")
    return str(run["id"])


def test_the_form_sends_what_was_filled_in_and_leaves_the_rest_to_the_preset(
    platform: Platform, started: str, tiny_model: Path
) -> None:
    sent = platform.run(started)["parameters"]["config"]
    switches = {"training": {"gradient_checkpointing", "share_prefixes"}, "scoring": {"unaligned"}}
    assert sent["preset"] == "demo"
    assert sent["model"] == {"name": str(tiny_model)}
    assert sent["dataset"] == {"blocks": BLOCKS}
    assert {name: sent["federation"][name] for name in ("rounds", "fraction")} == {"rounds": ROUNDS, "fraction": 0.5}
    for part, names in switches.items():
        assert set(sent.get(part, {})) <= names


def test_its_progress_is_watched_while_it_trains(platform: Platform, browser: Browser, started: str) -> None:

    def moving() -> dict[str, Any] | None:
        bar = _artifacts(platform, started).get("progress-train")
        return bar if bar and "loss" in bar["description"] else None

    bar = eventually(PATIENCE, moving, "the first round is done")
    browser.open(f"{platform.prefect}/v2/artifacts/artifact/{bar['id']}", "progress-train", "Progress", "loss")
    seen = browser.text
    browser.picture("progress")
    browser.open(f"{platform.prefect}/v2/runs/flow-run/{started}", "Running", "Task Runs")
    assert "demo: hdfs-sim, LoRA rank 8, seed 0" in browser.text
    browser.picture("running", seconds=8)
    platform.completed(started)
    done = _artifacts(platform, started)["progress-train"]
    assert done["data"] == 100.0
    assert f"round {ROUNDS} of {ROUNDS}" in done["description"]
    assert done["description"] not in seen, "the bar was seen before its end"


def test_the_runs_page_has_tables_plots_and_a_line_for_each_stage(
    platform: Platform, browser: Browser, started: str
) -> None:
    platform.completed(started)
    run = platform.run(started)
    browser.open(f"{platform.prefect}/v2/runs/flow-run/{started}", "Completed", "window: done", "lines")
    browser.picture("run", height=1000, seconds=8)
    shown = _artifacts(platform, started)
    assert {"report", "figures", "detection", "run", "alerts"} <= set(shown)
    browser.press("Artifacts")
    browser.see("The whole report, with all its tables", "Detection with a label-free threshold")
    browser.picture("artifacts", height=1250)
    for key, expected in (
        ("report", ("Label-free F1", "Detection with a label-free threshold", "Three thresholds")),
        ("detection", ("tuned model", "untouched model", "rule: unseen event type")),
        ("figures", ("Scores of normal and anomalous test windows",)),
        ("alerts", ("Most anomalous windows",)),
    ):
        browser.open(f"{platform.prefect}/v2/artifacts/artifact/{shown[key]['id']}", *expected)
        assert run["name"] in browser.text
        browser.picture(f"artifact-{key}", height=1000)
        if key == "figures":
            browser.wait(lambda: browser.drawn() >= 4, "the figures are drawn")


def test_running_it_again_from_its_page_reuses_every_stage(platform: Platform, browser: Browser, started: str) -> None:
    platform.completed(started)
    browser.open(f"{platform.prefect}/v2/runs/flow-run/{started}", "Completed", "Artifacts")
    browser.click("//main//button[@aria-haspopup='menu']")
    browser.press("Retry")
    browser.see("Retry Flow Run")
    browser.click("//*[@role='dialog' or @role='alertdialog']//button[normalize-space(.)='Retry']")
    platform.completed(started, run_count=2)
    tasks = post(platform.prefect, "task_runs/filter", {"flow_runs": {"id": {"any_": [started]}}, "limit": 200})
    again = [task for task in tasks if task["flow_run_run_count"] == 2]
    assert {task["name"] for task in again} >= {"download", "train", "score", "report", "register"}
    assert {task["state_name"] for task in again} == {"Cached"}
    browser.open(f"{platform.prefect}/v2/runs/flow-run/{started}", "Completed", f"{len(tasks)} Task runs")
    browser.press("Task Runs")
    browser.see("Cached")
    browser.picture("rerun", height=1000, seconds=8)
    said = post(platform.prefect, "logs/filter", {"logs": {"flow_run_id": {"any_": [started]}}, "limit": 200})
    assert any(line["message"].startswith("train: reused") for line in said)
    _artifacts(platform, started)


def test_the_registered_detector_leads_to_its_metrics_and_its_adapter(
    platform: Platform, browser: Browser, started: str
) -> None:
    platform.completed(started)
    browser.open(f"{platform.mlflow}/#/models", "hdfs-sim")
    browser.dismiss()
    browser.open(f"{platform.mlflow}/#/models/hdfs-sim/versions/1", "LoRA rank 8", "adapter_hash", "Source Run")
    browser.picture("version")
    browser.click("//a[contains(@href, '/runs/')]")
    browser.see("Overview", "Model metrics", "Artifacts", "Registered models")
    browser.picture("tracked-run")
    run_id = browser.address.partition("/runs/")[2].partition("/")[0].partition("?")[0]
    found = get_mlflow(platform, f"runs/get?run_id={run_id}")["run"]["data"]
    metrics = {metric["key"] for metric in found["metrics"]}
    assert metrics >= {"label_free/f1", "costs/message_up_mb", "costs/latency_ms", "train_loss", "auroc"}
    tags = {tag["key"]: tag["value"] for tag in found["tags"]}
    assert tags["flow_run_id"] == started
    version = get_mlflow(platform, "model-versions/get?name=hdfs-sim&version=1")["model_version"]
    experiment = get_mlflow(platform, "experiments/get-by-name?experiment_name=atalaia")["experiment"]
    pages = f"{platform.mlflow}/#/experiments/{experiment['experiment_id']}"
    # Charts further down are drawn when they are scrolled to, or looked for.
    browser.open(f"{pages}/runs/{run_id}/model-metrics", "Model metrics", "Step")
    browser.search("Search metric charts", "auroc|average_precision|train_loss")
    browser.see("(auroc)", "(average_precision)", "(train_loss)")
    browser.picture("metrics", height=1000, seconds=5)
    browser.open(f"{pages}/models/{version['source'].rpartition('/')[2]}/artifacts", "MLmodel", "artifacts")
    browser.click("//*[normalize-space(text())='artifacts']")
    browser.see("adapter.safetensors", "detector.json", "calibration_scores.parquet")
    browser.picture("adapter")


def get_mlflow(platform: Platform, path: str) -> Any:  # noqa: ANN401
    """The answer of MLflow's API."""
    import urllib.request

    with urllib.request.urlopen(f"{platform.mlflow}/api/2.0/mlflow/{path}", timeout=60) as answer:
        return json.load(answer)


def test_where_the_page_of_a_version_says_the_flow_run_is_it_is(
    platform: Platform, browser: Browser, started: str
) -> None:
    platform.completed(started)
    version = get_mlflow(platform, "model-versions/get?name=hdfs-sim&version=1")["model_version"]
    [address] = [tag["value"] for tag in version["tags"] if tag["key"] == "flow_run_url"]
    browser.open(address, get(platform.prefect, f"flow_runs/{started}")["name"], "Completed")
