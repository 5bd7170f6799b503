"""What is known of the services that `atalaia up` keeps running: one folder with their state, logs and settings."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import DataError
from storage.layout import Layout

Condition = Literal["waiting", "starting", "healthy", "silent", "restarting", "done", "given up", "stopped"]
"""waiting: for what it needs; silent: alive without an answer; done: a step that ran once to its end."""


class ServiceError(DataError):
    """A service cannot start, or ended for good."""


class ServiceState(BaseModel):
    """One service, as its supervisor sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """prefect, mlflow, deploy, worker-cpu, worker-gpu-0, ..."""
    condition: Condition
    """What it is doing."""
    since: str
    """When that began, UTC."""
    pid: int | None = None
    """Its process; None where there is none now."""
    address: str | None = None
    """Where it answers; None for workers and steps."""
    restarts: int = 0
    """How often it was started again."""
    reason: str = ""
    """Why it restarts or was given up, in one line."""
    log: str
    """The file of what it says."""


class PlatformState(BaseModel):
    """All services of one home folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    phase: Literal["starting", "up", "failed", "stopping", "down"]
    """failed: a service could not be started, and the others were stopped again."""
    supervisor: int
    """The process that keeps the services running."""
    started: str
    """When it began, UTC."""
    host: str
    """The address that the servers listen at."""
    prefect_url: str
    """Prefect's pages; its API lies at /api below."""
    mlflow_url: str
    """MLflow's pages and API."""
    database: str
    """Where both keep their tables, without the password."""
    notes: tuple[str, ...] = ()
    """What a user should know: why a worker is missing, what is open to other machines."""
    reason: str = ""
    """Why the phase is failed, in one line."""
    services: tuple[ServiceState, ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether everything that should run does."""
        return self.phase == "up" and all(found.condition in {"healthy", "done"} for found in self.services)


def services_folder(layout: Layout) -> Path:
    """The folder of state and logs, for its owner only."""
    folder = layout.home / "services"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def write_state(layout: Layout, state: PlatformState) -> None:
    """Put the state in place by one rename."""
    folder = services_folder(layout)
    temporary = folder / f".state.{os.getpid()}"
    temporary.write_text(state.model_dump_json(indent=1))
    temporary.replace(folder / "state.json")


def forget_state(layout: Layout) -> None:
    """Remove the state that a former supervisor left; for whoever holds the home's lock."""
    (services_folder(layout) / "state.json").unlink(missing_ok=True)


def read_state(layout: Layout) -> PlatformState | None:
    """The last state written, by a supervisor that may be gone; None where there never was one."""
    try:
        return PlatformState.model_validate_json((layout.home / "services" / "state.json").read_text())
    except (OSError, ValidationError):
        return None


def running(layout: Layout) -> PlatformState | None:
    """The state of the services whose supervisor lives; None where there is none."""
    lock = layout.home / "services" / "supervisor.lock"
    if not lock.exists() or not _held(lock):
        return None
    return read_state(layout)


def _held(lock: Path) -> bool:
    with lock.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def sole_supervisor(layout: Layout) -> Iterator[None]:
    """Hold the home's lock; its holder is alive, which no process id in a file can tell. Raises ServiceError."""
    with (services_folder(layout) / "supervisor.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServiceError(f"The services of {layout.home} are up already; `atalaia status` shows them.") from error
        yield
