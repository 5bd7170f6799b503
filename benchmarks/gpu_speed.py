"""On a GPU, tokens per second and memory of scoring and training, for the shapes of SmolLM with random weights.

`python -m benchmarks.gpu_speed FOLDER --windows FILE.npz` takes for each shape the same windows, each way in turns:

- scoring of the distinct test windows: the prefix tree against rows padded to the longest of as many as fit, ordered by
  length, with ranks and log-probabilities from both;
- a training step of LoRA on a batch of normal windows: the tree, the same code without sharing, and Hugging Face's
  Trainer with rows padded to 1024 and to the batch's longest.

A rate is of the log's tokens, as without padding and sharing; so ratios of rates are ratios of times. Operations per
second are those that the distinct prefixes need, beside what the device does in one large product.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.flops import pass_cost, tree_amounts
from benchmarks.gpu_models import SHAPES, given_options, given_windows, keep, options, random_model, timed
from benchmarks.gpu_windows import DealtWindows
from benchmarks.training import Steps, longest
from benchmarks.turns import compared, in_turns
from fl.adapter import attach_adapter, load_adapter_arrays
from fl.devices import machine
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import token_budget, train_locally
from fl.model import LoadedModel
from fl.prefix_tree import PrefixTree, build_tree, cut_packs
from fl.scoring import ranks_at_once, score_tokens
from fl.tree_attention import float_logits, logit_rows, output_head

_PADDED = 1024
_RATE = 1e-3
_SCORED_TOKENS = 65_536
"""Tokens of padded rows in a forward pass without gradients."""
Windows = Sequence[np.ndarray]
Peaks = dict[str, list[float]]


def attainable(device: str, dtype: torch.dtype, size: int, repeats: int = 10) -> float:
    """Operations a second in products of two square matrices."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(one, other)

    def products() -> None:
        for _ in range(repeats):
            torch.mm(one, other)

    return 2 * size**3 * repeats / timed(device, products)[1]["seconds"]


@torch.inference_mode()
def score_padded(loaded: LoadedModel, windows: Windows, tokens: int) -> None:
    """Ranks and log-probabilities of all tokens, rows padded to the longest of those that go through together."""
    ordered = sorted(windows, key=len)
    while ordered:
        width = len(ordered[-1])
        rows = max(1, tokens // width)
        chosen, ordered = ordered[-rows:], ordered[:-rows]
        ids = torch.full((len(chosen), width + 1), loaded.end_token_id)
        seen = torch.zeros_like(ids)
        for row, window in enumerate(chosen):
            ids[row, : len(window)] = torch.from_numpy(window)
            seen[row, : len(window)] = 1
        ids, seen = ids.to(loaded.device), seen.to(loaded.device)
        states = loaded.model.model(input_ids=ids[:, :-1], attention_mask=seen[:, :-1]).last_hidden_state
        wanted = seen[:, :-1].bool()
        _ranked(loaded, states[wanted], ids[:, 1:][wanted])


def _ranked(loaded: LoadedModel, states: torch.Tensor, targets: torch.Tensor) -> None:
    """What the tree's scoring computes of the same states, brought back from the device as there."""
    rows = logit_rows(states.device)
    for part, asked in zip(states.split(rows), targets.split(rows), strict=True):
        logits = float_logits(output_head(loaded.model), part)
        own = torch.arange(len(asked), device=asked.device)
        true = logits[own, asked]
        ranks_at_once(logits, own, true).cpu()
        (true - torch.logsumexp(logits, dim=-1)).cpu()
        logits.topk(10, dim=-1).indices.cpu()


def with_peaks(ways: dict[str, Callable[[int], float]], device: str, peaks: Peaks) -> dict[str, Callable[[int], float]]:
    """The ways as they are, each noting the most memory that a repetition held."""

    def watched(name: str, way: Callable[[int], float], repeat: int) -> float:
        seconds, figures = timed(device, lambda: way(repeat))
        peaks.setdefault(name, []).append(figures.get("peak_memory_mb", 0.0))
        return seconds

    return {name: partial(watched, name, way) for name, way in ways.items()}


def _figures(
    times: dict[str, list[float]], peaks: Peaks, ours: str, tokens: float, operations: float
) -> dict[str, Any]:
    """Seconds, ratios, rates and memory of ways that did the same work."""
    return {
        **compared(times, ours),
        "tokens_per_second": {name: round(tokens / median(values)) for name, values in times.items()},
        "peak_memory_mb": {name: max(values) for name, values in peaks.items()},
        "operations_per_second": operations / median(times[ours]),
    }


def measure_scoring(loaded: LoadedModel, windows: Windows, repeats: int) -> dict[str, Any]:
    """All ways of scoring the distinct windows."""

    def tree(_: int) -> float:
        return timed(loaded.device, lambda: score_tokens(loaded.model, loaded, windows))[1]["seconds"]

    def padded(_: int) -> float:
        return timed(loaded.device, lambda: score_padded(loaded, windows, _SCORED_TOKENS))[1]["seconds"]

    peaks: Peaks = {}
    ways = with_peaks({"atalaia": tree, "padded": padded}, loaded.device, peaks)
    for way in (tree, padded):  # kernels are compiled and memory is taken before anything counts
        way(0)
    times = in_turns(ways, repeats)
    whole = build_tree(windows, loaded.end_token_id)
    operations = pass_cost(loaded.model).forward(*tree_amounts(whole))
    tokens = sum(map(len, windows))
    return {
        "distinct_windows": len(windows),
        "tokens": tokens,
        "distinct_prefix_tokens": whole.distinct_tokens,
        "computed_tokens": score_tokens(loaded.model, loaded, windows).computed_tokens,
        **_figures(times, peaks, "atalaia", tokens, operations),
    }


def measure_training(loaded: LoadedModel, batches: Sequence[list[np.ndarray]]) -> dict[str, Any]:
    """All ways of a step on each batch."""
    steps = Steps(loaded, batches)

    def unshared(repeat: int) -> float:
        load_adapter_arrays(steps.model, steps.start)
        config = LocalTraining(steps=1, batch_size=len(batches[repeat]), share_prefixes=False)
        return train_locally(steps.model, loaded, batches[repeat], config, _RATE, (0, 1, 0)).seconds

    ways: dict[str, Callable[[int], float]] = {
        "atalaia": steps.atalaia,
        "without_sharing": unshared,
        "trainer_padded_to_1024": steps.trainer("trainer_padded_to_1024", lambda _: _PADDED),
        "trainer_padded_to_longest": steps.trainer("trainer_padded_to_longest", longest),
    }
    for way in ways.values():
        way(0)
    peaks: Peaks = {}
    times = in_turns(with_peaks(ways, loaded.device, peaks), len(batches))
    trees = [build_tree(batch, loaded.end_token_id) for batch in batches]
    budget = token_budget(loaded, LocalTraining())
    cost = pass_cost(steps.model)
    attach_adapter(loaded, Tuning(kind="none"), 0)
    tokens = median(sum(map(len, batch)) for batch in batches)
    return {
        "batch_size": len(batches[0]),
        "tokens": tokens,
        "distinct_prefix_tokens": median(tree.distinct_tokens for tree in trees),
        "token_budget": budget,
        "bytes_per_token_layer_and_unit": _bytes_per_state(loaded, trees, budget, max(peaks["atalaia"])),
        **_figures(times, peaks, "atalaia", tokens, median(cost.step(*tree_amounts(tree)) for tree in trees)),
        "relative_differences": {name: steps.equality(name) for name in ways if name.startswith("trainer")},
    }


def _bytes_per_state(loaded: LoadedModel, trees: Sequence[PrefixTree], budget: int, peak_mb: float) -> float | None:
    """Memory in flight for a token, layer and hidden unit: what fl.local_training reckons with to fit the device."""
    if not loaded.device.startswith("cuda"):
        return None
    tokens = max(len(pack.token_ids) for tree in trees for pack in cut_packs(tree, budget))
    config = loaded.model.config
    in_flight = peak_mb * 1e6 - torch.cuda.memory_allocated()
    return round(in_flight / (tokens * config.num_hidden_layers * config.hidden_size), 1)


def measure(given: argparse.Namespace, dealt: DealtWindows) -> dict[str, Any]:
    """Every shape, written as it comes; where memory does not suffice, that is said and the next one goes on."""
    figures: dict[str, Any] = {"machine": machine(given.device), "log": dealt.log.log}
    windows = [dealt.log.token_ids[number] for number in dealt.distinct("test")]
    for shape in given.shapes:
        loaded = random_model(shape, given.device)
        dtype = getattr(torch, loaded.dtype)
        figures[shape] = {
            "dtype": loaded.dtype,
            **loaded.reasons,
            "attainable_operations_per_second": attainable(given.device, dtype, 256 if given.tiny else 8192),
        }
        for name, work in {
            "scoring": lambda model: measure_scoring(model, windows, given.repeats),
            "training": lambda model: measure_training(
                model, [dealt.log.batch(given.batch, seed) for seed in range(given.repeats)]
            ),
        }.items():
            try:
                figures[shape][name] = work(loaded)
            except torch.OutOfMemoryError as error:
                figures[shape][name] = {"failed": str(error).splitlines()[0]}
            keep(given.folder, "speed", figures)
            print(f"{shape}, {name}: {figures[shape][name]}", file=sys.stderr, flush=True)
        del loaded
        if given.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return figures


def main() -> None:
    """Measure; the figures are in FOLDER/speed.json."""
    parser = options(__doc__, weights=False)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="shapes to measure; default all three of SmolLM")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of each way")
    parser.add_argument("--batch", type=int, default=32, help="windows of a training step")
    given = given_options(parser)
    given.shapes = given.shapes or (["tiny"] if given.tiny else ["135M", "360M", "1.7B"])
    measure(given, given_windows(given))


if __name__ == "__main__":
    main()
