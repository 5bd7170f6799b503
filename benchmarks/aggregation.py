"""A round at the server by the number of clients that reply: `python -m benchmarks.aggregation`.

The server's own code trains a round of clients that are not there: it makes their messages, reads and checks their
replies, an adapter of the model each (LoRA, rank 8), combines them, and puts the round on the disk. Replies are made in
advance from a few adapters, so that no client's time is counted; each number of clients has a process of its own, so
that its peak of memory is its own. `fedavg` and central noise hold a constant number of adapters, `fedmedian` all.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.processes import in_fresh_process, peak_mb

if TYPE_CHECKING:
    from flwr.app import Message

Shapes = dict[str, tuple[int, ...]]
WAYS = ("fedavg", "central noise", "fedmedian")
_ADAPTERS = 8
_EXAMPLES = 178
_NUMBERS = dict.fromkeys(("tokens", "computed_tokens", "steps", "seconds", "loss", "peak_memory_mb"), 1.0)


class PreparedGrid:
    """Clients that have replied already, each with one of a few adapters."""

    def __init__(self, shapes: Shapes, partitions: Mapping[int, int]) -> None:
        from flwr.app import Array, ArrayRecord

        draw = np.random.default_rng(0)
        self._partitions = partitions
        self._records = [
            ArrayRecord({name: Array(0.05 * draw.random(shape, np.float32)) for name, shape in sorted(shapes.items())})
            for _ in range(_ADAPTERS)
        ]
        self._asked: dict[str, Message] = {}

    def push_messages(self, messages: Iterable["Message"]) -> list[str]:
        """Take the server's messages; their numbers."""
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = str(number)
            self._asked[str(number)] = message
        return list(self._asked)

    def pull_messages(self, message_ids: Iterable[str]) -> list["Message"]:
        """The replies to these messages, which are forgotten."""
        return [self._reply(self._asked.pop(number)) for number in message_ids if number in self._asked]

    def _reply(self, asked: "Message") -> "Message":
        from flwr.app import Message, MetricRecord, RecordDict

        partition = self._partitions[asked.metadata.dst_node_id]
        told = {"partition": partition, "round": 1, "examples": _EXAMPLES, **_NUMBERS}
        arrays = self._records[partition % _ADAPTERS]
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord(told)}), reply_to=asked)


def combine(shapes: Shapes, clients: int, how: str) -> dict[str, Any]:
    """Seconds, processor time, memory and bytes of a round in which so many clients reply."""
    from fl.federation import Federation, TrainingJob
    from fl.hyperparameters import LocalTraining, Tuning
    from fl.privacy import NO_PRIVACY, Privacy
    from fl.server_app import commit_untouched, train_round
    from storage.adapters import committed_rounds

    privacy = Privacy("central", 1.0, delta=1e-9, noise_source="seed") if how == "central noise" else NO_PRIVACY
    federation = Federation(
        rounds=1, clients=clients, fraction=1.0, strategy="fedmedian" if how == "fedmedian" else "fedavg"
    )
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob("run", Path(folder), Path(), Path(), Tuning(), LocalTraining(), federation, privacy)
        last = commit_untouched(job, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        nodes = {partition: partition + 1 for partition in range(clients)}
        grid = PreparedGrid(shapes, {node: partition for partition, node in nodes.items()})
        before, started, worked = peak_mb(), time.perf_counter(), time.process_time()
        train_round(grid, job, last, {}, nodes, dict.fromkeys(nodes, _EXAMPLES))  # type: ignore[arg-type]
        seconds, work = time.perf_counter() - started, time.process_time() - worked
        size = sum(path.stat().st_size for path in committed_rounds(job.run_folder)[1].folder.iterdir())
    return {
        "how": how,
        "clients": clients,
        "seconds": round(seconds, 3),
        "processor_seconds": round(work, 3),
        "milliseconds_a_client": round(1000 * work / clients, 2),
        "mb_before": round(before),
        "peak_mb": round(peak_mb()),
        "bytes_on_disk": size,
    }


def adapter_shapes(model: str | None) -> Shapes:
    """Name and shape of each matrix that a client sends."""
    from fl.adapter import adapter_arrays, attach_adapter
    from fl.hyperparameters import Tuning
    from fl.model import load_model

    arrays = adapter_arrays(attach_adapter(load_model(model_folder(model)), Tuning(), 0))
    return {name: array.shape for name, array in arrays.items()}


def main() -> None:
    """Measure and print JSON."""
    parser = options(
        __doc__,
        clients=Size((10, 100, 1000, 10_000), (10, 20), "clients that reply"),
        kept=Size(300, 20, "clients at most whose adapters are all held"),
    )
    parser.add_argument("--how", nargs="+", choices=WAYS, default=WAYS, help="how replies are combined; all of these")
    given = given_options(parser)
    shapes = in_fresh_process(adapter_shapes, given.model)
    found = []
    for how in given.how:
        for count in given.clients:
            if how != "fedmedian" or count <= given.kept:
                found.append(in_fresh_process(combine, shapes, count, how))
                print(found[-1], file=sys.stderr, flush=True)
    tell({"reply_bytes": sum(4 * int(np.prod(shape)) for shape in shapes.values()), "rounds": found})


if __name__ == "__main__":
    main()
