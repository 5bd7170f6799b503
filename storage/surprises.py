"""What is unusual in a window: each message's surprise beyond what the same message usually has in normal windows.

A long message surprises a little at each of its tokens, in normal windows too; only the excess gives a window away.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from storage.summaries import END_OF_WINDOW, SurprisingMessage

Floats = npt.NDArray[np.float64]
END = "(the window ends here)"
_Key = tuple[str, bool]


@dataclass(frozen=True)
class ScoredWindow:
    """A window with the surprise of every token that the model was asked for: tokens 1..n-1, then the end token."""

    texts: Sequence[str]
    """Masked messages in order, those cut off by truncation left out or at the end."""
    starts: Sequence[int]
    """Offsets of the messages' first own tokens in the window's tokens; a separator counts to the message before it."""
    surprise: Floats
    """Nats, one a token asked for."""

    def pieces(self) -> Iterator["_Piece"]:
        """The messages with their tokens' surprises, and last the window's end."""
        seen: set[str] = set()
        last = len(self.surprise) - 1
        stops = [*self.starts[1:], last + 1]
        for position, (text, start, stop) in enumerate(zip(self.texts, self.starts, stops, strict=False), 1):
            begin = max(start - 1, 0)
            if begin < stop - 1:
                surprise = self.surprise[begin : stop - 1]
                yield _Piece((text, text in seen), position, begin, begin + 1 - start, surprise)
            seen.add(text)
        yield _Piece((END, False), len(self.starts) + 1, last, 0, self.surprise[last:])


@dataclass(frozen=True)
class _Piece:
    key: _Key
    """The text, and whether the window already had it: a model repeats more readily than it begins."""
    position: int
    """Place in the window, from 1."""
    begin: int
    """Index of its first surprise among those of the window."""
    skipped: int
    """Own tokens that were not asked for: 1 in a window's first message, whose first token nothing precedes."""
    surprise: Floats


class UsualSurprise:
    """The median surprise of each message, and of each of its tokens, over a sample of normal windows."""

    def __init__(self, windows: Iterable[ScoredWindow], counts: Iterable[int]) -> None:
        """`counts` says for how many windows each of the sample stands."""
        self._pieces: dict[_Key, list[tuple[_Piece, int]]] = defaultdict(list)
        for window, count in zip(windows, counts, strict=True):
            for piece in window.pieces():
                self._pieces[piece.key].append((piece, count))

    def of_message(self, key: _Key) -> float | None:
        """Nats of the whole message; None where no normal window of the sample has it."""
        return _median([(float(piece.surprise.sum()), count) for piece, count in self._alike(key)])

    def of_tokens(self, key: _Key, skipped: int, size: int) -> Floats:
        """Nats of `size` tokens from the one after the first `skipped`; 0 where the sample has none."""
        alike = self._alike(key)
        return np.array([_median(list(_at(alike, skipped + place))) or 0.0 for place in range(size)])

    def _alike(self, key: _Key) -> list[tuple[_Piece, int]]:
        return self._pieces.get(key) or self._pieces.get((key[0], not key[1])) or []


def _at(pieces: Iterable[tuple[_Piece, int]], place: int) -> Iterator[tuple[float, int]]:
    """The surprises of the token at this place of a message, with their counts."""
    for piece, count in pieces:
        if 0 <= place - piece.skipped < len(piece.surprise):
            yield float(piece.surprise[place - piece.skipped]), count


def _median(values: Sequence[tuple[float, int]]) -> float | None:
    """The value of the middle window, each value counted as often as windows have it."""
    if not values:
        return None
    ordered = sorted(values)
    passed = np.cumsum([count for _, count in ordered])
    return ordered[int(np.searchsorted(passed, passed[-1] / 2))][0]


def surprising_messages(
    window: ScoredWindow,
    usual: UsualSurprise,
    read: Callable[[int], tuple[str, str]],
    *,
    by_token: bool = False,
    count: int = 4,
) -> list[SurprisingMessage]:
    """The `count` most unusual messages of a window, the most unusual first; the window's end is one of them.

    `read(i)` gives the i-th token asked for and the model's best guess in its place, as text. `by_token` ranks by the
    message's most unusual token instead of its whole surprise. Only the first may surprise no more than usual.
    """
    found = [_message(piece, usual, read) for piece in window.pieces()]
    excess = [message.token_excess if by_token else message.excess for message in found]
    order = sorted(range(len(found)), key=lambda i: (-excess[i], i))[:count]
    return [found[i] for i in order if excess[i] > 0 or i == order[0]]


def _message(piece: _Piece, usual: UsualSurprise, read: Callable[[int], tuple[str, str]]) -> SurprisingMessage:
    usual_tokens = usual.of_tokens(piece.key, piece.skipped, len(piece.surprise))
    worst = int(np.argmax(piece.surprise - usual_tokens))
    token, expected = read(piece.begin + worst)
    return SurprisingMessage(
        text=piece.key[0],
        surprise=float(piece.surprise.sum()),
        position=piece.position,
        usual=usual.of_message(piece.key),
        token=token,
        token_surprise=float(piece.surprise[worst]),
        token_usual=float(usual_tokens[worst]),
        expected=expected,
    )


def token_reader(
    tokenizer: Tokenizer, end_token_id: int, tokens: npt.NDArray[np.int64], predicted: npt.NDArray[np.int32]
) -> Callable[[int], tuple[str, str]]:
    """Says the i-th token that the model was asked for, and what it held for most probable there."""
    asked = [*tokens[1:].tolist(), end_token_id]

    def word(token: int) -> str:
        if token == end_token_id:
            return END_OF_WINDOW
        return str(tokenizer.decode([token], skip_special_tokens=False))

    return lambda i: (word(asked[i]), word(int(predicted[i, 0])))


def sample_sequences(sequences: Sequence[Sequence[int]], wanted: Sequence[int], first: int, most: int) -> list[int]:
    """The `first` sequences, and up to `most` in all the first that holds each wanted message not yet held."""
    chosen = list(range(min(first, len(sequences))))
    held = {message for index in chosen for message in sequences[index]}
    for message in sorted(set(wanted) - held):
        index = next((i for i in range(first, len(sequences)) if message in sequences[i]), None)
        if index is not None and index not in chosen and len(chosen) < most:
            chosen.append(index)
    return chosen
