"""Sweeps in MLflow: one parent run a sweep, with the run of each cell beneath it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from storage.layout import Layout, current
from storage.sweeps import DONE, QUALITY, SweepRecord, cell_rows
from storage.tracking import EXPERIMENT, log_run, told_as_tracking_error, tracking_client

PARENT = "mlflow.parentRunId"
"""The tag by which MLflow shows a run beneath another."""


def track_sweep(record: SweepRecord, files: Sequence[Path], layout: Layout | None = None) -> str:
    """Track a sweep as the parent of its cells' runs and return MLflow's id of it; a former parent of it is deleted.

    Raises TrackingError where the store cannot be reached or refuses.
    """
    rows = [row for row in cell_rows(record, layout) if row["status"] in DONE]
    best = {f"best_{name}": max((row[name] for row in rows if row[name] is not None), default=None) for name in QUALITY}
    metrics = {name: float(value) for name, value in best.items() if value is not None}
    metrics |= {f"cells_{status}": float(count) for status, count in record.counts().items()}
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
    return parent


def _found(client: Any, condition: str) -> list[Any]:  # noqa: ANN401 (MLflow's client and runs)
    """The runs that match, newest first; none while there is no experiment yet."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], condition, order_by=["attributes.start_time DESC"]))
