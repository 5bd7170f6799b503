"""From pieces of a raw log to closed windows of masked messages, in bounded memory."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from storage.datasets import DatasetSpec
from storage.errors import FormatError, SourceError
from storage.log_chunks import ChunkReader
from storage.log_inputs import Piece
from storage.masks import Masker, MaskRules
from storage.open_windows import ROW_BYTES, Closing, OpenWindows
from storage.raw_blocks import RawBlocks
from storage.windows import WindowRule

_CHECKED_LINES = 100
"""Lines that must be read before they can be said not to have the detector's form."""
_MANY_MESSAGES = 200_000
"""Distinct messages from which those that no open window has are forgotten."""


@dataclass
class StreamCounts:
    """What was read."""

    lines: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Lines that are not of the detector's form, by reason."""
    outside: int = 0
    """Lines that are in no window."""
    closed_early: int = 0
    """Windows closed to keep within memory though they might have grown."""

    @property
    def misread(self) -> int:
        """Lines that are not of the detector's form, blank ones aside."""
        return self.rejected.total() - self.rejected["blank"]

    @property
    def read(self) -> int:
        """All lines but blank ones."""
        return self.lines - self.rejected["blank"]


@dataclass(frozen=True)
class Windows:
    """Closed windows."""

    table: pl.DataFrame
    """key, site, first_time, last_time, lines, messages (numbers), line_numbers."""
    texts: list[str]
    """The masked messages by number."""


class LogStream:
    """Reads a log as the detector's training read its own."""

    def __init__(
        self,
        spec: DatasetSpec,
        rule: WindowRule,
        masks: MaskRules,
        *,
        closing: Closing | None = None,
        memory_bytes: int = 1 << 30,
        most_misread: float = 1.0,
    ) -> None:
        """`most_misread`: share of lines not of the form above which the log does not fit the detector."""
        spec = spec.model_copy(update={"label_file": None, "label_field": None})
        self._spec, self._rule, self._closing = spec, rule, closing or Closing()
        self._reader, self._masker = ChunkReader(spec, rule, None), Masker(masks, spec)
        self._open = OpenWindows(rule, self._closing)
        self._memory, self._most_misread = memory_bytes, most_misread
        self._texts: dict[str, int] = {}
        self._offset = 0
        self.blocks = RawBlocks(spec.encoding)
        self.counts = StreamCounts()

    def windows(self, pieces: Iterator[Piece]) -> Iterator[Windows]:
        """The windows, in batches, as they are complete; the raw text of a batch's lines is there until the next one.

        Raises FormatError where the lines do not fit the detector or make no window, SourceError where there are none.
        """
        sources: dict[str, None] = {}
        for piece in pieces:
            sources[piece.source] = None
            now = None if piece.data else time.monotonic()
            if piece.data:
                self._add(piece)
                self._check_form(piece.source)
            yield from self._handed_on(self._open.complete(now))
            while self._memory_used() > self._memory and self._open.windows > 1:
                yield from self._handed_on(self._open.relieve())
        yield from self._handed_on(self._open.rest())
        self.counts.closed_early = self._open.early
        self._check_end(", ".join(sources))

    @property
    def left_open(self) -> int:
        """Windows that may still grow, and are not judged yet."""
        return self._open.windows

    def _add(self, piece: Piece) -> None:
        chunk = self._reader.read(piece.data, 0)
        members = self._open.members(chunk)
        rows = members["line_number"].unique().sort().to_numpy()
        texts = self._masker.masked(piece.data, rows)
        self.counts.lines += chunk.height
        self.counts.rejected.update(chunk.rejects["reason"])
        self.counts.outside += chunk.lines.height - len(rows)
        if len(rows):
            self.blocks.add(self._offset, piece)
        messages = pl.DataFrame({"line_number": rows, "message": self._numbered(texts)})
        self._open.add(chunk, members, messages, self._offset, time.monotonic())
        self._offset += chunk.height

    def _numbered(self, texts: pl.Series) -> pl.Series:
        """The messages' numbers."""
        distinct = texts.unique()
        numbers = [self._texts.setdefault(text, len(self._texts)) for text in distinct]
        return texts.replace_strict(distinct, pl.Series(numbers, dtype=pl.UInt32), return_dtype=pl.UInt32)

    def _handed_on(self, batches: Iterator[pl.DataFrame]) -> Iterator[Windows]:
        handed = False
        texts = list(self._texts)
        for table in batches:
            handed = True
            yield Windows(table, texts)
        if handed:
            self.blocks.keep(self._open.lines["line"])
            self._forget()

    def _forget(self) -> None:
        """Drop messages that no open window has, once there are many."""
        if len(self._texts) <= _MANY_MESSAGES:
            return
        texts, used = list(self._texts), self._open.lines["message"].unique().sort()
        self._texts = {texts[number]: place for place, number in enumerate(used)}
        self._open.renumber(pl.DataFrame({"message": used, "number": np.arange(len(used), dtype=np.uint32)}))

    def _memory_used(self) -> int:
        return self._open.height * ROW_BYTES + self.blocks.bytes

    def _check_form(self, source: str) -> None:
        counts = self.counts
        if counts.read >= _CHECKED_LINES and counts.misread > self._most_misread * counts.read:
            raise FormatError(self._misfit(source))

    def _check_end(self, source: str) -> None:
        counts = self.counts
        if not counts.read:
            raise SourceError(f"{source or 'The input'} is empty: there is nothing to judge.")
        if counts.misread > self._most_misread * counts.read or counts.misread == counts.read:
            raise FormatError(self._misfit(source))
        if counts.outside == counts.read - counts.misread:
            key = f": none names a key like {self._rule.key!r}" if self._rule.kind == "session" else ""
            raise FormatError(f"No line of {source} is in a window{key}; this detector reads {self._spec.name} logs.")

    def _misfit(self, source: str) -> str:
        counts = self.counts
        return (
            f"{counts.misread:,} of {counts.read:,} lines of {source} are not of the form "
            f"{self._spec.log_format.notation!r} that the detector for {self._spec.name} reads; "
            "choose another with --model, or train one on such logs."
        )
