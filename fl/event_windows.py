"""Windows as the learned baselines read them: sequences of event numbers, padded, masked, or cut into histories."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Events = npt.NDArray[np.int64]
PADDING, UNKNOWN, MASK, WHOLE, FIRST = range(5)
"""Numbers with a meaning of their own; WHOLE stands before a window for the window as a whole (LogBERT's DIST).
Events are numbered from FIRST."""


@dataclass(frozen=True)
class Vocabulary:
    """The events that the clients' training windows hold, which the sites have to agree on beforehand."""

    message_ids: npt.NDArray[np.uint32]
    """Sorted."""

    @property
    def size(self) -> int:
        """Numbers in use, those with a meaning of their own included."""
        return FIRST + len(self.message_ids)

    def events(self, window: npt.NDArray[np.uint32]) -> Events:
        """The event numbers of a window's message ids; UNKNOWN for what training never saw."""
        places = np.minimum(np.searchsorted(self.message_ids, window), len(self.message_ids) - 1)
        return np.where(self.message_ids[places] == window, FIRST + places, UNKNOWN)


def vocabulary_of(windows: Sequence[npt.NDArray[np.uint32]]) -> Vocabulary:
    """The vocabulary of training windows."""
    return Vocabulary(np.unique(np.concatenate(windows)))


def histories(windows: Sequence[Events], length: int) -> tuple[Events, npt.NDArray[np.int64]]:
    """Every event with the `length` events before it, padded where the window begins: (events, length + 1).

    Also the index of each one's window.
    """
    before = np.full(length, PADDING)
    views = [np.lib.stride_tricks.sliding_window_view(np.concatenate([before, w]), length + 1) for w in windows]
    return np.concatenate(views), np.repeat(np.arange(len(windows)), [len(w) for w in windows])


def padded(windows: Sequence[Events], longest: int) -> Events:
    """Windows as rows that begin with WHOLE, cut to `longest` events, padded to the longest of them."""
    width = min(longest, max(len(window) for window in windows))
    rows = np.full((len(windows), width + 1), PADDING)
    rows[:, 0] = WHOLE
    for row, window in zip(rows, windows, strict=True):
        row[1 : 1 + min(width, len(window))] = window[:width]
    return rows


def masked(rows: Events, share: float, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which events of padded rows to mask: each with probability `share`, and at least one a row."""
    chance = np.where((rows == PADDING) | (rows == WHOLE), np.inf, generator.random(rows.shape))
    return (chance < share) | (chance == chance.min(axis=1, keepdims=True))
