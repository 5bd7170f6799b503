"""Flow: a grid of experiments, each a subflow; what cells have in common is computed once."""

import contextvars
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from prefect import flow

from fl.devices import gpus
from flows.computed_views import COMPUTED
from flows.config import RunConfig
from flows.experiment import experiment
from flows.grids import Cell, cells_of, read_grid
from flows.prepare import prepare_data
from storage.errors import DataError
from storage.layout import current
from storage.paper_views import tuning_label
from storage.rounds import query
from storage.runs import now
from storage.sweep_files import PAPER_TABLES, write_sweep
from storage.sweep_tracking import track_sweep
from storage.sweeps import (
    DONE,
    CellRecord,
    SweepRecord,
    failures,
    read_sweep,
    record_sweep,
    sweep_id_of,
)
from tasks.progress import StageEvent, listening


class FailedCells(Exception):
    """Some cells of a sweep have no results, or shapes of its grid could not be timed; the others have theirs."""

    def __init__(self, record: SweepRecord) -> None:
        failed = record.counts().get("failed", 0)
        super().__init__(f"{failed} of {len(record.cells)} cells failed. {'; '.join(failures(record))}")
        self.record = record


class Watcher(Protocol):
    """Whoever is told where a sweep is."""

    def sweep_began(self, record: SweepRecord, at_once: int) -> None: ...

    def cell_began(self, number: int, record: SweepRecord) -> None: ...

    def cell_ended(self, number: int, record: SweepRecord) -> None: ...

    def timing_began(self, shapes: Sequence[str]) -> None: ...

    def timing_ended(self, record: SweepRecord) -> None: ...


_watchers: list[Watcher] = []


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Have `watcher` told of every sweep while the block runs; cells are numbered from 0."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@flow(name="sweep", flow_run_name="sweep {grid}", persist_result=False)
def sweep(grid: str, settings: list[str] | None = None) -> str:
    """Run every cell of a grid, going on after one that fails; the sweep's id.

    A sweep that was stopped goes on when it is started again: whatever lies at rest is reused. Raises FailedCells at
    the end where cells have no results.

    Args:
        grid: A grid's name (small, sites, codecs, paper), or the path of a .toml file with one.
        settings: As on the command line, such as rounds=6; one that names an axis takes only these of its values.
    """
    plan = read_grid(grid)
    cells = cells_of(plan, settings or [])
    devices = devices_for(cells)
    board = _Board(_new_record(grid, settings or [], cells), len(devices))
    work = list(enumerate(cells))
    if len(devices) < 2:
        for number, cell in work:
            _run_cell(board, number, cell, cell.config)
    else:
        _run_at_once(board, work, devices)
    if plan.latency:
        _time_shapes(board, cells[0].config, plan.latency)
    record = board.finish()
    _tell(record)
    if record.status == "failed":
        raise FailedCells(record)
    return record.sweep_id


def devices_for(cells: Sequence[Cell]) -> list[str]:
    """The devices that cells run on, one cell each: every GPU, unless a cell names a device itself; else one place."""
    if any(cell.config.model.device != "auto" for cell in cells):
        return ["auto"]
    count, _ = gpus()
    return [f"cuda:{index}" for index in range(count)] if count > 1 else ["auto"]


def _new_record(grid: str, settings: list[str], cells: Sequence[Cell]) -> SweepRecord:
    import shlex

    sweep_id = sweep_id_of(grid, [cell.config.model_dump_json() for cell in cells])
    former: list[CellRecord | None] = [*_former_cells(sweep_id)] or [None] * len(cells)
    return SweepRecord(
        sweep_id=sweep_id,
        grid=grid,
        command=shlex.join(["atalaia", "sweep", grid, *settings]),
        started=now(),
        cells=[_unstarted(cell, known) for cell, known in zip(cells, former, strict=True)],
    )


def _former_cells(sweep_id: str) -> list[CellRecord]:
    """The cells of a sweep when it last ran, which are the same in the same order; none where it never did."""
    try:
        return read_sweep(sweep_id).cells
    except DataError:
        return []


def _unstarted(cell: Cell, former: CellRecord | None) -> CellRecord:
    """A cell before its turn: what is known of one that has results, else that it waits."""
    config = cell.config
    known: dict[str, Any] = {}
    if former is not None and former.status in DONE:
        known = {"status": former.status, "run_id": former.run_id, "seconds": former.seconds}
    return CellRecord(
        name=cell.name,
        group=cell.group,
        seed=config.seed,
        command=cell.command,
        model=config.model.name,
        tuning=tuning_label(config.tuning.kind, config.tuning.rank),
        **known,
    )


class _Board:
    """The sweep's record while its cells run: kept on disk, and told to the watchers."""

    def __init__(self, record: SweepRecord, at_once: int) -> None:
        self.record = record
        # Cells at a time share one record; re-entrant, since what is told is told under the lock.
        self._lock = threading.RLock()
        record_sweep(record)
        for watcher in tuple(_watchers):
            watcher.sweep_began(record, at_once)

    def mark(self, number: int, **changes: Any) -> None:  # noqa: ANN401 (CellRecord's fields)
        with self._lock:
            cells = list(self.record.cells)
            cells[number] = cells[number].model_copy(update=changes)
            self.record = self.record.model_copy(update={"cells": cells})
            record_sweep(self.record)
            for watcher in tuple(_watchers):
                if changes["status"] == "running":
                    watcher.cell_began(number, self.record)
                else:
                    watcher.cell_ended(number, self.record)

    def mark_timing(self, shapes: Sequence[str]) -> None:
        for watcher in tuple(_watchers):
            watcher.timing_began(shapes)

    def mark_timed(self, untimed: str | None) -> None:
        self.record = self.record.model_copy(update={"untimed": untimed})
        record_sweep(self.record)
        for watcher in tuple(_watchers):
            watcher.timing_ended(self.record)

    def finish(self) -> SweepRecord:
        status = "failed" if failures(self.record) else "finished"
        self.record = self.record.model_copy(update={"status": status})
        record_sweep(self.record)
        return self.record


class _Endings:
    """Whether any stage had to be computed for the cell that this thread runs."""

    def __init__(self) -> None:
        self.ran = False
        self._thread = threading.get_ident()

    def __call__(self, event: StageEvent) -> None:
        if event.state == "ran" and threading.get_ident() == self._thread:
            self.ran = True


def _run_cell(
    board: _Board, number: int, cell: Cell, config: RunConfig, shared: AbstractContextManager[Any] | None = None
) -> None:
    """One cell as a subflow of its own; what goes wrong in it is kept in the record, and the next one runs."""
    before = board.record.cells[number].status
    board.mark(number, status="running", reason=None)
    began, endings = time.monotonic(), _Endings()
    name = cell.name.replace("{", "{{").replace("}", "}}")
    try:
        with listening(endings):
            # Cells that run at once prepare one after the other: the second finds what they have in common at rest.
            with shared or nullcontext():
                if shared:
                    prepare_data(config)
            run_id = experiment.with_options(flow_run_name=name)(config)
    except Exception as error:
        board.mark(number, status="failed", reason=_one_line(error), seconds=time.monotonic() - began)
    except BaseException:
        board.mark(number, status=before)
        raise
    else:
        status = "finished" if endings.ran else "cached"
        board.mark(number, status=status, run_id=run_id, seconds=time.monotonic() - began)
    finally:
        _forget_tuned_base(config)


def _time_shapes(board: _Board, config: RunConfig, shapes: Sequence[str]) -> None:
    """The grid's shapes timed on the log of its cells, when no cell disturbs; why they could not be is kept."""
    from flows.latency import latency

    board.mark_timing(shapes)
    reason = None
    try:
        latency(config, list(shapes))
    except Exception as error:
        reason = _one_line(error)
    board.mark_timed(reason)


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    told = lines[0] if lines else "no reason was given"
    # The application's own errors are written for people; of any other the kind is half of what it says.
    ours = type(error).__module__.split(".")[0] in {"fl", "flows", "storage", "tasks"}
    return told if ours else f"{type(error).__name__}: {told}"


def _forget_tuned_base(config: RunConfig) -> None:
    """Have the base model loaded anew after full fine-tuning, which was scored with its weights in the base's place."""
    if config.tuning.kind == "full":
        from fl.model import load_model

        load_model.cache_clear()


def _run_at_once(board: _Board, work: Sequence[tuple[int, Cell]], devices: Sequence[str]) -> None:
    """A cell at a time on each device; a cell's device depends on its place in the grid, so that it is found again."""
    shared = threading.Lock()

    def on_device(place: int) -> None:
        for number, cell in work[place :: len(devices)]:
            model = cell.config.model.model_copy(update={"device": devices[place]})
            _run_cell(board, number, cell, cell.config.model_copy(update={"model": model}), shared)

    with ThreadPoolExecutor(len(devices), thread_name_prefix="cells") as pool:
        # Each thread in a copy of this flow's context, so that cells are its subflows.
        for future in [pool.submit(contextvars.copy_context().run, on_device, place) for place in range(len(devices))]:
            future.result()


def _tell(record: SweepRecord) -> None:
    """The sweep's report as files and an artifact, and its runs under one parent in MLflow."""
    from prefect.artifacts import create_markdown_artifact

    paper = {view: query(f"SELECT * FROM {view}", current(), COMPUTED) for view in PAPER_TABLES}
    files = write_sweep(record, paper, current())
    text = files[0].read_text()
    create_markdown_artifact(text, key="sweep", description=f"Sweep {record.sweep_id}")
    track_sweep(record, files, paper)
