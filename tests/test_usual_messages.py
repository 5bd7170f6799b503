"""The score by unusual messages, against plain loops over windows written out one by one."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.usual_messages import MessageSurprises, message_surprises, usual_messages

Windows = list[tuple[int, list[tuple[int, float]], float]]
"""How many calibration windows each stands for, its messages with their surprises, and its end's surprise."""
_NATS = st.floats(0, 60, allow_nan=False)
_WINDOW = st.tuples(st.integers(0, 3), st.lists(st.tuples(st.integers(1, 4), _NATS), max_size=5), _NATS)
_END = "end"


def _packed(windows: Windows) -> MessageSurprises:
    messages = [np.array([message for message, _ in told], np.uint64) for _, told, _ in windows]
    return message_surprises(messages, [np.array([*(nats for _, nats in told), end]) for _, told, end in windows])


def _by_loops(windows: Windows) -> list[float]:
    known: dict[object, list[float]] = {}
    holding: dict[object, int] = {}
    for times, told, end in windows:
        for message, nats in [*told, (_END, end)]:
            known.setdefault(message, []).extend([nats] * times)
        for message in {*(message for message, _ in told), _END}:
            holding[message] = holding.get(message, 0) + times
    found = []
    for _, told, end in windows:
        over = []
        for message, nats in [*told, (_END, end)]:
            values = known[message] or [0.0]
            usual = statistics.fmean(values) * holding[message] / (holding[message] + 1)
            over.append((nats - usual) / (1 + statistics.pstdev(values)))
        found.append(max(over))
    return found


@given(st.lists(_WINDOW, min_size=1, max_size=6))
def test_the_excess_is_that_of_plain_loops(windows: Windows) -> None:
    packed = _packed(windows)
    usual = usual_messages(packed, [times for times, _, _ in windows])
    assert usual.excess(packed) == pytest.approx(_by_loops(windows), abs=1e-9)


def test_a_message_counts_in_full_until_normal_windows_have_it_and_ever_less_the_more_have() -> None:
    normal: Windows = [(times := 10**9, [(1, 40.0), (2, 1.0)], 0.5)]
    usual = usual_messages(_packed(normal), [times])
    same, more, new = usual.excess(_packed([*normal, (0, [(1, 43.0), (2, 1.0)], 0.5), (0, [(1, 40.0), (9, 7.0)], 0.5)]))
    assert (same, more, new) == pytest.approx((0.0, 3.0, 7.0), abs=1e-6)
    fewer = [usual_messages(_packed(normal), [n]).excess(_packed(normal))[0] for n in (0, 1, 3, 9)]
    assert fewer == pytest.approx([40.0, 20.0, 10.0, 4.0])


def test_a_message_told_again_and_again_in_one_window_is_no_more_usual_than_told_once() -> None:
    once, often = (usual_messages(_packed([(1, [(1, 8.0)] * n, 0.0)]), [1]).means.tolist() for n in (1, 50))
    assert once == often == [0.0, 4.0]


def test_messages_that_were_cut_off_are_left_out() -> None:
    cut = message_surprises([np.array([1, 2, 3], np.uint64)], [np.array([4.0, 9.0])])
    assert cut.messages.tolist() == [1, 0]
    assert cut.lengths.tolist() == [2]


def test_without_normal_windows_everything_is_new() -> None:
    windows: Windows = [(0, [(1, 3.0)], 8.0)]
    assert usual_messages(_packed(windows), [0]).excess(_packed(windows)).tolist() == [8.0]
    assert usual_messages(_packed([]), []).excess(_packed([])).tolist() == []
