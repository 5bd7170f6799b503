"""A chunk of a raw log taken apart: parsed lines, the session keys they name, their labels, and what was rejected."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from storage.log_formats import CONTENT
from storage.memberships import session_keys
from storage.raw_lines import Lines, decode_lines

if TYPE_CHECKING:
    from storage.datasets import DatasetSpec
    from storage.windows import WindowRule

REJECT_SCHEMA = {"line_number": pl.UInt32, "reason": pl.String, "raw": pl.String}


@dataclass(frozen=True)
class LogChunk:
    """What one chunk of the log holds."""

    height: int
    """All its lines."""
    lines: pl.DataFrame
    """Parsed lines: line_number, time, site, label (1 anomalous, 0 normal, null unknown), kind (of anomaly)."""
    keys: pl.DataFrame
    """Session keys: line_number, key."""
    repeated: int
    """Lines that name keys more than once, be it the same."""
    rejects: pl.DataFrame
    """line_number, reason, raw."""


class ChunkReader:
    """Takes chunks apart as a dataset and a window rule say; may work on several at a time.

    Labels of session keys pass to the lines that name the keys where the windows are not sessions.
    """

    def __init__(self, spec: "DatasetSpec", rule: "WindowRule", labels: pl.DataFrame | None) -> None:
        self._spec, self._sessions = spec, rule.kind == "session"
        self._key_labels = None if self._sessions else labels
        named_by = rule if self._sessions else spec.window
        self._key = (named_by.key or "") if self._sessions or self._key_labels is not None else None
        self._key_field = named_by.key_field if self._key is not None else None
        fields = [*spec.log_format.time_fields, spec.site_field, spec.label_field, self._key_field]
        self._wanted = list(dict.fromkeys(field for field in fields if field)) or [CONTENT]

    def read(self, data: bytes, first: int) -> LogChunk:
        """The chunk's lines, the first of which is the log's line `first`."""
        decoded = decode_lines(data, self._spec.encoding)
        form = self._spec.log_format
        fields = form.parse(decoded.text, self._wanted)
        fields = fields.with_columns(
            form.times(fields).alias("/time"),
            pl.arange(first, first + pl.len(), dtype=pl.UInt32).alias("line_number"),
        )
        parsed = fields[self._wanted[0]].is_not_null()
        good = parsed & fields["/time"].is_not_null() if form.time_format else parsed
        rejects = _rejects(decoded, first, parsed, good)
        if not good.all():
            fields = fields.filter(good)
        keys, repeated = self._keys(fields)
        lines = fields.select(
            "line_number",
            time="/time",
            site=self._spec.site_field or pl.lit(""),
            **self._labels_in_line(),
        )
        if self._key_labels is not None:
            lines = _with_key_labels(lines, keys, self._key_labels)
        return LogChunk(len(decoded.text), lines, keys, repeated, rejects)

    def _keys(self, fields: pl.DataFrame) -> tuple[pl.DataFrame, int]:
        if self._key is None or self._key_field is None:
            return pl.DataFrame(schema={"line_number": pl.UInt32, "key": pl.String}), 0
        return session_keys(fields.select("line_number", text=self._key_field), self._key)

    def _labels_in_line(self) -> dict[str, pl.Expr]:
        if self._spec.label_field is None:
            return {"label": pl.lit(None, pl.Int8), "kind": pl.lit(None, pl.String)}
        word = pl.col(self._spec.label_field)
        anomalous = word != self._spec.normal_word
        return {"label": anomalous.cast(pl.Int8), "kind": pl.when(anomalous).then(word)}


def _with_key_labels(lines: pl.DataFrame, keys: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    known = keys.join(labels, on="key", maintain_order="left").group_by("line_number", maintain_order=True)
    by_line = known.agg(pl.col("label").max(), pl.col("kind").drop_nulls().first())
    return lines.drop("label", "kind").join(by_line, on="line_number", how="left", maintain_order="left")


def _rejects(lines: Lines, first: int, parsed: pl.Series, good: pl.Series) -> pl.DataFrame:
    rows = (~good).arg_true()
    table = [
        (first + row, _reason(text, has_form), lines.undecodable[row] if text is None else text)
        for row, text, has_form in zip(rows, lines.text.gather(rows), parsed.gather(rows), strict=True)
    ]
    return pl.DataFrame(table, schema=REJECT_SCHEMA, orient="row")


def _reason(text: str | None, has_form: bool) -> str:
    """Why a line was rejected, in a word that also names the count."""
    if text is None:
        return "undecodable"
    if not text.strip():
        return "blank"
    return "time" if has_form else "form"
