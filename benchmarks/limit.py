"""The distance to the limit: floating-point operations a second that scoring and training achieve, and attainable ones.

`python -m benchmarks.limit ARCHIVE`. Attainable is the best of products of two large square float32 matrices with as
many threads, in turns with the rest. Achieved are the operations that the distinct prefix tokens need (see
benchmarks/flops.py) over the seconds: what is computed twice, or spent on anything else, shows as distance.
"""

from typing import Any

import torch

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.flops import pass_cost, product_rate, tree_amounts
from benchmarks.turns import in_turns, seconds
from benchmarks.windows import LogWindows, read_windows
from fl.adapter import attach_adapter
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import train_locally
from fl.model import LoadedModel, load_model
from fl.prefix_tree import build_tree
from fl.scoring import score_tokens


def measure(
    loaded: LoadedModel, log: LogWindows, count: int, size: int, products: list[int], repeats: int
) -> dict[str, Any]:
    """Achieved and attainable rates for scoring `count` windows and for a step on a batch of `size`."""
    numbers = sorted({*log.drawn(count).tolist()})
    windows, batch = [log.token_ids[number] for number in numbers], log.batch(size, 0)
    model = attach_adapter(loaded, Tuning(), 0)
    config = LocalTraining(steps=1, batch_size=size)
    cost = pass_cost(model)
    needed = {
        "scoring": cost.forward(*tree_amounts(build_tree(windows, loaded.end_token_id))),
        "training": cost.step(*tree_amounts(build_tree(batch, loaded.end_token_id))),
    }
    rates: list[float] = []

    def best_product(_: int) -> float:
        rates.append(max(product_rate(each) for each in products for _ in range(3)))
        return 1 / rates[-1]

    times = in_turns(
        {
            "attainable": best_product,
            "scoring": lambda _: seconds(lambda: score_tokens(model, loaded, windows)),
            "training": lambda repeat: train_locally(model, loaded, batch, config, 1e-4, (0, repeat, 0)).seconds,
        },
        repeats,
    )
    best = max(rates)
    return {
        "attainable_gflops": round(best / 1e9, 1),
        **{name: _achieved(needed[name], sorted(times[name])[repeats // 2], best) for name in needed},
    }


def _achieved(needed: int, took: float, best: float) -> dict[str, float]:
    rate = needed / took
    return {
        "gflop": round(needed / 1e9, 1),
        "seconds": round(took, 3),
        "gflops": round(rate / 1e9, 1),
        "share_of_attainable": round(rate / best, 3),
    }


def main() -> None:
    """Measure and print JSON."""
    given = given_options(
        options(
            __doc__,
            windows=Size(200, 6, "windows to score"),
            batch=Size(32, 4, "windows of a training step"),
            products=Size((1024, 2048, 4096), (512,), "rows of the square matrices"),
            repeats=Size(3, 1, "repetitions of each"),
        )
    )
    folder = model_folder(given.model)
    log, loaded = read_windows(given.archive, folder / "tokenizer.json"), load_model(folder)
    figures = measure(loaded, log, given.windows, given.batch, list(given.products), given.repeats)
    tell({"log": log.log, "model": folder.name, "threads": torch.get_num_threads(), **figures})


if __name__ == "__main__":
    main()
