"""Which windows a line belongs to: a session key's, a counted stretch's, or a time span's."""

import re
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

MEMBER_SCHEMA = {"line_number": pl.UInt32, "key": pl.String}


class Membership(Protocol):
    """Tells for one chunk after the other, in the log's order, which lines are in which windows."""

    def members(self, lines: pl.DataFrame) -> pl.DataFrame:
        """Line and window key (columns line_number, key) of lines (columns line_number, time, or the keys found)."""

    def keep(self) -> int | None:
        """After the last chunk: how many windows, by first appearance, are not contained in another; None for all."""


def session_keys(texts: pl.DataFrame, pattern: str) -> tuple[pl.DataFrame, int]:
    """The distinct keys that each text (columns line_number, text) names, in its order (columns line_number, key).

    Beside them the number of texts that name keys more than once, be it the same key.
    The key is the pattern's first group where it has one, else all that it matches.
    """
    found = texts.select("line_number", key=pl.col("text").str.extract_all(pattern))
    keys = found.filter(pl.col("key").list.len() > 0).explode("key")
    if re.compile(pattern).groups:
        keys = keys.with_columns(pl.col("key").str.extract(pattern, 1))
    keys = keys.filter(pl.col("key").fill_null("") != "")
    again = pl.col("line_number") == pl.col("line_number").shift(1)
    repeated = keys.filter(again)["line_number"].n_unique()
    # Most lines that name a key twice name the same one: those go cheaply, by the key before.
    keys = keys.filter((again & (pl.col("key") == pl.col("key").shift(1))).not_().fill_null(True))
    if keys.select(again.any()).item():
        keys = keys.unique(["line_number", "key"], keep="first", maintain_order=True)
    return keys, repeated


class Sessions:
    """The lines that name a key; the keys are already found (column keys)."""

    def members(self, lines: pl.DataFrame) -> pl.DataFrame:
        """The keys as they were found."""
        return lines

    def keep(self) -> None:
        """No session is contained in another."""


class Counts:
    """`size` lines a window, a new one every `step` lines; windows are named by their number."""

    def __init__(self, size: int, step: int) -> None:
        self.size, self.step, self.lines = size, step, 0

    def members(self, lines: pl.DataFrame) -> pl.DataFrame:
        """Line i is in the windows k with k step <= i < k step + size."""
        index = np.arange(self.lines, self.lines + lines.height, dtype=np.int64)
        self.lines += lines.height
        first = np.maximum((index - self.size) // self.step + 1, 0)
        rows, windows = _each(lines["line_number"].to_numpy(), first, index // self.step)
        return pl.DataFrame({"line_number": rows, "key": windows}).with_columns(pl.col("key").cast(pl.String))

    def keep(self) -> int:
        """The last windows are cut short by the log's end; those that hold no line of their own are left out."""
        return max(-(-(self.lines - self.size) // self.step) + 1, 1)


class Spans:
    """`size` seconds a window, a new one every `step` seconds from the first line's step on; named by their start."""

    def __init__(self, size: int, step: int) -> None:
        self.size, self.step = size * 1_000_000, step * 1_000_000
        self.first: int | None = None

    def members(self, lines: pl.DataFrame) -> pl.DataFrame:
        """A line at time t is in the windows k with k step <= t < k step + size, counted from 1970.

        Windows that start before the first line's are left out, except the latest one that holds a line out of order.
        """
        times = lines["time"].cast(pl.Int64).to_numpy()
        if self.first is None and len(times):
            self.first = int(times[0]) // self.step
        last = times // self.step
        first = np.maximum((times - self.size) // self.step + 1, np.minimum(self.first or 0, last))
        rows, windows = _each(lines["line_number"].to_numpy(), first, last)
        distinct, codes = np.unique(windows, return_inverse=True)
        names = pl.Series([self._name(int(window)) for window in distinct], dtype=pl.String)
        return pl.DataFrame({"line_number": rows, "key": names.gather(codes)}, schema=MEMBER_SCHEMA)

    def _name(self, window: int) -> str:
        return datetime.fromtimestamp(window * self.step // 1_000_000, UTC).replace(tzinfo=None).isoformat()

    def keep(self) -> None:
        """Spans at the end are kept: that nothing follows is part of what happened."""


def _each(
    rows: npt.NDArray[np.uint32], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Every row with each of its windows from first to last; none where last is before first."""
    counts = np.maximum(last - first + 1, 0)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    windows = np.repeat(first, counts) + np.arange(counts.sum()) - starts
    return np.repeat(rows, counts), windows
