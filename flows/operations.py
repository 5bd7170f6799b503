"""Brings a home's services up and down, and tells how they are."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
from pydantic import ValidationError

from flows.prefect_api import last_runs
from flows.processes import SERVICE_MARK, SERVICES_MARK, end_belonging, wait_for_end
from flows.services import PROJECT, PlatformSettings
from flows.supervised import open_log
from storage.databases import databases
from storage.layout import Layout, current
from storage.services import PlatformState, ServiceError, read_state, running, services_folder

Tell = Callable[[PlatformState], None]

_LOOK_SECONDS = 0.3
_END_SECONDS = 240.0
"""What a supervisor gets to end everything in order."""


def settings_of(**given: object) -> PlatformSettings:
    """The settings that a person gave; raises ServiceError with one line about what is wrong."""
    try:
        return PlatformSettings.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        option = "--" + str(fault["loc"][0]).replace("_", "-")
        raise ServiceError(f"{option} {fault['input']}: {fault['msg'][:1].lower()}{fault['msg'][1:]}.") from error


def bring_up(settings: PlatformSettings, tell: Tell, *, foreground: bool) -> None:
    """Start the supervisor, unless it is there, and wait until everything is well; `tell` hears of each change.

    In the foreground this process is the supervisor, and returns when told to end. Raises ServiceError where a service
    cannot be started; nothing is left running then.
    """
    layout = current()
    databases(settings.database, layout)
    if foreground:
        from flows.supervisor import supervise

        if reason := supervise(settings, layout):
            raise ServiceError(reason)
        return
    if (state := running(layout)) is not None and (state.prefect_url, state.mlflow_url, state.host) != (
        settings.prefect_url,
        settings.mlflow_url,
        settings.host,
    ):
        raise ServiceError(
            f"Prefect and MLflow are up already at {state.prefect_url} and {state.mlflow_url}; "
            "`atalaia down` first, to start them elsewhere."
        )
    _wait(layout, tell, _start_supervisor(settings, layout) if state is None else None)


def _start_supervisor(settings: PlatformSettings, layout: Layout) -> "subprocess.Popen[bytes]":
    folder = services_folder(layout)
    # By the marks `atalaia down` finds it before it has said that it starts.
    marks = {SERVICES_MARK: str(folder), SERVICE_MARK: "supervisor"}
    with open_log(folder / "supervisor.log") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.supervisor"],
            cwd=PROJECT,
            env={**os.environ, "ATALAIA_HOME": str(layout.home), **marks},
            # Settings may hold a database's password, which neither a file nor the list of processes should show.
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(settings.model_dump_json().encode())
    return process


def _wait(layout: Layout, tell: Tell, process: "subprocess.Popen[bytes] | None") -> None:
    """Return when everything is well; raises ServiceError with the reason where it never will be.

    `process` is the supervisor that was started for it, whose state alone counts; None: the one that runs.
    """
    while True:
        # Asked before the state is read: its last words are then in what is read.
        was_alive = running(layout) is not None if process is None else process.poll() is None
        state = read_state(layout)
        if state is not None and (process is None or state.supervisor == process.pid):
            tell(state)
            if state.healthy:
                return
            _raise_if_lost(state)
        if not was_alive:
            raise ServiceError(f"The supervisor ended; its log is {services_folder(layout) / 'supervisor.log'}.")
        time.sleep(_LOOK_SECONDS)


def _raise_if_lost(state: PlatformState) -> None:
    if state.phase == "failed":
        wait_for_end(state.supervisor, _END_SECONDS)
        raise ServiceError(state.reason)
    lost = next((found for found in state.services if found.condition == "given up"), None)
    if state.phase == "up" and lost is not None:
        raise ServiceError(f"{lost.name} was given up: {lost.reason}. Mend it, then `atalaia down` and `atalaia up`.")


def bring_down() -> int:
    """End the supervisor, the services and all they started; how many of them the supervisor left to be ended."""
    layout = current()
    if (state := running(layout)) is not None:
        with suppress(psutil.Error):
            psutil.Process(state.supervisor).terminate()
        if not wait_for_end(state.supervisor, _END_SECONDS):
            with suppress(psutil.Error):
                psutil.Process(state.supervisor).kill()
    return end_belonging(str(layout.home / "services"))


def status_report(runs: int) -> dict[str, Any]:
    """What `atalaia status` shows: the services with their state, and the last runs."""
    layout = current()
    state = running(layout)
    if state is None:
        return {"healthy": False, "phase": "down", "home": str(layout.home), "services": [], "runs": []}
    return {
        "healthy": state.healthy,
        "home": str(layout.home),
        **state.model_dump(mode="json"),
        "runs": last_runs(state.prefect_url, runs),
    }
