"""Sweeps in MLflow: one parent run a sweep, with the run of each cell beneath it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from storage.layout import Layout, current
from storage.sweeps import DONE, QUALITY, CellRecord, SweepRecord, cell_rows
from storage.tracking import EXPERIMENT, log_run, told_as_tracking_error, tracking_client

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows a run beneath another."""


def track_sweep(
    record: SweepRecord, files: Sequence[Path], paper: Mapping[str, pl.DataFrame], layout: Layout | None = None
) -> str:
    """Track a sweep as the parent of its cells' runs and return MLflow's id of it; a former parent of it is deleted.

    Cells that failed have a run of their own beneath it that has failed too. `paper` holds the answers of the views
    table2 and table3, whose numbers become metrics.

    Raises TrackingError where the store cannot be reached or refuses.
    """
    rows = [row for row in cell_rows(record, layout) if row["status"] in DONE]
    best = {f"best_{name}": max((row[name] for row in rows if row[name] is not None), default=None) for name in QUALITY}
    metrics = {name: float(value) for name, value in best.items() if value is not None}
    metrics |= {f"cells_{status}": float(count) for status, count in record.counts().items()}
    metrics |= paper_metrics(paper, {row["run_id"]: row["name"] for row in rows})
    parameters = {"grid": record.grid, "command": record.command, "cells": len(record.cells)}
    tags = {"sweep_id": record.sweep_id, "status": record.status}
    with told_as_tracking_error(layout):
        client = tracking_client(layout)
        former = _found(client, f"tags.sweep_id = '{record.sweep_id}'")
        parent = log_run(f"sweep {record.sweep_id}", parameters, [], metrics, files, tags, layout or current())
        for run in former:
            client.delete_run(run.info.run_id)
        for row in rows:
            for run in _found(client, f"tags.run_id = '{row['run_id']}'")[:1]:
                client.set_tag(run.info.run_id, PARENT, parent)
                client.set_tag(run.info.run_id, "cell", row["name"])
        for cell in record.cells:
            if cell.status == "failed":
                _track_failure(client, cell, parent, record.sweep_id)
    return parent


def _track_failure(client: Any, cell: CellRecord, parent: str, sweep_id: str) -> None:  # noqa: ANN401
    """A failed run beneath the sweep's, with the reason; that of an earlier attempt is deleted."""
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    for former in _found(client, f"tags.failed_in = '{sweep_id}' and tags.command = '{_escaped(cell.command)}'"):
        client.delete_run(former.info.run_id)
    tags = {PARENT: parent, "cell": cell.name, "failed_in": sweep_id, "command": cell.command}
    run = client.create_run(experiment, run_name=cell.name, tags=tags | {"reason": cell.reason or "not told"})
    client.set_terminated(run.info.run_id, status="FAILED")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def paper_metrics(paper: Mapping[str, pl.DataFrame], cells: Mapping[str, str]) -> dict[str, float]:
    """The numbers of Table 2, and those of Table 3 that were measured apart or are of the sweep's own cells.

    `cells` holds the cells' names by run. Names are such as table2/135M/R_8/sent_up,
    table3/135M__R_8__seed_0/scored_alone/measured_ms and, measured apart,
    table3/135M/float32_padded/<machine>/measured_ms.
    """
    found: dict[str, float] = {}
    for row in paper.get("table2", pl.DataFrame()).to_dicts():
        found |= _numbers(row, "table2", row["size"], row["tuning"])
    for row in paper.get("table3", pl.DataFrame()).to_dicts():
        if row["run_id"] in cells:
            found |= _numbers(row, "table3", cells[row["run_id"]], row["way"])
        elif row["run_id"] is None and row["way"] is not None:
            found |= _numbers(row, "table3", row["size"], row["way"], row["measured_on"])
    return found


def _numbers(row: Mapping[str, Any], *place: str) -> dict[str, float]:
    under = "/".join(map(_name, place))
    return {
        f"{under}/{name}": float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _name(text: str) -> str:
    """A part of a metric's name in the letters that MLflow takes."""
    return re.sub(r"[^\w.-]", "_", text)


def _found(client: Any, condition: str) -> list[Any]:  # noqa: ANN401 (MLflow's client and runs)
    """The runs that match, newest first; none while there is no experiment yet."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], condition, order_by=["attributes.start_time DESC"]))
