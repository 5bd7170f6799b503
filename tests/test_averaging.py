"""fl/averaging.py: a mean that knows no order, against exact fractions, in a memory that does not grow with clients."""

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.averaging import MOST_WEIGHT, ExactMean, weighted_mean
from fl.errors import LearningError

VALUES = st.floats(-1000, 1000, width=32)
PARTS = st.lists(st.tuples(st.lists(VALUES, min_size=3, max_size=3), st.integers(1, 10**6)), min_size=1, max_size=8)


def _mean(parts: list[tuple[list[float], int]]) -> np.ndarray:
    mean = ExactMean(len(parts))
    for values, weight in parts:
        mean.add({"x": np.array(values, np.float32)}, weight)
    return mean.mean()["x"]


@given(PARTS, st.randoms())
def test_the_order_of_arrival_does_not_change_a_bit(parts: list[tuple[list[float], int]], random: object) -> None:
    shuffled = parts.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert _mean(parts).tobytes() == _mean(shuffled).tobytes()


@given(PARTS)
def test_the_mean_is_that_of_exact_fractions_but_for_its_own_rounding(parts: list[tuple[list[float], int]]) -> None:
    found, total = _mean(parts), sum(weight for _, weight in parts)
    for place in range(3):
        exact = sum(Fraction(float(np.float32(values[place]))) * weight for values, weight in parts) / total
        # Half a unit in the last place of float32, and 2^-61 where the values are smaller than that.
        allowed = Fraction(float(np.spacing(np.float32(abs(exact))))) / 2 * Fraction(1000001, 1000000) + Fraction(
            1, 2**61
        )
        assert abs(Fraction(float(found[place])) - exact) <= allowed


def test_all_orders_of_values_of_very_different_size_give_one_result() -> None:
    parts = [([1e3, 1.0, 1e-9], 7), ([-1e3, 1e-12, 1.0], 7), ([1e-7, -1.0, 3e-9], 7), ([2e-7, 5e-8, -1.0], 7)]
    means = {_mean(list(order)).tobytes() for order in itertools.permutations(parts)}
    assert len(means) == 1
    # In float32 or float64 sums they would be several.
    plain = {
        tuple(sum((np.float32(values[place]) for values, _ in order), np.float32(0)) for place in range(3))
        for order in itertools.permutations(parts)
    }
    assert len(plain) > 1


def test_the_weighted_mean_is_that_of_arrivals_one_by_one() -> None:
    draw = np.random.default_rng(0)
    parts = [{"x": draw.normal(size=(4, 5)).astype(np.float32)} for _ in range(9)]
    weights = [int(weight) for weight in draw.integers(1, 9999, 9)]
    mean = ExactMean(9)
    for index in draw.permutation(9):
        mean.add(parts[index], weights[index])
    assert mean.mean()["x"].tobytes() == weighted_mean(parts, weights)["x"].tobytes()


@pytest.mark.parametrize(
    ("values", "weight"),
    [([1e30, 0, 0], 1), ([np.nan, 0, 0], 1), ([np.inf, 0, 0], 1), ([1, 1, 1], 0), ([1, 1, 1], MOST_WEIGHT + 1)],
)
def test_what_cannot_be_added_exactly_is_refused_and_leaves_the_sum_as_it_was(values: list[float], weight: int) -> None:
    mean = ExactMean(2)
    mean.add({"x": np.array([1, 2, 3], np.float32)}, 5)
    with pytest.raises(LearningError, match="cannot be added exactly"):
        mean.add({"x": np.array(values, np.float32)}, weight)
    mean.add({"x": np.array([3, 2, 1], np.float32)}, 5)
    assert mean.mean()["x"].tolist() == [2, 2, 2]


def test_a_huge_one_does_not_keep_others_from_being_added_whatever_the_order() -> None:
    huge = {"x": np.array([2.0**41], np.float32)}
    for others_first in (0, 1, 2):
        mean = ExactMean(3)
        for count in (others_first, 2 - others_first):
            for _ in range(count):
                mean.add({"x": np.array([1.0], np.float32)}, 5)
            with pytest.raises(LearningError, match="as one of 3"):
                mean.add(huge, 1)
        assert mean.mean()["x"].tolist() == [1.0]


def test_memory_does_not_grow_with_the_number_of_adapters() -> None:
    size, mean, draw = 200_000, ExactMean(41), np.random.default_rng(0)
    mean.add({"x": draw.random(size, np.float32)}, 3)
    tracemalloc.start()
    try:
        for _ in range(40):
            mean.add({"x": draw.random(size, np.float32)}, 3)
        grown, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 100_000
    assert peak < 6 * 8 * size
