"""What MLflow keeps of a run: in the default store, on a real tracking server, and when the server is not there."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage.datasets import DatasetConfig, resolve
from storage.errors import TrackingError
from storage.hdfs_generator import generate
from storage.layout import Layout
from storage.masks import MaskRules
from storage.tokens import TokenRule
from storage.tracking import (
    CHALLENGER,
    DETECTOR,
    load_detector,
    log_run,
    register_detector,
    store_identity,
    tracking_uri,
)

START = Path(__file__).resolve().parent.parent / "mlflow" / "start.sh"


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
    rounds = [{"round": number, "loss": 1.0 / (number + 1), "adapter_hash": "no number"} for number in range(3)]
    run_id = log_run("r1", {"rank": 8, "alpha": None}, rounds, {"auroc": 0.5}, [page], {"run_id": "r1"}, layout)
    client = MlflowClient(tracking_uri(layout))
    run = client.get_run(run_id)
    assert (run.data.params, run.data.tags["run_id"], run.info.status) == ({"rank": "8"}, "r1", "FINISHED")
    history = client.get_metric_history(run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert [file.path for file in client.list_artifacts(run_id)] == ["report.html"]


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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tracking server, started as mlflow/README.md says and named in MLFLOW_TRACKING_URI: the folder it keeps."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", str(START), str(tmp_path / "server"), str(port)],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(f"{address}/health", process, tmp_path / "server.log")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield tmp_path / "server"
    finally:
        # The whole session: the server's workers are processes of their own.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def _detector(folder: Path, model: Path, home: Layout) -> Path:
    """The folder of an untrained detector for the simulated log."""
    from fl.adapter import Tuning, adapter_arrays, attach_adapter, save_adapter
    from fl.model import load_model, prepare_model

    base = prepare_model(str(model), home.models)
    spec = resolve(DatasetConfig(name="hdfs-sim"))
    folder.mkdir()
    save_adapter(folder / "adapter.safetensors", adapter_arrays(attach_adapter(load_model(base), Tuning(rank=2), 7)))
    facts: dict[str, Any] = {
        "dataset": spec.model_dump(mode="json"),
        "window": spec.window.model_dump(mode="json"),
        "mask": MaskRules(preset="hdfs").model_dump(mode="json"),
        "tokens": TokenRule().model_dump(mode="json"),
        "model": {
            "name": str(model),
            "sha256": json.loads((base / "card.json").read_text())["weights_sha256"],
            "quantization": "none",
        },
        "tuning": {"kind": "lora", "rank": 2},
        "seed": 7,
        "score": "mean_token",
        "k": None,
        "threshold": 0.0,
    }
    (folder / "detector.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.long
def test_a_detector_registered_on_a_server_comes_back_from_it_and_judges_raw_lines(
    server: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    home = Layout(tmp_path / "home")
    page = tmp_path / "report.html"
    page.write_text("<p>report</p>")
    run_id = log_run("r1", {"rank": 2}, [{"round": 0, "loss": 1.0}], {"auroc": 0.5}, [page], {"run_id": "r1"})
    folder = _detector(tmp_path / "detector", tiny_model, home)
    made = register_detector(run_id, folder, {"run_id": "r1"})
    client = MlflowClient(tracking_uri())
    found = client.get_model_version_by_alias(DETECTOR, CHALLENGER)
    assert (made.version, found.version, found.run_id) == ("1", "1", run_id)
    assert found.tags == {"run_id": "r1"}
    # What was tracked lies with the server and nowhere under the home folder.
    kept = {path.name: path.read_bytes() for path in (server / "artifacts").rglob("*") if path.is_file()}
    assert kept["report.html"] == page.read_bytes()
    assert kept["adapter.safetensors"] == (folder / "adapter.safetensors").read_bytes()
    assert not [path for path in home.mlflow.rglob("*") if path.is_file()]

    generate(tmp_path / "log", 20, 0)
    judged = load_detector().predict((tmp_path / "log" / "HDFS.log").read_text().splitlines())
    assert len(judged) == 20
    # A threshold of 0 and a surprise in nats, which is above it: an untrained model finds every window surprising.
    assert judged["anomalous"].all()
    assert register_detector(run_id, folder, {}).version == "2"
