"""Windows of a log: the lines of one session key, a fixed number of lines, or a fixed span of time."""

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from storage.errors import FormatError
from storage.labels import read_labels
from storage.log_chunks import REJECT_SCHEMA, ChunkReader
from storage.log_formats import CONTENT
from storage.memberships import Counts, Membership, Sessions, Spans
from storage.progress import Progress, silent
from storage.raw_lines import work_on_chunks
from storage.sorted_events import SortedEvents
from storage.tables import TableWriter, write_table
from storage.window_facts import WindowFacts

if TYPE_CHECKING:
    from storage.datasets import DatasetSpec

REJECTS = "rejects.parquet"


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
    reader = ChunkReader(spec, rule, labels)
    facts = WindowFacts(limit)
    with ExitStack() as stack:
        events = stack.enter_context(SortedEvents(into))
        rejects = stack.enter_context(TableWriter(into / REJECTS, REJECT_SCHEMA))
        for chunk in work_on_chunks(raw, reader.read, progress):
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
    if labels is not None and rule.kind == "session":
        windows = _with_labels(windows, labels)
    write_table(windows, into / "windows.parquet")
    counts = facts.counts() | {"windows": windows.height} | _label_counts(windows, spec.label_kind != "none")
    if rule.kind == "session":
        counts |= {"two_key_lines": facts.shared, "two_mention_lines": facts.repeated}
        counts |= (
            {} if labels is None else {"labels_unknown": labels.filter(~pl.col("key").is_in(list(facts.ids))).height}
        )
    return counts


def _check_rule(spec: "DatasetSpec", rule: WindowRule) -> None:
    fields = ", ".join(spec.log_format.fields)
    if rule.kind == "session" and rule.key_field not in spec.log_format.fields:
        raise FormatError(f"key_field {rule.key_field} is not in the format of {spec.name}; its fields are {fields}.")
    if rule.kind == "time" and spec.log_format.time_format is None:
        raise FormatError(f"Time windows need times: give time_format and time_fields for {spec.name} ({fields}).")
    if rule.kind != "session" and spec.label_file and spec.window.kind != "session":
        raise FormatError(
            f"{spec.label_file} labels session keys: give the [window] of {spec.name} the key they are of."
        )


def _check_lines(facts: WindowFacts, raw: Path, spec: "DatasetSpec", into: Path, max_rejected: float) -> None:
    counted = facts.lines - facts.rejected["blank"]
    wrong = sum(facts.rejected.values()) - facts.rejected["blank"]
    if not counted:
        raise FormatError(f"{raw.name} is empty: there is nothing to learn from; check the source.")
    if wrong > max_rejected * counted:
        kept, form, setting = _keep_rejects(into, raw), spec.log_format.notation, "format"
        if facts.rejected["time"] > wrong / 2:
            form, setting = f"{form} with a time {spec.log_format.time_format}", "time_format"
        raise FormatError(
            f"{wrong:,} of {counted:,} lines of {raw.name} ({wrong / counted:.1%}, limit {max_rejected:.1%}) are "
            f"not of the form {form!r}; see {kept}, then correct the {setting} of {spec.name}."
        )
    if not facts.ids:
        raise FormatError(f"No line of {raw.name} is in a window; check the window rule of {spec.name}.")


def _keep_rejects(into: Path, raw: Path) -> Path:
    """Move the rejects out of a stage that will not be kept, to a folder beside it."""
    kept = into.parent / "rejects" / f"{raw.name}.parquet"
    kept.parent.mkdir(exist_ok=True)
    shutil.move(into / REJECTS, kept)
    return kept


def _with_labels(windows: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    found = windows.drop("label", "kind").join(labels, on="key", how="left", maintain_order="left")
    return found.select(windows.columns)


def _label_counts(windows: pl.DataFrame, known: bool) -> dict[str, int | None]:
    if not known:
        return {"anomalous": None}
    return {"anomalous": int((windows["label"] == 1).sum()), "windows_unlabelled": windows["label"].null_count()}
