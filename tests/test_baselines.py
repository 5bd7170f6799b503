"""The simple rules against brute force, and against the figures known for real logs."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.baselines import RULES, distinct_windows, fit, fit_all

WINDOWS = st.lists(st.lists(st.integers(0, 3), max_size=5).map(tuple), max_size=12)


def _flag_by_brute_force(name: str, train: list[tuple[int, ...]], window: tuple[int, ...]) -> bool:
    if name == "unseen event type":
        return any(all(event not in other for other in train) for event in window)
    if name == "unseen pair of successive events":
        pairs = [window[i : i + 2] for i in range(len(window) - 1)]
        return any(all(pair != w[i : i + 2] for w in train for i in range(len(w) - 1)) for pair in pairs)
    if name == "unseen event-count vector":
        return all(Counter(window) != Counter(other) for other in train)
    return window not in train


@settings(deadline=None)
@given(WINDOWS, WINDOWS)
def test_every_rule_equals_brute_force(train: list[tuple[int, ...]], test: list[tuple[int, ...]]) -> None:
    for name in RULES:
        expected = [_flag_by_brute_force(name, train, window) for window in test]
        assert fit(name, train).flags(test).tolist() == expected, name


@settings(deadline=None)
@given(WINDOWS)
def test_no_rule_flags_what_it_was_fitted_on(train: list[tuple[int, ...]]) -> None:
    assert not any(rule.flags(train).any() for rule in fit_all(train))


def test_the_rules_grow_stricter_from_types_to_sequences() -> None:
    train = [(1, 2, 3), (1, 1, 2)]
    assert [rule.flags([(1, 2, 9)])[0] for rule in fit_all(train)] == [True, True, True, True]
    assert [rule.flags([(1, 3, 2)])[0] for rule in fit_all(train)] == [False, True, False, True]
    assert [rule.flags([(1, 2)])[0] for rule in fit_all(train)] == [False, False, True, True]


@settings(deadline=None)
@given(WINDOWS)
def test_distinct_windows_give_back_every_window(windows: list[tuple[int, ...]]) -> None:
    flat = np.array([event for window in windows for event in window], dtype=np.uint32)
    found = distinct_windows(flat, [len(window) for window in windows])
    assert [found.windows[row] for row in found.index] == windows
    assert len(set(found.windows)) == len(found.windows)


def test_an_unknown_rule_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        fit("unseen colour", [])
