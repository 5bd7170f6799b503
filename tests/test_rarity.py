"""The score `rarity`, against counting windows one by one."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fl.rarity import rarity, usual_windows
from fl.usual_messages import MessageSurprises, message_surprises
from storage.errors import SourceError
from storage.judging import read_usual
from tasks.usual_scores import write_usual

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
    assert np.diff(rarity(known[-1] + np.array([1.0, 4.0, 40.0]), known)) == pytest.approx([1.0, 12.0], rel=0.01)


def test_rounding_makes_no_window_rarer_than_its_equals() -> None:
    known = np.array([1.0] * 90 + [7.0] * 10)
    same, lower, higher = rarity([7.0, 7.0 - 1e-6, 7.0 + 1e-6], known, 1e-5)
    assert lower == higher == same
    # A message of hundreds of nats, computed in another order.
    found = _found(*[[(1, 300.0 + 0.01 * i)] for i in range(10)], [(1, 300.0901)])
    usual = usual_windows(found, np.zeros(11), [1] * 10 + [0])
    assert usual.columns(found, np.zeros(11))["rarity"][-1] == usual.columns(found, np.zeros(11))["rarity"][-2]


def test_without_calibration_windows_nothing_is_rare() -> None:
    assert rarity([1.0, 50.0], []).tolist() == [0.0, 0.0]


def test_the_rarer_of_both_scores_decides_and_windows_count_as_often_as_they_are_there() -> None:
    found = _found([(1, 2.0)], [(1, 3.0)], [(2, 9.0)], [(1, 2.0)], [(1, 2.0)])
    mean = np.array([0.2, 0.3, 0.25, 0.9, 0.1])
    usual = usual_windows(found, mean, [5, 2, 0, 0, 0])
    known, other, new, odd, lowest = usual.columns(found, mean)["rarity"].tolist()
    assert known == 0.0, "all seven calibration windows are at least as unusual by either score"
    assert other == pytest.approx(math.log(8 / 3))
    assert new > math.log(8), "its message is new, though its mean is in between"
    assert odd > math.log(8), "its mean is beyond all, though its message is usual"
    assert lowest == 0.0


def test_what_is_usual_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = _found([(1, 2.0), (7, 4.0)], [(1, 3.0)], [(2, 9.0)])
    usual = usual_windows(found, [0.2, 0.3, 0.4], [5, 2, 0])
    write_usual(usual, tmp_path)
    again = read_usual(tmp_path, "rarity")
    for name, values in usual.columns(found, [0.2, 0.3, 0.4]).items():
        assert again.columns(found, [0.2, 0.3, 0.4])[name].tolist() == values.tolist()
    (tmp_path / "usual_scores.parquet").unlink()
    assert list(read_usual(tmp_path, "max_excess").columns(found, [0.2, 0.3, 0.4])) == ["max_excess"]
    with pytest.raises(SourceError, match=r"no readable usual_scores\.parquet; register it again"):
        read_usual(tmp_path, "rarity")


def test_without_calibration_messages_all_are_new_after_reading_too(tmp_path: Path) -> None:
    found = _found([(1, 2.0)])
    write_usual(usual_windows(found, [0.2], [0]), tmp_path)
    assert read_usual(tmp_path, "max_excess").columns(found, [0.2])["max_excess"].tolist() == [2.0]


def _found(*windows: list[tuple[int, float]]) -> MessageSurprises:
    messages = [np.array([message for message, _ in told], np.uint64) for told in windows]
    return message_surprises(messages, [np.array([*(nats for _, nats in told), 0.1]) for told in windows])
