"""The server of a federation of real sites, on Flower's deployment runtime.

The rounds are those of fl/server_app.py. Here is what real sites need around them: each is asked to agree to the
federation's rules, is known by its registered key and not by what it says, and tells how the adapter does on its own
windows.
"""

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl.accounting import affordable_rounds
from fl.adapter import adapter_arrays, attach_adapter
from fl.averaging import MOST_WEIGHT
from fl.costs import adapter_shapes, model_config
from fl.declared import ADMIT, DONE, JUDGE, check_numbers
from fl.errors import BadReply, FederationError, LearningError, LostClients
from fl.exchange import Arrays
from fl.federation import TrainingJob, load_job
from fl.model import load_model
from fl.plain_arrays import printable
from fl.server_app import commit_untouched, round_config, train_federation
from fl.simulation import only_job, told
from storage.adapters import CommittedRound, committed_rounds
from storage.errors import DataError
from storage.events import append_event
from storage.noise_keys import forget_noise_key
from storage.site_numbers import FederationOfSites, append_numbers, load_federation, read_numbers

app = ServerApp()

_LOOK_SECONDS = 1.0
"""Between two looks for sites that have joined."""
_FAREWELL_SECONDS = 30.0
"""How long the end waits for sites that are not there."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job in the folder that the run's configuration names; why it failed is left there in error.json."""
    folder = Path(str(context.run_config["run-folder"]))
    with only_job(folder):
        (folder / "error.json").unlink(missing_ok=True)
        try:
            run_rounds(grid, load_job(folder), load_federation(folder))
        except (LearningError, DataError) as error:
            told(folder, error, 2)
            raise
        except BaseException as error:
            logging.getLogger("flwr").exception("The server failed.")
            told(folder, error, 1)
            raise


def run_rounds(grid: Grid, job: TrainingJob, federation: FederationOfSites) -> None:
    """Train the rounds that are not committed yet, and have the sites judge those that are to be judged."""
    rounds = committed_rounds(job.run_folder)
    if len(rounds) > affordable_rounds(job.privacy, job.federation) and _is_judged(job, rounds[-1].number):
        forget_noise_key(job.run_folder)
        append_event(job.run_folder, "finished", rounds=rounds[-1].number)
        dismiss_sites(grid, federation)
        return
    if not rounds and not job.tuning.takes_gradient:
        commit_untouched(job, _first_adapter(job, federation))
    admission = Admission(grid, job, federation)

    def join(grid: Grid, clients: int) -> tuple[dict[int, int], dict[int, int]]:
        admission.wait()
        if rounds and rounds[-1].number > 0 and not _is_judged(job, rounds[-1].number):
            # Stopped between the commit of a round and its judging; the untrained adapter is never judged.
            judge_round(grid, job, federation, rounds[-1], federation.nodes)
        return federation.nodes, admission.examples

    def committed(found: CommittedRound, nodes: Mapping[int, int]) -> None:
        judge_round(grid, job, federation, found, nodes)
        admission.look()

    train_federation(grid, job, join, committed, partial(_check_bases, job, federation))
    dismiss_sites(grid, federation)


def _is_judged(job: TrainingJob, number: int) -> bool:
    return any(row["round"] == number for row in read_numbers(job.run_folder))


def _first_adapter(job: TrainingJob, federation: FederationOfSites) -> Arrays:
    """The untrained adapter, made here: whoever chooses it could hide in it what later rounds only build on."""
    loaded = load_model(federation.model_folder, device="cpu")
    arrays = adapter_arrays(attach_adapter(loaded, job.tuning, job.federation.seed))
    load_model.cache_clear()
    return arrays


def _check_bases(job: TrainingJob, federation: FederationOfSites, arrays: Arrays) -> None:
    """Raise BadReply for a first adapter that is not made of orthonormal bases and squares of zeros."""
    shapes = adapter_shapes(model_config(federation.model_folder), job.tuning)
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise BadReply("The first adapter has other arrays than the model's; mend the site that is number 0.")
    for name, array in arrays.items():
        if "lora_R" in name:
            is_plain = not array.any()
        else:
            wide = array.astype(np.float64) if "lora_A" in name else array.astype(np.float64).T
            is_plain = np.allclose(wide @ wide.T, np.eye(len(wide)), atol=1e-3)
        if not is_plain:
            raise BadReply(f"The first adapter's {name} is no base and no zeros; mend the site that is number 0.")


class _Examples(dict[int, int]):
    """The training windows of each partition; of one that is not known the answer may have come by now."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look

    def __missing__(self, partition: int) -> int:
        self._look()
        return self.get(partition, 0)


class Admission:
    """Asks each site to agree to the rules once it is there; one that takes its time keeps nobody else waiting."""

    def __init__(self, grid: Grid, job: TrainingJob, federation: FederationOfSites) -> None:
        self._grid, self._job, self._federation = grid, job, federation
        self._partitions = {node: partition for partition, node in federation.nodes.items()}
        self._open: dict[str, int] = {}
        """The partition that each unanswered question went to, by the message's number."""
        self._refused: dict[int, str] = {}
        self.examples: dict[int, int] = _Examples(self.look)
        """The training windows of each partition that takes part."""

    def wait(self) -> None:
        """Until every site takes part, or for `join_seconds` as many as a round needs; else raise LostClients."""
        deadline, federation = time.monotonic() + self._federation.join_seconds, self._job.federation
        sites = len(self._partitions)
        # Any may be drawn: so many must be there that every draw finds enough.
        absent = federation.clients_per_round - federation.replies_needed(federation.clients_per_round)
        while True:
            self.look()
            if len(self.examples) == sites:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        missing = sorted(set(self._partitions.values()) - set(self.examples))
        names = self._federation.names
        told = "; ".join(f"{names[each]}: {self._refused.get(each, 'no answer')}" for each in missing)
        if len(missing) > absent:
            raise LostClients(f"{len(missing)} of {sites} sites do not take part ({told}).")
        append_event(self._job.run_folder, "without", sites=[names[each] for each in missing])

    def look(self) -> None:
        """Ask those that have come since, and hear who has answered."""
        self._hear()
        asked = set(self._open.values())
        come = [node for node in self._grid.get_node_ids() if node in self._partitions]
        waiting = [node for node in come if self._partitions[node] not in {*asked, *self.examples}]
        if waiting:
            messages = [self._question(self._partitions[node], node) for node in waiting]
            numbers = self._grid.push_messages(messages)
            self._open |= {number: self._partitions[node] for number, node in zip(numbers, waiting, strict=True)}
            self._hear()

    def _question(self, partition: int, node: int) -> Message:
        config = ConfigRecord({"rules": self._federation.rules, "number": partition})
        return Message(RecordDict({"config": config}), dst_node_id=node, message_type=ADMIT)

    def _hear(self) -> None:
        for reply in self._grid.pull_messages(list(self._open)) if self._open else ():
            if (partition := self._open.pop(reply.metadata.reply_to_message_id, None)) is None:
                continue
            name, folder = self._federation.names[partition], self._job.run_folder
            try:
                self.examples[partition] = self._admitted(reply, partition)
            except FederationError as error:
                reason = _shown(error)
                if self._refused.get(partition) != reason:
                    append_event(folder, "refused", site=name, reason=reason)
                self._refused[partition] = reason
            else:
                self._refused.pop(partition, None)
                append_event(folder, "joined", site=name, examples=self.examples[partition])

    def _admitted(self, reply: Message, partition: int) -> int:
        """The number of training windows that a site tells; raises FederationError where it does not take part."""
        if reply.has_error():
            raise FederationError(_shown(reply.error.reason or "no reason given"))
        examples = int(_told(reply, ADMIT, partition, self._federation)["examples"])
        if not 0 < examples <= MOST_WEIGHT:
            raise FederationError(f"it says that it has {examples} training windows")
        return examples


def _shown(words: object) -> str:
    """Words of a site as they may stand on a screen."""
    return printable(words)[:200]


def _told(reply: Message, kind: str, partition: int, federation: FederationOfSites) -> dict[str, Any]:
    """The numbers of a reply; raises FederationError for others than are declared, or another site's."""
    content, node = reply.content, federation.nodes[partition]
    if list(content) != ["metrics"] or list(content.metric_records) != ["metrics"]:
        raise FederationError("it sent other records than its numbers")
    numbers = dict(content["metrics"])
    check_numbers(kind, numbers)
    if numbers["partition"] != partition or reply.metadata.src_node_id != node:
        raise FederationError(f"it says that it is number {numbers['partition']}, not {partition}")
    return numbers


def judge_round(
    grid: Grid, job: TrainingJob, federation: FederationOfSites, found: CommittedRound, nodes: Mapping[int, int]
) -> None:
    """Have every site judge a round's adapter, and keep the numbers; a site that gives no usable ones has none."""
    until = affordable_rounds(job.privacy, job.federation)
    last = found.number >= until
    if not federation.judges(found.number, until):
        return
    arrays = ArrayRecord({name: Array(array) for name, array in found.arrays().items()})
    config = ConfigRecord({**round_config(job, found.number, 0.0), "last": last})
    messages = [
        Message(RecordDict({"arrays": arrays, "config": config}), dst_node_id=node, message_type=JUDGE)
        for node in nodes.values()
    ]
    partitions = {node: partition for partition, node in nodes.items()}
    rows: dict[int, dict[str, Any]] = {}
    missing = dict.fromkeys(nodes, "no answer")
    for reply in grid.send_and_receive(messages, timeout=job.federation.round_timeout):
        # An answer that Flower makes for a node that is gone comes from the link itself.
        partition = partitions.get(reply.metadata.src_node_id)
        if partition is None:
            continue
        if reply.has_error():
            missing[partition] = _shown(reply.error.reason or "no reason given")
            continue
        try:
            rows[partition] = _told(reply, JUDGE, partition, federation)
            missing.pop(partition, None)
        except FederationError as error:
            missing[partition] = _shown(error)
    for partition, reason in missing.items():
        append_event(job.run_folder, "unjudged", site=federation.names[partition], reason=reason)
    append_numbers(job.run_folder, found.number, [rows[partition] for partition in sorted(rows)])
    append_event(job.run_folder, "judged", round=found.number, sites=len(rows))


def dismiss_sites(grid: Grid, federation: FederationOfSites) -> None:
    """Tell the sites that it is over, as they come; those that do not come for a while hear it when they do.

    Only then may they go: Flower gives no reply of a node that has gone since.
    """
    deadline = time.monotonic() + _FAREWELL_SECONDS
    left = set(federation.nodes.values())
    while left and time.monotonic() < deadline:
        here = [node for node in grid.get_node_ids() if node in left]
        if not here:
            time.sleep(_LOOK_SECONDS)
            continue
        messages = [Message(RecordDict(), dst_node_id=node, message_type=DONE) for node in here]
        grid.send_and_receive(messages, timeout=_FAREWELL_SECONDS)
        left -= set(here)
