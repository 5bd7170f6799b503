"""The paper's Table 3 without the platform: time of a window and peak memory, for SmolLM's shapes with random weights.

`python -m benchmarks.gpu_latency FOLDER --windows FILE.npz` draws test windows, as often as the log has them, and takes
each TYPE:WAY for each shape, such as float32:padded; fl/shape_latency.py says what the ways are. `atalaia latency`
measures the same where the platform is.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_models import SHAPES, given_options, given_windows, keep, options, random_model
from benchmarks.gpu_windows import DealtWindows
from fl.devices import machine
from fl.shape_latency import PLAIN, RANDOM, WAYS, TimedWindows, measure_way, usual_samples

TYPES = ("bfloat16", "float16", "float32")
_ON_CUDA = ("float32:padded", "bfloat16:plain", "bfloat16:alone", "bfloat16:together", "bfloat16:split")
_ON_CPU = ("float32:padded", "float32:alone", "float32:together")


def timed_windows(dealt: DealtWindows) -> TimedWindows:
    """The windows of the test split."""
    distinct, order = np.unique(dealt.log.order[dealt.split == "test"], return_inverse=True)
    ids, starts = dealt.log.token_ids, dealt.log.message_starts
    return TimedWindows([ids[one] for one in distinct], [starts[one] for one in distinct], order)


def measure(given: argparse.Namespace, dealt: DealtWindows) -> dict[str, Any]:
    """Every shape, type and way, written as it comes; where memory does not suffice, that is said."""
    figures: dict[str, Any] = {"machine": machine(given.device), "log": dealt.log.log, "weights": RANDOM}
    windows = timed_windows(dealt)
    for shape, samples in zip(given.shapes, given.samples, strict=True):
        figures[shape] = {}
        for dtype in dict.fromkeys(way.partition(":")[0] for way in given.ways):
            ways = [way.partition(":")[2] for way in given.ways if way.partition(":")[0] == dtype]
            loaded = random_model(shape, given.device, dtype, tree=not PLAIN.issuperset(ways))
            for way in ways:
                try:
                    found = measure_way(way, loaded, windows, samples, given.repeats)
                except torch.OutOfMemoryError as error:
                    found = {"failed": str(error).splitlines()[0]}
                figures[shape][f"{dtype}:{way}"] = found
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
        return [usual_samples(shape, given.device) for shape in given.shapes]
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
