"""What MLflow keeps of a run, in the default store and when the server is not there."""

import os
import subprocess
from pathlib import Path

import pytest

from storage.errors import TrackingError
from storage.layout import Layout
from storage.tracking import log_run, store_identity, tracking_uri

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_a_run_keeps_parameters_tags_files_and_every_round(layout: Layout, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    page = tmp_path / "report.html"
    page.write_text("<p>report</p>")
    figures = [tmp_path / f"figure_3.{kind}" for kind in ("pdf", "png", "svg")]
    for figure in figures:
        figure.touch()
    rounds = [{"round": number, "loss": 1.0 / (number + 1), "adapter_hash": "no number"} for number in range(3)]
    run_id = log_run(
        "r1", {"rank": 8, "alpha": None}, rounds, {"auroc": 0.5}, [page, *figures], {"run_id": "r1"}, layout
    )
    client = MlflowClient(tracking_uri(layout))
    run = client.get_run(run_id)
    assert (run.data.params, run.data.tags["run_id"], run.info.status) == ({"rank": "8"}, "r1", "FINISHED")
    history = client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [file.path for file in client.list_artifacts(run_id)] == ["figures", "report.html"]
    kept = [file.path for file in client.list_artifacts(run_id, "figures")]
    assert kept == [f"figures/{figure.name}" for figure in figures]


def test_artifacts_lie_under_the_home_folder(layout: Layout) -> None:
    assert store_identity(layout)
    assert list((layout.mlflow / "artifacts").rglob("report.html"))


def test_a_new_database_is_another_store(tmp_path: Path) -> None:
    other = Layout(tmp_path)
    other.mlflow.mkdir()
    database = other.mlflow / "mlflow.db"
    database.touch()
    first = store_identity(other)
    assert store_identity(other) == first
    database.rename(tmp_path / "old.db")
    database.touch()
    assert store_identity(other) != first


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI") as caught:
        log_run("r1", {}, [], {}, [], {}, layout)
    assert "\n" not in str(caught.value)


def test_make_mlflow_server_shows_the_store_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mlflow"
    program.write_text('#!/bin/sh\necho "$MLFLOW_BACKEND_STORE_URI"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    command = ["make", "--silent", "mlflow-server", "READY=", "BIN=none"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tracking_uri()}\n"
