"""Four simple rules that any learned detector has to beat, with masked messages as events.

Each rule remembers what normal training windows contain and flags a window that contains anything else.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Window = tuple[int, ...]


def _events(window: Window) -> Iterable[object]:
    return window


def _pairs(window: Window) -> Iterable[object]:
    return pairwise(window)


def _counts(window: Window) -> Iterable[object]:
    # The sorted messages hold the same as the vector of their counts.
    return (tuple(sorted(window)),)


def _sequence(window: Window) -> Iterable[object]:
    return (window,)


RULES: dict[str, Callable[[Window], Iterable[object]]] = {
    "unseen event type": _events,
    "unseen pair of successive events": _pairs,
    "unseen event-count vector": _counts,
    "unseen sequence": _sequence,
}


@dataclass(frozen=True)
class SimpleRule:
    """One fitted rule: what it looks at in a window, and what of it was seen in training."""

    name: str
    seen: frozenset[object] = field(repr=False)

    def flags(self, windows: Sequence[Window]) -> npt.NDArray[np.bool_]:
        """True for each window that holds something unseen."""
        parts = RULES[self.name]
        return np.fromiter((not self.seen.issuperset(parts(w)) for w in windows), dtype=bool, count=len(windows))


def fit(name: str, windows: Iterable[Window]) -> SimpleRule:
    """Fit the rule `name` (a key of RULES) on message ids of normal windows; give each distinct window once."""
    parts = RULES[name]
    return SimpleRule(name, frozenset(part for window in windows for part in parts(window)))


def fit_all(windows: Sequence[Window]) -> list[SimpleRule]:
    """Every rule, fitted on the same windows."""
    return [fit(name, windows) for name in RULES]


@dataclass(frozen=True)
class DistinctWindows:
    """Each distinct message sequence once, and which of them each window is."""

    windows: list[Window]
    index: npt.NDArray[np.int64]
    """For every window its row in `windows`."""


def distinct_windows(message_ids: npt.ArrayLike, lengths: npt.ArrayLike) -> DistinctWindows:
    """Find the distinct windows among all; `message_ids` holds their messages one window after the other."""
    flat = np.ascontiguousarray(message_ids, dtype=np.uint32)
    sizes = np.asarray(lengths, dtype=np.int64)
    rows: dict[bytes, int] = {}
    index = np.fromiter((rows.setdefault(key, len(rows)) for key in _slices(flat, sizes)), np.int64, count=len(sizes))
    return DistinctWindows([tuple(np.frombuffer(key, dtype=np.uint32).tolist()) for key in rows], index)


def _slices(flat: npt.NDArray[np.uint32], sizes: npt.NDArray[np.int64]) -> Iterator[bytes]:
    content = flat.tobytes()
    end = 0
    for size in sizes.tolist():
        start, end = end, end + flat.itemsize * size
        yield content[start:end]
