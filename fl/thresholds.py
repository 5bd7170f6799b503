"""From anomaly scores to a detector: thresholds, what they catch, and how sure one can be of it.

Scores are higher for more anomalous windows, labels are 1 for anomalous and 0 for normal, and a window is flagged when
its score is strictly above the threshold.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from fl.errors import ScoreError

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
THRESHOLDS = ("label_free", "validated", "oracle")
"""Kinds of thresholds: without labels, by the validation labels, by the very labels that are reported."""

TOLERATED = 1.5
"""Times the false-alarm rate asked for that is expected without a word on it."""


@dataclass(frozen=True)
class Detection:
    """What a set of flagged windows gets right and wrong; a rate over nothing is 0."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """Share of the flagged windows that are anomalous."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """Share of the anomalous windows that are flagged."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def false_alarm_rate(self) -> float:
        """Share of the normal windows that are flagged."""
        return _ratio(self.fp, self.fp + self.tn)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Ranking:
    """Distinct scores in falling order, with the number of anomalous and of normal windows at each."""

    scores: Floats
    anomalous: Counts
    normal: Counts

    @cached_property
    def caught(self) -> Counts:
        """Anomalous windows at or above each score."""
        return np.cumsum(self.anomalous)

    @cached_property
    def alarmed(self) -> Counts:
        """Normal windows at or above each score."""
        return np.cumsum(self.normal)

    @property
    def anomalies(self) -> int:
        """Number of anomalous windows."""
        return int(self.anomalous.sum())

    @property
    def normals(self) -> int:
        """Number of normal windows."""
        return int(self.normal.sum())

    @property
    def auroc(self) -> float | None:
        """Chance that an anomalous window scores above a normal one, ties counting half; None if a class is missing."""
        if not (self.anomalies and self.normals):
            return None
        below = self.normals - self.alarmed
        return float(np.sum(self.anomalous * (below + 0.5 * self.normal)) / (self.anomalies * self.normals))

    @property
    def average_precision(self) -> float | None:
        """Precision at each distinct score, weighted by the recall won there; None without anomalous windows."""
        if not self.anomalies:
            return None
        return float(np.sum(self.anomalous * self.caught / (self.caught + self.alarmed)) / self.anomalies)

    @property
    def precision_recall(self) -> tuple[Floats, Floats]:
        """Precision and recall when flagging down to each distinct score, the highest first."""
        return self.caught / (self.caught + self.alarmed), self.caught / max(1, self.anomalies)

    def at(self, threshold: float) -> Detection:
        """What flagging every score above `threshold` catches."""
        flagged = int(np.searchsorted(-self.scores, -threshold, side="left"))
        tp = int(self.caught[flagged - 1]) if flagged else 0
        fp = int(self.alarmed[flagged - 1]) if flagged else 0
        return Detection(tp, fp, self.anomalies - tp, self.normals - fp)

    def best_f1_threshold(self) -> float:
        """The threshold with the best F1 of all there are; of equal ones the highest, midway between two scores."""
        if not self.anomalies:
            raise ScoreError("No anomalous windows: a best-F1 threshold needs some; use the label-free threshold.")
        f1 = 2 * self.caught / (self.caught + self.alarmed + self.anomalies)
        best = int(np.argmax(f1))
        upper = float(self.scores[best])
        if best + 1 == len(self.scores):
            return float(np.nextafter(upper, -np.inf))
        lower = float(self.scores[best + 1])
        middle = lower + (upper - lower) / 2
        return middle if middle < upper else lower


def rank_counts(scores: npt.ArrayLike, anomalous: npt.ArrayLike, normal: npt.ArrayLike) -> Ranking:
    """Rank groups of windows that share a score: `anomalous[i]` and `normal[i]` windows have `scores[i]`."""
    counts = np.asarray(anomalous, dtype=np.int64), np.asarray(normal, dtype=np.int64)
    present = (counts[0] + counts[1]) > 0
    values = _finite(np.asarray(scores, dtype=np.float64)[present])
    distinct, group = np.unique(values, return_inverse=True)
    sums = [np.bincount(group, weights=count[present], minlength=len(distinct))[::-1] for count in counts]
    return Ranking(distinct[::-1], sums[0].astype(np.int64), sums[1].astype(np.int64))


def rank(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Ranking:
    """Rank single windows; labels are 0 or 1."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.shape != truth.shape:
        raise ScoreError(f"{values.size} scores for {truth.size} labels: give one score for each labelled window.")
    if not np.isin(truth, (0, 1)).all():
        raise ScoreError("Labels must be 0 or 1: leave out windows without a label.")
    return rank_counts(values, truth == 1, truth == 0)


def _finite(scores: Floats) -> Floats:
    if not np.isfinite(scores).all():
        lost = int((~np.isfinite(scores)).sum())
        raise ScoreError(f"{lost} of {scores.size} scores are missing or not finite: score these windows again.")
    return scores


def metrics_at(scores: npt.ArrayLike, labels: npt.ArrayLike, threshold: float) -> Detection:
    """What flagging every score above `threshold` catches."""
    return rank(scores, labels).at(threshold)


def best_f1_threshold(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The threshold with the best F1 on these labels: `oracle` on the test split, `validated` on the validation one."""
    return rank(scores, labels).best_f1_threshold()


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Area under the ROC curve; None if a class is missing."""
    return rank(scores, labels).auroc


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """Average precision; None without anomalous windows."""
    return rank(scores, labels).average_precision


def label_free_threshold(calibration_scores: npt.ArrayLike, false_alarm_rate: float = 0.002) -> float:
    """The lowest calibration score that at most `false_alarm_rate` of the calibration windows exceed.

    Scores tied with the threshold are not flagged, so ties only lower the rate. With n windows, a fresh normal one is
    flagged with an expected rate of at most (floor(rate n) + 1) / (n + 1), where its score does not depend on the
    calibration windows: see `expected_false_alarms` for scores that do.
    """
    scores = np.sort(_finite(np.asarray(calibration_scores, dtype=np.float64)))
    if not scores.size:
        raise ScoreError("No calibration windows: give the calibration split a share above 0.")
    if not 0 <= false_alarm_rate < 1:
        raise ScoreError(f"A false-alarm rate of {false_alarm_rate} is not possible: give one from 0 to below 1.")
    return float(scores[scores.size - 1 - _above(scores.size, false_alarm_rate)])


def expected_false_alarms(windows: int, false_alarm_rate: float, ways: int = 1) -> float:
    """The share of fresh normal windows that a label-free threshold from so many calibration windows flags on average.

    Of one score (floor(rate n) + 1) / (n + 1). `ways` is in how many ways a window can be higher than all calibration
    windows: two where the higher of the ranks by two scores decides. Each rank is then had by two calibration windows,
    one by either score, and as they count themselves, the threshold is what the r-th rank has among them, with
    r = floor(floor(rate n) / 2) + 1. A fresh window exceeds it by the r highest ranks of either score: 2 r / (n + 1),
    less where the scores have the same windows at their top, and about that much where they are made of these windows.
    """
    return ways * _rank(windows, false_alarm_rate, ways) / (windows + 1) if windows else false_alarm_rate


def calibration_note(windows: int, false_alarm_rate: float, ways: int = 1) -> str | None:
    """A sentence on what too few calibration windows do to the false-alarm rate; `ways` as in `expected_false_alarms`.

    None where it is at most `TOLERATED` times what was asked for; the sentence ends with the number of windows from
    which on that always holds.
    """
    expected = expected_false_alarms(windows, false_alarm_rate, ways)
    if false_alarm_rate <= 0 or expected <= TOLERATED * false_alarm_rate:
        return None
    rank = _rank(windows, false_alarm_rate, ways)
    highest = "the threshold is their highest score, and " if rank == 1 else ""
    enough = int(np.ceil(2 * ways / (TOLERATED * false_alarm_rate) - 1 - 1e-9))
    return (
        f"{windows:,} calibration windows are too few for a false-alarm rate of {false_alarm_rate:.2%}: {highest}about "
        f"{ways * rank} in {windows + 1:,} fresh normal windows will be flagged; {enough:,} would do."
    )


def _rank(windows: int, false_alarm_rate: float, ways: int) -> int:
    """Which rank among the calibration windows the threshold is, 1 for the highest."""
    return _above(windows, false_alarm_rate) // ways + 1


def _above(windows: int, false_alarm_rate: float) -> int:
    """How many of the calibration windows may exceed the threshold."""
    return int(false_alarm_rate * windows + 1e-9)


def reference_threshold(accuracies: npt.ArrayLike, labels: npt.ArrayLike, steps: int = 1000) -> tuple[float, float]:
    """Best beta of `steps` in [0, 1], anomalous when accuracy < beta, and its F1: the reference code's search."""
    ranking = rank(-np.asarray(accuracies, dtype=np.float64), labels)
    betas = np.linspace(0.0, 1.0, steps)
    f1 = [ranking.at(-beta).f1 for beta in betas]
    best = int(np.argmax(f1))
    return float(betas[best]), f1[best]


def balanced_sample(labels: npt.ArrayLike, per_class: int = 1000, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rows of equally many normal and anomalous windows, `per_class` of each or as many as the rarer class has."""
    truth = np.asarray(labels)
    classes = [np.flatnonzero(truth == label) for label in (0, 1)]
    size = min(per_class, *(len(rows) for rows in classes))
    generator = np.random.default_rng(seed)
    return np.sort(np.concatenate([generator.choice(rows, size, replace=False) for rows in classes]))
