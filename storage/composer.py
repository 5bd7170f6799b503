"""How a window's tokens are put together from its messages' tokens, and whether that equals reading the joined text."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from storage.errors import SourceError
from storage.masks import FIELD

CHECKED_SEQUENCES = 4000
"""Distinct sequences whose composed tokens are held against those of the joined text; all, where there are no more."""

CHECKED_LENGTH = 512
"""Messages of a sequence that the check reads; far more than fit in a window's tokens."""

CHECKED_MESSAGES = 100_000
"""Distinct messages whose joints with the separator are checked on their own."""

_U32 = npt.NDArray[np.uint32]


class TokenRule(BaseModel):
    """How a window becomes tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    separator: str = " ;-; "
    """Text between messages; the paper writes `;-;`, its code puts blanks around it. A window without any other
    text, as of one message that the masks blotted out, is read as a separator alone."""
    max_tokens: int = Field(default=1024, gt=0)
    """Tokens at which a window is cut off (1024 in the reference code); cut windows are counted."""
    field: str = Field(default=FIELD, min_length=1, max_length=16)
    """What the model reads where the masks wrote `<*>`. That is three tokens to SmolLM, `#` mostly one: a log of many
    fields has a quarter to a third fewer tokens to train and to score. Everywhere else it stays `<*>`."""

    def read(self, masked: str) -> str:
        """A masked text as the model reads it."""
        return masked.replace(FIELD, self.field)


@dataclass(frozen=True)
class Tokens:
    """A window's token ids, cut off at the most allowed, and where each message's own begin (with the blank before)."""

    ids: _U32
    starts: _U32
    truncated: bool


def load_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json, without truncation or padding; raises SourceError where it cannot be read."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        reason = str(error).splitlines()[0]
        raise SourceError(f"Cannot read the tokenizer {file}: {reason}; prepare the model again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[_U32]:
    """The token ids of texts, without special tokens."""
    found = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.uint32) for encoding in found]


def sequence_hash(token_ids: _U32) -> str:
    """The name of a token sequence: BLAKE2b, 16 bytes, over the ids as little-endian 32-bit numbers, in hex."""
    return hashlib.blake2b(token_ids.astype("<u4").tobytes(), digest_size=16).hexdigest()


class Composer:
    """Puts a window's tokens together from its messages' tokens.

    tokens(m1 + separator + m2 ...) = first(m1) + tokens(separator without its last blanks) + next(m2) + ..., where
    next(m) are the tokens of those blanks and m. Holds for byte-level BPE, whose words begin with their blank; `agrees`
    checks it.
    """

    def __init__(self, tokenizer: Tokenizer, rule: TokenRule, texts: Sequence[str]) -> None:
        texts = [rule.read(text) for text in texts]
        self._tokenizer, self._rule, self._texts = tokenizer, rule, texts
        head = rule.separator.rstrip(" ")
        tail = rule.separator[len(head) :]
        self.first = encode(tokenizer, texts)
        self.next = encode(tokenizer, [tail + text for text in texts])
        self._separator = encode(tokenizer, [head])[0]
        self._tail = len(tail)

    def compose(self, message_ids: Sequence[int], most: int | None = None) -> Tokens:
        """The tokens of the messages joined by the separator, from the parts; reads no further than needed."""
        most = self._rule.max_tokens if most is None else most
        parts: list[_U32] = []
        starts: list[int] = []
        length = 0
        for message in message_ids:
            if parts:
                parts.append(self._separator)
                length += len(self._separator)
            starts.append(length)
            parts.append(self.next[message] if length else self.first[message])
            length += len(parts[-1])
            if length > most:
                break
        return _cut(np.concatenate(parts), np.array(starts, dtype=np.uint32), most)

    def whole(self, message_ids: Sequence[int]) -> Tokens:
        """The tokens of the joined text, read by the tokenizer as one."""
        texts = [self._texts[message] for message in message_ids]
        encoding = self._tokenizer.encode(self._rule.separator.join(texts), add_special_tokens=False)
        lengths = np.array([len(text) + len(self._rule.separator) for text in texts])
        begins = np.maximum(np.cumsum(lengths) - lengths - self._tail, 0)
        ends = np.array([end for _, end in encoding.offsets])
        return _cut(
            np.array(encoding.ids, dtype=np.uint32),
            np.searchsorted(ends, begins, side="right").astype(np.uint32),
            self._rule.max_tokens,
        )

    def tokens_of(self, sequences: Sequence[_U32]) -> tuple[list[Tokens], bool]:
        """The tokens of each sequence of messages, at least one, and whether they could be composed."""
        composed = self.agrees(sequences)
        make = self.compose if composed else self.whole
        return [self._some(make(sequence.tolist())) for sequence in sequences], composed

    def _some(self, tokens: Tokens) -> Tokens:
        """The tokens, or the separator's for a window that has none: no model says how probable nothing is."""
        if len(tokens.ids):
            return tokens
        instead = self._separator if len(self._separator) else encode(self._tokenizer, [self._rule.field])[0]
        return replace(tokens, ids=instead[: self._rule.max_tokens])

    def agrees(self, sequences: Sequence[_U32]) -> bool:
        """Whether composed tokens equal those of the joined text: each message twice, and evenly drawn sequences."""
        every = max(1, -(-len(sequences) // CHECKED_SEQUENCES))
        doubled = [np.array([message, message], dtype=np.uint32) for message in range(len(self._texts))]
        checked = [sequence[:CHECKED_LENGTH] for sequence in sequences[::every]] + doubled[:CHECKED_MESSAGES]
        for start in range(0, len(checked), 256):
            batch = checked[start : start + 256]
            joined = encode(self._tokenizer, [self._joined(sequence) for sequence in batch])
            for sequence, tokens in zip(batch, joined, strict=True):
                if not np.array_equal(self.compose(sequence.tolist(), len(tokens) + 1).ids, tokens):
                    return False
        return True

    def _joined(self, message_ids: _U32) -> str:
        return self._rule.separator.join(self._texts[message] for message in message_ids)


def _cut(ids: _U32, starts: _U32, most: int) -> Tokens:
    return Tokens(ids[:most], starts[starts < most], len(ids) > most)
