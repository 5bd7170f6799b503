"""flows/sweep.py: a sweep that is started again and stopped still knows what it had finished."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.config import RunConfig
from flows.sweep import sweep
from flows.sweep_command import show_sweep
from storage.layout import Layout
from storage.sweeps import SweepRecord, sweep_folder, sweep_records

GRID = 'preset = "demo"\n[axes]\nrank = [2, 4, 8]\n'


class _Experiment:
    """What takes the place of the experiment: a run for each rank, until one stops the sweep."""

    def __init__(self) -> None:
        self.stops_at: int | None = None

    def with_options(self, **_: Any) -> Callable[[RunConfig], str]:  # noqa: ANN401
        return self._run

    def _run(self, config: RunConfig) -> str:
        if config.tuning.rank == self.stops_at:
            raise KeyboardInterrupt
        return f"run-{config.tuning.rank}"


@pytest.fixture
def stopping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], SweepRecord]:
    """Runs the grid until the cell of a rank is stopped; the record as it lies on disk then."""
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    stub, grid = _Experiment(), tmp_path / "tiny.toml"
    grid.write_text(GRID)
    monkeypatch.setattr("flows.sweep.experiment", stub)

    def stopped(rank: int) -> SweepRecord:
        stub.stops_at = rank
        with pytest.raises(KeyboardInterrupt):
            sweep.fn(str(grid))
        [record] = sweep_records(Layout(tmp_path / "home"))
        return record

    return stopped


def _cells(record: SweepRecord) -> list[tuple[str, str | None]]:
    return [(cell.status, cell.run_id) for cell in record.cells]


def test_what_was_finished_stays_so_when_a_restart_is_stopped_before_or_in_it(
    stopping: Callable[[int], SweepRecord],
) -> None:
    finished = [("cached", "run-2"), ("cached", "run-4"), ("waiting", None)]
    assert _cells(stopping(8)) == finished
    assert _cells(stopping(2)) == finished, "the first cell was stopped, the second had no turn"
    assert _cells(stopping(4)) == finished


def test_a_report_is_named_only_where_there_is_one(
    stopping: Callable[[int], SweepRecord], capsys: pytest.CaptureFixture[str]
) -> None:
    record = stopping(2)
    show_sweep(record)
    assert "sweep.html" not in capsys.readouterr().out
    (sweep_folder(record.sweep_id) / "sweep.html").touch()
    show_sweep(record)
    assert "sweep.html" in capsys.readouterr().out
