"""Seconds and peak memory of window, mask and tokenize on a log of the full HDFS size.

`python -m benchmarks.preparation ARCHIVE` repeats the archive's log, each copy with block ids of its own and two days
later, runs the three stages in a process of their own, and prints the figures as JSON.
"""

import argparse
import json
import multiprocessing
import random
import re
import resource
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from storage.archives import fetch
from storage.datasets import HDFS, DatasetConfig

_TIME = "%y%m%d %H%M%S"
_TIME_LENGTH = 13
_BLOCK = re.compile(r"(blk_-?\d+)")


def repeat_log(raw: Path, labels: Path, into: Path, copies: int, seed: int = 0) -> None:
    """Write the log `copies` times one after the other, with fresh block ids and times shifted by two days a copy."""
    draw = random.Random(seed)
    lines = raw.read_text().splitlines()
    times = [line[:_TIME_LENGTH] for line in lines]
    pieces = _BLOCK.split("\n".join(line[_TIME_LENGTH:] for line in lines))
    blocks = pieces[1::2]
    label_of = dict(line.split(",")[:2] for line in labels.read_text().splitlines()[1:])
    with (into / HDFS.raw_name).open("w") as log, (into / (HDFS.label_file or "")).open("w") as label_file:
        label_file.write("BlockId,Label\n")
        for copy in range(copies):
            fresh = {block: f"blk_{draw.getrandbits(64) - (1 << 63)}" for block in label_of}
            later = {stamp: _shifted(stamp, days=2 * copy) for stamp in set(times)}
            pieces[1::2] = [fresh[block] for block in blocks]
            rest = "".join(pieces).split("\n")
            log.writelines(f"{later[stamp]}{line}\n" for stamp, line in zip(times, rest, strict=True))
            label_file.writelines(f"{fresh[block]},{label}\n" for block, label in label_of.items())


def _shifted(stamp: str, days: int) -> str:
    return (datetime.strptime(stamp, _TIME) + timedelta(days=days)).strftime(_TIME)


def measure(folder: Path, tokenizer_file: Path) -> dict[str, Any]:
    """Seconds, counts and peak memory of the three stages on the log in `folder`."""
    from storage.masks import mask_log
    from storage.tokens import TokenRule, tokenize_windows
    from storage.windows import window_log

    raw, into = folder / HDFS.raw_name, {name: folder / name for name in ("window", "mask", "tokenize")}
    for path in into.values():
        path.mkdir()
    stages = {
        "window": lambda: window_log(raw, HDFS, HDFS.window, None, into["window"]),
        "mask": lambda: mask_log(raw, into["window"], HDFS, HDFS.mask, into["mask"]),
        "tokenize": lambda: tokenize_windows(
            into["window"], into["mask"], tokenizer_file, TokenRule(), into["tokenize"]
        ),
    }
    figures: dict[str, Any] = {"raw_bytes": raw.stat().st_size}
    for name, stage in stages.items():
        begin, begin_cpu = time.perf_counter(), time.process_time()
        counts = stage()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        figures[name] = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(peak), **counts}
    for total in ("seconds", "cpu_seconds"):
        figures[total] = round(sum(figures[name][total] for name in stages), 2)
    figures["peak_mb"] = figures["tokenize"]["peak_mb"]
    return figures


def main() -> None:
    """Prepare the log, measure the stages in a fresh process, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="HDFS_1.tar.gz, whole or sampled")
    parser.add_argument(
        "--copies", type=int, default=50, help="how often the log is repeated (50 times the 2 %% sample: 11.1M lines)"
    )
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; default: the embedded model's")
    given = parser.parse_args()
    tokenizer = given.tokenizer or _embedded_tokenizer()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sample, log = folder / "sample", folder / "log"
        sample.mkdir()
        log.mkdir()
        fetch(DatasetConfig(name="hdfs", source=str(given.archive)), HDFS, sample, folder)
        repeat_log(sample / HDFS.raw_name, sample / (HDFS.label_file or ""), log, given.copies)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(json.dumps(pool.apply(measure, (log, tokenizer)), indent=1))


def _embedded_tokenizer() -> Path:
    from fl.model import EMBEDDED, prepare_model
    from storage.layout import current

    return prepare_model(EMBEDDED, current().models) / "tokenizer.json"


if __name__ == "__main__":
    main()
