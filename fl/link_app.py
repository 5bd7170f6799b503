"""The server of a federation of real sites, on Flower's deployment runtime.

The rounds are those of fl/server_app.py. Here is what real sites need around them: each is asked to agree to the
federation's rules, is known by its registered key and not by what it says, and tells how the adapter does on its own
windows.
"""

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fl.accounting import affordable_rounds
from fl.declared import check_numbers
from fl.errors import FederationError, LearningError, LostClients
from fl.federation import TrainingJob, load_job
from fl.server_app import round_config, train_federation
from fl.simulation import only_job, told
from storage.adapters import CommittedRound, committed_rounds
from storage.errors import DataError
from storage.events import append_event
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
        append_event(job.run_folder, "finished", rounds=rounds[-1].number)
        dismiss_sites(grid, federation)
        return

    def join(grid: Grid, clients: int) -> tuple[dict[int, int], dict[int, int]]:
        examples = admit_sites(grid, job, federation)
        if rounds and not _is_judged(job, rounds[-1].number):
            # Stopped between the commit of a round and its judging.
            judge_round(grid, job, federation, rounds[-1], federation.nodes)
        return federation.nodes, examples

    train_federation(grid, job, join, partial(judge_round, grid, job, federation))
    dismiss_sites(grid, federation)


def _is_judged(job: TrainingJob, number: int) -> bool:
    return any(row["round"] == number for row in read_numbers(job.run_folder))


def admit_sites(grid: Grid, job: TrainingJob, federation: FederationOfSites) -> dict[int, int]:
    """The number of windows of each partition, once every site is there and has agreed to the rules.

    Raises LostClients where one is missing for too long.
    """
    deadline = time.monotonic() + federation.join_seconds
    partitions = {node: partition for partition, node in federation.nodes.items()}
    examples: dict[int, int] = {}
    refused: dict[int, str] = {}
    while True:
        waiting = [node for node in grid.get_node_ids() if partitions.get(node, -1) not in {-1, *examples}]
        for reply in _asked(grid, waiting, partitions, federation):
            partition = partitions[reply.metadata.src_node_id]
            if reply.has_error():
                reason = str(reply.error.reason or "no reason given")[:200]
                if refused.get(partition) != reason:
                    append_event(job.run_folder, "refused", site=federation.names[partition], reason=reason)
                refused[partition] = reason
            else:
                examples[partition] = _admitted(reply, partition, federation)
                refused.pop(partition, None)
                append_event(job.run_folder, "joined", site=federation.names[partition], examples=examples[partition])
        if len(examples) == len(partitions):
            break
        if time.monotonic() > deadline:
            missing = sorted(set(partitions.values()) - set(examples))
            told_by = "; ".join(f"{federation.names[each]}: {refused.get(each, 'not there')}" for each in missing)
            raise LostClients(f"{len(missing)} of {len(partitions)} sites do not take part ({told_by}).")
        time.sleep(_LOOK_SECONDS)
    return examples


def _asked(grid: Grid, nodes: list[int], partitions: Mapping[int, int], federation: FederationOfSites) -> list[Message]:
    messages = [
        Message(
            RecordDict({"config": ConfigRecord({"rules": federation.rules, "number": partitions[node]})}),
            dst_node_id=node,
            message_type="query.rules",
        )
        for node in nodes
    ]
    if not messages:
        return []
    return [reply for reply in grid.send_and_receive(messages, timeout=None) if _is_from(reply, nodes)]


def _is_from(reply: Message, nodes: list[int]) -> bool:
    return reply.metadata.src_node_id in nodes


def _admitted(reply: Message, partition: int, federation: FederationOfSites) -> int:
    """The number of training windows that a site tells; raises FederationError where its numbers cannot be."""
    numbers = _told(reply, "query.rules", partition, federation)
    if int(numbers["examples"]) < 1:
        raise FederationError(f"The site {federation.names[partition]} has no training windows.")
    return int(numbers["examples"])


def _told(reply: Message, kind: str, partition: int, federation: FederationOfSites) -> dict[str, Any]:
    content, name = reply.content, federation.names[partition]
    if list(content) != ["metrics"]:
        raise FederationError(f"The site {name} sent other records than its numbers.")
    numbers = dict(content["metrics"])
    check_numbers(kind, numbers)
    if numbers["partition"] != partition:
        raise FederationError(f"The site {name} says that it is number {numbers['partition']}, not {partition}.")
    return numbers


def judge_round(
    grid: Grid, job: TrainingJob, federation: FederationOfSites, found: CommittedRound, nodes: Mapping[int, int]
) -> None:
    """Have every site judge a round's adapter, and keep the numbers; a site that does not answer has none."""
    until = affordable_rounds(job.privacy, job.federation)
    last = found.number >= until
    if not federation.judges(found.number, until):
        return
    arrays = ArrayRecord({name: Array(array) for name, array in found.arrays().items()})
    config = ConfigRecord({**round_config(job, found.number, 0.0), "last": last})
    messages = [
        Message(RecordDict({"arrays": arrays, "config": config}), dst_node_id=node, message_type="evaluate")
        for node in nodes.values()
    ]
    partitions = {node: partition for partition, node in nodes.items()}
    rows, missing = [], dict.fromkeys(nodes, "no answer")
    for reply in grid.send_and_receive(messages, timeout=job.federation.round_timeout):
        # An answer that Flower makes for a node that is gone comes from the link itself.
        partition = partitions.get(reply.metadata.src_node_id)
        if partition is None:
            continue
        if reply.has_error():
            missing[partition] = str(reply.error.reason or "no reason given")[:200]
        else:
            rows.append(_told(reply, "evaluate", partition, federation))
            del missing[partition]
    for partition, reason in missing.items():
        append_event(job.run_folder, "unjudged", site=federation.names[partition], reason=reason)
    append_numbers(job.run_folder, found.number, sorted(rows, key=lambda row: int(row["partition"])))
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
        messages = [Message(RecordDict(), dst_node_id=node, message_type="query.done") for node in here]
        grid.send_and_receive(messages, timeout=_FAREWELL_SECONDS)
        left -= set(here)
