"""fl/simulation.py: the whole job as a child process, in Flower's simulation on Ray; killed, and with bad clients."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from federated_jobs import LocalGrid, small_job, write_shares

from fl import client_app
from fl.adapter import Tuning
from fl.federation import TrainingJob, save_job
from fl.local_training import LocalTraining
from fl.server_app import train_federation
from fl.simulation import TAKEN
from storage.adapters import committed_rounds
from storage.events import read_events

PROGRAM = Path(__file__).with_name("federated_jobs.py")
# Adam on the server: a resumed job must bring back its moments as well.
FEDERATION = {"rounds": 4, "strategy": "fedadam", "strategy_options": {"eta": 0.01}}


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shares(tmp_path_factory.mktemp("partition") / "shares")


def _start(
    job: TrainingJob, cwd: Path, program: tuple[str, ...] = ("-m", "fl.simulation"), **env: str
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *program, str(job.run_folder)],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def _kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool], delay: float = 0.0) -> None:
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _adapters(job: TrainingJob) -> list[bytes]:
    return [found.adapter.read_bytes() for found in committed_rounds(job.run_folder)]


def test_a_job_killed_in_a_round_and_in_a_commit_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    # Undisturbed, and without Ray: the server's rounds over a grid of plain calls.
    undisturbed = small_job(tmp_path / "undisturbed", tiny_model, shares, **FEDERATION)
    train_federation(LocalGrid(undisturbed, client_app.app), undisturbed)  # type: ignore[arg-type]
    assert len(set(_adapters(undisturbed))) == 5

    killed = small_job(tmp_path / "killed", tiny_model, shares, **FEDERATION)
    in_round_1 = _start(killed, cwd=tmp_path)
    _kill_when(in_round_1, lambda: any(event["event"] == "client" for event in read_events(killed.run_folder)[0]))
    in_a_commit = _start(killed, tmp_path, (str(PROGRAM),), KILL_AT="rename")
    assert _finish(in_a_commit)[0] == -signal.SIGKILL
    left = {path.name.partition(".")[0] or path.name[:11] for path in (killed.run_folder / "rounds").iterdir()}
    assert left == {"round-0000", "round-0001", ".round-0002"}
    save_job(replace(killed, concurrent_clients=2))  # how many train at a time must not matter either
    assert _finish(_start(killed, cwd=Path("/"))) == (0, "", "")
    assert _adapters(killed) == _adapters(undisturbed)


@pytest.mark.long
def test_a_job_with_error_feedback_killed_in_a_commit_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    # Killed when the clients have kept what round 2 left out, but the round itself is not in place.
    federation = {"rounds": 3, "codec": "topk", "topk_share": 0.1, "fraction": 1.0}
    undisturbed = small_job(tmp_path / "undisturbed", tiny_model, shares, **federation)
    train_federation(LocalGrid(undisturbed, client_app.app), undisturbed)  # type: ignore[arg-type]
    killed = small_job(tmp_path / "killed", tiny_model, shares, **federation)
    assert _finish(_start(killed, tmp_path, (str(PROGRAM),), KILL_AT="rename"))[0] == -signal.SIGKILL
    kept = killed.run_folder / "sites" / "killed" / "client-00000"
    assert sorted(file.name for file in kept.iterdir()) == ["round-0001.safetensors", "round-0002.safetensors"]
    assert len(_adapters(killed)) == 2
    assert _finish(_start(killed, cwd=tmp_path)) == (0, "", "")
    assert _adapters(killed) == _adapters(undisturbed)


def test_sixty_clients_in_one_worker_train_as_if_each_were_called_by_itself(tmp_path: Path, tiny_model: Path) -> None:
    many = {"clients": 60, "fraction": 0.05, "rounds": 2}
    shares = write_shares(tmp_path / "shares", clients=60)
    called = small_job(tmp_path / "called", tiny_model, shares, **many)
    train_federation(LocalGrid(called, client_app.app), called)  # type: ignore[arg-type]
    simulated = small_job(tmp_path / "simulated", tiny_model, shares, **many)
    assert _finish(_start(simulated, cwd=tmp_path)) == (0, "", "")
    assert len(set(_adapters(called))) == 3
    assert _adapters(simulated) == _adapters(called)


@pytest.mark.parametrize(
    ("behaviour", "kind", "told"),
    [("die", "LostClients", "0 of 2 clients replied, 2 are needed"), ("NaN", "BadReply", "has NaN")],
)
def test_a_client_that_misbehaves_ends_the_job_with_one_line_and_keeps_the_rounds_before(
    behaviour: str, kind: str, told: str, tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares)
    status, out, err = _finish(_start(job, tmp_path, (str(PROGRAM),), MISBEHAVIOUR=behaviour))
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    error = json.loads((job.run_folder / "error.json").read_text())
    assert error == {"error": kind, "message": err.strip()}
    assert len(_adapters(job)) == 2


def test_the_untouched_model_has_round_0_and_no_training(tmp_path: Path) -> None:
    job = TrainingJob(
        "run",
        tmp_path,
        tmp_path,
        tmp_path,
        Tuning(kind="none"),
        LocalTraining(),
        small_job(tmp_path, tmp_path, tmp_path).federation,
    )
    save_job(job)
    assert _finish(_start(job, tmp_path)) == (0, "", "")
    [untouched] = committed_rounds(tmp_path)
    assert untouched.arrays() == {}


def test_two_jobs_in_one_run_folder_are_refused(tmp_path: Path) -> None:
    job = small_job(tmp_path / "run", tmp_path, tmp_path)
    with (job.run_folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, _, err = _finish(_start(job, tmp_path))
    assert status == TAKEN
    assert err.startswith("Another job is training in")


def test_a_folder_without_a_job_is_told_in_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "fl.simulation", str(tmp_path)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert ended.returncode == 2
    assert ended.stderr == f"There is no training job at {tmp_path / 'job.json'}; start one with `atalaia train`.\n"


@pytest.mark.long
def test_a_job_killed_again_and_again_at_any_moment_ends_with_the_bytes_of_an_undisturbed_one(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    undisturbed = small_job(tmp_path / "undisturbed", tiny_model, shares, **FEDERATION)
    train_federation(LocalGrid(undisturbed, client_app.app), undisturbed)  # type: ignore[arg-type]
    killed = small_job(tmp_path / "killed", tiny_model, shares, **FEDERATION)
    moments = random.Random(0)
    for _ in range(12):
        process = _start(killed, cwd=tmp_path)
        _, before = read_events(killed.run_folder)
        # Some kills while Ray starts, the others some milliseconds after the job's first sign of life.
        if moments.random() < 0.3:
            time.sleep(moments.uniform(0.0, 10.0))
        else:
            _kill_when(process, lambda start=before: bool(_rounds_begun(killed, start)), moments.uniform(0.0, 0.3))
        process.kill()
        process.wait()
        if len(_adapters(killed)) == len(_adapters(undisturbed)):
            break
    assert _finish(_start(killed, cwd=tmp_path))[0] == 0
    assert _adapters(killed) == _adapters(undisturbed)


def _rounds_begun(job: TrainingJob, offset: int) -> list[int]:
    return [event["round"] for event in read_events(job.run_folder, offset)[0] if event["event"] == "round"]
