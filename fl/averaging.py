"""The weighted mean of adapters: the same bits in whatever order they come, and however many there are, held once."""

from collections.abc import Mapping, Sequence

import numpy as np

from fl.errors import LearningError

Arrays = dict[str, np.ndarray]

_COARSE, _FINE = 2.0**-20, 2.0**-60
"""Units of the two parts of a sum."""
_LARGEST = 2.0**42
"""Sum of all magnitudes that the coarse part holds in 62 bits."""
MOST_WEIGHT = 1 << 29
"""Largest weight whose product with a float32 value is exact in float64."""
_MOST_PARTS = 1 << 23
"""Parts whose fine remainders, of at most 2^39 units each, add up within 62 bits."""


class ExactMean:
    """A weighted mean of up to `parts` adapters, added one at a time; it holds no more than three of them in float64.

    Each product of weight and value is rounded to a multiple of 2^-60 and added in whole numbers, which know no
    order: arrivals may come in any, and the result is that of all at once. An adapter's mean is off by 2^-61 at most,
    before it is rounded to float32. Each has its share of what can be added exactly, so that a huge one is refused
    itself and not those that come after it.
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self.count = 0
        self.weight = 0
        self._coarse: dict[str, np.ndarray] = {}
        self._fine: dict[str, np.ndarray] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: int) -> None:
        """Add an adapter that counts `weight` times.

        Raises LearningError for a weight or values beyond what can be added exactly.
        """
        largest = max((float(np.abs(array).max(initial=0)) for array in arrays.values()), default=0.0)
        is_small = largest * weight < _LARGEST / self._parts
        if not (0 < weight <= MOST_WEIGHT and self.count < min(self._parts, _MOST_PARTS) and is_small):
            raise LearningError(
                f"values up to {largest:.3g} with weight {weight} cannot be added exactly, as one of {self._parts}; "
                "set a norm bound or max_examples"
            )
        self.count, self.weight = self.count + 1, self.weight + weight
        for name, array in arrays.items():
            product = array.astype(np.float64)
            product *= weight
            units = np.rint(product * (1 / _COARSE))
            product -= units * _COARSE  # exact: both are whole multiples of the product's last bit
            product *= 1 / _FINE
            fine = np.rint(product, out=product)
            if name not in self._coarse:
                self._coarse[name] = np.zeros(array.shape, np.int64)
                self._fine[name] = np.zeros(array.shape, np.int64)
            np.add(self._coarse[name], units, out=self._coarse[name], casting="unsafe")
            np.add(self._fine[name], fine, out=self._fine[name], casting="unsafe")

    def mean(self) -> Arrays:
        """The mean, as float32; raises LearningError where nothing was added."""
        if not self.count:
            raise LearningError("There is no mean of no adapters; wait for at least one reply.")
        return {
            name: ((coarse * _COARSE + self._fine[name] * _FINE) / self.weight).astype(np.float32)
            for name, coarse in self._coarse.items()
        }


def weighted_mean(arrays: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]) -> Arrays:
    """Equation 1: the mean weighted by n_i / n, as float32; weights are whole numbers. Depends on no order."""
    mean = ExactMean(len(arrays))
    for part, weight in zip(arrays, weights, strict=True):
        mean.add(part, int(weight))
    return mean.mean()
