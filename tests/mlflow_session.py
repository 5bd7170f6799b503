"""For tests of tracking and registry: a real tracking server, and detectors without an experiment."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from storage.datasets import DatasetConfig, resolve
from storage.layout import Layout
from storage.masks import MaskRules
from storage.tokens import TokenRule

START = Path(__file__).resolve().parent.parent / "mlflow" / "start.sh"


def free_port() -> int:
    """A port of this machine that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: list[str], health: str, log: Path, **environment: str) -> Iterator[None]:
    """A server that answers at `health`, ended with all its processes after the block."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env={**os.environ, "PATH": path, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for(health, process, log)
        yield
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


@pytest.fixture
def tracking_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tracking server, started as mlflow/README.md says and named in MLFLOW_TRACKING_URI: the folder it keeps."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = ["sh", str(START), str(tmp_path / "server"), str(port)]
    with running(command, f"{address}/health", tmp_path / "server.log"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        yield tmp_path / "server"


def write_detector(
    folder: Path,
    model: Path,
    home: Layout,
    /,
    seed: int = 7,
    noise: float = 0.0,
    **changes: Any,  # noqa: ANN401
) -> Path:
    """The folder of a detector for the simulated log, with what differs in its description; `noise` trains it badly."""
    from fl.adapter import adapter_arrays, adapter_hash, attach_adapter, save_adapter
    from fl.hyperparameters import Tuning
    from fl.model import load_model, prepare_model

    base = prepare_model(str(model), home.models)
    spec = resolve(DatasetConfig(name="hdfs-sim"))
    folder.mkdir(parents=True)
    arrays = adapter_arrays(attach_adapter(load_model(base), Tuning(rank=2), seed))
    generator = np.random.default_rng(seed)
    arrays = {n: a + generator.normal(0, noise, a.shape).astype(np.float32) for n, a in arrays.items()}
    save_adapter(folder / "adapter.safetensors", arrays)
    pl.DataFrame({"score": np.linspace(0.0, 1.0, 100)}).write_parquet(folder / "calibration_scores.parquet")
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
        "seed": seed,
        "adapter_hash": adapter_hash(arrays),
        "score": "mean_token",
        "k": None,
        "threshold": 0.0,
        "false_alarm_rate": 0.002,
    }
    (folder / "detector.json").write_text(json.dumps(facts | changes))
    return folder
