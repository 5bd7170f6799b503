"""One training step of LoRA: Atalaia's against that of Hugging Face's Trainer, on the same batch of normal windows.

`python -m benchmarks.training ARCHIVE`. The ways take turns, each from the same weights:

- atalaia: `train_locally`, the batch as a prefix tree;
- padded_to_1024: Trainer, every row padded to 1024 tokens, as the reference prepares its rows;
- padded_to_longest: Trainer, every row padded to the batch's longest.

Trainer accumulates gradients over as many rows at a time as fit the memory that Atalaia takes. Padding is masked in
the labels (the reference's counts it), dropout is off, both use AdamW: loss and gradients must be equal. A step is
forward, backward, norm of the gradients and update; what Trainer does before its first step is not counted.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.turns import compared, in_turns
from benchmarks.windows import LogWindows, read_windows
from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import token_budget, train_locally
from fl.model import LoadedModel, load_model
from fl.prefix_tree import build_tree

_PADDED = 1024
_RATE = 1e-3
_UNCLIPPED = 1e9
"""A norm that no gradient reaches: clipped ones could only be compared up to their scale."""
Batch = list[np.ndarray]
Gradients = dict[str, Tensor]


@contextmanager
def caught_gradients(model: torch.nn.Module, into: Gradients) -> Iterator[None]:
    """Copy the gradients that any optimizer is about to step by."""

    def copy(*_: object) -> None:
        into.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    hook = register_optimizer_step_pre_hook(copy)
    try:
        yield
    finally:
        hook.remove()


class StepClock(TrainerCallback):
    """Seconds from the first forward pass of a step to its end."""

    def on_step_begin(self, *_: object, **__: object) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *_: object, **__: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.begin


def padded(rows: Sequence[dict[str, np.ndarray]], width: int, end: int) -> dict[str, Tensor]:
    """Windows closed by the end token as rows of `width` (cut off there), the padding's labels masked."""
    ids = torch.full((len(rows), width), end)
    labels = torch.full_like(ids, -100)
    for row, window in enumerate(row["window"] for row in rows):
        closed = torch.from_numpy(np.append(window, end)[:width])
        ids[row, : len(closed)] = labels[row, : len(closed)] = closed
    return {"input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long()}


@dataclass
class Outcome:
    """What a way's last step found."""

    loss: float
    gradients: Gradients


class Steps:
    """The ways of one step on the batch of each repetition."""

    def __init__(self, loaded: LoadedModel, batches: Sequence[Batch]) -> None:
        self.loaded, self.batches = loaded, batches
        self.model: Any = attach_adapter(loaded, Tuning(dropout=0.0), 0)
        drawn = np.random.default_rng(0)
        # Away from LoRA's B = 0, where half of the gradients vanish.
        self.start = {
            name: drawn.normal(0, 0.02, array.shape).astype(np.float32)
            for name, array in adapter_arrays(self.model).items()
        }
        self.outcomes: dict[str, Outcome] = {}
        self.computed: list[int] = []

    def atalaia(self, repeat: int) -> float:
        """Seconds of a step by the tree."""
        batch = self.batches[repeat]
        config = LocalTraining(steps=1, batch_size=len(batch), max_gradient_norm=_UNCLIPPED)

        def step() -> tuple[float, float]:
            started = time.perf_counter()
            result = train_locally(self.model, self.loaded, batch, config, _RATE, (0, 1, 0))
            took = time.perf_counter() - started
            self.computed.append(result.computed_tokens)
            return took, result.loss

        return self._from_start("atalaia", step)

    def trainer(self, name: str, width: Callable[[Batch], int]) -> Callable[[int], float]:
        """The way that gives the seconds of Trainer's step with rows padded to the batch's `width`."""

        def way(repeat: int) -> float:
            batch = self.batches[repeat]
            return self._from_start(name, lambda: self._train(batch, width(batch)))

        return way

    def _train(self, batch: Batch, width: int) -> tuple[float, float]:
        clock, end = StepClock(), self.loaded.end_token_id
        rows = self.rows(width)
        with tempfile.TemporaryDirectory() as place:
            arguments = TrainingArguments(
                output_dir=place,
                max_steps=1,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=math.ceil(len(batch) / rows),
                learning_rate=_RATE,
                lr_scheduler_type="constant",
                weight_decay=LocalTraining().weight_decay,
                max_grad_norm=_UNCLIPPED,
                optim="adamw_torch",
                use_cpu=self.loaded.device == "cpu",
                remove_unused_columns=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            trainer = Trainer(
                model=self.model,
                args=arguments,
                train_dataset=[{"window": window} for window in batch],
                data_collator=lambda chosen: padded(chosen, width, end),
                callbacks=[clock],
            )
            trainer.remove_callback(PrinterCallback)
            loss = trainer.train().training_loss
        return clock.seconds, loss

    def rows(self, width: int) -> int:
        """Rows at a time in the memory that the tree's packs have."""
        return max(1, token_budget(self.loaded, LocalTraining()) // width)

    def _from_start(self, name: str, step: Callable[[], tuple[float, float]]) -> float:
        load_adapter_arrays(self.model, self.start)
        gradients: Gradients = {}
        with caught_gradients(self.model, gradients):
            took, loss = step()
        self.outcomes[name] = Outcome(loss, gradients)
        return took

    def equality(self, other: str) -> dict[str, float]:
        """Relative differences of loss and gradients between Atalaia's last step and another way's."""
        ours, theirs = self.outcomes["atalaia"], self.outcomes[other]
        apart = {name: float((ours.gradients[name] - theirs.gradients[name]).norm()) for name in theirs.gradients}
        norms = {name: float(gradient.norm()) for name, gradient in theirs.gradients.items()}
        return {
            "loss": abs(ours.loss - theirs.loss) / theirs.loss,
            "gradient": math.hypot(*apart.values()) / math.hypot(*norms.values()),
            "gradient_of_the_worst_matrix": max(apart[name] / norms[name] for name in apart),
        }


def longest(batch: Batch) -> int:
    """The length of the batch's longest window with its end token, at most 1024."""
    return min(_PADDED, max(map(len, batch)) + 1)


def measure(loaded: LoadedModel, log: LogWindows, size: int, repeats: int) -> dict[str, Any]:
    """Steps on `repeats` batches of `size` windows, all ways."""
    batches = [log.batch(size, seed) for seed in range(repeats)]
    Steps(loaded, [[batches[0][0][:64]]]).atalaia(0)  # the first step of a process takes longer than the others
    steps = Steps(loaded, batches)
    widths: dict[str, Callable[[Batch], int]] = {"padded_to_1024": lambda _: _PADDED, "padded_to_longest": longest}
    print(f"batch of {size}", file=sys.stderr)
    times = in_turns({"atalaia": steps.atalaia} | {n: steps.trainer(n, width) for n, width in widths.items()}, repeats)
    trees = [build_tree(batch, loaded.end_token_id) for batch in batches]
    distinct = median(tree.distinct_tokens for tree in trees)
    tokens = {name: median(width(batch) * size for batch in batches) for name, width in widths.items()}
    return {
        "batch_size": size,
        "tokens": median(sum(map(len, batch)) for batch in batches),
        "distinct_prefix_tokens": distinct,
        "computed_tokens": {"atalaia": median(steps.computed), **tokens},
        "tokens_times_more_than_distinct": {name: round(count / distinct, 2) for name, count in tokens.items()},
        **(timing := compared(times)),
        "share_of_the_ratio_of_tokens": {
            name: round(timing["times_longer"][name] * distinct / count, 3) for name, count in tokens.items()
        },
        "rows_at_a_time": {name: steps.rows(width(batches[-1])) for name, width in widths.items()},
        "relative_differences": {name: steps.equality(name) for name in widths},
    }


def main() -> None:
    """Measure and print JSON."""
    given = given_options(
        options(
            __doc__,
            batches=Size((32, 16), (4,), "windows a step"),
            repeats=Size(3, 1, "steps of each way, each on a batch of its own"),
        )
    )
    folder = model_folder(given.model)
    log, loaded = read_windows(given.archive, folder / "tokenizer.json"), load_model(folder)
    measured = [measure(loaded, log, size, given.repeats) for size in given.batches]
    tell({"log": log.log, "model": folder.name, "threads": torch.get_num_threads(), "training": measured})


if __name__ == "__main__":
    main()
