"""How long the stages of a run take while a command or a flow executes it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from storage.executions import Execution, StageTime
from storage.runs import now
from tasks.progress import StageEvent, listening


class Stopwatch:
    """Listens to the stages from the beginning of a command, or of a flow that none started."""

    def __init__(self) -> None:
        self._began_at = now()
        self._began = self._stage_began = time.monotonic()
        self._stages: list[StageTime] = []

    def __call__(self, event: StageEvent) -> None:
        """Take note of an event."""
        if event.state == "started":
            self._stage_began = time.monotonic()
        elif event.state in {"ran", "cached", "failed"}:
            seconds = time.monotonic() - self._stage_began
            self._stages.append(StageTime(event.stage, event.state, seconds, event.work_seconds))  # type: ignore[arg-type]

    def execution(self, status: str) -> Execution:
        """The execution up to now."""
        return Execution(self._began_at, status, time.monotonic() - self._began, tuple(self._stages))


_running: ContextVar[Stopwatch | None] = ContextVar("stopwatch", default=None)


@contextmanager
def timing() -> Iterator[Stopwatch]:
    """The stopwatch that runs already, else a new one for the time of the block."""
    running = _running.get()
    if running is not None:
        yield running
        return
    watch = Stopwatch()
    token = _running.set(watch)
    try:
        with listening(watch):
            yield watch
    finally:
        _running.reset(token)
