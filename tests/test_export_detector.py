"""A detector's weights for other tools, written from its folder by the command."""

import json
from pathlib import Path

import pytest
from mlflow_session import write_detector
from typer.testing import CliRunner

from flows.cli import app
from storage.errors import DataError
from storage.layout import Layout


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


def test_weights_are_not_merged_into_another_base_model(detector: Path, tmp_path: Path) -> None:
    facts = json.loads((detector / "detector.json").read_text())
    facts["model"]["sha256"] = "0" * 64
    (detector / "detector.json").write_text(json.dumps(facts))
    done = CliRunner().invoke(app, ["export", str(tmp_path / "whole"), "--model", str(detector), "--merged"])
    assert isinstance(done.exception, DataError)
    assert not (tmp_path / "whole").exists()
