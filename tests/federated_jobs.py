"""Training jobs for tests: shares of random windows, a grid without Ray, and clients that misbehave.

As a program, `python tests/federated_jobs.py RUN_FOLDER` runs a job whose client does in round 2 what MISBEHAVIOUR
says, or that kills itself at the moment KILL_AT names; without Ray where GRID is `local`.
"""

import os
import random
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp

from fl.adapter import Tuning
from fl.federation import Federation, TrainingJob, save_job
from fl.local_training import LocalTraining
from fl.privacy import NO_PRIVACY, Privacy


def write_shares(folder: Path, clients: int = 4) -> Path:
    """Shares of 20, 21, 22, ... windows of random tokens, each window with its own length."""
    folder.mkdir(parents=True)
    for partition in range(clients):
        generator = np.random.default_rng(partition)
        windows = [generator.integers(3, 40, generator.integers(5, 25)).tolist() for _ in range(20 + partition)]
        pl.DataFrame(
            {"sequence_id": range(len(windows)), "token_ids": windows, "n_tokens": [len(ids) for ids in windows]},
            schema={"sequence_id": pl.UInt32, "token_ids": pl.List(pl.UInt32), "n_tokens": pl.UInt32},
        ).write_parquet(folder / f"share-{partition:05d}.parquet")
    return folder


def small_job(
    run_folder: Path,
    model: Path,
    shares: Path,
    tuning: Tuning = Tuning(rank=2),  # noqa: B008 (frozen)
    privacy: Privacy = NO_PRIVACY,
    **federation: Any,  # noqa: ANN401
) -> TrainingJob:
    """A job of 4 clients, 2 a round, saved in its run folder."""
    job = TrainingJob(
        run_id=run_folder.name,
        run_folder=run_folder,
        model_folder=model,
        shares_folder=shares,
        tuning=tuning,
        training=LocalTraining(steps=3, batch_size=4),
        federation=Federation(**{"rounds": 3, "clients": 4, "fraction": 0.5, "seed": 7, **federation}),
        privacy=privacy,
        device="cpu",
        threads=1,
    )
    save_job(job)
    return job


class LocalGrid:
    """A grid whose nodes are called in this process; node ids and the order of replies follow from `seed`."""

    def __init__(self, job: TrainingJob, client: ClientApp, seed: int = 0) -> None:
        self._client, self._random = client, random.Random(seed)
        self._partitions = {self._random.getrandbits(60): partition for partition in range(job.federation.clients)}
        self._settings = {
            "shares-folder": str(job.shares_folder),
            "model-folder": str(job.model_folder),
            "state-folder": str(job.run_folder / "sites"),
            "device": "cpu",
            "threads": 1,
        }
        self.messages: list[Message] = []
        self._arrived: dict[str, Message] = {}

    def get_node_ids(self) -> list[int]:
        """The nodes, in any order."""
        return self._random.sample(sorted(self._partitions), len(self._partitions))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Each node's reply, or the error that it raised, in any order."""
        replies = [self._reply(message) for message in messages]
        self.messages += replies
        return self._random.sample(replies, len(replies))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Have the nodes reply; the messages' numbers."""
        numbers = []
        for message in messages:
            number = message.metadata.__dict__["_message_id"] = str(self._random.getrandbits(60))
            self._arrived[number] = self._reply(message)
            self.messages.append(self._arrived[number])
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Some of the replies, each once, in any order."""
        here = [number for number in message_ids if number in self._arrived]
        pulled = self._random.sample(here, self._random.randint(min(1, len(here)), len(here)))
        return [self._arrived.pop(number) for number in pulled]

    def _reply(self, message: Message) -> Message:
        self.messages.append(message)
        node = message.metadata.dst_node_id
        config = {**self._settings, "partition-id": self._partitions[node]}
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
        try:
            return self._client(message, context)
        except Exception as error:
            return Message(Error(code=1, reason=f"{type(error)}:<'{error}'>"), reply_to=message)


def misbehaving_client(how: str) -> ClientApp:
    """The usual client, but in round 2 it dies, raises, or replies with NaN, another shape, name or count."""
    from fl import client_app as usual

    client = ClientApp()
    client.query("partition")(usual.tell_partition)
    client.query("adapter")(usual.first_adapter)

    @client.train()
    def train(message: Message, context: Context) -> Message:
        reply = usual.train(message, context)
        if message.content["config"]["round"] == 2:
            spoil(reply.content, how)
        return reply

    return client


def spoil(content: RecordDict, how: str) -> None:
    """Make a good reply a bad one."""
    if how == "die":
        os._exit(1)
    if how == "raise":
        raise RuntimeError("the disk of this site is full")
    arrays, metrics = content["arrays"], content["metrics"]
    name = sorted(arrays)[0]
    array = arrays[name].numpy().copy()
    match how:
        case "NaN":
            array[0, 0] = np.nan
            arrays[name] = Array(array)
        case "shape":
            arrays[name] = Array(array.T.copy())
        case "type":
            arrays[name] = Array(array.astype(np.float64))
        case "name":
            content["arrays"] = ArrayRecord({**{k: v for k, v in arrays.items() if k != name}, "other": arrays[name]})
        case "count":
            metrics["examples"] = 10**9
        case "round":
            metrics["round"] = 1
        case "loss":
            metrics["loss"] = float("inf")


def kill_before_rename() -> None:
    """Make the second round's commit end this process when all its files are written, but not in place."""
    from storage import adapters

    in_place = adapters._put_in_place

    def killing(temporary: Path, final: Path) -> None:
        if final.name == "round-0002":
            os.kill(os.getpid(), signal.SIGKILL)
        in_place(temporary, final)

    adapters._put_in_place = killing


if __name__ == "__main__":
    from fl.simulation import main

    if os.environ.get("KILL_AT") == "rename":
        kill_before_rename()
    if os.environ.get("GRID") == "local":
        from fl import client_app
        from fl.federation import load_job
        from fl.server_app import train_federation

        local_job = load_job(Path(sys.argv[1]))
        train_federation(LocalGrid(local_job, client_app.app), local_job)  # type: ignore[arg-type]
        sys.exit(0)
    behaviour = os.environ.get("MISBEHAVIOUR")
    status = main(sys.argv[1:], misbehaving_client(behaviour) if behaviour else None)
    os._exit(status)
