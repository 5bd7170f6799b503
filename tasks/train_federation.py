"""Task: train the adapters, in a child process whose crash takes nobody along."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fl.errors import FederationError, LostClients
from fl.federation import Federation, TrainingJob, save_job
from fl.hyperparameters import LocalTraining, Tuning
from fl.privacy import NO_PRIVACY, Privacy
from fl.simulation import TAKEN, taken
from storage.adapters import ADAPTER, committed_rounds
from storage.events import read_events
from storage.executions import training_seconds
from storage.layout import current
from storage.progress import Progress
from storage.stages import NewStage, Stage
from tasks.caching import PROJECT
from tasks.child_process import die_with_parent
from tasks.prepare_model import model_folder
from tasks.progress import progress_of
from tasks.stage_task import Retry, stage

_WATCH_SECONDS = 0.3
_PATIENCE = 15.0
"""Seconds that a stopped job gets to end before it is killed."""


class JobDied(FederationError):
    """The training job ended without saying why: killed, or out of memory."""


@stage("train", modules=("fl.simulation",), unkeyed=("run_id",), retry=Retry((JobDied, LostClients), times=2))
def train_federation(
    new: NewStage,
    model: Stage,
    partition: Stage,
    tuning: Tuning,
    training: LocalTraining,
    federation: Federation,
    quantization: str,
    device: str,
    run_id: str,
    start: Stage | None = None,
    privacy: Privacy = NO_PRIVACY,
) -> None:
    """Train round after round in the run's folder; a retry goes on after the last committed round.

    `start` holds the adapter that training goes on from, as its round 0; None: an untrained one.
    """
    folder = current().run(run_id)
    job = TrainingJob(
        run_id=run_id,
        run_folder=folder,
        model_folder=model_folder(model),
        shares_folder=partition.file("shares"),
        tuning=tuning,
        training=training,
        federation=federation,
        privacy=privacy,
        quantization=quantization,
        device=device,
    )
    save_job(job)
    before = len(committed_rounds(folder))
    if start is not None and not committed_rounds(folder):
        from fl.adapter_files import read_adapter
        from fl.server_app import commit_untouched

        commit_untouched(job, read_adapter(start.file(ADAPTER)))
    loading_seconds = _run_job(folder, progress_of("train"))
    shutil.copytree(folder / "rounds", new.path / "rounds", copy_function=_link)
    new.counts |= _counts(folder)
    fresh = [found.folder for found in committed_rounds(folder)[before:]]
    new.work_seconds = training_seconds(fresh, job.concurrent_clients) + loading_seconds / job.concurrent_clients


def _link(source: str, target: str) -> None:
    """A second name for the same bytes where the file system can, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _counts(folder: Path) -> dict[str, Any]:
    rounds = committed_rounds(folder)
    return {"rounds": len(rounds) - 1, "adapter_hashes": [found.adapter_hash for found in rounds]}


def _run_job(folder: Path, progress: Progress) -> float:
    """Run a run folder's job to its end; the seconds that its workers spent loading, together.

    Raises JobDied or LostClients where a retry can help, JobTaken where another trains there, else FederationError.
    """
    _, offset = read_events(folder)
    with _child(folder) as process:
        state = _JobState()
        while process.poll() is None:
            time.sleep(_WATCH_SECONDS)
            events, offset = read_events(folder, offset)
            for event in events:
                state.take(event)
            if events:
                progress(*state.done_total_note())
    if process.returncode == 0:
        for event in read_events(folder, offset)[0]:
            state.take(event)
        return state.loading_seconds
    raise _failure(folder, process.returncode)


def _failure(folder: Path, status: int) -> FederationError:
    """Why a job ended with a status other than 0: what it told, or that it told nothing."""
    if status == TAKEN:
        return taken(folder)
    try:
        told = json.loads((folder / "error.json").read_text())
    except (OSError, ValueError):
        return JobDied(f"The training job ended with status {status}; its log is {folder / 'simulation.log'}.")
    kind = LostClients if told["error"] == LostClients.__name__ else FederationError
    return kind(told["message"])


@contextmanager
def _child(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The job as the leader of its own process group, which ends with the block whatever happens."""
    (folder / "error.json").unlink(missing_ok=True)
    with (folder / "job.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "fl.simulation", str(folder)],
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the job and all that it started; a first polite signal lets it close its files."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_PATIENCE)


class _JobState:
    """How far a job is, from the events it tells."""

    def __init__(self) -> None:
        self._rounds = 1
        self._round = 0
        self._clients: list[int] = []
        self._fractions: dict[int, float] = {}
        self._loss: float | None = None
        self._epsilon: float | None = None
        self.loading_seconds = 0.0

    def take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "started":
                self._rounds, self._round = max(1, event["rounds"]), event["committed"] + 1
            case "round":
                self._round, self._clients, self._fractions = event["round"], event["clients"], {}
            case "client":
                total = event.get("total") or 1
                self._fractions[event["partition"]] = min(1.0, event["done"] / total)
            case "loaded":
                self.loading_seconds += event["seconds"]
            case "committed":
                self._fractions = dict.fromkeys(self._clients, 1.0)
                self._loss, self._epsilon = event.get("loss"), event.get("epsilon")

    def done_total_note(self) -> tuple[float, float, str]:
        """Rounds done, with the share of the running one, of all rounds; and where the job is, in words."""
        if not self._clients:
            return 0.0, float(self._rounds), "starting server and clients"
        share = sum(self._fractions.values()) / len(self._clients)
        done = self._round - 1 + share
        working = min(len(self._clients), 1 + sum(fraction >= 1 for fraction in self._fractions.values()))
        note = f"round {self._round} of {self._rounds}, client {working} of {len(self._clients)}"
        loss = "" if self._loss is None else f", loss {self._loss:.3f}"
        spent = "" if self._epsilon is None else f", epsilon {self._epsilon:.3g} spent"
        return done, float(self._rounds), note + loss + spent
