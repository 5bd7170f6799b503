"""How hard the simulated HDFS log is beside the real one: `python -m benchmarks.simulator_hardness ARCHIVE`.

Reads the archive of the real log and simulates as many blocks with several seeds, prepares all of them alike, and
prints tables in Markdown: what the windows are like, what the four simple rules and a small sequence model reach, and,
with `--tokenizer FILE` (a tokenizer.json), what the windows cost in tokens, also of smaller simulations.
"""

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.backoff_model import BackoffModel
from fl.baselines import RULES, fit
from fl.thresholds import label_free_threshold, rank
from storage.archives import fetch
from storage.datasets import DatasetConfig, resolve
from storage.masks import mask_log
from storage.splits import SplitRule, split_windows
from storage.tokens import TokenRule, tokenize_windows
from storage.windows import window_log

MessageSequence = tuple[int, ...]
SPLITS = 20
MODEL_SPLITS = 6
FEW = 480
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SIZES = (400, 800, 1200, 1500, 2000)


@dataclass
class Prepared:
    """One log after windowing and masking: a frame with label and kind a window, and its sequences of messages."""

    name: str
    windows: pl.DataFrame
    sequences: list[MessageSequence]
    messages: int
    seconds: float
    token_ids: list[list[int]]
    """Of each distinct sequence; empty without a tokenizer."""
    tokens: int


def prepare(name: str, config: DatasetConfig, known: dict[str, int], tokenizer: Path | None) -> Prepared:
    """Fetch or simulate, window, mask and tokenize; `known` numbers message texts over all logs."""
    spec = resolve(config)
    with tempfile.TemporaryDirectory() as folder:
        raw, windows, masks, tokens = (Path(folder) / stage for stage in ("raw", "windows", "masks", "tokens"))
        for stage in (raw, windows, masks, tokens):
            stage.mkdir()
        start = time.perf_counter()
        fetch(config, spec, raw, Path(folder))
        seconds = time.perf_counter() - start
        window_log(raw / spec.raw_name, spec, spec.window, None, windows)
        mask_log(raw / spec.raw_name, windows, spec, spec.mask, masks)
        texts = pl.read_parquet(masks / "messages.parquet").sort("message_id")["text"]
        numbers = pl.Series([known.setdefault(text, len(known)) for text in texts])
        lines = pl.read_parquet(windows / "events.parquet").join(
            pl.read_parquet(masks / "line_messages.parquet"), on="line_number", maintain_order="left"
        )
        lines = lines.select("window_id", message=numbers.gather(lines["message_id"]))
        sequences = lines.group_by("window_id", maintain_order=True).agg("message").sort("window_id")["message"]
        frame = pl.read_parquet(windows / "windows.parquet")
        token_ids, total = _tokens(windows, masks, tokens, tokenizer) if tokenizer else ([], 0)
    return Prepared(name, frame, list(map(tuple, sequences.to_list())), len(texts), seconds, token_ids, total)


def _tokens(windows: Path, masks: Path, into: Path, tokenizer: Path) -> tuple[list[list[int]], int]:
    tokenize_windows(windows, masks, tokenizer, TokenRule(), into)
    table = pl.read_parquet(into / "sequences.parquet")
    return table["token_ids"].to_list(), int((table["n_tokens"].cast(pl.Int64) * table["windows"]).sum())


def prefix_tokens(token_ids: Iterable[Sequence[int]]) -> int:
    """Distinct prefixes of the sequences: what a pass computes that shares them all."""
    ordered = sorted(map(list, token_ids))
    return sum(map(len, ordered)) - sum(_common(before, after) for before, after in pairwise(ordered))


def _common(before: Sequence[int], after: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    for place, (one, other) in enumerate(zip(before, after, strict=False)):
        if one != other:
            return place
    return min(len(before), len(after))


def facts(log: Prepared, real: Prepared) -> dict[str, str]:
    """What the windows of a log are like."""
    label = log.windows["label"]
    normal = [sequence for sequence, bad in zip(log.sequences, label, strict=True) if not bad]
    anomalous = [sequence for sequence, bad in zip(log.sequences, label, strict=True) if bad]
    lengths = np.quantile([len(sequence) for sequence in log.sequences], QUANTILES)
    half = set(real.sequences[::2])
    told = log.sequences[1::2]
    return {
        "windows": f"{len(log.sequences):,}",
        "lines": f"{sum(map(len, log.sequences)):,}",
        "anomalous windows": f"{len(anomalous)} ({len(anomalous) / len(log.sequences):.2%})",
        "distinct masked messages": str(log.messages),
        "distinct windows": f"{len(set(log.sequences)):,} ({len(set(log.sequences)) / len(log.sequences):.1%})",
        "distinct normal, anomalous windows": f"{len(set(normal)):,}, {len(set(anomalous))}",
        "distinct event-count vectors": str(len({tuple(sorted(sequence)) for sequence in log.sequences})),
        "lines a window, quantiles 0 5 25 50 75 95 99 100 %": " ".join(f"{length:.0f}" for length in lengths),
        "windows whose sequence is in half of the real log": f"{np.mean([s in half for s in told]):.1%}",
        "seconds to fetch or simulate": f"{log.seconds:.1f}",
    }


def rule_scores(log: Prepared, train_windows: int | None) -> dict[str, str]:
    """Precision, recall and F1 of each simple rule, the mean over splits."""
    found = {name: np.zeros((SPLITS, 3)) for name in RULES}
    anomalous = (log.windows["label"] == 1).to_numpy()
    for seed in range(SPLITS):
        split = split_windows(log.windows, SplitRule(seed=seed, train_windows=train_windows))["split"].to_numpy()
        train = {log.sequences[row] for row in np.flatnonzero(split == "train")}
        rows = np.flatnonzero(split == "test")
        test, truth = [log.sequences[row] for row in rows], anomalous[rows]
        for name in RULES:
            flags = fit(name, train).flags(test)
            hits = (flags & truth).sum()
            precision, recall = hits / max(1, flags.sum()), hits / max(1, truth.sum())
            found[name][seed] = precision, recall, 2 * precision * recall / max(1e-9, precision + recall)
    return {name: " / ".join(f"{value:.3f}" for value in scores.mean(axis=0)) for name, scores in found.items()}


def model_scores(log: Prepared, train_windows: int | None) -> dict[str, str]:
    """How well surprise in a small sequence model ranks the windows, and its label-free F1; the mean over splits."""
    found = np.zeros((MODEL_SPLITS, 2, 3))
    anomalous = (log.windows["label"] == 1).to_numpy()
    for seed in range(MODEL_SPLITS):
        split = split_windows(log.windows, SplitRule(seed=seed, train_windows=train_windows))["split"].to_numpy()
        model = BackoffModel((log.sequences[row] for row in np.flatnonzero(split == "train")), log.messages)
        scores = {window: model.surprises(window) for window in set(log.sequences)}
        means = np.array([np.mean(scores[window]) for window in log.sequences])
        maxima = np.array([max(scores[window]) for window in log.sequences])
        for column, by_window in enumerate((means, maxima)):
            threshold = label_free_threshold(by_window[split == "calibration"])
            ranking = rank(by_window[split == "test"], anomalous[split == "test"])
            found[seed, column] = ranking.auroc, ranking.average_precision, ranking.at(threshold).f1
    return {
        f"{name} surprise of a message": " / ".join(f"{value:.3f}" for value in row)
        for name, row in zip(("mean", "maximum"), found.mean(axis=0), strict=True)
    }


def token_facts(log: Prepared) -> dict[str, str]:
    """What the windows cost a language model."""
    return {
        "windows": f"{len(log.sequences):,}",
        "anomalous": str(int(log.windows["label"].sum())),
        "tokens": f"{log.tokens:,}",
        "tokens a window": f"{log.tokens / len(log.sequences):.0f}",
        "tokens of distinct windows": f"{sum(map(len, log.token_ids)):,}",
        "tokens of distinct prefixes": f"{prefix_tokens(log.token_ids):,}",
    }


def table(title: str, columns: dict[str, dict[str, str]]) -> str:
    """A Markdown table, one column a log."""
    rows = [f"| {title} | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for row in next(iter(columns.values())):
        rows.append(f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |")
    return "\n".join(rows) + "\n"


def kinds(logs: Sequence[Prepared]) -> str:
    """Anomalous windows of each kind in the simulated logs."""
    found = pl.concat([log.windows.filter(label=1).select("kind", log=pl.lit(log.name)) for log in logs])
    names = found["kind"].value_counts(sort=True)["kind"]
    counts = {log.name: {name: str(found.filter(kind=name, log=log.name).height) for name in names} for log in logs}
    return table("anomalous windows", counts)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="the real log's HDFS_1.tar.gz")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; without it tokens are left out")
    parser.add_argument("--seeds", type=int, default=3, help="simulated logs to compare")
    given = parser.parse_args()
    known: dict[str, int] = {}
    real = prepare("real", DatasetConfig(name="hdfs", source=str(given.archive)), known, given.tokenizer)
    logs = [real]
    for seed in range(given.seeds):
        config = DatasetConfig(name="hdfs-sim", blocks=len(real.sequences), seed=seed)
        logs.append(prepare(f"simulated, seed {seed}", config, known, given.tokenizer))
    print(table("", {log.name: facts(log, real) for log in logs}))
    for amount in (None, FEW):
        title = f"P / R / F1, fitted on {amount or 'all'} normal training windows"
        print(table(title, {log.name: rule_scores(log, amount) for log in logs}))
        title = f"AUROC / average precision / label-free F1, {amount or 'all'} normal training windows"
        print(table(title, {log.name: model_scores(log, amount) for log in logs}))
    print(kinds(logs[1:]))
    if given.tokenizer:
        for blocks in SIZES:
            config = DatasetConfig(name="hdfs-sim", blocks=blocks, seed=0)
            logs.append(prepare(f"{blocks} blocks, seed 0", config, known, given.tokenizer))
        print(table("tokens", {log.name: token_facts(log) for log in logs}))


if __name__ == "__main__":
    main()
