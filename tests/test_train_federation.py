"""tasks/train_federation.py: the training job as a Prefect task, which outlives a job or a client that is killed."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from federated_jobs import write_shares
from prefect import flow
from prefect_session import endings, home, prefect_api

from fl.adapter import Tuning
from fl.errors import FederationError
from fl.federation import Federation
from fl.local_models import local_files
from fl.local_training import LocalTraining
from fl.simulation import only_job
from storage.events import read_events
from storage.layout import Layout
from storage.stages import Stage, new_stage
from tasks.prepare_model import prepare_model
from tasks.train_federation import _failure, _run_job, train_federation

ROUNDS = 3


@flow
def training(model: str, partition: Stage) -> Stage:
    """A job of 4 clients, 2 a round, with rounds long enough to be met in their middle."""
    return train_federation(
        model=prepare_model(model, local_files(model)),
        partition=partition,
        tuning=Tuning(rank=2),
        training=LocalTraining(steps=150, batch_size=4),
        federation=Federation(rounds=ROUNDS, clients=4, fraction=0.5, seed=7),
        quantization="none",
        device="cpu",
        run_id="run",
    )


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the processes are found in /proc")
@pytest.mark.parametrize("victim", ["job", "client"])
def test_training_whose_job_or_client_is_killed_in_a_round_is_retried_and_goes_on_after_the_last_committed_round(
    victim: str, tiny_model: Path, prefect_api: None, home: Path, endings: list[tuple[str, str]]
) -> None:
    layout = Layout(home)
    with new_stage(layout.stages, "partition", "key") as new:
        write_shares(new.path / "shares")
    killed: list[int] = []
    killer = threading.Thread(target=_kill_in_round_2, args=(layout.run("run"), victim, killed), daemon=True)
    killer.start()
    trained = training(str(tiny_model), new.done)
    killer.join()
    assert len(killed) == 1
    assert endings == [("model", "ran"), ("train", "ran")]
    assert trained.counts["rounds"] == ROUNDS
    assert len(set(trained.counts["adapter_hashes"])) == ROUNDS + 1
    events, _ = read_events(layout.run("run"))
    assert [event["committed"] for event in events if event["event"] == "started"] == [0, 1]
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2, 2, 3]


def _kill_in_round_2(run: Path, victim: str, killed: list[int]) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not _trains_in_round_2(run):
        time.sleep(0.02)
    [job] = [pid for pid, command in _processes() if command[1:] == ["-m", "fl.simulation", str(run)]]
    found = job if victim == "job" else _client_of(job)
    os.kill(found, signal.SIGKILL)
    killed.append(found)


def _trains_in_round_2(run: Path) -> bool:
    events = read_events(run)[0] if run.is_dir() else []
    begun = [event["event"] for event in events if event.get("round") == 2]
    return begun[-1:] == ["client"]


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process and its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield int(path.parent.name), path.read_text().rstrip("\0").split("\0")
        except OSError:
            continue


def _client_of(job: int) -> int:
    """The Ray worker in which the job's clients train."""
    [client] = [pid for pid, command in _processes() if command[0].startswith("ray::ClientApp") and _below(pid, job)]
    return client


def _below(process: int, ancestor: int) -> bool:
    while process > 1 and process != ancestor:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == ancestor


@pytest.mark.parametrize(
    ("told", "again"),
    [
        ({"error": "LostClients", "message": "1 of 2 clients replied."}, True),
        ({"error": "BadReply", "message": "Client 3's reply has NaN."}, False),
        ({"error": "ModelError", "message": "The model has no tokenizer."}, False),
        (None, True),
    ],
    ids=lambda value: value["error"] if isinstance(value, dict) else None,
)
def test_a_job_is_tried_again_after_lost_clients_or_a_death_without_words_only(
    told: dict[str, str] | None, again: bool, tmp_path: Path
) -> None:
    if told is not None:
        (tmp_path / "error.json").write_text(json.dumps(told))
    error = _failure(tmp_path, 2)
    assert isinstance(error, train_federation.retry.on) == again
    assert (told["message"] if told else "ended with status 2") in str(error)
    assert "\n" not in str(error)


def test_a_second_job_in_a_run_folder_is_told_the_reason_is_not_retried_and_leaves_no_error_to_the_first(
    tmp_path: Path,
) -> None:
    with only_job(tmp_path), pytest.raises(FederationError, match="Another job is training in") as caught:
        _run_job(tmp_path, lambda done, total, note: None)
    assert not isinstance(caught.value, train_federation.retry.on)
    assert not (tmp_path / "error.json").exists()
