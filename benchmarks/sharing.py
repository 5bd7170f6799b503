"""Scoring and a training step with shared prefixes against the plain way, on the same windows, in turns.

`python -m benchmarks.sharing ARCHIVE` prepares the archive's log with the `hdfs` rules, draws windows, and measures
with SmolLM2-135M, repeated in turns:

- scoring: the prefix tree against one window at a time through the model with one top-k for each K, as the reference
  code evaluates; its time on a sample of the windows is scaled up by tokens, and said to be;
- a training step: the prefix tree against the batch padded to its longest and to 1,024 tokens, with the same gradients.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from fl.adapter import Tuning, attach_adapter
from fl.local_training import LocalTraining, accumulate_gradients, token_budget
from fl.model import EMBEDDED, LoadedModel, load_model, prepare_model
from fl.scoring import KS, score_tokens
from storage.archives import fetch
from storage.datasets import HDFS, DatasetConfig
from storage.layout import current
from storage.masks import mask_log
from storage.tokens import TokenRule, tokenize_windows
from storage.windows import window_log

Windows = list[np.ndarray]
_PADDED = 1024


def read_windows(archive: Path, tokenizer: Path) -> Windows:
    """The token ids of every window of an HDFS archive, in order of appearance."""
    with tempfile.TemporaryDirectory() as place:
        raw, windows, masks, tokens = (Path(place) / name for name in ("raw", "windows", "masks", "tokens"))
        for folder in (raw, windows, masks, tokens):
            folder.mkdir()
        fetch(DatasetConfig(name="hdfs", source=str(archive)), HDFS, raw, Path(place))
        window_log(raw / HDFS.raw_name, HDFS, HDFS.window, None, windows)
        mask_log(raw / HDFS.raw_name, windows, HDFS, HDFS.mask, masks)
        tokenize_windows(windows, masks, tokenizer, TokenRule(), tokens)
        sequences = pl.read_parquet(tokens / "sequences.parquet")["token_ids"].to_list()
        order = pl.read_parquet(tokens / "windows.parquet", columns=["sequence_id"])["sequence_id"]
        return [np.array(sequences[index], dtype=np.int64) for index in order]


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def score_plainly(model: Any, windows: Sequence[np.ndarray]) -> None:  # noqa: ANN401
    """One window at a time, all logits at once, one top-k for each K."""
    with torch.no_grad():
        for window in windows:
            logits = model(torch.from_numpy(window)[None]).logits
            for k in KS:
                torch.topk(logits, k, dim=-1)


def step_plainly(model: Any, windows: Sequence[np.ndarray], end: int, length: int, rows: int) -> None:  # noqa: ANN401
    """Gradients of a padded batch, `rows` rows at a time, with the padding's labels masked."""
    for start in range(0, len(windows), rows):
        ids = torch.full((min(rows, len(windows) - start), length), end)
        labels = torch.full_like(ids, -100)
        for row, window in enumerate(windows[start : start + rows]):
            ids[row, : len(window)] = labels[row, : len(window)] = torch.from_numpy(window)
        model(input_ids=ids, attention_mask=(labels != -100).long(), labels=labels).loss.backward()
    model.zero_grad(set_to_none=True)


def measure_scoring(loaded: LoadedModel, windows: Windows, sampled: int, repeats: int) -> dict[str, Any]:
    """Medians of the seconds for all windows; the plain way is timed on `sampled` of them."""
    distinct = list({window.tobytes(): window for window in windows}.values())
    sample = windows[:: max(1, len(windows) // sampled)][:sampled]
    factor = sum(map(len, windows)) / sum(map(len, sample))
    tree, plain = [], []
    computed = 0
    for _ in range(repeats):
        started = time.perf_counter()
        computed = score_tokens(loaded.model, loaded, distinct).computed_tokens
        tree.append(time.perf_counter() - started)
        plain.append(factor * seconds(partial(score_plainly, loaded.model, sample)))
    return {
        "windows": len(windows),
        "tokens": sum(map(len, windows)),
        "computed_tokens": computed,
        "tree_seconds": statistics.median(tree),
        "plain_seconds": statistics.median(plain),
        "plain_extrapolated_from_windows": len(sample) if factor > 1.001 else None,
        "ratio": statistics.median(plain) / statistics.median(tree),
        "tree_tokens_per_second": computed / statistics.median(tree),
    }


def measure_step(loaded: LoadedModel, windows: Windows, batch_size: int, repeats: int) -> dict[str, Any]:
    """Medians of the seconds of one batch's gradients, and the tokens each way puts through the model."""
    model = attach_adapter(loaded, Tuning(dropout=0.0), 0)
    budget = token_budget(loaded, LocalTraining())
    end = loaded.end_token_id
    times: dict[str, list[float]] = {"tree": [], "longest": [], "padded": []}
    computed: list[int] = []
    longest: list[int] = []
    draw = np.random.default_rng(0)
    for _ in range(repeats):
        batch = [windows[index] for index in draw.choice(len(windows), batch_size, replace=False)]
        length = max(map(len, batch))
        started = time.perf_counter()
        computed.append(accumulate_gradients(model, loaded, batch, budget)[2])
        times["tree"].append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
        for name, width in (("longest", length), ("padded", _PADDED)):
            rows = max(1, budget // width)
            times[name].append(seconds(partial(step_plainly, model, batch, end, width, rows)))
        longest.append(length * batch_size)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "batch_size": batch_size,
        "repeats": repeats,
        "computed_tokens": statistics.median(computed),
        "tokens_padded_to_longest": statistics.median(longest),
        "tokens_padded_to_1024": _PADDED * batch_size,
        **{f"{name}_seconds": value for name, value in medians.items()},
        "ratio_to_longest": medians["longest"] / medians["tree"],
        "ratio_to_1024": medians["padded"] / medians["tree"],
    }


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="HDFS_1.tar.gz, whole or sampled")
    parser.add_argument("--windows", type=int, nargs="+", default=[200, 2301], help="numbers of windows to score")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32], help="batch sizes of a training step")
    parser.add_argument("--sampled", type=int, default=10, help="windows scored the plain way")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    folder = prepare_model(EMBEDDED, current().models)
    windows = read_windows(given.archive, folder / "tokenizer.json")
    np.random.default_rng(0).shuffle(windows)
    loaded = load_model(folder)
    figures = {
        "threads": torch.get_num_threads(),
        "scoring": [measure_scoring(loaded, windows[:n], given.sampled, given.repeats) for n in given.windows],
        "training": [measure_step(loaded, windows, size, given.repeats) for size in given.batches],
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
