"""The score `rarity`: how rare among normal windows a window is, by the more unusual of two scores.

The mean surprise of a token finds windows that are odd as a whole, the highest excess of a message those with one odd
line. Each is turned into the share of calibration windows at least as unusual, as conformal anomaly detection does
(Laxhammar and Falkman, Annals of Mathematics and Artificial Intelligence 2015), and the smaller one decides, as Tippett
combines p-values. The shares bound no error by themselves: what is usual of messages comes from the same windows, and
of two scores either may raise a false alarm. Labels are not needed; measured in docs/results/experiments.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fl.usual_messages import EXCESS, Floats, MessageSurprises, UsualMessages, usual_messages

RARITY: Literal["rarity"] = "rarity"
PARTS = ("mean_token", EXCESS)
"""The scores that it is made of."""
USUAL_SCORES = (RARITY, EXCESS)
"""The scores that need to know what is usual."""
TAILS = (0.9, 0.5)
"""Quantiles from which calibration scores tell how fast windows get rarer beyond the highest of them."""
ROUNDING = {"mean_token": 1e-5, EXCESS: 1e-3}
"""Differences that computing in another order may make, nats: windows nearer than that are equally unusual.

An excess is a difference of the surprises of whole messages, hundreds of nats, of which a millionth may be rounding.
"""
LEAST_SCALE = 1000
"""As many roundings make a window one nat rarer where calibration windows are nearly equal.

That is 0.01 nats a token of the mean surprise, and 1 of an excess, which is counted in such units.
"""


def ways_to_be_rarest(score: str) -> int:
    """In how many ways a window can be higher than all others by a score: as many as it has parts."""
    return len(PARTS) if score == RARITY else 1


def rarity(values: npt.ArrayLike, calibration: npt.ArrayLike, rounding: float = 0.0) -> Floats:
    """-ln of the share of calibration windows at least as unusual, one of them taken for the window itself, nats.

    `calibration` holds their values in rising order; without any nothing is rare. Beyond the highest there is no share
    to count: there it rises as in an exponential tail, whose scale is the mean excess over the start of the upper tenth
    or over the median, the larger one. An exponential's are the same; of equal windows the first may leave nothing.
    `rounding` is taken off the values beforehand.
    """
    values, ordered = np.asarray(values, np.float64) - rounding, np.asarray(calibration, np.float64)
    if not len(ordered):
        return np.zeros(len(values))
    above = len(ordered) - np.searchsorted(ordered, values, side="left")
    tails = [ordered[int(start * len(ordered)) :] for start in TAILS]
    scale = max(*(float(tail.mean() - tail[0]) for tail in tails), LEAST_SCALE * rounding, 1e-9)
    beyond: Floats = np.maximum(0.0, values - ordered[-1]) / scale
    return beyond - np.log((1 + above) / (1 + len(ordered)))


@dataclass(frozen=True)
class UsualWindows:
    """What calibration windows are like: their messages, and their scores."""

    messages: UsualMessages
    scores: Mapping[str, Floats]
    """Of each of `PARTS` the scores of the calibration windows, in rising order; empty where only the excess counts."""

    def columns(self, found: MessageSurprises, mean_token: npt.ArrayLike) -> dict[str, Floats]:
        """`max_excess` and `rarity` of some windows, given their messages and their mean surprise of a token."""
        columns = _parts(self.messages, found, mean_token)
        rare = [rarity(columns[name], self.scores[name], ROUNDING[name]) for name in PARTS if name in self.scores]
        return {EXCESS: columns[EXCESS]} | ({RARITY: np.max(rare, axis=0)} if rare else {})


def usual_windows(found: MessageSurprises, mean_token: npt.ArrayLike, windows: npt.ArrayLike) -> UsualWindows:
    """What is usual where the i-th of `found` stands for `windows[i]` calibration windows; 0 leaves it out."""
    messages, times = usual_messages(found, windows), np.asarray(windows, np.int64)
    columns = _parts(messages, found, mean_token)
    return UsualWindows(messages, {name: np.sort(np.repeat(columns[name], times)) for name in PARTS})


def _parts(messages: UsualMessages, found: MessageSurprises, mean_token: npt.ArrayLike) -> dict[str, Floats]:
    return {"mean_token": np.asarray(mean_token, np.float64), EXCESS: messages.excess(found)}
