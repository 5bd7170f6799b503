"""Tokens: every distinct message once, and every window as the messages it is made of."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from storage.composer import Composer, TokenRule, Tokens, load_tokenizer, sequence_hash
from storage.progress import Progress, silent
from storage.tables import TableWriter, list_column, write_table

_WINDOWS_AT_ONCE = 1 << 15
_U32 = npt.NDArray[np.uint32]


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
    write_messages(messages, composer, into)
    known, sequence_ids = _distinct_sequences(windows, masks, progress)
    sequences = [np.frombuffer(sequence, dtype=np.uint32) for sequence in known]
    tokens, composed = composer.tokens_of(sequences)
    table = sequence_table(sequences, tokens, sequence_ids)
    write_table(table, into / "sequences.parquet")
    write_windows(pl.read_parquet(windows / "windows.parquet"), table, sequence_ids, into)
    return count_sequences(table) | {"messages": messages.height, "composed": composed}


def write_messages(messages: pl.DataFrame, composer: Composer, into: Path) -> None:
    """The distinct messages (message_id, text) and their tokens where a window begins with them, and elsewhere."""
    table = messages.with_columns(
        first_tokens=_lists(composer.first),
        next_tokens=_lists(composer.next),
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
            # Not by Arrow's own to_numpy, which imports pandas.
            yield pl.Series(table["window_id"]).to_numpy(), pl.Series(table["line_number"]).to_numpy()


def _lists(arrays: Sequence[_U32]) -> pl.Series:
    return list_column(arrays, pl.UInt32())


def sequence_table(sequences: Sequence[_U32], tokens: Sequence[Tokens], sequence_ids: _U32) -> pl.DataFrame:
    """One row a distinct sequence, numbered as given, and how many windows (`sequence_ids`) have it."""
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


def write_windows(facts: pl.DataFrame, sequences: pl.DataFrame, sequence_ids: _U32, into: Path) -> None:
    """The window stage's columns (`facts`) and each window's sequence, some windows at a time."""
    facts = facts.with_columns(sequence_id=pl.Series(sequence_ids, dtype=pl.UInt32))
    known = sequences.select("sequence_hash", "message_ids", "n_tokens", "truncated")
    with TableWriter(into / "windows.parquet", {**facts.schema, **known.schema}) as writer:
        for part in facts.iter_slices(_WINDOWS_AT_ONCE):
            writer.add(pl.concat([part, known[part["sequence_id"]]], how="horizontal"))


def count_sequences(sequences: pl.DataFrame) -> dict[str, Any]:
    """Numbers of windows, tokens and distinct sequences in such a table."""
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
