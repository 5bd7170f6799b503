"""Sweeps: the record each keeps from its start to its end, and its cells side by side."""

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import DataError, FormatError
from storage.layout import Layout, current
from storage.report_tables import Bytes, Cell, Seconds, Table, Times, cell_text
from storage.runs import summary_of

RECORD = "sweep.json"
DONE = ("finished", "cached")
"""Statuses of cells with results."""
QUALITY = ("f1", "auroc", "average_precision", "oracle_f1")


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CellRecord(_Facts):
    """One run of a sweep."""

    name: str
    """What tells it from the other cells."""
    group: str
    """The same without the seed."""
    seed: int
    command: str
    """The command that runs this cell alone."""
    model: str = ""
    """The base model's name; empty in older records."""
    tuning: str = ""
    """As the paper's figures name it: PT, R=8, FFT; other adapters with their kind."""
    status: Literal["waiting", "running", "finished", "cached", "failed"] = "waiting"
    """cached: all of its stages lay at rest already."""
    run_id: str | None = None
    seconds: float | None = None
    """Of the last attempt."""
    reason: str | None = None
    """Why it failed, in one line."""


class SweepRecord(_Facts):
    """A sweep and how far its cells are."""

    sweep_id: str
    grid: str
    """The grid's name, or the path of its file."""
    command: str
    """The command that starts or resumes it."""
    started: str
    """ISO 8601, UTC; of the last time."""
    status: Literal["running", "finished", "failed"] = "running"
    """failed: at least one cell has no results, or the grid's shapes could not be timed."""
    cells: list[CellRecord]
    untimed: str | None = None
    """Why shapes that the grid names could not be timed for Table 3, in one line."""

    def counts(self) -> dict[str, int]:
        """How many cells have which status."""
        found = [cell.status for cell in self.cells]
        return {status: found.count(status) for status in dict.fromkeys(found)}


def sweep_id_of(grid: str, configurations: Sequence[str]) -> str:
    """The name of a sweep: the same for the same cells, so that one that was cut off goes on."""
    facts = json.dumps(list(configurations))
    return f"{Path(grid).stem}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"


def sweeps_folder(layout: Layout) -> Path:
    """Where sweeps keep their records: one folder each."""
    return layout.home / "sweeps"


def sweep_folder(sweep_id: str, layout: Layout | None = None) -> Path:
    """The folder of one sweep."""
    return sweeps_folder(layout or current()) / sweep_id


def record_sweep(record: SweepRecord, layout: Layout | None = None) -> None:
    """Write a sweep's record, in one step."""
    path = sweep_folder(record.sweep_id, layout) / RECORD
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(record.model_dump_json(indent=1))
    temporary.replace(path)


def read_sweep(sweep_id: str, layout: Layout | None = None) -> SweepRecord:
    """The record of a sweep; raises DataError where there is none."""
    path = sweep_folder(sweep_id, layout) / RECORD
    try:
        return SweepRecord.model_validate_json(path.read_text())
    except FileNotFoundError:
        known = ", ".join(record.sweep_id for record in sweep_records(layout)[-5:]) or "none yet"
        raise DataError(f"There is no sweep {sweep_id!r}; the newest are: {known}.") from None
    except ValidationError as error:
        told = error.errors()[0]["msg"]
        raise FormatError(f"{path} cannot be read ({told}); start the sweep again.") from None


def sweep_records(layout: Layout | None = None) -> list[SweepRecord]:
    """The records of all sweeps, newest last; folders without a readable one are left out."""
    found = []
    for path in sweeps_folder(layout or current()).glob(f"*/{RECORD}"):
        try:
            found.append(SweepRecord.model_validate_json(path.read_text()))
        except (OSError, ValidationError):
            continue
    return sorted(found, key=lambda record: (record.started, record.sweep_id))


def cell_rows(record: SweepRecord, layout: Layout | None = None) -> list[dict[str, Any]]:
    """A row for each cell: what it is, how well it detects and what it cost; null where it has no results."""
    return [_row(cell, layout) for cell in record.cells]


def _row(cell: CellRecord, layout: Layout | None) -> dict[str, Any]:
    row = {name: getattr(cell, name) for name in ("name", "group", "seed", "status", "run_id")}
    row |= dict.fromkeys((*QUALITY, "f1_low", "f1_high", "trained_parameters", "message_bytes", "times_below_full"))
    row |= {"train_seconds": None, "score_seconds": None, "cell_seconds": cell.seconds, "reason": cell.reason}
    if cell.status not in DONE or cell.run_id is None:
        return row
    try:
        summary = summary_of(cell.run_id, layout)
    except DataError as error:  # its folder was removed since
        return row | {"reason": str(error)}
    found, cost = summary.findings, summary.training
    interval = (found.get("headline") or {}).get("f1", {}).get("label_free") or {}
    sent = cost.bytes_up_per_client_round
    return row | {
        "f1": (found.get("label_free") or {}).get("f1"),
        "f1_low": interval.get("low"),
        "f1_high": interval.get("high"),
        "auroc": found.get("auroc"),
        "average_precision": found.get("average_precision"),
        "oracle_f1": (found.get("oracle") or {}).get("f1"),
        "trained_parameters": cost.trainable_parameters,
        "message_bytes": sent,
        "times_below_full": cost.full_model_bytes / sent if sent else None,
        "train_seconds": cost.train_seconds,
        "score_seconds": cost.score_seconds,
    }


CELL_TYPES: dict[str, pl.DataType] = {
    **dict.fromkeys(("sweep_id", "cell", "variant", "status", "run_id"), pl.String()),
    "seed": pl.Int64(),
    **dict.fromkeys((*QUALITY, "f1_low", "f1_high"), pl.Float64()),
    **dict.fromkeys(("trained_parameters", "message_bytes"), pl.Int64()),
    **dict.fromkeys(("times_below_full", "train_seconds", "score_seconds", "cell_seconds"), pl.Float64()),
    "reason": pl.String(),
}
"""Columns of the view `cells`; variant: the cell without its seed."""


def cell_table(layout: Layout) -> pl.DataFrame:
    """The cells of all sweeps, those of the newest sweep last."""
    rows = [
        {"sweep_id": record.sweep_id, "cell": row["name"], "variant": row["group"], **row}
        for record in sweep_records(layout)
        for row in cell_rows(record, layout)
    ]
    return pl.DataFrame([{name: row[name] for name in CELL_TYPES} for row in rows], schema=CELL_TYPES, orient="row")


def sweep_tables(record: SweepRecord, layout: Layout | None = None) -> list[Table]:
    """Means over the seeds where there are several, and every cell."""
    rows = cell_rows(record, layout)
    means = _mean_table(rows)
    return [*([means] if means else []), _cell_table(record, rows)]


def _cell_table(record: SweepRecord, rows: Sequence[dict[str, Any]]) -> Table:
    columns = ["cell", "status", "F1 label-free", "interval", "AUROC", "AP", "F1 oracle", *_COSTS]
    cells = [[row["name"], row["status"], row["f1"], _interval(row), *_ranks(row), *_costs(row)] for row in rows]
    note = (
        "Label-free: threshold from calibration windows, no label used; natural prevalence, all test windows, with "
        "its 95 % bootstrap interval. Oracle: the best F1 on the test labels themselves, as the paper reports. "
        "Message: bytes that a client sends up in a round; below full: how many times less than full fine-tuning's "
        "file would be."
    )
    return Table(f"Cells of {record.sweep_id}", columns, cells, note)


_COSTS = ("trained", "message", "below full", "training", "scoring")


def _interval(row: dict[str, Any]) -> str | None:
    return None if row["f1_low"] is None else f"[{row['f1_low']:.3f}, {row['f1_high']:.3f}]"


def _ranks(row: dict[str, Any]) -> list[Cell]:
    return [row["auroc"], row["average_precision"], row["oracle_f1"]]


def _costs(row: dict[str, Any]) -> list[Cell]:
    if row["message_bytes"] is None:
        return [None] * len(_COSTS)
    times = row["times_below_full"]
    return [
        row["trained_parameters"],
        Bytes(row["message_bytes"]),
        Times(times) if times else None,
        Seconds(row["train_seconds"]),
        Seconds(row["score_seconds"]),
    ]


def _mean_table(rows: Sequence[dict[str, Any]]) -> Table | None:
    """Means and standard deviations over seeds; None where no group has more than one cell."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    if max(map(len, groups.values()), default=0) < 2:
        return None
    columns = ["cells", "seeds", "F1 label-free", "AUROC", "AP", "F1 oracle", "trained", "message", "training"]
    made = [_mean_row(group, members) for group, members in groups.items()]
    note = (
        "Mean ± standard deviation over the seeds that have results; every seed draws its own splits, shares and start."
    )
    return Table("Over seeds", columns, made, note)


def _mean_row(group: str, members: Sequence[dict[str, Any]]) -> list[Cell]:
    done = [row for row in members if row["train_seconds"] is not None]
    count = str(len(done)) if len(done) == len(members) else f"{len(done)} of {len(members)}"
    qualities = [mean_words([row[name] for row in done], len(done)) for name in QUALITY]
    if not done:
        return [group, count, *qualities, None, None, None]
    taken = statistics.fmean(row["train_seconds"] for row in done)
    size = Bytes(statistics.fmean(row["message_bytes"] for row in done))
    return [group, count, *qualities, done[0]["trained_parameters"], size, Seconds(taken)]


def mean_words(values: Sequence[float | None], seeds: int) -> str | None:
    """A mean with its sample standard deviation, or the only value there is; of how many seeds where not of all."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = cell_text(float(statistics.fmean(known)))
    spread = f" ± {cell_text(float(statistics.stdev(known)))}" if len(known) > 1 else ""
    return f"{mean}{spread}{f' ({len(known)} of {seeds})' if len(known) < seeds else ''}"


def failures(record: SweepRecord) -> list[str]:
    """One line for each cell that failed, with the reason, and one for times that could not be taken."""
    failed = [f"{cell.name}: {cell.reason}" for cell in record.cells if cell.status == "failed"]
    return [*failed, *([f"Table 3: {record.untimed}"] if record.untimed else [])]
