"""The nightly training: on what a log has gained, from the champion's adapter, with a promotion where it is better."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import json
from pathlib import Path
from typing import Any

import pytest
from prefect_session import home, prefect_api

from flows.config import RunConfig
from storage.adapters import committed_rounds
from storage.datasets import resolve
from storage.drift import Verdict, save_verdict
from storage.errors import RegistryError
from storage.hdfs_generator import generate
from storage.layout import Layout
from storage.new_lines import new_lines
from storage.registry import CHAMPION, find_version, versions_of

pytestmark = pytest.mark.usefixtures("prefect_api")


WITHOUT_LABELS = """
name = "app"
format = "<Date> <Time> <Pid> <Level> <Component>: <Content>"
time_format = "%y%m%d %H%M%S"
window = {kind = "session", key = 'blk_-?\\d+'}
mask = {preset = "hdfs"}
"""


def _config(model: Path, log: Path, name: str = "hdfs") -> RunConfig:
    small = {
        "dataset": {"name": name, "source": str(log)},
        "federation": {"clients": 2, "fraction": 0.5, "rounds": 1},
        "training": {"steps": 1, "batch_size": 4},
        "model": {"name": str(model)},
    }
    return RunConfig.model_validate({"preset": "demo", **small})


def _night(config: RunConfig, **parameters: Any) -> tuple[str, str]:  # noqa: ANN401
    from flows.nightly import nightly_retrain

    state = nightly_retrain(config, **parameters, return_state=True)
    return state.name, state.message


def _grow(log: Path, scratch: Path, blocks: int, seed: int) -> None:
    """Have a log gain the lines of some blocks, and the file beside it their labels."""
    generate(scratch, blocks, seed)
    log.parent.mkdir(exist_ok=True)
    for name in ("HDFS.log", "anomaly_label.csv"):
        path = log.with_name(name)
        lines = (scratch / name).read_bytes().splitlines(keepends=True)
        with path.open("ab") as file:
            # A file of labels has one line of headings.
            file.writelines(lines[1:] if name.endswith("csv") and path.stat().st_size else lines)


def test_few_new_lines_and_logs_without_drift_wait(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "app" / "HDFS.log"
    _grow(log, tmp_path / "first", 20, 0)
    config = _config(tiny_model, log)
    name, message = _night(config, least_lines=100_000)
    assert (name, "100,000 are waited for" in message) == ("NothingNew", True)
    facts = {"detector": "d", "dataset": "hdfs", "adapter_hash": "0", "judged": "2026-01-01T00:00:00Z"}
    calm = Verdict.model_validate({**facts, "windows": 9, "alerts": 0, "retrain": False, "measures": []})
    save_verdict(calm, Layout(home))
    name, message = _night(config, least_lines=1, only_when_drifted=True)
    assert (name, "recommended no retraining" in message) == ("NothingNew", True)
    assert not (home / "runs").exists()


def test_lines_that_cannot_be_trained_on_are_taken_again_with_what_came_since(
    home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "app" / "HDFS.log"
    _grow(log, tmp_path / "first", 3, 0)
    config = _config(tiny_model, log)
    name, message = _night(config, least_lines=1)
    assert name == "Failed"
    assert "No normal window is left to calibrate on" in message
    _grow(log, tmp_path / "second", 3, 1)
    found = new_lines(config.dataset, resolve(config.dataset), Layout(home))
    assert found is not None
    assert found.source is not None
    assert Path(found.source).read_bytes() == log.read_bytes()


def test_a_part_is_done_where_only_the_comparison_is_refused(
    home: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise RegistryError("version 2 and version 1 cut the log into different windows")

    log = tmp_path / "app" / "HDFS.log"
    _grow(log, tmp_path / "first", 3, 0)
    config = _config(tiny_model, log)
    monkeypatch.setattr("flows.nightly._promoted", refuse)
    monkeypatch.setattr("flows.nightly.experiment", lambda *_, **__: "run-1")
    name, message = _night(config, least_lines=1)
    assert (name, "different windows" in message) == ("Failed", True)
    assert new_lines(config.dataset, resolve(config.dataset), Layout(home)) is None


@pytest.mark.long
@pytest.mark.parametrize("labelled", [True, False], ids=["with labels", "without labels"])
def test_a_second_night_trains_on_new_lines_only_and_starts_from_the_champion(
    home: Path, tiny_model: Path, tmp_path: Path, labelled: bool
) -> None:
    log, name, dataset = tmp_path / "app" / "HDFS.log", "hdfs", "hdfs"
    if not labelled:
        name, dataset = "app", str(tmp_path / "app.toml")
        Path(dataset).write_text(WITHOUT_LABELS)
    config = _config(tiny_model, log, dataset)
    _grow(log, tmp_path / "first", 300, 0)
    state, message = _night(config)
    assert state == "Completed", message
    # Whatever the comparison with the untouched model said: this version is the champion of the test.
    from storage.registry import make_champion

    [first] = versions_of(name)
    make_champion(first)
    assert _night(config)[0] == "NothingNew"
    before = {path.name for path in (home / "runs").iterdir()}
    _grow(log, tmp_path / "second", 300, 1)
    state, message = _night(config)
    assert state == "Completed", message
    assert "lines after byte" in message
    [run] = [path for path in (home / "runs").iterdir() if path.name not in before]
    assert (run / "report.json").is_file()
    assert (json.loads((run / "report.json").read_text())["data"]["anomalies"] is not None) == labelled
    start, *trained = committed_rounds(run)
    assert start.adapter_hash == first.tags["adapter_hash"]
    assert trained[-1].adapter_hash != start.adapter_hash
    assert len(versions_of(name)) == 2
    champion = find_version(name, CHAMPION)
    assert champion is not None
    assert _night(config)[0] == "NothingNew"
