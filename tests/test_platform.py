"""The whole platform for real: `atalaia up`, servers and workers that are killed, schedules, reruns, `atalaia down`."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from platforms import PATIENCE, Platform, atalaia, eventually, post, running_platform, small_run

from flows.processes import belonging

pytestmark = [pytest.mark.long, pytest.mark.timeout(4000)]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Everything up, with an empty home folder; afterwards nothing of it is left."""
    # A schedule is looked at once a minute usually; what is entered for the next minute would be missed.
    often = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5"}
    with running_platform(tmp_path_factory.mktemp("home"), "--lost-after", "60", **often) as started:
        yield started


def test_everything_is_well_and_up_again_changes_nothing(platform: Platform) -> None:
    before = platform.report()
    assert before["healthy"]
    assert [found["name"] for found in before["services"]][:4] == ["prefect", "mlflow", "deploy", "worker-cpu"]
    again = atalaia("up", *platform.options, home=platform.home)
    assert again.returncode == 0, again.stderr
    assert [found["pid"] for found in platform.report()["services"]] == [found["pid"] for found in before["services"]]


def test_servers_listen_on_loopback_only(platform: Platform) -> None:
    listening = [
        connection.laddr.ip
        for process in platform.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_a_killed_server_is_started_again_with_its_helpers(platform: Platform) -> None:
    killed = platform.service("mlflow")
    os.kill(killed["pid"], signal.SIGKILL)

    def well_again() -> bool:
        found = platform.service("mlflow")
        return found["condition"] == "healthy" and found["pid"] != killed["pid"]

    eventually(PATIENCE, well_again, "mlflow is well again")
    assert platform.service("mlflow")["restarts"] == 1
    assert platform.report()["healthy"]


def test_a_schedule_fires_and_a_rerun_reuses_every_stage(platform: Platform, tiny_model: Path) -> None:
    deployment = platform.deployment("experiment")
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 20))
    schedule = {"schedule": {"interval": 86400, "anchor_date": soon}, "active": True}
    schedule["parameters"] = small_run(tiny_model, rounds=1)
    [entered] = post(platform.prefect, f"deployments/{deployment['id']}/schedules", [schedule])
    wanted = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}

    def scheduled() -> dict[str, Any] | None:
        """The run of this schedule: those of the deployment's own one are entered weeks ahead."""
        runs = post(platform.prefect, "flow_runs/filter", wanted)
        return next((run for run in runs if run["created_by"]["id"] == entered["id"]), None)

    run = eventually(120, scheduled, "a run is scheduled")
    assert run["auto_scheduled"]
    platform.completed(run["id"])
    # What the page's button "Retry" does.
    again = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    post(platform.prefect, f"flow_runs/{run['id']}/set_state", again)
    platform.completed(run["id"], run_count=2)
    tasks = post(platform.prefect, "task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}, "limit": 200})
    stages = [task for task in tasks if task["flow_run_run_count"] == 2]
    assert {task["name"] for task in stages} >= {"download", "train", "score", "report", "register"}
    assert {task["state_name"] for task in stages} == {"Cached"}


def test_a_run_whose_worker_died_ends_as_crashed_and_goes_on_after_its_last_round(
    platform: Platform, tiny_model: Path
) -> None:
    deployment = platform.deployment("experiment")
    body = {"parameters": small_run(tiny_model, rounds=30, blocks=301), "state": {"type": "SCHEDULED"}}
    run_id = post(platform.prefect, f"deployments/{deployment['id']}/create_flow_run", body)["id"]

    def rounds() -> list[Path]:
        return sorted(platform.home.glob("runs/*/rounds/round-00*/card.json"))

    first = len(rounds())
    eventually(PATIENCE, lambda: len(rounds()) >= first + 4, "some rounds are committed")
    restarts = platform.service("worker-cpu")["restarts"]
    # As when the machine dies: nobody is left to say what happened.
    for process in [*platform.processes("worker start"), *platform.processes("prefect.engine")]:
        process.kill()
    eventually(PATIENCE, lambda: "Crashed" in platform.states(run_id), "the loss is noticed")
    kept = {path: path.stat().st_mtime_ns for path in rounds()}
    assert len(kept) >= first + 4
    run = platform.completed(run_id, run_count=2)
    assert run["run_count"] == 2
    assert platform.service("worker-cpu")["restarts"] == restarts + 1
    assert {path: path.stat().st_mtime_ns for path in rounds() if path in kept} == kept
    assert len(rounds()) == first + 31


def _runs(process: psutil.Process) -> bool:
    """Whether a process does more than wait to be cleared away, as one whose parent is gone may for long."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_down_in_the_middle_of_training_leaves_no_process_and_up_goes_on(platform: Platform, tiny_model: Path) -> None:
    deployment = platform.deployment("experiment")
    body = {"parameters": small_run(tiny_model, rounds=40, blocks=302), "state": {"type": "SCHEDULED"}}
    run_id = post(platform.prefect, f"deployments/{deployment['id']}/create_flow_run", body)["id"]
    eventually(PATIENCE, lambda: platform.processes("fl.simulation"), "training runs")
    marked = platform.processes()
    assert len(marked) > 5
    done = atalaia("down", home=platform.home)
    assert (done.returncode, done.stderr) == (0, "")
    assert belonging(str(platform.home / "services")) == []
    assert [process for process in marked if _runs(process)] == []
    assert str(platform.home) not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    assert atalaia("up", *platform.options, home=platform.home).returncode == 0
    run = platform.completed(run_id, run_count=2)
    assert run["state_name"] == "Completed"
