"""Parquet files, written whole or piece by piece; a full disk is the system's own error, which Polars' writer hides."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq


def list_column(arrays: Sequence[npt.NDArray[Any]], inner: pl.DataType) -> pl.Series:
    """Arrays as a column of lists. Those of one length become Polars' array type, whatever type is asked for."""
    kind = pl.List(inner)
    return pl.Series(arrays, dtype=kind).cast(kind)


def write_table(table: pl.DataFrame, path: Path) -> None:
    """Write a table; raises OSError where the disk is full."""
    pq.write_table(table.to_arrow(), path, compression="zstd")


class TableWriter(AbstractContextManager["TableWriter"]):
    """Appends pieces of a table to one file, each a row group of its own; without any, the file is an empty table."""

    def __init__(self, path: Path, schema: Mapping[str, Any]) -> None:
        self._schema = pl.Schema(schema)
        self._writer = pq.ParquetWriter(path, self._schema.to_frame().to_arrow().schema, compression="zstd")

    def add(self, piece: pl.DataFrame) -> None:
        """Append a piece with the schema's columns."""
        if piece.height:
            # Else Arrow makes several row groups of more than 2^20 rows, and cuts what must stay together.
            self._writer.write_table(piece.to_arrow(), row_group_size=piece.height)

    def close(self) -> None:
        """Finish the file; closing again does nothing."""
        self._writer.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
