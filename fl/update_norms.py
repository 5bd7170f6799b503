"""What training changed, its length, and the same shortened to a bound."""

import math
from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]


def update_of(arrays: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]) -> Arrays:
    """What changed since `start`, in float64, which holds the difference of two float32 values of any likely size."""
    return {name: array.astype(np.float64) - start[name] for name, array in arrays.items()}


def update_norm(update: Mapping[str, np.ndarray]) -> float:
    """The L2 norm over all values of all arrays, summed in the order of names."""
    return math.sqrt(math.fsum(float(np.vdot(update[name], update[name])) for name in sorted(update)))


def clip_factor(norm: float, bound: float) -> float:
    """By what an update is scaled so that its norm is at most `bound`; 1 where it is anyway."""
    return min(1.0, bound / norm) if norm > 0 else 1.0


def shortened(arrays: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray], bound: float) -> tuple[Arrays, float]:
    """`arrays` with their change since `start` scaled down to `bound`, and the norm it had.

    Where the change is within the bound, the arrays are as they were, to the bit.
    """
    update = update_of(arrays, start)
    norm = update_norm(update)
    factor = clip_factor(norm, bound)
    if factor == 1.0:
        return dict(arrays), norm
    return {name: (start[name] + factor * change).astype(np.float32) for name, change in update.items()}, norm
