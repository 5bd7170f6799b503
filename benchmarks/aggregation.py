"""A round's end at the server by the number of clients that reply, by tens: `python -m benchmarks.aggregation`.

Clients reply with an adapter of the model (LoRA, rank 8), each with other values; the replies are combined by
equation 1, for each number of clients in a process of its own, so that its peak of memory is its own.
"""

import sys
import time
from typing import Any

import numpy as np

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.processes import in_fresh_process, peak_mb

Shapes = dict[str, tuple[int, ...]]


def combine(shapes: Shapes, clients: int, repeats: int) -> dict[str, Any]:
    """Median seconds and peak memory of combining the replies of so many clients."""
    from fl.federation import Federation
    from fl.strategies import Reply, aggregate

    imported = peak_mb()
    draw = np.random.default_rng(0)
    replies = [
        Reply(client, {name: draw.random(shape, np.float32) for name, shape in shapes.items()}, 100 + client, 1.0)
        for client in range(clients)
    ]
    held = peak_mb()
    before = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        aggregate(Federation(clients=clients), 1, before, replies, {}, 1e-3)
        times.append(time.perf_counter() - started)
    return {
        "clients": clients,
        "seconds": round(sorted(times)[repeats // 2], 4),
        "mb_of_imports": round(imported),
        "mb_with_replies": round(held),
        "peak_mb": round(peak_mb()),
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
    given = given_options(
        options(
            __doc__,
            clients=Size((10, 100, 1000), (10, 20), "clients that reply"),
            repeats=Size(3, 1, "repetitions of each"),
        )
    )
    shapes = in_fresh_process(adapter_shapes, given.model)
    found = []
    for count in given.clients:
        print(f"{count} clients", file=sys.stderr)
        found.append(in_fresh_process(combine, shapes, count, given.repeats))
    tell({"reply_bytes": sum(4 * int(np.prod(shape)) for shape in shapes.values()), "clients": found})


if __name__ == "__main__":
    main()
