"""How a training step grows with its batch, by tens: `python -m benchmarks.growth ARCHIVE`.

Batches hold normal windows. How preparation grows with the log is in benchmarks/preparation.py, how a round's end
grows with the clients in benchmarks/aggregation.py.
"""

from typing import Any

import torch

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.turns import compared, in_turns
from benchmarks.windows import LogWindows, read_windows
from fl.adapter import attach_adapter
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import train_locally
from fl.model import LoadedModel, load_model


def grow_batch(loaded: LoadedModel, log: LogWindows, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Tokens and median seconds of a step by batch size."""
    model = attach_adapter(loaded, Tuning(), 0)
    tokens: dict[str, dict[str, int]] = {}

    def step(size: int, repeat: int) -> float:
        batch = log.batch(size, repeat)
        result = train_locally(model, loaded, batch, LocalTraining(steps=1, batch_size=size), 1e-4, (0, repeat, 0))
        tokens[str(size)] = {"given": result.tokens, "computed": result.computed_tokens}
        return result.seconds

    step(1, 0)  # the first step of a process takes longer than the others
    times = in_turns({str(size): lambda repeat, size=size: step(size, repeat) for size in sizes}, repeats)  # type: ignore[misc]
    return {"tokens_of_the_last_batch": tokens, **compared(times, ours=str(sizes[0]))}


def main() -> None:
    """Measure and print JSON."""
    given = given_options(
        options(
            __doc__,
            batches=Size((1, 10, 100), (1, 4), "windows a step"),
            repeats=Size(3, 1, "repetitions of each, on a batch of their own"),
        )
    )
    folder = model_folder(given.model)
    log, loaded = read_windows(given.archive, folder / "tokenizer.json"), load_model(folder)
    figures = grow_batch(loaded, log, list(given.batches), given.repeats)
    tell({"log": log.log, "model": folder.name, "threads": torch.get_num_threads(), **figures})


if __name__ == "__main__":
    main()
