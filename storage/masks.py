"""Masks: ordered rules that replace what varies in a message, so that messages of one kind become equal."""

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, model_validator

from storage.log_formats import CONTENT
from storage.progress import Progress, silent
from storage.raw_lines import count_lines, decode_lines, work_on_chunks
from storage.tables import TableWriter, write_table

if TYPE_CHECKING:
    from storage.datasets import DatasetSpec

FIELD = "<*>"
"""What masks write in the place of a value, unless a rule of one's own says otherwise."""
_KNOWN_TEXTS = 200_000
"""Texts whose masked form is remembered from chunk to chunk; a bound on memory where every line differs."""


class MaskRule(BaseModel):
    """One replacement, as Python's `re.sub` does it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    pattern: str
    """Regular expression of Python's `re`."""
    replacement: str = FIELD
    """What stands in its place; `\\\\1` is the first group."""

    @model_validator(mode="after")
    def _compiles(self) -> "MaskRule":
        try:
            re.sub(self.pattern, self.replacement, "")
        except (re.error, IndexError) as error:
            raise ValueError(f"{self.pattern!r} -> {self.replacement!r}: {error}") from error
        return self


_APART, _ENDS = "(?<![0-9A-Za-z])", "(?![0-9A-Za-z])"
PRESETS: dict[str, tuple[MaskRule, ...]] = {
    # The reference code's rules for HDFS, in its order: block ids, IPv4 addresses, paths, numbers.
    "hdfs": (
        MaskRule(pattern=r"(?<=blk_)[-\d]+"),
        MaskRule(pattern=r"\d+\.\d+\.\d+\.\d+"),
        MaskRule(pattern=r"(/[-\w]+)+"),
        MaskRule(pattern=r"(?<=[^A-Za-z0-9])(\-?\+?\d+)(?=[^A-Za-z0-9])|[0-9]+$"),
    ),
    # The paper's text: every number.
    "numbers": (MaskRule(pattern=r"\d+"),),
    # Of a hexadecimal number `numbers` leaves letters, <*>d<*>ac, by which nearly every one is a message of its own.
    # Words of the letters a to f are words, unless they are as long as addresses are.
    "hex": (
        MaskRule(pattern=rf"{_APART}[0-9a-fA-F]{{8}}(-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}{_ENDS}"),
        MaskRule(
            pattern=rf"{_APART}(0[xX][0-9a-fA-F]+|([0-9a-fA-F]{{8}}){{1,2}}|(?=[a-fA-F]*[0-9])[0-9a-fA-F]{{4,}}){_ENDS}"
        ),
        MaskRule(pattern=r"\d+"),
    ),
    "none": (),
}


class MaskRules(BaseModel):
    """The rules of a run: a named set, or one's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    preset: Literal["hdfs", "numbers", "hex", "none", "custom"] = "hdfs"
    """hdfs: the reference code's four rules; numbers: every number, as the paper's text says; hex: these, hexadecimal
    numbers as wholes, and UUIDs; none; custom: `rules`."""
    rules: tuple[MaskRule, ...] = ()
    """Custom only: applied one after the other."""

    @model_validator(mode="after")
    def _has_what_it_names(self) -> "MaskRules":
        if (self.preset == "custom") != bool(self.rules):
            raise ValueError("rules go with preset custom, and only with it")
        return self

    @cached_property
    def ordered(self) -> tuple[MaskRule, ...]:
        """The rules, in the order they are applied."""
        return self.rules if self.preset == "custom" else PRESETS[self.preset]

    @cached_property
    def compiled(self) -> tuple[tuple[re.Pattern[str], str], ...]:
        """The rules as compiled patterns with their replacements."""
        return tuple((re.compile(rule.pattern), rule.replacement) for rule in self.ordered)

    @property
    def blind_to_digits(self) -> bool:
        """Whether a run of ASCII digits is masked or left alike whatever its digits and length.

        True of `hdfs` and `numbers`: their patterns take digits only by the whole run, and replacements bring none.
        """
        return self.preset in {"hdfs", "numbers"}


def mask_text(text: str, rules: MaskRules) -> str:
    """Apply the rules to one message."""
    for pattern, replacement in rules.compiled:
        text = pattern.sub(replacement, text)
    return text


def mask_log(
    raw: Path, windows: Path, spec: "DatasetSpec", rules: MaskRules, into: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Mask every line that is in a window of the window stage's folder; writes messages and line_messages.

    Returns the counts. Memory grows with the number of distinct messages, plus one byte a line.
    """
    needed = _needed_lines(windows / "events.parquet")
    masker = Masker(rules, spec)
    messages = _Messages()
    schema = {"line_number": pl.UInt32, "message_id": pl.UInt32}
    with TableWriter(into / "line_messages.parquet", schema) as writer:

        def work(data: bytes, first: int) -> tuple[npt.NDArray[np.uint32], pl.Series]:
            rows = np.flatnonzero(needed[first : first + count_lines(data)]).astype(np.uint32)
            return rows + np.uint32(first), masker.masked(data, rows)

        for lines, texts in work_on_chunks(raw, work, progress=progress):
            if texts.is_empty():
                continue
            writer.add(pl.DataFrame({"line_number": lines, "message_id": messages.ids(texts)}, schema=schema))
    table = messages.table()
    write_table(table, into / "messages.parquet")
    return {"lines": int(table["lines"].sum()), "messages": table.height}


def _needed_lines(events: Path) -> npt.NDArray[np.bool_]:
    """Which lines are in a window, up to the last that is."""
    file = pq.ParquetFile(events)
    needed = np.zeros(0, dtype=np.bool_)
    for batch in file.iter_batches(columns=["line_number"], batch_size=1 << 22):
        # Arrow's own to_numpy imports pandas, which takes longer than masking a small log.
        lines = pl.Series(batch.column(0)).to_numpy()
        if len(lines) and lines.max() >= len(needed):
            needed = np.concatenate([needed, np.zeros(int(lines.max()) + 1 - len(needed), dtype=np.bool_)])
        needed[lines] = True
    return needed


class Masker:
    """Masks the messages of a chunk's lines, each distinct text once.

    Where the rules are blind to digits, lines that differ in digits alone are taken together first: a message whose
    runs of digits are all made "0" masks to the same, unless a digit is left over; only lines where one is left are
    masked as they are.
    """

    def __init__(self, rules: MaskRules, spec: "DatasetSpec") -> None:
        self._rules = rules
        self._format, self._encoding = spec.log_format, spec.encoding
        self._blind = rules.blind_to_digits and not spec.log_format.has_literal_digits
        self._known: dict[str, str] = {}

    def masked(self, data: bytes, rows: npt.NDArray[np.uint32]) -> pl.Series:
        """The masked message of each of the rows."""
        if not len(rows):
            return pl.Series(dtype=pl.String)
        if not self._blind:
            return self._masked_contents(decode_lines(data, self._encoding).text.gather(rows))
        lines = decode_lines(data, self._encoding, zeroed=True).text.gather(rows)
        distinct = lines.unique()
        texts = lines.replace_strict(distinct, self._masked_contents(distinct.str.replace_all("0+", "0")))
        left = texts.str.contains("[0-9]").arg_true()
        if left.is_empty():
            return texts
        whole = decode_lines(data, self._encoding).text.gather(rows[left.to_numpy()])
        return texts.scatter(left, self._masked_contents(whole))

    def _masked_contents(self, lines: pl.Series) -> pl.Series:
        contents = self._format.parse(lines, [CONTENT])[CONTENT]
        distinct = contents.unique()
        return contents.replace_strict(distinct, pl.Series([self._mask(text) for text in distinct], dtype=pl.String))

    def _mask(self, text: str) -> str:
        known = self._known.get(text)
        if known is None:
            if len(self._known) >= _KNOWN_TEXTS:
                self._known.clear()
            known = self._known[text] = mask_text(text, self._rules)
        return known


class _Messages:
    """Distinct masked messages, numbered in order of first appearance."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._lines = np.zeros(0, dtype=np.uint64)

    def ids(self, texts: pl.Series) -> npt.NDArray[np.uint32]:
        """The numbers of a chunk's messages."""
        distinct = texts.unique(maintain_order=True)
        numbers = pl.Series([self._ids.setdefault(text, len(self._ids)) for text in distinct], dtype=pl.UInt32)
        ids = texts.replace_strict(distinct, numbers, return_dtype=pl.UInt32).to_numpy()
        counts = np.bincount(ids, minlength=len(self._ids)).astype(np.uint64)
        counts[: len(self._lines)] += self._lines
        self._lines = counts
        return ids

    def table(self) -> pl.DataFrame:
        """One row a message: message_id, text, lines."""
        schema = {"message_id": pl.UInt32, "text": pl.String, "lines": pl.UInt64}
        texts = {"message_id": range(len(self._ids)), "text": list(self._ids), "lines": self._lines}
        return pl.DataFrame(texts, schema=schema)
