"""Windows of a log: the lines of one session key, a fixed number of lines, or a fixed span of time."""

import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from storage.errors import FormatError
from storage.labels import read_labels
from storage.log_formats import CONTENT
from storage.memberships import Counts, Membership, Sessions, Spans, session_keys
from storage.progress import Progress, silent
from storage.raw_lines import Lines, decode_lines, work_on_chunks
from storage.sorted_events import SortedEvents
from storage.tables import TableWriter, write_table
from storage.window_facts import WindowFacts

if TYPE_CHECKING:
    from storage.datasets import DatasetSpec

REJECTS = "rejects.parquet"
REJECT_SCHEMA = {"line_number": pl.UInt32, "reason": pl.String, "raw": pl.String}


class WindowRule(BaseModel):
    """How a log is cut into windows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["session", "count", "time"]
    """session: the lines that name a key (the paper on HDFS); count: `size` lines; time: `size` seconds."""
    key: str | None = None
    """Session only: regular expression of the key; a line that names two keys belongs to both."""
    key_field: str = CONTENT
    """Session only: the field of the line that is searched for the key."""
    size: int | None = Field(default=None, gt=0)
    """Count: lines a window; time: seconds a window."""
    step: int | None = Field(default=None, gt=0)
    """Lines or seconds from the start of one window to the next one's; null: the size, so that none overlap."""

    @field_validator("key")
    @classmethod
    def _compiles(cls, key: str | None) -> str | None:
        if key is not None:
            try:
                re.compile(key)
                pl.Series(["x"]).str.extract_all(key)
            except (re.error, pl.exceptions.PolarsError) as error:
                reason = str(error).strip().splitlines()[0]
                raise ValueError(f"is not a regular expression without look-around: {reason[:120]}") from error
        return key

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "WindowRule":
        if self.kind == "session" and (self.key is None or self.size is not None or self.step is not None):
            raise ValueError("session windows need a key, and no size or step")
        if self.kind != "session" and (self.size is None or self.key is not None):
            raise ValueError(f"{self.kind} windows need a size, and no key")
        return self

    def membership(self) -> Membership:
        """What tells the windows of each line."""
        if self.kind == "session" or self.size is None:
            return Sessions()
        return (Counts if self.kind == "count" else Spans)(self.size, self.step or self.size)


@dataclass(frozen=True)
class _Chunk:
    """What one chunk of the log holds."""

    height: int
    lines: pl.DataFrame
    """Parsed lines: line_number, time, site, word (the label as written)."""
    keys: pl.DataFrame
    """Session keys: line_number, key."""
    repeated: int
    """Lines that name keys more than once, be it the same."""
    rejects: pl.DataFrame
    """line_number, reason, raw."""


def window_log(
    raw: Path,
    spec: "DatasetSpec",
    rule: WindowRule,
    limit: int | None,
    into: Path,
    max_rejected: float = 0.01,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Cut a raw log into windows; writes windows, events and rejects as Parquet into a folder and returns the counts.

    Memory grows with the number of windows, not of lines. Raises FormatError where the log is empty, where a larger
    share of its lines than `max_rejected` cannot be read, and where no line is in a window.
    """
    _check_rule(spec, rule)
    labels = read_labels(raw.parent / spec.label_file) if spec.label_file else None
    membership = rule.membership()
    facts = WindowFacts(limit, spec.normal_word)
    with ExitStack() as stack:
        events = stack.enter_context(SortedEvents(into))
        rejects = stack.enter_context(TableWriter(into / REJECTS, REJECT_SCHEMA))
        for chunk in work_on_chunks(raw, lambda data, first: _read_chunk(data, first, spec, rule), progress=progress):
            facts.rejected.update(chunk.rejects["reason"])
            rejects.add(chunk.rejects)
            members = membership.members(chunk.keys if rule.kind == "session" else chunk.lines)
            facts.repeated += chunk.repeated
            kept = facts.add(chunk.height, chunk.lines, members)
            events.add(kept["line_number"].to_numpy(), kept["window_id"].to_numpy())
        rejects.close()
        _check_lines(facts, raw, spec, into, max_rejected)
        windows = facts.windows(membership.keep())
        events.write(into / "events.parquet", windows.height)
    windows, label_counts = _labelled(windows, labels, facts, spec)
    write_table(windows, into / "windows.parquet")
    shared = {"two_key_lines": facts.shared, "two_mention_lines": facts.repeated} if rule.kind == "session" else {}
    return facts.counts() | shared | label_counts


def _check_rule(spec: "DatasetSpec", rule: WindowRule) -> None:
    fields = ", ".join(spec.log_format.fields)
    if rule.kind == "session" and rule.key_field not in spec.log_format.fields:
        raise FormatError(f"key_field {rule.key_field} is not in the format of {spec.name}; its fields are {fields}.")
    if rule.kind == "time" and spec.log_format.time_format is None:
        raise FormatError(f"Time windows need times: give time_format and time_fields for {spec.name} ({fields}).")
    if rule.kind != "session" and spec.label_file:
        raise FormatError(f"{spec.label_file} labels session keys: use session windows with {spec.name}.")


def _read_chunk(data: bytes, first: int, spec: "DatasetSpec", rule: WindowRule) -> _Chunk:
    decoded = decode_lines(data, spec.encoding)
    form = spec.log_format
    searched = rule.key_field if rule.kind == "session" else None
    wanted = [*form.time_fields, *filter(None, [spec.site_field, spec.label_field, searched])]
    fields = form.parse(decoded.text, list(dict.fromkeys(wanted)) or [CONTENT])
    parsed = fields[fields.columns[0]].is_not_null()
    times = form.times(fields)
    good = parsed & times.is_not_null() if form.time_format else parsed
    nothing = pl.repeat(None, len(parsed), dtype=pl.String, eager=True)
    lines = pl.DataFrame(
        {
            "line_number": pl.arange(first, first + len(parsed), eager=True, dtype=pl.UInt32),
            "time": times,
            "site": fields[spec.site_field] if spec.site_field else nothing.fill_null(""),
            "word": fields[spec.label_field] if spec.label_field else nothing,
        }
    )
    texts = (
        pl.DataFrame({"line_number": lines["line_number"], "text": fields[searched]}).filter(good) if searched else None
    )
    keys, repeated = session_keys(texts, rule.key or "") if texts is not None else (lines.clear(), 0)
    rejects = _rejects(decoded, first, parsed, good)
    return _Chunk(len(parsed), lines.filter(good) if not good.all() else lines, keys, repeated, rejects)


def _rejects(lines: Lines, first: int, parsed: pl.Series, good: pl.Series) -> pl.DataFrame:
    rows = (~good).arg_true()
    table = [
        (first + row, _reason(text, has_form), lines.undecodable[row] if text is None else text)
        for row, text, has_form in zip(rows, lines.text.gather(rows), parsed.gather(rows), strict=True)
    ]
    return pl.DataFrame(table, schema=REJECT_SCHEMA, orient="row")


def _reason(text: str | None, has_form: bool) -> str:
    """Why a line was rejected: in a few words that are also the names of the counts."""
    if text is None:
        return "undecodable"
    if not text.strip():
        return "blank"
    return "time" if has_form else "form"


def _check_lines(facts: WindowFacts, raw: Path, spec: "DatasetSpec", into: Path, max_rejected: float) -> None:
    counted = facts.lines - facts.rejected["blank"]
    wrong = sum(facts.rejected.values()) - facts.rejected["blank"]
    if not counted:
        raise FormatError(f"{raw.name} is empty: there is nothing to learn from; check the source.")
    if wrong > max_rejected * counted:
        kept = _keep_rejects(into, raw)
        raise FormatError(
            f"{wrong:,} of {counted:,} lines of {raw.name} ({wrong / counted:.1%}, limit {max_rejected:.1%}) are "
            f"not of the form {spec.log_format.notation!r}; see {kept}, then correct the format of {spec.name}."
        )
    if not facts.ids:
        raise FormatError(f"No line of {raw.name} is in a window; check the window rule of {spec.name}.")


def _keep_rejects(into: Path, raw: Path) -> Path:
    """Move the rejects out of a stage that will not be kept, to a folder beside it."""
    kept = into.parent / "rejects" / f"{raw.name}.parquet"
    kept.parent.mkdir(exist_ok=True)
    shutil.move(into / REJECTS, kept)
    return kept


def _labelled(
    windows: pl.DataFrame, labels: pl.DataFrame | None, facts: WindowFacts, spec: "DatasetSpec"
) -> tuple[pl.DataFrame, dict[str, Any]]:
    counts: dict[str, Any] = {"windows": windows.height, "anomalous": None}
    if labels is not None:
        columns = windows.columns
        found = windows.drop("label", "kind").join(labels, on="key", how="left", maintain_order="left")
        windows = found.select(columns)
        counts["labels_unknown"] = labels.filter(~pl.col("key").is_in(list(facts.ids))).height
    if labels is not None or spec.label_field:
        counts["anomalous"] = int((windows["label"] == 1).sum())
        counts["windows_unlabelled"] = windows["label"].null_count()
    return windows, counts
