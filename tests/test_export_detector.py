"""A detector's weights for other tools, written from its folder by the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow_session import write_detector
from safetensors import safe_open
from safetensors.numpy import save_file
from site_federations import simulated_logs
from typer.testing import CliRunner

from flows.cli import app
from storage.detection import DetectConfig
from storage.errors import DataError
from storage.layout import Layout
from tasks.detect_anomalies import detect_anomalies


@pytest.fixture
def detector(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    return write_detector(tmp_path / "detector", tiny_model, Layout(tmp_path / "home"), noise=0.1)


def test_a_detector_is_exported_as_an_adapter_or_as_a_whole_model(detector: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(tmp_path / "adapter"), "--model", str(detector)])
    assert "The adapter of" in done.output
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (2, 4)
    CliRunner().invoke(app, ["export", str(tmp_path / "whole"), "--model", str(detector), "--merged"])
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names >= {"config.json", "tokenizer.json", "model.safetensors", "card.json", "detector.json"}


@pytest.mark.parametrize("kind", ["lora", "full", "none"])
def test_a_merged_detector_needs_no_other_model_and_gives_the_same_scores(
    kind: str, detector: Path, tiny_model: Path, tmp_path: Path
) -> None:
    facts = json.loads((detector / "detector.json").read_text())
    if kind != "lora":
        facts["tuning"] = {"kind": kind}
        (detector / "detector.json").write_text(json.dumps(facts))
        with safe_open(tiny_model / "model.safetensors", framework="numpy") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        noise = np.random.default_rng(0)
        changed = {name: array + noise.normal(0, 0.1, array.shape).astype("f") for name, array in weights.items()}
        save_file(changed if kind == "full" else {}, detector / "adapter.safetensors")
    CliRunner().invoke(app, ["export", str(tmp_path / "whole"), "--model", str(detector), "--merged"])
    log = simulated_logs(30, tmp_path)[0]
    found = [_scores(folder, log, tmp_path / f"{folder.name}.jsonl") for folder in (detector, tmp_path / "whole")]
    assert found[0]
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    shutil.rmtree(tmp_path / "home")
    assert _scores(tmp_path / "moved", log, tmp_path / "moved.jsonl") == found[1]


def _scores(detector: Path, log: Path, output: Path) -> dict[str, float]:
    detect_anomalies(DetectConfig(files=(str(log),), model=str(detector), output=str(output)))
    return {alert["window"]: alert["score"] for alert in map(json.loads, output.read_text().splitlines())}


def test_weights_are_not_merged_into_another_base_model(detector: Path, tmp_path: Path) -> None:
    facts = json.loads((detector / "detector.json").read_text())
    facts["model"]["sha256"] = "0" * 64
    (detector / "detector.json").write_text(json.dumps(facts))
    done = CliRunner().invoke(app, ["export", str(tmp_path / "whole"), "--model", str(detector), "--merged"])
    assert isinstance(done.exception, DataError)
    assert not (tmp_path / "whole").exists()
