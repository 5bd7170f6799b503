"""Replies as they come in, a few at a time, and what the server keeps of each: an adapter added up can be forgotten."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

_PULLED_AT_ONCE = 16
"""Replies that may be in memory before they are counted."""
_PAUSE = 0.1


class Wire(Protocol):
    """The part of Flower's Grid that messages go through."""

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]: ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]: ...


def replies_as_they_come(grid: Wire, messages: Sequence[Any], timeout: float | None) -> Iterator[Any]:
    """The reply to each message, in the order of arrival, of those that come within `timeout` seconds.

    As Flower's `send_and_receive`, but the server holds a few replies at a time, however many clients it asks.
    """
    end = None if timeout is None else time.monotonic() + timeout
    waiting = list(grid.push_messages(messages))
    while waiting and (end is None or time.monotonic() < end):
        answered: set[str] = set()
        for start in range(0, len(waiting), _PULLED_AT_ONCE):
            for reply in grid.pull_messages(waiting[start : start + _PULLED_AT_ONCE]):
                answered.add(reply.metadata.reply_to_message_id)
                yield reply
        waiting = [message for message in waiting if message not in answered]
        if waiting and not answered:
            time.sleep(_PAUSE)
