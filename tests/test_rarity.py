"""The score `rarity`, against counting windows one by one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fl.rarity import UsualWindows, rarity, usual_windows
from fl.usual_messages import MessageSurprises, message_surprises, usual_messages

_SCORES = st.lists(st.integers(0, 40).map(lambda tenths: tenths / 10), min_size=1, max_size=60)


@given(_SCORES, st.integers(0, 40))
def test_among_calibration_windows_it_is_the_share_at_least_as_unusual(known: list[float], tenths: int) -> None:
    value = min(tenths / 10, max(known))
    share = (1 + sum(other >= value for other in known)) / (1 + len(known))
    assert rarity([value], sorted(known))[0] == pytest.approx(-math.log(share))


@given(_SCORES, st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_the_more_unusual_is_never_less_rare(known: list[float], values: list[float]) -> None:
    found = rarity(np.sort(values), np.sort(known))
    assert (np.diff(found) >= -1e-9).all()
    assert found.min() >= 0


def test_beyond_all_calibration_windows_it_goes_on_as_an_exponential_tail() -> None:
    known = np.sort(stats.expon(scale=3.0).ppf((np.arange(20_000) + 0.5) / 20_000))
    values = known[-1] + np.array([1.0, 4.0, 40.0])
    steps = np.diff(rarity(values, known))
    above = known[-1] - known[int(0.9 * len(known)) :].mean()
    assert steps == pytest.approx(np.diff(values) / above, rel=1e-4)


def test_rounding_makes_no_window_rarer_than_its_equals() -> None:
    known = np.array([1.0] * 90 + [7.0] * 10)
    same, lower, higher = rarity([7.0, 7.0 - 1e-6, 7.0 + 1e-6], known)
    assert lower == same
    assert higher == same


def test_without_calibration_windows_nothing_is_rare() -> None:
    assert rarity([1.0, 50.0], []).tolist() == [0.0, 0.0]


def test_the_rarer_of_both_scores_decides_and_windows_count_as_often_as_they_are_there() -> None:
    found = _found([(1, 2.0)], [(1, 3.0)], [(2, 9.0)], [(1, 2.0)])
    mean, times = np.array([0.2, 0.3, 0.25, 0.9]), [5, 2, 0, 0]
    usual = usual_windows(found, mean, times)
    excess = usual_messages(found, times).excess(found)
    columns = usual.columns(found, mean)
    known = [np.repeat(values[:2], times[:2]) for values in (mean, excess)]
    expected = [
        max(rarity([values[i]], np.sort(among))[0] for values, among in zip((mean, excess), known, strict=True))
        for i in range(4)
    ]
    assert columns["rarity"] == pytest.approx(expected)
    assert columns["max_excess"] == pytest.approx(excess)
    assert columns["rarity"][2] > math.log(8), "its message is new, though its mean is in between"
    assert columns["rarity"][3] > math.log(8), "its mean is beyond all, though its message is usual"


def test_what_is_usual_is_kept_as_it_was_for_windows_seen_later() -> None:
    known, later = _found([(1, 2.0)], [(1, 3.0)]), _found([(1, 6.0)])
    usual = usual_windows(known, [0.2, 0.3], [4, 4])
    again = UsualWindows(usual.messages, usual.scores).columns(later, [0.2])
    assert again["max_excess"] == pytest.approx(usual.messages.excess(later))
    assert again["rarity"][0] > math.log(9)


def _found(*windows: list[tuple[int, float]]) -> MessageSurprises:
    messages = [np.array([message for message, _ in told], np.uint64) for told in windows]
    return message_surprises(messages, [np.array([*(nats for _, nats in told), 0.1]) for told in windows])
