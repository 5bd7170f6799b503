"""The raw text of lines that an open window may still be told of: compressed, and dropped when no window has them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from storage.log_inputs import Piece
from storage.raw_lines import decode_lines


class RawLine(BaseModel):
    """A line as it stands in its log."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: str
    """The log, `-` for standard input."""
    line: int
    """Its number in the log, from 1."""
    text: str
    """As it was read, U+FFFD for bytes that are not text."""


@dataclass(frozen=True)
class _Block:
    source: str
    first_line: int
    size: int
    data: bytes


class RawBlocks:
    """Pieces of logs by the number of their first line, counted over all inputs."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._blocks: dict[int, _Block] = {}

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(len(block.data) for block in self._blocks.values())

    def add(self, offset: int, piece: Piece) -> None:
        """Keep a piece whose first line is the input's line `offset`."""
        data = pa.compress(piece.data, codec="zstd", asbytes=True)
        self._blocks[offset] = _Block(piece.source, piece.first_line, len(piece.data), data)

    def keep(self, line_numbers: pl.Series) -> None:
        """Drop all blocks but those with one of these lines."""
        if not self._blocks:
            return
        needed = np.unique(self._place(line_numbers.to_numpy()))
        self._blocks = {offset: self._blocks[offset] for offset in needed.tolist()}

    def read(self, line_numbers: Iterable[int]) -> dict[int, RawLine]:
        """The lines with these numbers, each block decompressed once."""
        wanted = np.unique(np.fromiter(line_numbers, dtype=np.int64))
        places = self._place(wanted)
        found: dict[int, RawLine] = {}
        for offset in np.unique(places).tolist():
            rows = wanted[places == offset] - offset
            found |= zip((rows + offset).tolist(), self._read(self._blocks[offset], rows), strict=True)
        return found

    def _place(self, line_numbers: np.ndarray) -> np.ndarray:
        """The offset of each line's block."""
        offsets = np.array(sorted(self._blocks), dtype=np.int64)
        return offsets[np.searchsorted(offsets, line_numbers, side="right") - 1]

    def _read(self, block: _Block, rows: np.ndarray) -> list[RawLine]:
        data = pa.decompress(block.data, decompressed_size=block.size, codec="zstd", asbytes=True)
        lines = decode_lines(data, self._encoding)
        return [
            RawLine(
                file=block.source,
                line=block.first_line + row + 1,
                text=lines.undecodable.get(row) or lines.text[row] or "",
            )
            for row in rows.tolist()
        ]
