"""What an execution of a run took: work where the work is, nothing counted twice, and the rest by name."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import time
from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest
from prefect import flow
from prefect_session import home, prefect_api

from fl.simulation import only_job
from flows.config import RunConfig
from flows.experiment import _recorded
from flows.timing import timing
from storage.executions import Execution, StageTime, last_execution, record_execution, training_seconds
from storage.layout import Layout
from storage.rounds import query
from storage.runs import read_record
from storage.stages import NewStage
from tasks.stage_task import stage

WORK, TRACKED = 0.2, 0.1


@stage("worked")
def worked(new: NewStage) -> None:
    """Work for a while."""
    time.sleep(WORK)


@stage("tracked")
def tracked(new: NewStage) -> None:
    """Take time that is no work."""
    time.sleep(TRACKED)
    new.work_seconds = 0.0


@flow
def run() -> Execution:
    with timing() as watch:
        worked()
        tracked()
        return watch.execution("finished")


def test_work_is_what_ran_within_the_stages_and_a_rerun_has_none(prefect_api: None, home: Path) -> None:
    first, again = run(), run()
    assert [(each.stage, each.state) for each in first.stages] == [("worked", "ran"), ("tracked", "ran")]
    assert first.stages[0].work_seconds >= WORK
    assert first.stages[1].work_seconds == 0.0
    assert first.overhead_seconds >= TRACKED
    assert sum(each.seconds for each in first.stages) <= first.seconds
    assert [each.state for each in again.stages] == ["cached", "cached"]
    assert again.work_seconds == 0.0


def test_a_flow_within_a_command_goes_on_with_the_commands_stopwatch() -> None:
    with timing() as command, timing() as within:
        assert within is command
    with timing() as next_one:
        assert next_one is not command


@pytest.fixture
def executed(home: Path) -> Execution:
    stages = (StageTime("train", "ran", 50.0, 44.0), StageTime("register", "ran", 6.0))
    found = Execution("2026-11-22T00:00:00+00:00", "finished", 60.0, stages)
    record_execution("run-1", Execution("2026-11-21T00:00:00+00:00", "failed", 1.0, ()))
    record_execution("run-1", found)
    return found


def test_a_recorded_execution_is_read_as_it_was(executed: Execution) -> None:
    assert last_execution("run-1") == executed
    assert last_execution("run-2") is None
    assert executed.in_words() == "Took 60.0 s: 44.0 s of work, 16.0 s (26.7 %) of orchestration"


def test_the_view_tells_where_the_overhead_is_and_its_rows_are_the_whole(executed: Execution, home: Path) -> None:
    rows = query("SELECT * FROM executions WHERE status = 'finished'", Layout(home))
    overhead = dict(zip(rows["stage"], rows["overhead_seconds"], strict=True))
    assert overhead == {"train": 6.0, "register": 6.0, "between stages": 4.0}
    assert rows["seconds"].sum() == executed.seconds
    assert set(rows["run_id"]) == {"run-1"}


def test_clients_that_train_at_the_same_time_count_once(tmp_path: Path) -> None:
    folders = [tmp_path / "round-1", tmp_path / "round-2"]
    for folder in folders:
        folder.mkdir()
        pl.DataFrame({"seconds": [2.0, 4.0]}).write_parquet(folder / "clients.parquet")
    assert training_seconds(folders, 1) == 12.0
    assert training_seconds(folders, 2) == 6.0
    assert training_seconds([], 1) == 0.0


@pytest.mark.parametrize(("trains", "status"), [(True, "running"), (False, "failed")])
def test_an_execution_that_fails_marks_the_run_failed_unless_another_one_trains(
    trains: bool, status: str, home: Path
) -> None:
    config, folder = RunConfig.model_validate({"preset": "demo"}), Layout(home).run("run")
    folder.mkdir(parents=True)
    with (
        only_job(folder) if trains else nullcontext(),
        timing() as watch,
        pytest.raises(KeyError),
        _recorded(config, "run", None, {}, watch),
    ):
        raise KeyError
    assert read_record("run").status == status
