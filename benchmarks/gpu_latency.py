"""The paper's Table 3: time of a window and peak memory, for the shapes of SmolLM with random weights.

`python -m benchmarks.gpu_latency FOLDER --windows FILE.npz` draws test windows, as often as the log has them, and takes
for each shape and each TYPE:WAY

- `padded`: batch 1, a row of 1024 tokens (longer windows cut, shorter ones filled with the end token), logits of all
  positions. The paper prints neither length nor type. Its memory beyond the float32 weights (483, 534 and 867 MB) has
  room for float32 logits of 1024 positions twice (403 MB), and its deviations of 1 to 3 % tell of rows of one length;
  so `float32:padded` is what its figures are to be compared with;
- `plain`: batch 1, the window's own tokens, logits of all positions;
- `alone`: batch 1, Atalaia's scoring of one window: ranks, log-probabilities, all scores (a tenth of the samples);
- `together`: Atalaia's scoring of all drawn windows by their prefix tree, in `--repeats` repetitions; a window's time
  is a repetition's divided by its windows;
- `split`: the same of all windows of the test split.

A way's peak holds the weights.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_models import SHAPES, given_options, given_windows, keep, machine, options, random_model
from benchmarks.gpu_windows import DealtWindows
from fl.costs import Latency, measure_latency
from fl.model import LoadedModel
from fl.scoring import score_sequences

ROW = 1024
TYPES = ("bfloat16", "float16", "float32")
WAYS = ("padded", "plain", "alone", "together", "split")
_PLAIN = {"padded", "plain"}
_ON_CUDA = ("float32:padded", "bfloat16:plain", "bfloat16:alone", "bfloat16:together", "bfloat16:split")
_ON_CPU = ("float32:padded", "float32:alone", "float32:together")
_SAMPLES = {"cuda": (1000, 1000, 1000), "cpu": (1000, 200, 30)}
"""Windows of the smallest, the middle and the largest shape."""


@dataclass(frozen=True)
class Sample:
    """Windows to be timed, one array a window each."""

    token_ids: Sequence[np.ndarray]
    message_starts: Sequence[np.ndarray]

    def first(self, count: int) -> "Sample":
        """The first `count` windows."""
        return Sample(self.token_ids[:count], self.message_starts[:count])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window."""
        return np.array([len(ids) for ids in self.token_ids])


def drawn_windows(dealt: DealtWindows, count: int | None, seed: int = 0) -> Sample:
    """`count` windows of the test split drawn at random (again and again where it has fewer), or all of them."""
    test = dealt.log.order[dealt.split == "test"]
    if count is not None:
        test = np.random.default_rng(seed).choice(test, count, replace=count > len(test))
    return Sample([dealt.log.token_ids[one] for one in test], [dealt.log.message_starts[one] for one in test])


def rows_of(sample: Sample, end: int, row: int | None) -> list[torch.Tensor]:
    """Each window as a batch of one: of its own length, or cut or filled with end tokens to `row`."""
    if row is None:
        return [torch.from_numpy(ids)[None] for ids in sample.token_ids]
    rows = torch.full((len(sample.token_ids), 1, row), end)
    for target, ids in zip(rows, sample.token_ids, strict=True):
        target[0, : len(ids)] = torch.from_numpy(ids[:row])
    return list(rows)


def forward_latency(loaded: LoadedModel, sample: Sample, row: int | None) -> Latency:
    """A plain forward pass of each window by itself, from tokens in the machine's memory to logits on the device."""
    rows = rows_of(sample, loaded.end_token_id, row)

    @torch.inference_mode()
    def run(number: int) -> object:
        return loaded.model(input_ids=rows[number].to(loaded.device)).logits

    return measure_latency(run, len(rows), loaded.device)


def scoring_latency(loaded: LoadedModel, sample: Sample) -> Latency:
    """Atalaia's scoring of each window by itself."""

    def run(number: int) -> None:
        score_sequences(loaded.model, loaded, sample.token_ids[number : number + 1], sample.message_starts[number:][:1])

    return measure_latency(run, len(sample.token_ids), loaded.device)


def tree_latency(loaded: LoadedModel, sample: Sample, repeats: int) -> dict[str, float]:
    """Atalaia's scoring of all windows together: a window's share of the time, and how many tokens were computed."""
    windows, computed = len(sample.token_ids), 0.0

    def run(_: int) -> None:
        nonlocal computed
        computed = score_sequences(loaded.model, loaded, sample.token_ids, sample.message_starts)["computed_tokens"][0]

    found = measure_latency(run, repeats, loaded.device, warm_up=1 if loaded.device.startswith("cuda") else 0)
    return {
        "repeats": repeats,
        "windows": windows,
        **{name: value / windows for name, value in asdict(found).items() if name.endswith("_ms")},
        "peak_mb": found.peak_mb,
        "computed_tokens": round(computed * windows),
    }


def measure_way(way: str, loaded: LoadedModel, dealt: DealtWindows, samples: int, repeats: int) -> dict[str, Any]:
    """The figures of one way, with the lengths of the windows they are of."""
    sample = drawn_windows(dealt, None if way == "split" else samples)
    if way == "alone":
        sample = sample.first(max(1, samples // 10))
    ways: dict[str, Callable[[], Any]] = {
        "padded": lambda: asdict(forward_latency(loaded, sample, ROW)),
        "plain": lambda: asdict(forward_latency(loaded, sample, None)),
        "alone": lambda: asdict(scoring_latency(loaded, sample)),
        "together": lambda: tree_latency(loaded, sample, repeats),
        "split": lambda: tree_latency(loaded, sample, repeats),
    }
    lengths = np.full(len(sample.token_ids), ROW) if way == "padded" else sample.lengths
    told = {"tokens": int(lengths.sum()), "tokens_mean": float(lengths.mean()), "tokens_max": int(lengths.max())}
    return {**told, **ways[way]()}


def measure(given: argparse.Namespace, dealt: DealtWindows) -> dict[str, Any]:
    """Every shape, type and way, written as it comes; where memory does not suffice, that is said."""
    figures: dict[str, Any] = {"machine": machine(given.device), "log": dealt.log.log, "weights": "random, seeded"}
    for shape, samples in zip(given.shapes, given.samples, strict=True):
        figures[shape] = {}
        for dtype in dict.fromkeys(way.partition(":")[0] for way in given.ways):
            ways = [way.partition(":")[2] for way in given.ways if way.partition(":")[0] == dtype]
            loaded = random_model(shape, given.device, dtype, tree=not _PLAIN.issuperset(ways))
            for way in ways:
                try:
                    found = measure_way(way, loaded, dealt, samples, given.repeats)
                except torch.OutOfMemoryError as error:
                    found = {"failed": str(error).splitlines()[0]}
                figures[shape][f"{dtype}:{way}"] = found | ({} if way in _PLAIN else loaded.reasons)
                keep(given.folder, "latency", figures)
                print(f"{shape}, {dtype}:{way}: {found}", file=sys.stderr, flush=True)
            del loaded
            if given.device.startswith("cuda"):
                torch.cuda.empty_cache()
    return figures


def _ways(given: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    asked = given.ways or (_ON_CUDA if given.device.startswith("cuda") else _ON_CPU)
    for one in asked:
        dtype, _, way = one.partition(":")
        if dtype not in TYPES or way not in WAYS:
            parser.error(f"--ways {one}: give TYPE:WAY of {', '.join(TYPES)} and {', '.join(WAYS)}")
    return list(asked)


def _samples(given: argparse.Namespace, parser: argparse.ArgumentParser) -> list[int]:
    if given.samples is None:
        usual = _SAMPLES["cuda" if given.device.startswith("cuda") else "cpu"]
        known = dict(zip(("135M", "360M", "1.7B"), usual, strict=True))
        return [known.get(shape, 20) for shape in given.shapes]
    if len(given.samples) not in {1, len(given.shapes)} or min(given.samples) < 1:
        parser.error(f"--samples: give one positive number, or one for each of {', '.join(given.shapes)}")
    return given.samples * (len(given.shapes) // len(given.samples))


def main() -> None:
    """Measure; the figures are in FOLDER/latency.json."""
    parser = options(__doc__, weights=False)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="shapes to measure; default all three of SmolLM")
    parser.add_argument("--samples", nargs="+", type=int, help="windows, for each shape; CUDA 1000, CPU 1000 200 30")
    parser.add_argument("--ways", nargs="+", metavar="TYPE:WAY", help="such as float32:padded bfloat16:plain")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of together and split")
    given = given_options(parser)
    given.shapes = given.shapes or (["tiny"] if given.tiny else ["135M", "360M", "1.7B"])
    given.ways, given.samples = _ways(given, parser), _samples(given, parser)
    measure(given, given_windows(given))


if __name__ == "__main__":
    main()
