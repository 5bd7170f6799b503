"""A sweep of a tiny grid: cells share what they have in common, one that fails stops no other, and it resumes."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import json
from pathlib import Path

import polars as pl
import pytest
from prefect_session import endings, home, prefect_api

from flows.sweep import FailedCells, sweep, watching
from storage.layout import current
from storage.sweeps import SweepRecord, cell_rows, read_sweep, sweep_folder, sweep_tables

pytestmark = pytest.mark.usefixtures("prefect_api")


class _Told:
    """What a watcher was told, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def sweep_began(self, record: SweepRecord, at_once: int) -> None:
        self.events.append(f"{len(record.cells)} cells, {at_once} at once")

    def cell_began(self, number: int, record: SweepRecord) -> None:
        self.events.append(f"{number} {record.cells[number].name} began")

    def cell_ended(self, number: int, record: SweepRecord) -> None:
        self.events.append(f"{number} {record.cells[number].name} {record.cells[number].status}")


def _grid(folder: Path, cells: dict[str, dict[str, object]]) -> str:
    """A grid of these cells on a small simulated log."""
    path = folder / "tiny.toml"
    common = {"dataset.blocks": 400, "federation.clients": 2, "federation.rounds": 1, "training.steps": 1}
    lines = ['preset = "demo"', "[settings]", *(f"{json.dumps(key)} = {value}" for key, value in common.items())]
    for name, settings in cells.items():
        lines += [f"[axes.cell.{json.dumps(name)}]"]
        lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in settings.items()]
    path.write_text("\n".join(lines))
    return str(path)


def test_a_sweep_shares_stages_goes_on_after_a_failure_and_resumes(
    home: Path, tiny_model: Path, tmp_path: Path, endings: list[tuple[str, str]]
) -> None:
    untouched = {"tuning.kind": "none", "model.name": str(tiny_model)}
    grid = _grid(
        tmp_path,
        {
            "mean": {**untouched, "detection.score": "mean_token"},
            "missing": {"model.name": "/no/such/model"},
            "max": {**untouched, "detection.score": "max_token"},
        },
    )
    told = _Told()
    with watching(told), pytest.raises(FailedCells, match=r"1 of 3 cells failed\. missing: .*no/such/model") as failed:
        sweep(grid)
    names = ("0 mean", "1 missing", "2 max")
    ended = ("finished", "failed", "finished")
    each = [f"{name} {what}" for name, end in zip(names, ended, strict=True) for what in ("began", end)]
    assert told.events == ["3 cells, 1 at once", *each]
    record = read_sweep(failed.value.record.sweep_id)
    run_ids = [cell.run_id for cell in record.cells if cell.run_id]
    assert len(set(run_ids)) == 2

    # What the cells have in common, scores included, was computed once.
    for stage in ("tokenize", "score"):
        assert [how for name, how in endings if name == stage] == ["ran", "cached"]
    assert [row["status"] for row in cell_rows(record)] == ["finished", "failed", "finished"]
    assert "no/such/model" in (sweep_folder(record.sweep_id) / "sweep.md").read_text()
    assert sweep_tables(record)[0].rows[1][:2] == ["missing", "failed"]
    _assert_one_parent(record, run_ids)
    assert _subflows(failed.value.record) == {"mean", "missing", "max"}

    # Again: what has results is found, what failed is tried again, and there is one parent still.
    again = _Told()
    with watching(again), pytest.raises(FailedCells):
        sweep(grid)
    assert again.events[2::2] == ["0 mean cached", "1 missing failed", "2 max cached"]
    _assert_one_parent(record, run_ids)


def _subflows(record: SweepRecord) -> set[str]:
    """The names of the flow runs beneath the sweep's own in Prefect."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=[f"sweep {record.grid}"]))
        [parent] = client.read_flow_runs(flow_run_filter=named)
        tasks = {run.state.state_details.child_flow_run_id for run in client.read_task_runs() if run.state}
        runs = client.read_flow_runs()
    assert parent.parent_task_run_id is None
    return {run.name for run in runs if run.id in tasks or run.parent_task_run_id is not None}


@pytest.mark.long
def test_the_untouched_model_is_that_after_a_cell_that_trained_all_weights_too(
    home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    named = {"model.name": str(tiny_model)}
    # Other values of K, so that the second cell finds no scores of the first.
    cells = {"FFT": {"tuning.kind": "full", **named}, "PT": {"tuning.kind": "none", "scoring.ks": [1], **named}}
    found = sweep(_grid(tmp_path, cells))
    full, untouched = (cell.run_id for cell in read_sweep(found).cells)
    assert full
    assert untouched
    assert _scores(untouched, 0) == _scores(full, 0)
    assert _scores(full, 1) != _scores(full, 0)


@pytest.mark.long
def test_cells_on_two_devices_at_once_find_what_they_find_alone(
    home: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"model.name": str(tiny_model), "scoring.scored_rounds": "last"}
    cells = {
        "PT": {"tuning.kind": "none", **named},
        "R=2": {"tuning.rank": 2, **named},
        "FFT": {"tuning.kind": "full", **named},
        "R=8": {"tuning.rank": 8, **named},
    }
    grid, told = _grid(tmp_path, cells), _Told()
    with monkeypatch.context() as patched, watching(told):
        patched.setattr(
            "flows.sweep.devices_for", lambda _: ["cpu", "cpu:0"]
        )  # two names, each with a model of its own
        found = read_sweep(sweep(grid))
    assert told.events[0] == "4 cells, 2 at once"
    assert sorted(told.events[1:3]) == ["0 PT began", "1 R=2 began"], "the second began before the first had ended"
    at_once = [_last_scores(cell.run_id) for cell in found.cells]
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "alone"))
    alone = [_last_scores(cell.run_id) for cell in read_sweep(sweep(grid)).cells]
    assert len({tuple(scores) for scores in alone}) == len(cells)
    for ours, theirs in zip(at_once, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def _last_scores(run_id: str | None) -> list[float]:
    assert run_id
    [*_, last] = sorted((current().run(run_id) / "rounds").glob("round-*"))
    return _scores(run_id, int(last.name.removeprefix("round-")))


def _scores(run_id: str, number: int) -> list[float]:
    """The scores that a run's adapter of a round gave the windows."""
    card = pl.read_parquet(current().run(run_id) / "rounds" / f"round-{number:04d}" / "round.parquet")
    scores = pl.read_parquet(current().run(run_id) / "scores" / f"{card['adapter_hash'].item()}.parquet")
    return scores["mean_token"].to_list()


def _assert_one_parent(record: SweepRecord, run_ids: list[str]) -> None:
    """MLflow shows one run of the sweep, and those of its cells beneath it."""
    from storage.tracking import EXPERIMENT, tracking_client

    client = tracking_client()
    runs = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    [parent] = [run for run in runs if run.data.tags.get("sweep_id") == record.sweep_id]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    done = {run.data.tags["run_id"] for run in children if run.info.status == "FINISHED"}
    assert done == set(run_ids)
    [failed] = [run for run in children if run.info.status == "FAILED"]
    assert failed.data.tags["cell"] == "missing"
    assert "no/such/model" in failed.data.tags["reason"]
    assert parent.data.metrics["cells_failed"] == 1
    assert parent.data.metrics["table2/1.7B/R_8/flower_bytes_up"] > 6_290_000
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"sweep.html", "table2.csv", "table3.csv", "codecs.csv", "figures"} <= kept
