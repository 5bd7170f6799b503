"""A message gives a window away when it surprises more than it usually does, not when it is long."""

import numpy as np
import pytest

from fl.scoring import message_surprise
from storage.summaries import SurprisingMessage
from storage.surprises import END, ScoredWindow, UsualSurprise, sample_sequences, surprising_messages

LONG, SHORT = "long", "short"
STARTS = [0, 4, 6, 10]


def _window(*messages: list[float], end: float = 0.5, texts: tuple[str, ...] = (LONG, SHORT)) -> ScoredWindow:
    """A window of these messages' token surprises; the first message's first token is never asked for."""
    starts = np.cumsum([0, *(len(message) for message in messages)])[:-1]
    surprise = np.array([*[value for message in messages for value in message][1:], end])
    return ScoredWindow(list(texts), starts.tolist(), surprise)


def _read(index: int) -> tuple[str, str]:
    return f"token {index}", f"guess {index}"


NORMAL = _window([0, 20.0, 20.0], [1.0, 1.0])
ODD = _window([0, 20.0, 21.0], [1.0, 9.0])


def _found(window: ScoredWindow, *normal: ScoredWindow, by_token: bool = False) -> list[SurprisingMessage]:
    return surprising_messages(window, UsualSurprise(normal, [1] * len(normal)), _read, by_token=by_token)


def test_a_long_message_that_always_surprises_does_not_come_first() -> None:
    first, second = _found(ODD, NORMAL)
    assert (first.text, first.surprise, first.usual, first.position) == (SHORT, 10.0, 2.0, 2)
    assert (second.text, second.excess) == (LONG, 1.0)


def test_the_token_told_is_the_one_furthest_beyond_its_own_usual() -> None:
    message = _found(_window([0, 20.0, 20.0], [6.0, 5.0]), _window([0, 20.0, 20.0], [5.5, 1.0]))[0]
    assert (message.token, message.expected) == ("token 3", "guess 3")
    assert (message.token_surprise, message.token_usual, message.token_excess) == (5.0, 1.0, 4.0)


def test_where_a_token_decides_the_most_unusual_token_ranks() -> None:
    window = _window([0, 23.0, 23.0], [1.0, 6.0])
    assert [m.text for m in _found(window, NORMAL)] == [LONG, SHORT]
    assert [m.text for m in _found(window, NORMAL, by_token=True)] == [SHORT, LONG]


def test_a_window_that_ends_too_early_is_given_away_by_its_end() -> None:
    window = _window([0, 20.0, 20.0], [1.0, 1.0], end=7.5)
    [message] = _found(window, NORMAL)
    assert (message.text, message.position, message.token, message.usual) == (END, 3, "token 4", 0.5)


def test_a_message_that_no_normal_window_has_counts_in_full() -> None:
    [message] = _found(_window([0, 20.0, 20.0], [2.0, 3.0], texts=(LONG, "new")), NORMAL)
    assert (message.text, message.usual, message.excess, message.token_excess) == ("new", None, 5.0, 3.0)


def test_what_a_window_repeats_is_compared_with_repetitions() -> None:
    twice = (LONG, LONG)
    normal = _window([0, 20.0, 20.0], [0.1, 0.1, 0.1], texts=twice)
    odd = _window([0, 20.0, 20.0], [0.1, 4.1, 0.1], texts=twice)
    assert [(m.position, round(m.excess, 6)) for m in _found(odd, normal)] == [(2, 4.0)]


def test_the_usual_is_the_median_over_windows_not_over_distinct_ones() -> None:
    normal = [_window([0, 1.0], [value], texts=(LONG, SHORT)) for value in (2.0, 5.0, 9.0)]
    counts = [1, 1, 7]
    repeated = np.repeat([2.0, 5.0, 9.0], counts)
    assert UsualSurprise(normal, counts).of_message((SHORT, False)) == np.median(repeated)


def test_a_window_like_all_others_still_names_one_message() -> None:
    assert len(_found(NORMAL, NORMAL)) == 1


def test_messages_split_as_the_scores_split_them() -> None:
    surprise = np.random.default_rng(0).random(12)
    window = ScoredWindow(["a", "b", "c", "a"], STARTS, surprise)
    sums = [float(piece.surprise.sum()) for piece in window.pieces()]
    assert sums == pytest.approx(message_surprise(surprise, np.array(STARTS)).tolist())


def test_messages_beyond_the_truncation_are_left_out() -> None:
    window = ScoredWindow(["a", "b", "c"], [0, 2], np.ones(4))
    assert [piece.key[0] for piece in window.pieces()] == ["a", "b", END]


def test_the_sample_holds_frequent_windows_and_those_with_rarer_messages() -> None:
    sequences = [[0], [0, 1], [0, 2], [0, 3], [2, 3]]
    assert sample_sequences(sequences, [0, 3, 9], first=2, most=4) == [0, 1, 3]
    assert sample_sequences(sequences, [2, 3], first=2, most=3) == [0, 1, 2]
    assert sample_sequences([], [1], first=2, most=4) == []
