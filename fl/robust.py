"""Combinations of adapters that a few hostile or broken ones among them cannot steer.

Each takes the replies of a round, so the server holds them all. None of them weighs by the number of windows a client
says it has, but for the mean over those that multi-Krum chose.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fl.averaging import weighted_mean

Arrays = dict[str, np.ndarray]
_CLOSEST = 1e-6
"""Smallest distance that the geometric median reckons with, relative to the median distance (RFA's smoothing)."""


def coordinate_median(parts: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
    """The median of each value by itself (Yin et al. 2018, arXiv 1803.01498)."""
    return {name: np.median(np.stack([part[name] for part in parts]), axis=0) for name in parts[0]}


def trimmed_mean(parts: Sequence[Mapping[str, np.ndarray]], share: float) -> Arrays:
    """The mean of each value without the `share` of the lowest and of the highest (arXiv 1803.01498).

    Raises ValueError where nothing would be left.
    """
    cut = int(share * len(parts))
    if 2 * cut >= len(parts):
        raise ValueError(f"beta {share} leaves none of {len(parts)} replies; give less than 0.5")
    kept = slice(cut, len(parts) - cut)
    return {name: np.sort(np.stack([part[name] for part in parts]), axis=0)[kept].mean(axis=0) for name in parts[0]}


def krum_order(parts: Sequence[Mapping[str, np.ndarray]], malicious: int) -> list[int]:
    """The replies' indices, those that lie closest to their n - f - 2 nearest first (arXiv 1703.02757).

    Distances are taken in float64 between the replies as they are, so that the large part that all adapters have in
    common does not drown their differences.
    """
    flat = [np.concatenate([part[name].ravel() for name in sorted(part)]).astype(np.float64) for part in parts]
    squares = np.array([[float(np.square(one - other).sum()) for other in flat] for one in flat])
    nearest = max(1, len(parts) - malicious - 2)
    scores = np.sort(squares, axis=1)[:, 1 : nearest + 1].sum(axis=1)
    return [int(index) for index in np.argsort(scores, kind="stable")]


def multikrum(
    parts: Sequence[Mapping[str, np.ndarray]], weights: Sequence[float], malicious: int, chosen: int
) -> Arrays:
    """The weighted mean of the `chosen` replies that Krum puts first; for 1, Krum itself."""
    indices = sorted(krum_order(parts, malicious)[:chosen])
    return weighted_mean([parts[index] for index in indices], [weights[index] for index in indices])


def geometric_median(
    parts: Sequence[Mapping[str, np.ndarray]], iterations: int = 100, tolerance: float = 1e-7
) -> Arrays:
    """The point with the smallest sum of distances to the replies, by smoothed Weiszfeld steps (RFA, arXiv 1912.13445).

    Ends when a step moves less than `tolerance` of the median distance to the replies.
    """
    names = sorted(parts[0])
    flat = np.stack([np.concatenate([part[name].ravel() for name in names]) for part in parts]).astype(np.float64)
    point = np.median(flat, axis=0)
    for _ in range(iterations):
        distances = np.linalg.norm(flat - point, axis=1)
        scale = float(np.median(distances))
        pulls = 1 / np.maximum(distances, _CLOSEST * scale or 1.0)
        moved = (pulls / pulls.sum()) @ flat
        step = float(np.linalg.norm(moved - point))
        point = moved
        if step <= tolerance * scale:
            break
    return _shaped(point, names, parts[0])


def _shaped(flat: np.ndarray, names: Sequence[str], like: Mapping[str, np.ndarray]) -> Arrays:
    ends = np.cumsum([like[name].size for name in names])[:-1]
    return {name: part.reshape(like[name].shape) for name, part in zip(names, np.split(flat, ends), strict=True)}
