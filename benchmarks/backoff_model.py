"""A sequence model that fits in seconds: messages predicted from the last few, backing off to fewer.

It stands in for a language model where two logs are compared. Witten-Bell smoothing (Witten and Bell, 1991): a context
seen n times with t different followers leaves t / (n + t) of its probability to the next shorter context.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from math import log

_BEFORE, _END = -1, -2


class BackoffModel:
    """Followers of every context of up to `order` messages; the end of a window is a message, too."""

    def __init__(self, windows: Iterable[tuple[int, ...]], alphabet: int, order: int = 5) -> None:
        self.alphabet = alphabet
        self.order = order
        self.followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for window in windows:
            padded = self._padded(window)
            for place in range(order, len(padded)):
                for length in range(order + 1):
                    self.followers[padded[place - length : place]][padded[place]] += 1

    def _padded(self, window: tuple[int, ...]) -> tuple[int, ...]:
        return (_BEFORE,) * self.order + window + (_END,)

    def surprises(self, window: tuple[int, ...]) -> list[float]:
        """Negative log-likelihood of each message and of the end, in nats."""
        padded = self._padded(window)
        return [-log(self._probability(padded, place)) for place in range(self.order, len(padded))]

    def _probability(self, padded: tuple[int, ...], place: int) -> float:
        probability = 1 / (self.alphabet + 1)
        for length in range(self.order + 1):
            if (seen := self.followers.get(padded[place - length : place])) is None:
                break
            kinds, times = len(seen), seen.total()
            probability = (seen[padded[place]] + kinds * probability) / (times + kinds)
        return probability
