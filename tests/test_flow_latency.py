"""Table 3 timed by the flow: what it is told of, that it is kept, and that a sweep takes it along."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import json
from pathlib import Path

import polars as pl
import pytest
from prefect_session import endings, home, prefect_api

from fl.errors import ModelError
from flows.config import RunConfig
from flows.latency import latency
from flows.prepare import prepare_data
from flows.settings import ConfigError, run_config
from flows.sweep import FailedCells, sweep
from storage.latencies import timed_table
from storage.layout import current
from storage.stages import Stage
from storage.sweeps import read_sweep, sweep_folder
from tasks.time_shapes import TIMINGS

pytestmark = pytest.mark.usefixtures("prefect_api", "home")

STAGES = ["tiny-padded", "tiny-alone", "tiny-together"]


def _config(model: Path, *settings: str) -> RunConfig:
    return run_config("demo", ["dataset.blocks=400", f"model.name={model}", *settings])


def _tested(tokenized: Stage, split: Stage) -> list[tuple[int, ...]]:
    """The tokens of each window of the test split."""
    sides = pl.read_parquet(split.file("splits.parquet"))
    windows = pl.read_parquet(tokenized.file("windows.parquet")).join(sides, on="window_id")
    texts = dict(pl.read_parquet(tokenized.file("sequences.parquet"))["sequence_id", "token_ids"].iter_rows())
    return [tuple(texts[each]) for each in windows.filter(pl.col("split") == "test")["sequence_id"]]


def test_a_shape_is_timed_in_each_way_on_windows_of_the_test_split(
    tiny_model: Path, endings: list[tuple[str, str]]
) -> None:
    config = _config(tiny_model)
    data = prepare_data(config)
    tested = _tested(data.tokenized, data.split)
    windows = len(tested)
    [path] = latency(config, ["tiny", "tiny"], windows, repeats=2)
    assert [stage for stage in endings if stage[0] in TIMINGS] == [(name, "ran") for name in STAGES]
    kept = json.loads(Path(path).read_text())
    padded, alone, together = (kept["tiny"][f"float32:{way}"] for way in ("padded", "alone", "together"))
    assert [padded["samples"], alone["samples"]] == [windows, windows // 10]
    assert [together["windows"], together["repeats"]] == [windows, 2]
    assert padded["tokens"] == windows * 1024
    # Drawn without repetition, that is each of them; every distinct beginning of a window is computed once.
    assert together["tokens"] == sum(map(len, tested))
    assert together["computed_tokens"] == len({text[:end] for text in tested for end in range(1, len(text) + 1)})
    for found in (padded, alone, together):
        assert 0 < found["median_ms"] <= found["p99_ms"]
        assert found["peak_mb"] > 0
    rows = timed_table([], current()).rows_by_key("way", named=True, unique=True)
    assert {name: row["size"] for name, row in rows.items()} == dict.fromkeys(kept["tiny"], "tiny")
    assert {(row["weights"], row["run_id"]) for row in rows.values()} == {("random, seeded", None)}

    # Again: nothing is timed twice, and the file is as it was.
    endings.clear()
    assert latency(config, ["tiny"], windows, repeats=2) == [path]
    assert [stage for stage in endings if stage[0] in TIMINGS] == [(name, "cached") for name in STAGES]
    assert json.loads(Path(path).read_text()) == kept


def test_what_cannot_be_timed_is_told(tiny_model: Path, endings: list[tuple[str, str]]) -> None:
    with pytest.raises(ConfigError, match=r"There is no shape '2B'; give some of 135M, 360M, 1\.7B, tiny"):
        latency(_config(tiny_model), ["tiny", "2B"])
    with pytest.raises(ModelError, match="There is no test window to be timed"):
        latency(_config(tiny_model, "split.test=0"), ["tiny"])
    endings.clear()
    wrong = r"tiny-padded could not be timed: No CUDA device is visible.*; tiny-alone could not .*; tiny-together could"
    with pytest.raises(ModelError, match=wrong):
        latency(_config(tiny_model, "device=cuda"), ["tiny"], windows=5)
    assert [stage for stage in endings if stage[0] in TIMINGS] == [(name, "failed") for name in STAGES]
    assert timed_table([], current()).is_empty()


def test_a_process_that_is_killed_is_told_with_its_status(tiny_model: Path, tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho 'a warning of no matter' >&2\nkill -9 $$\n")
    dying.chmod(0o755)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tasks.time_shapes.sys.executable", str(dying))
        with pytest.raises(ModelError, match=r"tiny-padded could not be timed: its process ended with status -9"):
            latency(_config(tiny_model), ["tiny"], windows=5)


def _grid(folder: Path, model: Path, **more: str) -> str:
    settings = {"dataset.blocks": 400, "model.name": str(model), "tuning.kind": "none", **more}
    lines = ['preset = "demo"', 'latency = ["tiny"]', "[settings]"]
    lines += [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in settings.items()]
    path = folder / "timed.toml"
    path.write_text("\n".join([*lines, "[axes]", "seed = [0]"]))
    return str(path)


def test_a_sweep_times_the_shapes_that_its_grid_names(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.latency.usual_samples", lambda *_: 5)
    grid = _grid(tmp_path, tiny_model)
    record = read_sweep(sweep(grid))
    assert (record.status, record.untimed) == ("finished", None)
    assert timed_table([], current())["measured_windows"].sort().to_list() == [1, 5, 5]

    # What cannot be timed fails the sweep, and takes no cell along.
    monkeypatch.setattr("flows.latency.device_of", lambda _: "cuda")
    with pytest.raises(FailedCells, match=r"0 of 1 cells failed\. Table 3: tiny-padded could not be timed") as failed:
        sweep(grid)
    record = failed.value.record
    assert [cell.status for cell in record.cells] == ["cached"]
    for name in ("sweep.md", "sweep.html"):
        assert "Table 3: tiny-padded could not be timed" in (sweep_folder(record.sweep_id) / name).read_text()
