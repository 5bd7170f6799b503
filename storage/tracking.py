"""MLflow: parameters, metrics of every round and files of the runs; registered detectors are in storage/registry.py."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.errors import TrackingError
from storage.layout import Layout, current

EXPERIMENT = "atalaia"
NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a description."""
_EXPERIMENT_TAGS = {
    NOTE: "Runs of Atalaia: federated adapters, how well they detect, and what they cost.",
    # Else its pages are those for prompts and traces.
    "mlflow.experimentKind": "custom_model_development",
}
_BATCH = 1000
"""Metrics that MLflow takes in one call."""


def tracking_uri(layout: Layout | None = None) -> str:
    """Where runs are tracked: `MLFLOW_TRACKING_URI`, else a SQLite file under the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(layout or current()).mlflow / 'mlflow.db'}"


def store_identity(layout: Layout | None = None) -> str:
    """What tells one tracking store from another: its address, and for the default one also the file itself."""
    uri = tracking_uri(layout)
    if not uri.startswith("sqlite:///"):
        return uri
    path = Path(uri.removeprefix("sqlite:///"))
    if not path.is_file():
        open_store(layout)
    return f"{uri} {path.stat().st_ino}"


def open_store(layout: Layout | None = None) -> None:
    """Make the store and its experiment where there are none; takes seconds, as importing MLflow does.

    A store behind a server is not asked: that waits long where the server is down.
    """
    client = tracking_client(layout)
    if not tracking_uri(layout).startswith("http"):
        _experiment_id(client, layout)


def log_run(
    name: str,
    parameters: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    summary: Mapping[str, float],
    files: Sequence[Path],
    tags: Mapping[str, str],
    layout: Layout | None = None,
) -> str:
    """Track a finished run and return MLflow's id of it; each of `rounds` has its step in `round`.

    Raises TrackingError where the server cannot be reached or refuses.
    """
    with told_as_tracking_error(layout):
        client = tracking_client(layout)
        run = client.create_run(_experiment_id(client, layout), run_name=name, tags=dict(tags))
        run_id = str(run.info.run_id)
        _log_parameters(client, run_id, parameters)
        _log_metrics(client, run_id, rounds, summary)
        for file in files:
            client.log_artifact(run_id, str(file), "figures" if file.suffix in {".pdf", ".png", ".svg"} else None)
        client.set_terminated(run_id)
        return run_id


def tracking_client(layout: Layout | None = None) -> Any:  # noqa: ANN401 (mlflow.MlflowClient, imported late)
    """MLflow's client of the store, silent about itself."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import logging

    from mlflow import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    (layout or current()).mlflow.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri(layout))


def _experiment_id(client: Any, layout: Layout | None) -> str:  # noqa: ANN401
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return str(found.experiment_id)
    # A server keeps artifacts where it was told to; the SQLite default would put them into the working directory.
    local = tracking_uri(layout).startswith("sqlite:")
    place = ((layout or current()).mlflow / "artifacts").as_uri() if local else None
    return str(client.create_experiment(EXPERIMENT, artifact_location=place, tags=_EXPERIMENT_TAGS))


def _log_parameters(client: Any, run_id: str, parameters: Mapping[str, Any]) -> None:  # noqa: ANN401
    from mlflow.entities import Param

    items = [Param(name, str(value)[:6000]) for name, value in parameters.items() if value is not None]
    for start in range(0, len(items), 100):
        client.log_batch(run_id, params=items[start : start + 100])


def _log_metrics(client: Any, run_id: str, rounds: Sequence[Mapping[str, Any]], summary: Mapping[str, float]) -> None:  # noqa: ANN401
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    by_round = [
        Metric(name, float(value), now, int(row["round"]))
        for row in rounds
        for name, value in row.items()
        if name != "round" and isinstance(value, int | float)
    ]
    last = max((int(row["round"]) for row in rounds), default=0)
    items = by_round + [Metric(name, float(value), now, last) for name, value in summary.items()]
    for start in range(0, len(items), _BATCH):
        client.log_batch(run_id, metrics=items[start : start + _BATCH])


@contextmanager
def told_as_tracking_error(layout: Layout | None) -> Iterator[None]:
    """Make a failure of the store within the block a TrackingError of one line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise TrackingError(
            f"The tracking store {tracking_uri(layout)} failed: {reason} Check MLFLOW_TRACKING_URI, then run again; "
            "all stages are kept."
        ) from error
