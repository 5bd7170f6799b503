"""How stages tell what is done and what is left: to whoever listens in this process, and to the run's page."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from storage.progress import Progress

_ARTIFACT_SECONDS = 3.0
"""At least this long between two updates of a progress artifact: each is a call to the server."""


@dataclass(frozen=True)
class StageEvent:
    """Something that happened to a stage."""

    stage: str
    state: Literal["started", "running", "cached", "ran", "failed"]
    counts: Mapping[str, Any] = field(default_factory=dict)
    done: float = 0.0
    total: float | None = None
    note: str = ""
    work_seconds: float = 0.0
    """Of a stage that ran: seconds of the work itself."""


Listener = Callable[[StageEvent], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `listener` called with every event while the block runs."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(event: StageEvent) -> None:
    """Tell the listeners."""
    for listener in tuple(_listeners):
        listener(event)


def progress_of(stage: str) -> Progress:
    """A progress callback for the work of a stage: it tells the listeners and keeps a progress artifact up to date."""
    artifact = _ProgressArtifact(stage)

    def tell(done: float, total: float | None, note: str = "") -> None:
        announce(StageEvent(stage, "running", done=done, total=total, note=note))
        artifact.update(done, total, note)

    return tell


class _ProgressArtifact:
    """The progress bar on the run's page; a server that does not answer never stops the work."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._identity: Any = None
        self._updated = time.monotonic()
        self._percent = 0.0

    def update(self, done: float, total: float | None, note: str) -> None:
        now = time.monotonic()
        if not total or not _in_run():
            return
        percent = min(100.0, 100.0 * done / total)
        # A stage so short that it has no bar needs none at its end.
        ends = percent == 100.0 and self._percent < 100.0 and self._identity is not None
        if now - self._updated < _ARTIFACT_SECONDS and not ends:
            return
        self._updated, self._percent = now, percent
        with suppress(Exception):
            self._send(percent, f"{self._stage}: {note}" if note else self._stage)

    def _send(self, percent: float, told: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._identity is None:
            key = re.sub(r"[^a-z0-9]+", "-", f"progress-{self._stage.lower()}")
            self._identity = create_progress_artifact(progress=percent, key=key, description=told)
        else:
            update_progress_artifact(artifact_id=self._identity, progress=percent, description=told)


def _in_run() -> bool:
    from prefect.context import FlowRunContext, TaskRunContext

    return TaskRunContext.get() is not None or FlowRunContext.get() is not None
