"""The server: draws clients, checks and combines their replies, and commits each round before the next begins."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl.accounting import Accountant, affordable_rounds
from fl.adapter_files import adapter_hash
from fl.arrivals import replies_as_they_come
from fl.averaging import MOST_WEIGHT
from fl.combination import Combination, clipping_norm_after
from fl.declared import COUNTS
from fl.errors import BadMessage, BadReply, FederationError, LostClients
from fl.exchange import Exchange
from fl.federation import TrainingJob, draw_clients, load_job
from fl.hyperparameters import cosine_rate
from fl.noise import seed_key
from fl.plain_arrays import claimed_array, plain_array, printable
from fl.strategies import Arrays, Reply
from storage.adapters import CommittedRound, commit_round, committed_rounds, discard_unfinished
from storage.events import append_event
from storage.noise_keys import forget_noise_key, noise_key

app = ServerApp()

Join = Callable[[Grid, int], tuple[dict[int, int], dict[int, int]]]
"""Given the grid and the number of clients: the node and the number of windows of each partition."""
Committed = Callable[[CommittedRound, Mapping[int, int]], None]
"""Takes a round and the node of each partition."""

_JOIN_SECONDS = 300.0
"""How long to wait until every client's node is there."""
_ASKED_AT_ONCE = 100
"""Nodes that are asked for their partition at the same time."""
_SILENT = "no reply in time"
_NUMBERS = ("tokens", "computed_tokens", "steps", "seconds", "peak_memory_mb")
"""What a reply tells beside its examples and loss."""
_MOST = 1e15
"""No number that a reply tells is as large."""
_MOST_COUNTED = 2**32
"""Of what is counted by round and client; storage/adapters.py keeps steps in 32 bits."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job of the run folder named by the run's configuration, else by ATALAIA_RUN_FOLDER."""
    folder = context.run_config.get("run-folder") or os.environ.get("ATALAIA_RUN_FOLDER")
    if not folder:
        raise FederationError("The server has no run folder; give run-folder in the run's configuration.")
    train_federation(grid, load_job(Path(str(folder))))


def train_federation(
    grid: Grid,
    job: TrainingJob,
    join: Join | None = None,
    committed: Committed | None = None,
    check_first: Callable[[Arrays], None] | None = None,
) -> None:
    """Train the rounds that are not committed yet; each is on disk before the next begins.

    `join` finds the clients (None: `find_clients`); `committed` is called with each round once it is on disk;
    `check_first` raises FederationError for a first adapter that no honest client sends.
    """
    discard_unfinished(job.run_folder)
    rounds = committed_rounds(job.run_folder)
    check_same_job(job, rounds)
    federation, until = job.federation, affordable_rounds(job.privacy, job.federation)
    if until == 0 < federation.rounds:
        raise FederationError("The privacy budget allows no round; raise epsilon_budget or noise_multiplier.")
    append_event(job.run_folder, "started", rounds=until, committed=max(0, len(rounds) - 1))
    nodes, examples = (join or find_clients)(grid, federation.clients)
    last = rounds[-1] if rounds else commit_first_adapter(grid, job, nodes[0], check_first)
    first = (rounds[0] if rounds else last).arrays() if federation.downlink_codec != "none" else {}
    while last.number < until:
        last = train_round(grid, job, last, first, nodes, examples)
        if committed is not None:
            committed(last, nodes)
    forget_noise_key(job.run_folder)
    append_event(job.run_folder, "finished", rounds=last.number)


def check_same_job(job: TrainingJob, rounds: list[CommittedRound]) -> None:
    """Raise FederationError when the committed rounds come from another configuration."""
    if rounds and rounds[-1].facts.get("job") != job.fingerprint():
        raise FederationError(
            f"{job.run_folder} holds rounds of another configuration; start a new run, or remove its rounds folder."
        )


def find_clients(grid: Grid, clients: int) -> tuple[dict[int, int], dict[int, int]]:
    """The node and the number of windows of each partition; raises FederationError unless each is there once."""
    deadline = time.monotonic() + _JOIN_SECONDS
    while len(node_ids := list(grid.get_node_ids())) < clients:
        if time.monotonic() > deadline:
            raise LostClients(f"Only {len(node_ids)} of {clients} clients have joined; start the missing ones.")
        time.sleep(0.2)
    nodes: dict[int, int] = {}
    examples: dict[int, int] = {}
    for message in _ask_for_partitions(grid, node_ids):
        if message.has_error():
            raise LostClients(f"A client cannot take part: {_reason(message)}")
        metrics = message.content["metrics"]
        nodes[int(metrics["partition"])] = message.metadata.src_node_id
        examples[int(metrics["partition"])] = _believable(int(metrics["examples"]), int(metrics["partition"]))
    if sorted(nodes) != list(range(clients)):
        raise LostClients(f"{len(nodes)} of {clients} partitions answered; start one client for each of them.")
    return nodes, examples


def _believable(examples: int, partition: int) -> int:
    if not 0 < examples <= MOST_WEIGHT:
        raise BadReply(f"Client {partition} says that it has {examples} windows, which cannot be; leave it out.")
    return examples


def _ask_for_partitions(grid: Grid, node_ids: Sequence[int]) -> Iterator[Message]:
    """Every node's reply. Some nodes at a time: Flower's simulation looks for each node through all open messages."""
    for start in range(0, len(node_ids), _ASKED_AT_ONCE):
        asked = node_ids[start : start + _ASKED_AT_ONCE]
        messages = [Message(RecordDict(), dst_node_id=node, message_type="query.partition") for node in asked]
        yield from grid.send_and_receive(messages, timeout=_JOIN_SECONDS)


def commit_first_adapter(
    grid: Grid, job: TrainingJob, node: int, check: Callable[[Arrays], None] | None = None
) -> CommittedRound:
    """Commit the untrained adapter, as one client makes it from model, tuning and seed, as round 0."""
    content = RecordDict({"config": round_config(job, 0, 0.0)})
    [reply] = grid.send_and_receive([Message(content, dst_node_id=node, message_type="query.adapter")])
    if reply.has_error():
        raise LostClients(f"No first adapter: {_reason(reply)}")
    try:
        if list(reply.content) != ["arrays"] or not reply.content.array_records:
            raise BadMessage("has other records than its arrays")
        arrays = {name: claimed_array(array, name) for name, array in sorted(reply.content["arrays"].items())}
    except BadMessage as error:
        raise BadReply(f"The first adapter, as client 0 sent it, {error}; mend the client and run again.") from error
    if check is not None:
        check(arrays)
    return commit_untouched(job, arrays)


def commit_untouched(job: TrainingJob, arrays: Arrays) -> CommittedRound:
    """Commit round 0: the model before any training."""
    digest = adapter_hash(arrays)
    summary = {"round": 0, "clients": 0, "seconds": 0.0, "bytes_down": 0, "bytes_up": 0, "adapter_hash": digest}
    return commit_round(job.run_folder, 0, arrays, digest, [], summary, facts={"job": job.fingerprint()})


def train_round(
    grid: Grid,
    job: TrainingJob,
    last: CommittedRound,
    first: Arrays,
    nodes: Mapping[int, int],
    examples: Mapping[int, int],
) -> CommittedRound:
    """Train and commit the round after `last`; `first` is the adapter of round 0 where downloads are coded."""
    federation, training, number = job.federation, job.training, last.number + 1
    started = time.monotonic()
    rate = cosine_rate(number, federation.rounds, training.learning_rate_max, training.learning_rate_min)
    key = _noise_key(job, last)
    drawn = draw_clients(federation, number, key if job.privacy.hides_draws else b"")
    append_event(job.run_folder, "round", round=number, clients=drawn, learning_rate=rate)
    exchange = _exchange(job, last, first, number)
    clipping_norm = clipping_norm_after(job.privacy, last.facts)
    combination = Combination(federation, job.privacy, exchange.changing, clipping_norm)
    sent = ArrayRecord({name: Array(array) for name, array in sorted(exchange.sent.items())})
    counted: dict[str, int] = last.facts.get("counted", {})
    configs = {partition: round_config(job, number, rate, counted.get(str(partition), 0)) for partition in drawn}
    if job.privacy.is_on:
        for config in configs.values():
            config["clipping-norm"] = clipping_norm
    messages = [
        Message(RecordDict({"arrays": sent, "config": config}), dst_node_id=nodes[partition], message_type="train")
        for partition, config in configs.items()
    ]
    received = replies_as_they_come(grid, messages, federation.round_timeout)
    partitions = {nodes[partition]: partition for partition in drawn}
    replies = check_replies(
        received,
        partitions,
        exchange.expected,
        examples,
        number,
        federation.replies_needed(len(drawn)),
        exchange.read,
        combination.take,
        drop=federation.bad_replies == "drop",
    )
    arrays, state = _combined(combination, number, exchange, replies, last.state(), rate, key)
    counts = _participations(last, drawn)
    next_norm = combination.next_clipping_norm(number, replies, key)
    private = _private_facts(job, number, max(counts.values(), default=0), clipping_norm, next_norm)
    clients = [_client_row(reply, number, sent.count_bytes(), rate) for reply in replies]
    summary = _round_row(number, replies, clients, rate, adapter_hash(arrays)) | {"seconds": time.monotonic() - started}
    summary |= {name: private[name] for name in ("epsilon", "clipping_norm") if name in private}
    committed = commit_round(
        job.run_folder,
        number,
        arrays,
        summary["adapter_hash"],
        clients,
        summary,
        state=state,
        facts={
            "job": job.fingerprint(),
            "drawn": drawn,
            **_counted(job, counted, replies, number),
            **({"privacy": private, "participations": counts} if private else {}),
        },
    )
    append_event(job.run_folder, "committed", **{**summary, "of": federation.rounds})
    return committed


def _exchange(job: TrainingJob, last: CommittedRound, first: Arrays, number: int) -> Exchange:
    """What this round sends and expects."""
    current, federation = last.arrays(), job.federation
    trained = frozenset(name for name in current if job.tuning.trains(name, number))
    return Exchange(current, first, trained, federation.uplink, federation.downlink)


def _combined(
    combination: Combination,
    number: int,
    exchange: Exchange,
    replies: list[Reply],
    state: Arrays,
    rate: float,
    key: bytes,
) -> tuple[Arrays, Arrays]:
    """The next adapter and strategy's state: what the round trained is combined, the rest stays as it was."""
    own = {name: array for name, array in state.items() if name.partition("/")[2] in exchange.trained}
    arrays, changed = combination.result(number, replies, own, rate, key)
    return exchange.current | arrays, state | changed


def _noise_key(job: TrainingJob, last: CommittedRound) -> bytes:
    """The key of the server's noise; none where the server adds none."""
    if job.privacy.noise != "central":
        return b""
    if job.privacy.noise_source == "seed":
        return seed_key(job.federation.seed)
    return noise_key(job.run_folder, is_begun=last.number > 0)


def _participations(last: CommittedRound, drawn: Sequence[int]) -> dict[str, int]:
    """In how many rounds each site was drawn, up to and with this one."""
    before: dict[str, int] = last.facts.get("participations", {})
    return before | {str(site): before.get(str(site), 0) + 1 for site in drawn}


def _private_facts(
    job: TrainingJob, number: int, participations: int, clipping_norm: float, next_norm: float
) -> dict[str, Any]:
    """What the rounds so far have spent; nothing where updates are not clipped. No epsilon stands for no bound.

    `participations`: of the site that was drawn most often.
    """
    if not job.privacy.is_on:
        return {}
    accountant = Accountant(job.privacy, job.federation)
    spent = {"epsilon": accountant.epsilon(number)}
    if job.privacy.noise == "central":
        spent["known_epsilon"] = accountant.epsilon_known(participations)
    return {
        "noise": job.privacy.noise,
        **{name: epsilon if math.isfinite(epsilon) else None for name, epsilon in spent.items()},
        "delta": job.privacy.delta,
        "holds_for": accountant.relation,
        "clipping_norm": clipping_norm,
        "next_clipping_norm": next_norm,
    }


def _counted(job: TrainingJob, before: Mapping[str, int], replies: list[Reply], number: int) -> dict[str, Any]:
    """For error feedback: the last round in which each client's reply was counted."""
    if not job.federation.keeps_residuals:
        return {}
    return {"counted": {**before, **{str(reply.partition): number for reply in replies}}}


def round_config(job: TrainingJob, number: int, rate: float, residual_of: int = 0) -> ConfigRecord:
    """What a client must know to train: no data, and no path of anybody's machine.

    With error feedback, `residual_of` is the round whose residual its next message adds to.
    """
    training = replace(job.training, **job.federation.client_options)
    feedback = {"run": job.run_id, "residual-of": residual_of} if job.federation.keeps_residuals else {}
    return ConfigRecord(
        {
            **feedback,
            **({"run": job.run_id, "privacy": json.dumps(asdict(job.privacy))} if job.privacy.is_on else {}),
            "uplink": json.dumps(asdict(job.federation.uplink)),
            "downlink": json.dumps(asdict(job.federation.downlink)),
            "round": number,
            "learning-rate": rate,
            "seed": job.federation.seed,
            "quantization": job.quantization,
            "tuning": json.dumps(asdict(job.tuning)),
            "training": json.dumps(asdict(training)),
        }
    )


def check_replies(
    messages: Iterable[Message],
    partitions: Mapping[int, int],
    expected: Mapping[str, np.ndarray],
    examples: Mapping[int, int],
    round_number: int,
    needed: int,
    read: Callable[[Arrays], Arrays] = dict,
    take: Callable[[Reply], Reply] = lambda reply: reply,
    *,
    drop: bool = False,
) -> list[Reply]:
    """The replies of a round in the order of their partitions.

    `partitions` tells which partition each node asked holds, `examples` how many windows each partition announced,
    `expected` which arrays a reply must have; `read` decodes them, and `take` says what is kept of a good one. Raises
    LostClients for fewer replies than `needed`, and BadReply for one that does not fit (names, shapes, types), cannot
    be decoded, holds NaN or infinity, or tells numbers that cannot be; with `drop`, such a client counts as lost.
    """
    replies: dict[int, Reply] = {}
    lost: dict[int, str] = dict.fromkeys(partitions, _SILENT)
    for message in messages:
        node = message.metadata.src_node_id
        if message.has_error():
            # For a node that is gone Flower's link answers itself, and does not say for which.
            silent = [each for each, why in lost.items() if why == _SILENT]
            lost |= dict.fromkeys([node] if node in partitions else silent, _reason(message))
            continue
        lost.pop(node, None)
        if node not in partitions or partitions[node] in replies:
            raise BadReply(
                f"Round {round_number}: a reply came that was not asked for; nothing was kept of this round."
            )
        partition = partitions[node]
        try:
            replies[partition] = take(_read_reply(message.content, partition, expected, examples, round_number, read))
        except BadMessage as error:
            if drop:
                lost[node] = f"its reply {error};"
                continue
            raise BadReply(
                f"Round {round_number}: the reply of client {partition} {error}; mend the client and run again."
            ) from error
    if len(replies) < needed:
        node, reason = min(lost.items(), key=lambda item: partitions.get(item[0], -1))
        raise LostClients(
            f"Round {round_number}: {len(replies)} of {len(partitions)} clients replied, {needed} are needed; "
            f"client {partitions.get(node)}: {reason} Run again to go on after round {round_number - 1}."
        )
    return [replies[partition] for partition in sorted(replies)]


def _read_reply(
    content: RecordDict,
    partition: int,
    expected: Mapping[str, np.ndarray],
    examples: Mapping[int, int],
    number: int,
    read: Callable[[Arrays], Arrays],
) -> Reply:
    """A reply that fits; raises BadMessage for any other. Sizes are looked at before values."""
    if (sorted(content), list(content.array_records)) != (["arrays", "metrics"], ["arrays"]) or (
        list(content.metric_records) != ["metrics"]
    ):
        raise BadMessage("has not exactly one record of arrays and one of metrics")
    arrays, metrics = content["arrays"], content["metrics"]
    if differing := sorted(set(arrays) ^ set(expected)):
        raise BadMessage(
            f"has other array names than are expected ({len(differing)} differ, first {differing[0]!r:.80})"
        )
    if fault := _wrong_number(metrics, partition, examples[partition], number):
        raise BadMessage(fault)
    values = {}
    for name, like in sorted(expected.items()):
        values[name] = plain_array(arrays[name], name, like.dtype, like.shape)
        if not np.isfinite(values[name]).all():
            raise BadMessage(f"has NaN or infinity in {name}")
    return Reply(
        partition=partition,
        arrays=read(values),
        examples=int(metrics["examples"]),
        loss=float(metrics["loss"]),
        metrics={name: metrics[name] for name in (*_NUMBERS, "unclipped") if name in metrics},
        bytes_up=arrays.count_bytes(),
    )


def _wrong_number(metrics: Mapping[str, Any], partition: int, examples: int, number: int) -> str | None:
    for name in ("partition", "round", "examples", "loss", *_NUMBERS):
        value = metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MOST:
            return f"tells no usable {name} ({value!r:.40})"
        if name in COUNTS and (not isinstance(value, int) or value >= _MOST_COUNTED):
            return f"tells {name} as {value!r:.40}, which is no count"
    if metrics["partition"] != partition:
        return f"says that it comes from client {metrics['partition']}"
    if metrics["round"] != number:
        return f"is of round {metrics['round']}"
    if metrics["examples"] != examples:
        return f"counts {metrics['examples']} examples where {examples} were announced"
    return None


def _reason(message: Message) -> str:
    """A client's failure in one line, without the names of the classes that carried it."""
    text = printable(" ".join((message.error.reason or "unknown").split()))
    text = text.partition(":<'")[2].removesuffix("'>") or text
    return text if len(text) < 300 else f"{text[:300]}..."


def _client_row(reply: Reply, number: int, bytes_down: int, rate: float) -> dict[str, Any]:
    return {
        "round": number,
        "partition": reply.partition,
        "examples": reply.examples,
        "loss": reply.loss,
        "bytes_down": bytes_down,
        "bytes_up": reply.bytes_up,
        "learning_rate": rate,
        **reply.metrics,
    }


def _round_row(
    number: int, replies: list[Reply], clients: list[dict[str, Any]], rate: float, digest: str
) -> dict[str, Any]:
    examples = sum(reply.examples for reply in replies)
    return {
        "round": number,
        "clients": len(replies),
        "loss": sum(reply.loss * reply.examples for reply in replies) / examples if replies else None,
        "learning_rate": rate,
        "bytes_down": sum(row["bytes_down"] for row in clients),
        "bytes_up": sum(row["bytes_up"] for row in clients),
        "adapter_hash": digest,
    }
