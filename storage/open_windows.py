"""Windows of a log that is read piece by piece: open while they may still grow, then closed and handed on.

What is handed on equals what storage/windows.py makes of the whole log, as long as no window had to be closed early.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from storage.log_chunks import LogChunk
from storage.log_clock import LogClock
from storage.memberships import Counts
from storage.windows import WindowRule

BATCH = 1 << 15
"""Windows handed on at once."""
ROW_BYTES = 56
"""Memory that an open line takes, its text aside."""
_LINE_SCHEMA: dict[str, Any] = {
    "window": pl.UInt32,
    "line": pl.UInt64,
    "message": pl.UInt32,
    "time": pl.Datetime("us"),
    "site": pl.String,
    "clock": pl.Float64,
    "arrived": pl.Float64,
}
"""One row a line and window; `line` counts over all inputs, `clock` (along the log) and `arrived` are in seconds."""


@dataclass(frozen=True)
class Closing:
    """When a window is complete, besides at the end of the input (and, for count windows, when it is full)."""

    gap: float | None = None
    """Seconds without a line: a session that had none for so long is complete, a time window so long after its end; by
    what passes along the log (storage/log_clock.py) and, while a growing log is waited for, by the clock. None: all
    stay open to the end."""
    leave_open: bool = False
    """Whether windows that may still grow at the end are left alone instead of judged as they are."""


class OpenWindows:
    """Gathers the lines of each window until it is complete."""

    def __init__(self, rule: WindowRule, closing: Closing) -> None:
        self._rule, self._closing = rule, closing
        self._membership = rule.membership()
        self._ids: dict[str, int] = {}
        self._next = 0
        self._lines = pl.DataFrame(schema=_LINE_SCHEMA)
        self._parts: list[pl.DataFrame] = []
        # A time window lasts for its size after its first line at most, and may hold nothing for all of it.
        spans = rule.size if rule.kind == "time" and rule.size else 0
        self._patience = None if closing.gap is None else closing.gap + spans
        self._clock = LogClock(self._patience or 0.0)
        self.early = 0
        """Windows closed to keep within memory though they might have grown."""

    def members(self, chunk: LogChunk) -> pl.DataFrame:
        """Which windows the lines of the next chunk are in: columns line_number (within the chunk) and key."""
        return self._membership.members(chunk.keys if self._rule.kind == "session" else chunk.lines)

    def add(self, chunk: LogChunk, members: pl.DataFrame, messages: pl.DataFrame, offset: int, arrived: float) -> None:
        """Take in a chunk whose first line is the input's line `offset`; messages has line_number and message."""
        times = chunk.lines["time"].dt.timestamp("us").cast(pl.Float64) / 1e6
        facts = chunk.lines.select("line_number", "time", "site", clock=self._clock.read(times.to_numpy()))
        if members.is_empty():
            return
        keys = members["key"].unique(maintain_order=True)
        numbers = pl.Series([self._number(key) for key in keys], dtype=pl.UInt32)
        lines = members.select("line_number", window=pl.col("key").replace_strict(keys, numbers))
        lines = lines.join(messages, on="line_number", how="left", maintain_order="left")
        lines = lines.join(facts, on="line_number", maintain_order="left")
        lines = lines.with_columns(line=pl.col("line_number").cast(pl.UInt64) + offset, arrived=pl.lit(arrived))
        self._parts.append(lines.select(pl.col(name).cast(kind) for name, kind in _LINE_SCHEMA.items()))

    def _number(self, key: str) -> int:
        """The window's number, by first appearance."""
        if key not in self._ids:
            self._ids[key] = self._next
            self._next += 1
        return self._ids[key]

    @property
    def lines(self) -> pl.DataFrame:
        """The lines of open windows."""
        if self._parts:
            self._lines = pl.concat([self._lines, *self._parts])
            self._parts = []
        return self._lines

    @property
    def height(self) -> int:
        """How many lines are open, counted once for each of their windows."""
        return self._lines.height + sum(part.height for part in self._parts)

    @property
    def windows(self) -> int:
        """How many windows are open."""
        return len(self._ids)

    def complete(self, now: float | None = None) -> Iterator[pl.DataFrame]:
        """The windows that are complete, in batches; `now` where no more lines have come, in the unit of `arrived`."""
        done = self._complete(now)
        if done is not None and not done.is_empty():
            yield from self._close(done)

    def _complete(self, now: float | None) -> pl.Series | None:
        if isinstance(self._membership, Counts):
            size, step = self._membership.size, self._membership.step
            full = (self._membership.lines - size) // step
            return pl.Series([number for key, number in self._ids.items() if int(key) <= full], dtype=pl.UInt32)
        if self._patience is None or not self._ids:
            return None
        last = self.lines.group_by("window").agg(pl.col("clock").max(), pl.col("arrived").max())
        idle = self._clock.elapsed - pl.col("clock") > self._patience
        if now is not None:
            idle = idle | (now - pl.col("arrived") > self._patience)
        return last.filter(idle)["window"]

    def relieve(self) -> Iterator[pl.DataFrame]:
        """Close the half of all open lines whose windows have waited longest for another one."""
        waited = self.lines.group_by("window").agg(pl.col("line").max(), pl.len()).sort("line")
        oldest = waited.filter(pl.col("len").cum_sum() - pl.col("len") < self.height / 2)["window"]
        self.early += len(oldest)
        yield from self._close(oldest)

    def rest(self) -> Iterator[pl.DataFrame]:
        """At the end of the input, all that are still open, unless those are to be left alone."""
        if self._closing.leave_open:
            return
        keep = self._membership.keep()
        for key in [key for key in self._ids if keep is not None and int(key) >= keep]:
            del self._ids[key]
        if self._ids:
            yield from self._close(pl.Series(list(self._ids.values()), dtype=pl.UInt32))
        self._lines = self._lines.clear()

    def renumber(self, messages: pl.DataFrame) -> None:
        """Give messages other numbers: columns message and number."""
        renamed = self.lines.join(messages, on="message", how="left", maintain_order="left")
        self._lines = renamed.drop("message").rename({"number": "message"}).select(list(_LINE_SCHEMA))

    def _close(self, numbers: pl.Series) -> Iterator[pl.DataFrame]:
        """Windows, in order of first appearance: key, site, first_time, last_time, lines, messages, line_numbers."""
        closed = pl.col("window").is_in(numbers.implode())
        leaving = self.lines.filter(closed)
        self._lines = self.lines.filter(~closed)
        gone = set(numbers.to_list())
        names = {number: key for key, number in self._ids.items() if number in gone}
        for key in names.values():
            del self._ids[key]
        order = sorted(names)
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            yield _windows(leaving.filter(pl.col("window").is_between(part[0], part[-1])), names)


def _windows(lines: pl.DataFrame, names: dict[int, str]) -> pl.DataFrame:
    made = (
        lines.group_by("window", maintain_order=True)
        .agg(
            pl.col("site").first(),
            first_time=pl.col("time").min(),
            last_time=pl.col("time").max(),
            lines=pl.len().cast(pl.UInt32),
            messages=pl.col("message"),
            line_numbers=pl.col("line"),
        )
        .sort("window")
    )
    keys = pl.Series("key", [names[number] for number in made["window"]], dtype=pl.String)
    return made.drop("window").insert_column(0, keys)
