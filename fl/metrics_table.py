"""Every metric of every round: one row for each split, population, score and kind of threshold.

Scores come for distinct sequences; a window counts with the score of its sequence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from fl.anomaly_scores import SURPRISE_SCORES, anomaly_score
from fl.calibration import ThresholdRule, calibrated_threshold
from fl.errors import ScoreError
from fl.thresholds import Detection, Ranking, balanced_sample, rank_counts

Row = dict[str, Any]
Columns = Mapping[str, npt.NDArray[Any]]
Rows = npt.NDArray[np.int64]
POPULATIONS = ("all", "unseen", "balanced")
UNKNOWN = -1
METRIC_TYPES: dict[str, type] = {
    "round": int,
    "split": str,
    "population": str,
    "score": str,
    "k": int,
    "threshold_kind": str,
    "threshold": float,
    "f1": float,
    "precision": float,
    "recall": float,
    "false_alarm_rate": float,
    "auroc": float,
    "average_precision": float,
    "windows": int,
    "anomalies": int,
    "flagged": int,
}
"""Columns of the table; without them a column of nulls only would have no type."""


@dataclass(frozen=True)
class Windows:
    """All windows of a run, one entry each, in any order."""

    sequence: Rows
    """Row of the window's distinct sequence in the score columns."""
    split: npt.NDArray[np.str_]
    """train, calibration, validation, test or unused."""
    label: npt.NDArray[np.int8]
    """1 anomalous, 0 normal, -1 unknown."""
    message_ids: npt.NDArray[np.uint32]
    """Messages of all windows, one window after the other."""
    lengths: Rows
    """Messages of each window."""
    kind: npt.NDArray[np.object_] | None = None
    """Kind of failure where the dataset names it, else None."""

    @cached_property
    def seen(self) -> npt.NDArray[np.bool_]:
        """By sequence: whether training saw it."""
        seen = np.zeros(int(self.sequence.max(initial=-1)) + 1, dtype=bool)
        seen[self.sequence[self.split == "train"]] = True
        return seen

    def rows(self, split: str) -> Rows:
        """The windows of a split."""
        return np.flatnonzero(self.split == split)

    def labelled(self, split: str) -> Rows:
        """The windows of a split whose label is known."""
        return np.flatnonzero((self.split == split) & (self.label != UNKNOWN))

    def population(self, name: str, split: str, seed: int = 0) -> Rows:
        """Labelled windows of a split: `all`, those of `unseen` sequences, or the `balanced` sample of the paper.

        Without any label, all windows of the split stand for `all` and `unseen`.
        """
        rows = self.labelled(split)
        if name == "balanced":
            return rows[balanced_sample(self.label[rows], seed=seed)]
        rows = rows if rows.size else self.rows(split)
        return rows[~self.seen[self.sequence[rows]]] if name == "unseen" else rows


def score_names(columns: Columns) -> list[tuple[str, int | None]]:
    """The scores that these columns can give, as (name, K); the default one first."""
    ks = sorted(int(name[4:]) for name in columns if name.startswith("top_"))
    names: list[tuple[str, int | None]] = [(name, None) for name in SURPRISE_SCORES if name in columns]
    names += [("top_k", k) for k in ks]
    return names + [("unaligned", k) for k in ks if f"unaligned_{k}" in columns]


def metric_rows(
    windows: Windows,
    rounds: Mapping[int, Columns],
    false_alarm_rate: float,
    seed: int,
    rule: ThresholdRule = "quantile",
) -> list[Row]:
    """The metrics table: validation and test, for every round, population, score and threshold that can be had."""
    populations = {
        (split, name): windows.population(name, split, seed) for split in ("validation", "test") for name in POPULATIONS
    }
    counted = {key: _Counted(windows, rows) for key, rows in populations.items() if rows.size}
    return [
        row
        for round_number in sorted(rounds)
        for row in _round_rows(
            windows, rounds[round_number], counted, (false_alarm_rate, rule), {"round": round_number}
        )
    ]


class _Counted:
    """How many anomalous and normal windows of a population each sequence stands for."""

    def __init__(self, windows: Windows, rows: Rows) -> None:
        labels, sequences = windows.label[rows], windows.sequence[rows]
        size = len(windows.seen)
        self.labelled = bool((labels != UNKNOWN).any())
        self.anomalous = np.bincount(sequences[labels == 1], minlength=size)
        self.normal = np.bincount(sequences[labels != 1], minlength=size)

    def ranking(self, scores: npt.NDArray[np.float64]) -> Ranking:
        """The population under these scores, one a sequence."""
        return rank_counts(scores[: len(self.normal)], self.anomalous, self.normal)


def _round_rows(
    windows: Windows,
    columns: Columns,
    counted: Mapping[tuple[str, str], _Counted],
    how: tuple[float, ThresholdRule],
    facts: Row,
) -> Iterator[Row]:
    calibration = windows.sequence[windows.rows("calibration")]
    known = min(len(values) for values in columns.values())
    if known < len(windows.seen):
        raise ScoreError(f"{known} sequences have scores, but windows refer to {len(windows.seen)}: score them all.")
    for name, k in score_names(columns):
        scores = anomaly_score(columns, name, k)
        rankings = {key: population.ranking(scores) for key, population in counted.items()}
        thresholds = {"label_free": calibrated_threshold(scores[calibration], *how)}
        validation = rankings.get(("validation", "all"))
        if validation is not None and validation.anomalies:
            thresholds["validated"] = validation.best_f1_threshold()
        for (split, population), ranking in rankings.items():
            labelled = counted[split, population].labelled
            named = {**facts, "split": split, "population": population, "score": name, "k": k}
            oracle = {"oracle": ranking.best_f1_threshold()} if split == "test" and ranking.anomalies else {}
            for kind, threshold in {**thresholds, **oracle}.items():
                yield {**named, "threshold_kind": kind, **metrics_of(ranking, threshold, labelled)}


def metrics_of(ranking: Ranking, threshold: float, labelled: bool) -> Row:
    """The columns of the table that a ranking and a threshold decide; null for what needs missing labels."""
    found = ranking.at(threshold)
    return {
        "threshold": threshold,
        "f1": found.f1 if ranking.anomalies else None,
        "precision": found.precision if ranking.anomalies else None,
        "recall": found.recall if ranking.anomalies else None,
        "false_alarm_rate": found.false_alarm_rate if labelled and ranking.normals else None,
        "auroc": ranking.auroc,
        "average_precision": ranking.average_precision,
        "windows": ranking.anomalies + ranking.normals,
        "anomalies": ranking.anomalies if labelled else None,
        "flagged": found.tp + found.fp,
    }


def detection_of(row: Row) -> Detection | None:
    """What the windows of a row of metrics were flagged right and wrong; None without labelled anomalous ones."""
    if not row["anomalies"]:
        return None
    found = round(row["recall"] * row["anomalies"])
    false = row["flagged"] - found
    return Detection(found, false, row["anomalies"] - found, row["windows"] - row["anomalies"] - false)
