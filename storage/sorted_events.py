"""Window events sorted by window on disk, so that memory holds one stretch of windows at a time."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import polars as pl

from storage.tables import TableWriter

STRETCH_BITS = 15
"""Windows are sorted in stretches of 2^15 ids."""

SCHEMA = {"window_id": pl.UInt32, "line_number": pl.UInt32}
_U32 = npt.NDArray[np.uint32]


class SortedEvents(AbstractContextManager["SortedEvents"]):
    """Takes (line, window) pairs in the log's order and writes them by window; within one the order stays."""

    def __init__(self, beside: Path) -> None:
        self._folder = beside / ".events"
        self._stretches: set[int] = set()

    def __enter__(self) -> "SortedEvents":
        self._folder.mkdir()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, line_numbers: _U32, window_ids: _U32) -> None:
        """Set a chunk's pairs aside, by stretch of windows."""
        pairs = np.stack([window_ids, line_numbers], axis=1).astype(np.uint32, copy=False)
        stretches = window_ids >> STRETCH_BITS
        for stretch in np.unique(stretches).tolist():
            self._stretches.add(stretch)
            with (self._folder / str(stretch)).open("ab") as file:
                file.write(pairs[stretches == stretch].tobytes())

    def write(self, path: Path, windows: int) -> None:
        """Write the events of the first `windows` windows as Parquet, one stretch a row group."""
        with TableWriter(path, SCHEMA) as writer:
            for stretch in sorted(self._stretches):
                file = self._folder / str(stretch)
                pairs = np.fromfile(file, np.uint32).reshape(-1, 2)
                pairs = pairs[pairs[:, 0] < windows]
                pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
                table = pl.DataFrame({"window_id": pairs[:, 0], "line_number": pairs[:, 1]}, schema=SCHEMA)
                writer.add(table)
                file.unlink()
