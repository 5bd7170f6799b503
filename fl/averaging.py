"""The weighted mean of adapters, which needs no federation framework."""

from collections.abc import Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]


def weighted_mean(arrays: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float]) -> Arrays:
    """Equation 1: the mean weighted by n_i / n, summed in float64 in the order given and returned as float32."""
    total = float(sum(weights))
    return {
        name: (
            sum(
                (part[name].astype(np.float64) * weight for part, weight in zip(arrays, weights, strict=True)),
                start=np.zeros(arrays[0][name].shape),
            )
            / total
        ).astype(np.float32)
        for name in arrays[0]
    }
