"""Finished runs at rest, without training, for tests of what looks at them afterwards."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fl.evaluation import evaluate
from fl.metrics_table import METRIC_TYPES, Windows
from storage.layout import Layout
from storage.runs import record_run
from storage.summaries import DataFacts, RunFacts, Summary, TrainingFacts, save_summary

WINDOWS = 800
"""A quarter of them in each split."""


def run_facts(run_id: str, **changes: Any) -> RunFacts:  # noqa: ANN401
    """A run of LoRA rank 8 on the embedded model, with what differs."""
    values: dict[str, Any] = {
        "run_id": run_id,
        "preset": "demo",
        "dataset": "hdfs-sim",
        "split": "random",
        "model": "smollm2-135m-instruct",
        "tuning": "lora",
        "rank": 8,
        "seed": 3,
        "rounds": 2,
        "clients": 4,
        "clients_per_round": 2,
        "status": "finished",
        "started": "2026-11-21T21:00:00Z",
        "command": "atalaia run demo seed=3",
        "hardware": {"processor": "some processor", "cores": "2"},
    }
    return RunFacts(**values | changes)


def training_facts(**changes: Any) -> TrainingFacts:  # noqa: ANN401
    """What such a run cost, with what differs."""
    values: dict[str, Any] = {
        "trainable_parameters": 460_800,
        "full_parameters": 134_515_008,
        "bytes_down_per_client_round": 1_900_000,
        "bytes_up_per_client_round": 1_870_000,
        "full_model_bytes": 538_090_408,
        "client_rounds": 4,
        "examples": 64,
        "tokens": 30_000,
        "computed_tokens": 10_000,
        "train_seconds": 90.0,
        "score_seconds": 30.0,
    }
    return TrainingFacts(**values | changes)


def save_run(
    layout: Layout,
    facts: RunFacts,
    training: TrainingFacts | None = None,
    noise: float = 0.0,
    labels_seed: int = 0,
) -> pl.DataFrame:
    """Write a finished run whose scores find the anomalies but for `noise`; its window scores.

    Runs of one `labels_seed` have the same windows in the same splits.
    """
    draws = np.random.default_rng(labels_seed)
    split = draws.permutation(np.repeat(["train", "calibration", "validation", "test"], WINDOWS // 4))
    label = (np.isin(split, ("validation", "test")) & (draws.random(WINDOWS) < 0.1)).astype(np.int8)
    sequence = np.where(label == 1, 500 + draws.integers(0, 50, WINDOWS), draws.integers(0, 500, WINDOWS))
    surprise = np.random.default_rng(facts.seed).normal(0, 1 + noise, 550) + 6 * (np.arange(550) >= 500)
    windows = Windows(sequence, split, label, sequence.astype(np.uint32), np.ones(WINDOWS, np.int64), None)
    columns: dict[str, npt.NDArray[Any]] = {"rarity": surprise, "loss_sum": surprise, "loss_tokens": np.ones(550)}
    found = evaluate(windows, {0: columns, facts.rounds: columns}, seed=facts.seed)
    folder = layout.run(facts.run_id)
    record_run(facts, layout)
    data = DataFacts(lines=5000, windows=WINDOWS, distinct_windows=550, messages=10, anomalies=20, tokens=9000)
    summary = Summary(run=facts, data=data, training=training or training_facts(), findings=found.findings)
    save_summary(summary, folder / "report.json")
    pl.DataFrame(found.metrics, schema=METRIC_TYPES).write_parquet(folder / "metrics.parquet")
    scores = pl.DataFrame(
        {
            "window_id": pl.Series(range(WINDOWS), dtype=pl.UInt32),
            "sequence_hash": [f"{number:032x}" for number in sequence],
            "split": split,
            "label": label,
            "kind": pl.Series([None] * WINDOWS, dtype=pl.String),
            "score": found.window_scores,
        }
    )
    scores.write_parquet(folder / "window_scores.parquet")
    return scores
