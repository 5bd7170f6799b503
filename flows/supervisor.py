"""Keeps the services running: `python -m flows.supervisor` reads its settings as JSON from standard input."""

import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

from flows.processes import end_belonging, is_free, owner_of
from flows.services import PlatformSettings, gpus_of_this_machine, services_of, shared_environment
from flows.supervised import Supervised, now, say
from storage.databases import databases, prepare_database
from storage.layout import Layout, current
from storage.services import (
    PlatformState,
    ServiceError,
    forget_state,
    services_folder,
    sole_supervisor,
    write_state,
)

_LOOK_SECONDS = 0.5


class Supervisor:
    """Starts the services, starts again what dies, and ends them all."""

    def __init__(self, settings: PlatformSettings, layout: Layout) -> None:
        self._settings, self._layout = settings, layout
        self._folder = services_folder(layout)
        self._stopping = False
        self._services: list[Supervised] = []
        self._state = PlatformState(
            phase="starting",
            supervisor=os.getpid(),
            started=now(),
            host=settings.host,
            prefect_url=settings.prefect_url,
            mlflow_url=settings.mlflow_url,
            database=databases(settings.database, layout).shown,
        )
        self._written: PlatformState | None = None

    def run(self) -> str:
        """Keep the services running until told to end; the reason where they could not be started, else empty."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            self._prepare()
            while not self._stopping and self._state.phase != "failed":
                self._round()
                time.sleep(_LOOK_SECONDS)
        except ServiceError as error:
            self._write("failed", str(error))
        self._end()
        return self._state.reason

    def _prepare(self) -> None:
        """Say that it starts, clear away what a killed supervisor left, see that ports and database are there.

        The state comes first: looking for GPUs takes seconds, in which `atalaia down` must find this supervisor, and
        not the process that has the number of a former one.
        """
        forget_state(self._layout)
        self._write("starting")
        gpus, notes = _gpu_workers(self._settings)
        environment = shared_environment(self._settings, self._layout)
        services = services_of(self._settings, self._layout, gpus)
        self._services = [Supervised(service, self._folder, environment) for service in services]
        self._state = self._state.model_copy(update={"notes": (*notes, *open_doors(self._settings))})
        end_belonging(str(self._folder))
        check_ports(self._settings)
        if self._settings.database:
            prepare_database(self._settings.database)

    def _round(self) -> None:
        for found in self._services:
            ready = {other.service.name for other in self._services if other.condition in {"healthy", "done"}}
            found.step(ready)
        lost = next((found for found in self._services if found.condition == "given up"), None)
        if lost is not None and self._state.phase == "starting":
            self._write("failed", f"{lost.service.name} could not be started: {lost.reason}")
            return
        well = all(found.condition in {"healthy", "done"} for found in self._services)
        self._write("up" if well or self._state.phase == "up" else "starting")

    def _end(self) -> None:
        failed = self._state.phase == "failed"
        if not failed:
            self._write("stopping")
        for found in reversed(self._services):
            found.stop()
        end_belonging(str(self._folder))
        self._write("failed" if failed else "down", self._state.reason)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _write(self, phase: str, reason: str = "") -> None:
        services = tuple(found.state() for found in self._services)
        self._state = self._state.model_copy(update={"phase": phase, "reason": reason, "services": services})
        if self._state != self._written:
            # A full disk ends nothing; the next round tries again.
            with suppress(OSError):
                write_state(self._layout, self._state)
                self._written = self._state


def _gpu_workers(settings: PlatformSettings) -> tuple[int, tuple[str, ...]]:
    """How many GPU workers to start, and why none."""
    if settings.gpu is False:
        return 0, ("No worker of the gpu pool: not wanted (--no-gpu).",)
    gpus, reason = gpus_of_this_machine()
    if gpus:
        return gpus, ()
    if settings.gpu:
        return 1, (f"A worker of the gpu pool as asked for, though {reason}; its runs compute on the CPU.",)
    return 0, (f"No worker of the gpu pool: {reason}; training runs in the cpu pool.",)


def open_doors(settings: PlatformSettings) -> tuple[str, ...]:
    """What other machines can do, where they can reach the servers."""
    if not settings.open_to_others:
        return ()
    guarded = "PREFECT_SERVER_API_AUTH_STRING" in os.environ
    prefect = "asks for a password" if guarded else "asks for no password (set PREFECT_SERVER_API_AUTH_STRING)"
    return (
        f"Open to other machines at {settings.host}: port {settings.prefect_port} (Prefect, {prefect}) and port "
        f"{settings.mlflow_port} (MLflow, asks for no password). Whoever reaches them can start programs of these "
        "deployments here, read parameters and masked messages, and change or delete models; nothing is encrypted. "
        "Let a firewall or a proxy with TLS decide who does.",
    )


def check_ports(settings: PlatformSettings) -> None:
    """Raise ServiceError where a server's port is taken, and say by whom."""
    for name, option, port in (
        ("Prefect", "--prefect-port", settings.prefect_port),
        ("MLflow", "--mlflow-port", settings.mlflow_port),
    ):
        if not is_free(settings.host, port):
            raise ServiceError(
                f"{name} cannot listen at {settings.host} port {port}: it is taken by {owner_of(port)}. "
                f"End that, or give another port with {option}."
            )


def supervise(settings: PlatformSettings, layout: Layout) -> str:
    """Keep a home's services running until told to end; the reason where they could not be started, else empty."""
    with sole_supervisor(layout):
        return Supervisor(settings, layout).run()


def main() -> int:
    """Supervise as standard input says; the exit status is 2 where the services could not be started."""
    settings = PlatformSettings.model_validate_json(sys.stdin.read())
    reason = supervise(settings, current())
    if reason:
        say(reason)
    return 2 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
