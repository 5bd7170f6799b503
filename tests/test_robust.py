"""fl/robust.py: each combination against Flower's, or against what defines it."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from scipy.optimize import minimize

from fl.robust import Arrays, coordinate_median, geometric_median, krum_order, multikrum, trimmed_mean

SHAPES = {"layer.A": (2, 6), "layer.B": (5, 2), "bias": (3,)}


def _parts(count: int, seed: int = 0) -> list[Arrays]:
    draw = np.random.default_rng(seed)
    return [{name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()} for _ in range(count)]


def _by_flower(strategy: FedAvg, parts: list[Arrays], weights: list[int]) -> Arrays:
    messages = [
        Message(
            RecordDict(
                {
                    "arrays": ArrayRecord({name: Array(part[name]) for name in sorted(part)}),
                    "metrics": MetricRecord({"num-examples": weight}),
                }
            ),
            dst_node_id=0,
            message_type="train",
        )
        for part, weight in zip(parts, weights, strict=True)
    ]
    arrays, _ = strategy.aggregate_train(1, messages)
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


def _same(ours: Arrays, theirs: Arrays) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_the_median_is_flowers(count: int) -> None:
    parts = _parts(count)
    _same(coordinate_median(parts), _by_flower(FedMedian(), parts, [1] * count))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.3, 0.49])
def test_the_trimmed_mean_is_flowers(share: float) -> None:
    parts = _parts(8)
    _same(trimmed_mean(parts, share), _by_flower(FedTrimmedAvg(beta=share), parts, [1] * 8))


def test_a_trim_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves none of 4 replies"):
        trimmed_mean(_parts(4), 0.5)


@pytest.mark.parametrize(("malicious", "chosen"), [(0, 1), (1, 1), (2, 3), (2, 6)])
def test_krum_and_multikrum_are_flowers(malicious: int, chosen: int) -> None:
    for seed in range(5):
        parts, weights = _parts(8, seed), [10 + 7 * index for index in range(8)]
        flowers = (
            Krum(num_malicious_nodes=malicious)
            if chosen == 1
            else MultiKrum(num_malicious_nodes=malicious, num_nodes_to_select=chosen)
        )
        _same(multikrum(parts, weights, malicious, chosen), _by_flower(flowers, parts, weights))


def test_krum_tells_replies_apart_that_differ_little_beside_what_they_have_in_common() -> None:
    # As adapters do: a common part of norm 100, differences of a thousandth. In float32 squares these drown.
    draw = np.random.default_rng(0)
    common = draw.normal(size=10_000)
    parts = [{"x": (common + 1e-4 * draw.normal(size=10_000)).astype(np.float32)} for _ in range(6)]
    parts.insert(2, {"x": (common + 3e-4 * draw.normal(size=10_000)).astype(np.float32)})
    assert krum_order(parts, 1)[-1] == 2


def test_the_geometric_median_has_the_smallest_sum_of_distances() -> None:
    parts = _parts(7)
    flat = np.stack([np.concatenate([part[name].ravel() for name in sorted(part)]) for part in parts])
    best = minimize(lambda point: np.linalg.norm(flat - point, axis=1).sum(), flat.mean(axis=0), tol=1e-10)
    found = geometric_median(parts)
    point = np.concatenate([found[name].ravel() for name in sorted(found)])
    assert np.linalg.norm(flat - point, axis=1).sum() <= best.fun * (1 + 1e-6)


def test_the_geometric_median_of_equal_replies_is_each_of_them() -> None:
    [part] = _parts(1)
    _same(geometric_median([part, part, part]), part)


@pytest.mark.parametrize("scale", [-1.0, 1e3, 1e12])
def test_two_of_eight_replies_do_not_carry_a_robust_combination_away(scale: float) -> None:
    draw = np.random.default_rng(1)
    honest = [{"x": 1 + 0.1 * draw.normal(size=50)} for _ in range(6)]
    parts = [{"x": np.full(50, scale)}, *honest, {"x": np.full(50, scale)}]
    for combined in (
        coordinate_median(parts),
        trimmed_mean(parts, 0.26),
        multikrum(parts, [1] * 8, 2, 6),
        geometric_median(parts),
    ):
        assert np.abs(combined["x"] - 1).max() < 0.5
