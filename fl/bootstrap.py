"""How sure one can be of an F1, and of the difference of two, by resampling windows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fl.errors import ScoreError
from fl.thresholds import Counts, Detection, Floats

ENDS = ("f1_low", "f1_high")
"""Columns with the ends of the interval of an F1."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its bootstrap interval."""

    estimate: float
    low: float
    high: float


def f1_interval(found: Detection, samples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """F1 with the percentile interval of resampling windows; the threshold is taken as fixed."""
    # By (label, flag, other flag), and the other detector flags nothing.
    cells = np.array([found.tn, 0, found.fp, 0, found.fn, 0, found.tp, 0])
    drawn, observed = _resample(cells, samples, seed)
    return _interval(_f1_of(drawn, 0), _f1_of(observed, 0), level)


def f1_ends(found: Detection | None) -> dict[str, float | None]:
    """The ends of the 95 % interval of an F1 as columns of a table; none where there is no F1."""
    if found is None or not found.tp + found.fn:
        return dict.fromkeys(ENDS)
    interval = f1_interval(found)
    return dict(zip(ENDS, (interval.low, interval.high), strict=True))


def f1_difference(
    labels: npt.ArrayLike,
    flags: npt.ArrayLike,
    other: npt.ArrayLike,
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """F1 of `flags` minus F1 of `other`, both over the same resampled windows."""
    cells = 4 * (np.asarray(labels) == 1) + 2 * np.asarray(flags, bool) + np.asarray(other, bool)
    drawn, observed = _resample(np.bincount(cells, minlength=8), samples, seed)
    return _interval(_f1_of(drawn, 0) - _f1_of(drawn, 1), _f1_of(observed, 0) - _f1_of(observed, 1), level)


def _resample(cells: Counts, samples: int, seed: int) -> tuple[Counts, Counts]:
    """Counts of windows by (label, flag, other flag) in `samples` resamples, and as observed: shape (samples, 2, 2, 2).

    `cells`: the observed ones, flat. F1 depends on these counts only, so drawing them from the multinomial is the
    bootstrap by window, in no time.
    """
    windows = int(cells.sum())
    if not windows:
        raise ScoreError("No labelled windows: an interval needs some.")
    drawn = np.random.default_rng(seed).multinomial(windows, cells / windows, size=samples)
    return drawn.reshape(samples, 2, 2, 2), cells.reshape(1, 2, 2, 2)


def _f1_of(cells: Counts, detector: int) -> Floats:
    by_flag = cells.sum(axis=3 if detector == 0 else 2)
    tp, fp, fn = by_flag[:, 1, 1], by_flag[:, 0, 1], by_flag[:, 1, 0]
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1)


def _interval(drawn: Floats, observed: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(observed[0]), float(low), float(high))
