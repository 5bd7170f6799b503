"""Tokens: every distinct message once, and every window as the messages it is made of."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from storage.errors import SourceError
from storage.progress import Progress, silent
from storage.tables import TableWriter, write_table

CHECKED_SEQUENCES = 4000
"""Distinct sequences whose composed tokens are held against those of the joined text; all, where there are no more."""

CHECKED_LENGTH = 512
"""Messages of a sequence that the check reads; far more than fit in a window's tokens."""

CHECKED_MESSAGES = 100_000
"""Distinct messages whose joints with the separator are checked on their own."""

_WINDOWS_AT_ONCE = 1 << 15
_U32 = npt.NDArray[np.uint32]


class TokenRule(BaseModel):
    """How a window becomes tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    separator: str = " ;-; "
    """Text between messages; the paper writes `;-;`, its code puts blanks around it."""
    max_tokens: int = Field(default=1024, gt=0)
    """Tokens at which a window is cut off (1024 in the reference code); cut windows are counted."""


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


def tokenize_windows(
    windows: Path, masks: Path, tokenizer_file: Path, rule: TokenRule, into: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Tokenize the windows (window stage's folder) from their messages (mask stage's folder).

    Writes messages, sequences and windows as Parquet and returns the counts. Memory grows with the distinct sequences,
    plus four bytes a line. Raises SourceError where the tokenizer cannot be read.
    """
    tokenizer = load_tokenizer(tokenizer_file)
    messages = pl.read_parquet(masks / "messages.parquet", columns=["message_id", "text"])
    composer = Composer(tokenizer, rule, messages["text"].to_list())
    _write_messages(messages, composer, into)
    known, sequence_ids = _distinct_sequences(windows, masks, progress)
    sequences = [np.frombuffer(sequence, dtype=np.uint32) for sequence in known]
    composed = composer.agrees(sequences)
    tokens = [
        composer.compose(sequence.tolist()) if composed else composer.whole(sequence.tolist()) for sequence in sequences
    ]
    table = _sequence_table(sequences, tokens, sequence_ids)
    write_table(table, into / "sequences.parquet")
    _write_windows(windows, table, sequence_ids, into)
    return _counts(table) | {"messages": messages.height, "composed": composed}


def _write_messages(messages: pl.DataFrame, composer: Composer, into: Path) -> None:
    table = messages.with_columns(
        first_tokens=pl.Series(composer.first, dtype=pl.List(pl.UInt32)),
        next_tokens=pl.Series(composer.next, dtype=pl.List(pl.UInt32)),
    )
    write_table(table, into / "messages.parquet")


def _distinct_sequences(windows: Path, masks: Path, progress: Progress) -> tuple[list[bytes], _U32]:
    """The distinct message sequences (bytes of 32-bit ids) by first appearance, and each window's place among them."""
    message_of_line = _message_of_line(masks / "line_messages.parquet")
    known: dict[bytes, int] = {}
    found: list[int] = []
    total = pq.read_metadata(windows / "windows.parquet").num_rows
    for window_ids, lines in _event_stretches(windows / "events.parquet"):
        ids = message_of_line[lines]
        bounds = [0, *(np.flatnonzero(np.diff(window_ids)) + 1).tolist(), len(ids)]
        data = ids.tobytes()
        for start, end in pairwise(bounds):
            found.append(known.setdefault(data[4 * start : 4 * end], len(known)))
        progress(len(found), total, "windows read")
    return list(known), np.array(found, dtype=np.uint32)


def _message_of_line(file: Path) -> _U32:
    table = pl.read_parquet(file)
    if table.is_empty():
        return np.zeros(0, dtype=np.uint32)
    messages = np.zeros(int(table["line_number"][-1]) + 1, dtype=np.uint32)
    messages[table["line_number"].to_numpy()] = table["message_id"].to_numpy()
    return messages


def _event_stretches(file: Path) -> Iterator[tuple[_U32, _U32]]:
    """Window ids and line numbers, one row group after the other; a window's events lie in one row group."""
    events = pq.ParquetFile(file)
    for group in range(events.num_row_groups):
        table = events.read_row_group(group)
        if table.num_rows:
            yield table["window_id"].to_numpy(), table["line_number"].to_numpy()


def _lists(arrays: Sequence[_U32]) -> pl.Series:
    return pl.Series(arrays, dtype=pl.List(pl.UInt32))


def _sequence_table(sequences: Sequence[_U32], tokens: Sequence[Tokens], sequence_ids: _U32) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "sequence_id": pl.arange(len(sequences), eager=True, dtype=pl.UInt32),
            "sequence_hash": [sequence_hash(each.ids) for each in tokens],
            "message_ids": _lists(sequences),
            "token_ids": _lists([each.ids for each in tokens]),
            "message_starts": _lists([each.starts for each in tokens]),
            "n_tokens": pl.Series([len(each.ids) for each in tokens], dtype=pl.UInt32),
            "truncated": [each.truncated for each in tokens],
            "windows": np.bincount(sequence_ids, minlength=len(sequences)).astype(np.uint32),
        }
    )


def _write_windows(windows: Path, sequences: pl.DataFrame, sequence_ids: _U32, into: Path) -> None:
    """The window stage's columns and each window's sequence, some windows at a time."""
    facts = pl.read_parquet(windows / "windows.parquet")
    facts = facts.with_columns(sequence_id=pl.Series(sequence_ids, dtype=pl.UInt32))
    known = sequences.select("sequence_hash", "message_ids", "n_tokens", "truncated")
    with TableWriter(into / "windows.parquet", {**facts.schema, **known.schema}) as writer:
        for part in facts.iter_slices(_WINDOWS_AT_ONCE):
            writer.add(pl.concat([part, known[part["sequence_id"]]], how="horizontal"))


def _counts(sequences: pl.DataFrame) -> dict[str, Any]:
    weighted = sequences.select(
        windows=pl.col("windows").sum(),
        tokens=(pl.col("n_tokens").cast(pl.UInt64) * pl.col("windows")).sum(),
        truncated_windows=pl.col("windows").filter(pl.col("truncated")).sum(),
    )
    return {
        **weighted.row(0, named=True),
        "distinct_sequences": sequences.height,
        "distinct_sequence_tokens": int(sequences["n_tokens"].sum()),
    }
