"""Label-free thresholds: from the scores of normal calibration windows to where alarms begin."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from fl.rarity import ways_to_be_rarest
from fl.thresholds import calibration_note, label_free_threshold

ThresholdRule = Literal["quantile", "tail"]
TAIL_START = 0.98
"""Quantile above which calibration scores count as the tail; the start that Siffer et al. take."""
FEWEST = 10
"""Windows that the tail is fitted to at least; with few calibration windows it begins lower."""


def tail_threshold(calibration_scores: npt.ArrayLike, false_alarm_rate: float = 0.002) -> float:
    """The score that a share `false_alarm_rate` of normal windows exceeds, by an exponential tail of the highest ones.

    Peaks over a threshold (Siffer et al., KDD 2017, equation 1) with shape 0, whose scale is the mean excess. It rests
    on 2 % of the windows instead of the one or two at a quantile of 0.2 %, where a few rare normal windows decide. The
    quantile stands where no tail can be had: too few windows, a rate beyond the tail's start, or none above it.
    """
    quantile = label_free_threshold(calibration_scores, false_alarm_rate)
    scores = np.asarray(calibration_scores, dtype=np.float64)
    if scores.size < 2 * FEWEST or false_alarm_rate <= 0:
        return quantile
    start = float(np.quantile(scores, min(TAIL_START, 1 - FEWEST / scores.size)))
    excess = scores[scores > start] - start
    if excess.size <= false_alarm_rate * scores.size:
        return quantile
    return start + float(excess.mean()) * float(np.log(excess.size / (false_alarm_rate * scores.size)))


_RULES: dict[ThresholdRule, Callable[[npt.ArrayLike, float], float]] = {
    "quantile": label_free_threshold,
    "tail": tail_threshold,
}


def calibrated_threshold(
    calibration_scores: npt.ArrayLike, false_alarm_rate: float, rule: ThresholdRule = "quantile"
) -> float:
    """The threshold of a rule; raises ScoreError without calibration windows, or for an impossible rate."""
    return _RULES[rule](calibration_scores, false_alarm_rate)


def threshold_note(
    windows: int, false_alarm_rate: float, rule: ThresholdRule = "quantile", score: str = ""
) -> str | None:
    """What a reader should know: that the threshold is a tail's, or that a quantile has too few windows."""
    ways = ways_to_be_rarest(score)
    if rule == "quantile" or windows < 2 * FEWEST:
        return calibration_note(windows, false_alarm_rate, ways)
    beyond = 0 < windows * false_alarm_rate < ways - 1e-9
    told = "The label-free threshold follows from an exponential tail of the highest calibration scores"
    return f"{told}; it lies beyond what {windows} calibration windows show." if beyond else f"{told}."
