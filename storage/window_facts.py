"""What is known of each window while a log is read: its number, times, lines, site and label."""

from collections import Counter
from typing import Any

import polars as pl

_COMPACT_ROWS = 2_000_000

WINDOW_SCHEMA: dict[str, Any] = {
    "window_id": pl.UInt32,
    "key": pl.String,
    "site": pl.String,
    "first_time": pl.Datetime("us"),
    "last_time": pl.Datetime("us"),
    "label": pl.Int8,
    "kind": pl.String,
    "lines": pl.UInt32,
}


class WindowFacts:
    """Numbers windows in order of first appearance and gathers what each chunk tells of them."""

    def __init__(self, limit: int | None) -> None:
        self.lines = 0
        self.parsed = 0
        self.rejected: Counter[str] = Counter()
        self.outside = 0
        """Parsed lines that are in no window."""
        self.shared = 0
        """Lines that are in two or more windows."""
        self.repeated = 0
        """Lines that name window keys more than once, be it the same one."""
        self.ids: dict[str, int] = {}
        self._limit = limit
        self._parts: list[pl.DataFrame] = []

    def add(self, height: int, lines: pl.DataFrame, members: pl.DataFrame) -> pl.DataFrame:
        """Take in a chunk's parsed lines and members; gives the members kept, as line_number and window_id."""
        self.lines += height
        self.parsed += lines.height
        in_windows = members["line_number"].n_unique()
        self.outside += lines.height - in_windows
        self.shared += members.filter(pl.col("line_number").is_duplicated())["line_number"].n_unique()
        keys = members.select(pl.col("key").unique(maintain_order=True))
        ids = [self.ids.setdefault(key, len(self.ids)) for key in keys["key"]]
        numbered = members.select("line_number", "key").join(
            keys.with_columns(window_id=pl.Series(ids, dtype=pl.UInt32)), on="key", how="left", maintain_order="left"
        )
        if self._limit is not None and len(self.ids) > self._limit:
            numbered = numbered.filter(pl.col("window_id") < self._limit)
        self._parts.append(self._facts(lines, numbered))
        if sum(part.height for part in self._parts) > _COMPACT_ROWS:
            self._parts = [_combined(self._parts)]
        return numbered.select("line_number", "window_id")

    def _facts(self, lines: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
        known = numbered.select("line_number", "window_id").join(
            lines.select("line_number", "time", "site", "label", "kind"),
            on="line_number",
            how="left",
            maintain_order="left",
        )
        return known.group_by("window_id", maintain_order=True).agg(
            site=pl.col("site").first(),
            first_time=pl.col("time").min(),
            last_time=pl.col("time").max(),
            label=pl.col("label").max(),
            kind=pl.col("kind").drop_nulls().first(),
            lines=pl.len().cast(pl.UInt32),
        )

    def windows(self, keep: int | None) -> pl.DataFrame:
        """One row a window, in order of first appearance; only the first `keep`."""
        names = pl.DataFrame({"key": list(self.ids)}, schema={"key": pl.String}).with_row_index("window_id")
        known = _combined(self._parts).join(names, on="window_id", how="left")
        windows = known.sort("window_id").select(pl.col(name).cast(kind) for name, kind in WINDOW_SCHEMA.items())
        return windows if keep is None else windows.filter(pl.col("window_id") < keep)

    def counts(self) -> dict[str, Any]:
        """Numbers of lines by what became of them."""
        return {
            "lines": self.lines,
            "parsed": self.parsed,
            "rejected": sum(self.rejected.values()),
            **{f"rejected_{reason}": count for reason, count in sorted(self.rejected.items())},
            "lines_outside": self.outside,
        }


def _combined(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return (
        pl.concat(parts)
        .group_by("window_id", maintain_order=True)
        .agg(
            pl.col("site").first(),
            pl.col("first_time").min(),
            pl.col("last_time").max(),
            pl.col("label").max(),
            pl.col("kind").drop_nulls().first(),
            pl.col("lines").sum(),
        )
    )
