"""Flow: train anew on what the logs have gained since the last time, starting from the champion."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from prefect import flow
from prefect.states import Completed, State
from pydantic import Field

from fl.errors import ScoreError
from fl.promotion import MARGIN
from flows.config import RunConfig
from flows.experiment import experiment
from flows.prepare import run_name
from storage.datasets import DatasetSpec, resolve
from storage.drift import Verdict, verdict_file
from storage.errors import DataError, RegistryError, SourceError, StorageError, TrackingError
from storage.layout import Layout, current
from storage.new_lines import NewLines, begin, finish, new_lines, put_back
from storage.registry import CHALLENGER, CHAMPION, find_version, model_names, registered_name
from tasks.promote_detector import promote_detector

NOTHING_NEW = "NothingNew"
_PASSING = (RegistryError, SourceError, StorageError, TrackingError)
"""Errors that say nothing of the lines: with the same ones the next night may well end otherwise."""


@flow(name="nightly-retrain", flow_run_name=run_name, persist_result=False)
def nightly_retrain(
    config: RunConfig,
    least_lines: Annotated[int, Field(ge=1)] = 1000,
    only_when_drifted: bool = False,
    margin: Annotated[float, Field(ge=0)] = MARGIN,
) -> State[Any]:
    """Train on the log's new lines from the champion's adapter, and promote the result where it is better.

    Args:
        config: The run: a preset, and what differs from it; dataset.source names the log that grows.
        least_lines: Fewer new lines than this wait for the next night.
        only_when_drifted: Whether to train only where the last detection recommended it.
        margin: How much better than the champion the new detector must be, as in `atalaia promote`.
    """
    layout, spec = current(), resolve(config.dataset)
    found = new_lines(config.dataset, spec, layout)
    reason = _reason_to_wait(found, spec, layout, least_lines, only_when_drifted)
    if found is None or reason:
        return Completed(name=NOTHING_NEW, message=reason or "There is nothing new.")
    found = begin(found, _champion(spec), spec, layout)
    with _put_back_if_unfit(spec, layout):
        run_id = experiment(_on_new_lines(config, found), start_from=found.start_from)
    told = _promoted_or_refused(found, spec, layout, margin)
    return Completed(message=f"Trained on {found.words}: run {run_id}. {told}")


def _reason_to_wait(
    found: NewLines | None, spec: DatasetSpec, layout: Layout, least_lines: int, only_when_drifted: bool
) -> str:
    """Why not to train this time, in one line; empty where there is no such reason."""
    if found is None:
        return f"Nothing new in the logs of {spec.name} since the last time."
    if found.lines is not None and found.lines < least_lines:
        return f"Only {found.lines:,} new lines of {spec.name}; {least_lines:,} are waited for."
    if only_when_drifted and not _drifted(spec, layout):
        return f"The last detection on the logs of {spec.name} recommended no retraining."
    return ""


def _drifted(spec: DatasetSpec, layout: Layout) -> bool:
    path = verdict_file(spec.name, layout)
    return path.is_file() and Verdict.model_validate_json(path.read_text()).retrain


def _on_new_lines(config: RunConfig, found: NewLines) -> RunConfig:
    if found.source is None:
        return config
    values = config.model_dump(mode="json")
    values["dataset"] |= {"source": found.source, "sha256": None}
    return RunConfig.model_validate(values)


def _champion(spec: DatasetSpec) -> str | None:
    """The champion by its number; None where there is none yet."""
    name = registered_name(spec.name)
    champion = find_version(name, CHAMPION) if name in model_names() else None
    return champion.uri if champion else None


@contextmanager
def _put_back_if_unfit(spec: DatasetSpec, layout: Layout) -> Iterator[None]:
    """Where these lines cannot be trained on, let the next night take more, or every night would fail by the same."""
    try:
        yield
    except (DataError, ScoreError) as error:
        if not isinstance(error, _PASSING):
            put_back(spec, layout)
        raise


def _promoted_or_refused(found: NewLines, spec: DatasetSpec, layout: Layout, margin: float) -> str:
    """What became of the new detector, in one line; the part is done even where it cannot be compared."""
    try:
        told = _promoted(spec, margin)
    except RegistryError:
        finish(found, spec, layout)
        raise
    finish(found, spec, layout)
    return told


def _promoted(spec: DatasetSpec, margin: float) -> str:
    """What became of the new detector, in one line; one that was registered before has no alias any more."""
    name = registered_name(spec.name)
    if find_version(name, CHALLENGER) is None:
        return f"{name} has no new challenger."
    return str(promote_detector(name, CHALLENGER, margin)["line"])
