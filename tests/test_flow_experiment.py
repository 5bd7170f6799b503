"""The whole chain on a small simulated log with a tiny model: runs, reuses, reruns what must, and detects the same."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from prefect_session import endings, home, prefect_api

from flows.cli import RUN
from flows.config import RunConfig
from storage.events import read_events
from storage.layout import Layout
from storage.runs import list_runs

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, prefect_api: None
) -> tuple[RunConfig, str, Path]:
    """A finished run: its configuration, its id and its home folder."""
    from flows.experiment import experiment

    config = _config(tiny_model)
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATALAIA_HOME", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return config, experiment(config), folder


@pytest.fixture(autouse=True)
def _same_home(finished: tuple[RunConfig, str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATALAIA_HOME", str(finished[2]))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def _config(model: Path, **parts: Any) -> RunConfig:  # noqa: ANN401
    small = {
        "dataset": {"name": "hdfs-sim", "blocks": 400},
        "federation": {"clients": 2, "fraction": 0.5, "rounds": 1},
        "training": {"steps": 1, "batch_size": 4},
        "model": {"name": str(model)},
    }
    return RunConfig.model_validate({"preset": "demo", **small, **parts})


def test_a_second_run_reuses_every_stage(
    finished: tuple[RunConfig, str, Path], endings: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.experiment import experiment

    # A run that trains nothing has nothing to make ready beside it, and loads neither MLflow nor torch.
    monkeypatch.setattr("flows.experiment.ready_meanwhile", None)
    assert experiment(finished[0]) == finished[1]
    assert endings == [(stage, "cached") for stage in RUN]


def test_each_execution_is_recorded_with_its_work_and_its_overhead(finished: tuple[RunConfig, str, Path]) -> None:
    from storage.rounds import query

    layout = Layout(finished[2])
    ran = query("SELECT * FROM executions WHERE state = 'ran' ORDER BY began DESC", layout).to_dicts()
    rows = {row["stage"]: row for row in ran if row["stage"] in RUN}
    assert set(rows) == set(RUN)
    trained = query("SELECT sum(seconds) AS s FROM clients", layout)["s"].item()
    told = read_events(layout.run(finished[1]))[0]
    loaded = [event["seconds"] for event in told if event["event"] == "loaded"]
    # Its worker imports what a client needs, and puts the model into memory.
    assert len(loaded) == 2 and min(loaded) > 0
    assert rows["train"]["work_seconds"] == pytest.approx(trained + sum(loaded), abs=1e-3)
    assert rows["train"]["overhead_seconds"] > 0
    assert rows["register"]["work_seconds"] == 0


def test_another_false_alarm_rate_trains_and_scores_nothing_again(
    finished: tuple[RunConfig, str, Path],
    tiny_model: Path,
    endings: list[tuple[str, str]],
) -> None:
    from flows.evaluate import evaluate

    evaluate(_config(tiny_model, detection={"false_alarm_rate": 0.05}))
    ran = {stage for stage, how in endings if how == "ran"}
    assert ran == {"evaluate", "explain"}


def test_unstable_test_windows_are_judged_by_what_was_trained_without_them(
    finished: tuple[RunConfig, str, Path], tiny_model: Path, endings: list[tuple[str, str]]
) -> None:
    from flows.evaluate import evaluate

    evaluate(_config(tiny_model, instability={"kind": "reworded", "share": 0.2}))
    ran = {stage for stage, how in endings if how == "ran"}
    assert ran == {"change", "score", "baselines", "evaluate", "explain"}


def test_the_run_is_listed_with_every_column_of_the_design(finished: tuple[RunConfig, str, Path]) -> None:
    [row] = [row for row in list_runs(Layout(finished[2])) if row["run_id"] == finished[1]]
    assert row["status"] == "finished"
    assert set(row["label_free"]) == {"f1", "precision", "recall", "false_alarm_rate", "threshold"}
    assert row["bytes_up_per_client_round"] > 0
    assert row["train_seconds"] > 0


def test_the_run_folder_answers_queries(finished: tuple[RunConfig, str, Path]) -> None:
    from storage.rounds import query

    layout = Layout(finished[2])
    assert query("SELECT count(*) AS n FROM rounds", layout)["n"].to_list() == [2]
    scored = query("SELECT DISTINCT adapter_hash FROM scores", layout)
    rounds = query("SELECT adapter_hash FROM rounds", layout)
    assert set(scored["adapter_hash"]) == set(rounds["adapter_hash"])


def test_the_registered_detector_scores_raw_lines_as_the_run_did(finished: tuple[RunConfig, str, Path]) -> None:
    from storage.registry import load_detector

    stages = finished[2] / "stages"
    [log] = stages.glob("download/*/HDFS.log")
    [windows] = stages.glob("tokenize/*/windows.parquet")
    known = pl.read_parquet(finished[2] / "runs" / finished[1] / "window_scores.parquet").drop_nulls("score")
    expected = known.join(pl.read_parquet(windows).select("window_id", "key"), on="window_id").select("key", "score")
    judged = load_detector("models:/hdfs-sim@challenger").predict(log.read_text().splitlines())
    found = pl.DataFrame([window.model_dump() for window in judged])
    [registered] = stages.glob("register/*/detector")
    assert json.loads((registered / "detector.json").read_text())["score"] == "rarity"
    assert {"usual_messages.parquet", "usual_scores.parquet"} <= {path.name for path in registered.iterdir()}
    both = expected.join(found, on="key")
    assert len(both) == len(expected) > 100
    assert (both["score"] - both["score_right"]).abs().max() < 1e-4
    assert (both["anomalous"] == (both["score_right"] > both["threshold"])).all()


def _told_to_prefect() -> str:
    """All that Prefect's server knows of the runs: parameters, states, log lines and artifacts."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        known = [*runs, *client.read_task_runs(), *client.read_artifacts(), *client.read_logs()]
    assert runs
    assert len(known) > len(runs)
    return "\n".join(each.model_dump_json() for each in known)


def test_no_result_that_leaves_the_stage_store_holds_a_raw_line(finished: tuple[RunConfig, str, Path]) -> None:
    kept = [finished[2] / "runs" / finished[1], finished[2] / "mlflow"]
    contents = [path.read_bytes() for folder in kept for path in folder.rglob("*") if path.is_file()]
    contents.append(_told_to_prefect().encode())
    [log] = (finished[2] / "stages").glob("download/*/HDFS.log")
    words = {word.strip("/:,") for line in log.read_text().splitlines()[:2000] for word in line.split()}
    private = {word.encode() for word in words if word.startswith(("blk_", "10.25"))}
    assert len(private) > 100
    assert not [word for word in private if any(word in content for content in contents)]


def test_a_run_is_called_by_what_it_is(finished: tuple[RunConfig, str, Path]) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        names = {run.name for run in client.read_flow_runs()}
    assert "demo: hdfs-sim, LoRA rank 8, seed 0" in names


def test_tracking_has_every_round_and_a_challenger(finished: tuple[RunConfig, str, Path]) -> None:
    from storage.registry import CHALLENGER, find_version
    from storage.tracking import tracking_client

    client = tracking_client()
    version = find_version("hdfs-sim", CHALLENGER)
    assert version is not None
    losses = client.get_metric_history(version.run_id, "held_out_loss")
    assert [metric.step for metric in losses] == [0, 1]
    run = client.get_run(version.run_id).data
    assert run.params["federation.rounds"] == "1"
    assert run.metrics["costs/message_up_mb"] == pytest.approx(list_runs()[0]["bytes_up_per_client_round"] / 1e6)
    assert run.metrics["costs/latency_ms"] > 0


def test_base_and_tuned_model_go_on_from_the_same_beginnings_and_anew_from_others(
    finished: tuple[RunConfig, str, Path],
) -> None:
    from typer.testing import CliRunner

    from flows.cli import app
    from storage.runs import summary_of

    found = summary_of(finished[1]).continuations
    assert len({each.prefix for each in found}) == 1
    assert all(each.tuned_nats != each.base_nats for each in found)
    page = (finished[2] / "runs" / finished[1] / "report.html").read_text()
    assert "continue the same log" in page
    done = CliRunner().invoke(app, ["compare", finished[1], "--tokens", "3", "--temperature", "1", "--seed", "4"])
    assert done.exit_code == 0, done.output
    assert done.output.count("After") == 1
    again = CliRunner().invoke(app, ["compare", finished[1], "--prefix", "Receiving block ;-;", "--tokens", "3"])
    assert "Receiving block" in again.output
    assert "in the log" not in again.output


def test_lineage_goes_from_a_version_to_its_run_data_and_rounds_and_back(finished: tuple[RunConfig, str, Path]) -> None:
    from prefect.client.orchestration import get_client

    from storage.registry import CHALLENGER, find_version

    version = find_version("hdfs-sim", CHALLENGER)
    assert version is not None
    assert version.tags["run_id"] == finished[1]
    assert (Path(version.tags["rounds"]) / "round-0001" / "adapter.safetensors").is_file()
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(version.tags["flow_run_id"]).parameters["config"]["preset"] == "demo"
    cards = [json.loads(path.read_text()) for path in (finished[2] / "stages").glob("*/*/card.json")]
    fingerprints = {card["name"]: card["fingerprint"] for card in cards}
    for stage in ("download", "window", "mask", "split", "partition"):
        assert version.tags[f"data_{stage}"] == fingerprints[stage]
    [row] = [row for row in list_runs(Layout(finished[2])) if row["run_id"] == finished[1]]
    assert row["detector"] == {"name": "hdfs-sim", "version": version.version}


def test_the_detector_description_names_the_base_model_by_hash(finished: tuple[RunConfig, str, Path]) -> None:
    [path] = (finished[2] / "stages").glob("register/*/detector/detector.json")
    facts = json.loads(path.read_text())
    card = json.loads(next((finished[2] / "models").glob("*/card.json")).read_text())
    assert facts["model"]["sha256"] == card["weights_sha256"]


@pytest.mark.long
def test_full_fine_tuning_on_a_gpu_is_of_plain_weights_and_the_report_says_why(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.experiment import experiment
    from storage.report_words import machine_table
    from storage.runs import summary_of

    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path))
    # A machine that says it has a GPU; the job itself runs on its CPU all the same.
    monkeypatch.setattr("flows.train.gpus", lambda: (1, "some GPU"))
    run_id = experiment(_config(tiny_model, tuning={"kind": "full"}))
    job = json.loads((Layout(tmp_path).run(run_id) / "job.json").read_text())
    assert job["quantization"] == "none"
    rows = machine_table(summary_of(run_id, Layout(tmp_path))).rows
    assert {row[0]: row[1] for row in rows}["quantization"] == (
        "none: full fine-tuning needs unquantized weights, which auto is not on a GPU"
    )
    assert summary_of(run_id, Layout(tmp_path)).run.config["model"]["quantization"] == "none"


# The last one: it adds a run to the home that the others look at.
def test_a_detector_is_judged_on_another_log_without_training(
    finished: tuple[RunConfig, str, Path], tiny_model: Path
) -> None:
    from flows.experiment import experiment
    from storage.runs import read_record

    untrained = {"clients": 2, "fraction": 0.5, "rounds": 0}
    other = _config(tiny_model, dataset={"name": "hdfs-sim", "blocks": 300, "seed": 5}, federation=untrained)
    run_id = experiment(other, "models:/hdfs-sim/1")
    trained, taken = (Layout(finished[2]).run(run) / "rounds" for run in (finished[1], run_id))
    [adapter] = taken.glob("*/adapter.safetensors")
    assert adapter.read_bytes() == (sorted(trained.glob("*/adapter.safetensors"))[-1]).read_bytes()
    assert read_record(run_id).command.endswith("--start-from models:/hdfs-sim/1")
