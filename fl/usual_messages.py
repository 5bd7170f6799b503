"""The score `max_excess`: how far a window's most unusual message is above what is usual of that message.

A long message surprises a little at each of its tokens, and some messages always surprise; only what exceeds the usual
gives a window away. What is usual is learned from calibration windows, without labels, for each model anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]
EXCESS: Literal["max_excess"] = "max_excess"
SURPRISES = "message_surprise"
"""The column that it is made of: for each window the surprises of its messages that were read, its end's last.

fl/scoring.py spells it out, since what that imports decides whether kept scores still count.
"""
END = np.uint64(0)
"""Stands for a window's end, which counts as a message."""
NEW_WINDOWS = 1.0
"""How many windows the assumption weighs that a message is new, its usual surprise 0: one, as in a rule of succession.

With less, whatever a log rewords raises alarms; with more, a few rare windows hide all anomalies of BGL. Measured in
docs/results/experiments.md.
"""


@dataclass(frozen=True)
class MessageSurprises:
    """The messages of some windows, one window after the other, with their surprises."""

    messages: Hashes
    """Of each message its hash, any number that stands for its text; of each end `END`."""
    surprises: Floats
    """Nats, of the whole message."""
    lengths: npt.NDArray[np.int64]
    """Messages of each window, its end among them: at least 1."""


def message_surprises(messages: Sequence[Hashes], surprises: Sequence[npt.NDArray[np.floating]]) -> MessageSurprises:
    """From each window's messages, and its surprises by message as fl/scoring.py has them, that of the end last.

    Messages that were cut off have no surprise and are left out.
    """
    read = [np.append(hashes[: len(found) - 1], END) for hashes, found in zip(messages, surprises, strict=True)]
    return MessageSurprises(
        np.concatenate([*read, np.zeros(0, np.uint64)]).astype(np.uint64, copy=False),
        np.concatenate([*surprises, np.zeros(0)]).astype(np.float64),
        np.array([len(hashes) for hashes in read], np.int64),
    )


@dataclass(frozen=True)
class UsualMessages:
    """How surprising each message is in normal windows, nats."""

    messages: Hashes
    """Distinct, in rising order."""
    means: Floats
    """Its mean surprise times n / (n + `NEW_WINDOWS`), where n windows hold it: what few have seen is hardly usual."""
    deviations: Floats
    """Standard deviation of its surprise."""

    def excess(self, found: MessageSurprises) -> Floats:
        """Of each window the highest (surprise - mean) / (1 + deviation) of a message.

        The 1, a nat, keeps messages that hardly vary from deciding by nothing. A message that is in none of the normal
        windows counts in full.
        """
        if not len(found.lengths):
            return np.zeros(0)
        place = np.searchsorted(self.messages, found.messages)
        place = np.minimum(place, max(0, len(self.messages) - 1))
        known = self.messages[place] == found.messages if len(self.messages) else np.zeros(len(place), np.bool_)
        mean, deviation = np.zeros(len(place)), np.zeros(len(place))
        mean[known], deviation[known] = self.means[place[known]], self.deviations[place[known]]
        excess = (found.surprises - mean) / (1.0 + deviation)
        starts = np.cumsum(found.lengths) - found.lengths
        return np.maximum.reduceat(excess, starts)


def usual_messages(found: MessageSurprises, windows: npt.ArrayLike, new_windows: float = NEW_WINDOWS) -> UsualMessages:
    """What is usual where the i-th of `found` stands for `windows[i]` normal windows; 0 leaves it out."""
    weight = np.repeat(np.asarray(windows, np.float64), found.lengths)
    counted = weight > 0
    messages, which = np.unique(found.messages[counted], return_inverse=True)
    weight, surprises = weight[counted], found.surprises[counted]
    total = np.bincount(which, weight, len(messages))
    means = np.bincount(which, weight * surprises, len(messages)) / total
    spread = np.bincount(which, weight * (surprises - means[which]) ** 2, len(messages)) / total
    window = np.repeat(np.arange(len(found.lengths)), found.lengths)[counted]
    once = np.unique(window * len(messages) + which, return_index=True)[1]
    holding = np.bincount(which[once], weight[once], len(messages))
    return UsualMessages(messages, means * holding / (holding + new_windows), np.sqrt(spread))
