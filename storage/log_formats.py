"""Log formats in loghub's notation (`<Date> <Time> <Level> <Component>: <Content>`) and lines taken apart by them."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property

import polars as pl
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

CONTENT = "Content"
_FIELD = re.compile(r"<([^<>\s]+)>")
_BLANKS = re.compile(r"[ \t]+")
_DATE_PARTS = {"%d", "%e", "%j", "%m", "%b", "%B", "%h", "%D", "%F"}
_YEAR_PARTS = {"%y", "%Y", "%D", "%F", "%c", "%s"}
_EPOCH_SECONDS = (-62_135_596_800, 253_402_300_799)
"""The years 1 to 9999, in seconds from 1970."""
_Way = Callable[[pl.Series], pl.DataFrame]


class LogFormat(BaseModel):
    """How the lines of a log are put together."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    notation: str
    """Fields in angle brackets and the text between them, as loghub writes it: a blank stands for any run of spaces or
    tabs, `<Content>` for the message."""
    time_format: str | None = None
    """strftime notation of the time fields joined by blanks (%f: fraction of a second), or `epoch`: seconds since 1970;
    null: lines carry no time."""
    time_fields: tuple[str, ...] = ()
    """The fields that make up a line's time, in the order of time_format."""

    @field_validator("notation")
    @classmethod
    def _has_fields(cls, notation: str) -> str:
        names = _FIELD.findall(notation)
        wrong = [name for name in names if not (name.isidentifier() and name.isascii())]
        if wrong:
            raise ValueError(f"field <{wrong[0]}> is not a plain name of letters, digits and underscores")
        if CONTENT not in names:
            raise ValueError(f"it has no <{CONTENT}> field, which stands for the message")
        if len(set(names)) < len(names):
            raise ValueError("it names a field twice")
        if "><" in notation:
            raise ValueError("two fields need some text between them, or it is unknown where the first ends")
        return notation

    @model_validator(mode="after")
    def _knows_time_fields(self) -> "LogFormat":
        unknown = [field for field in self.time_fields if field not in self.fields]
        if unknown:
            raise ValueError(f"time field {unknown[0]} is not in the format; its fields are {', '.join(self.fields)}")
        if (self.time_format is None) != (not self.time_fields):
            raise ValueError("time_format and time_fields go together: give both or none")
        return self

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The names of all fields, in order."""
        return tuple(_FIELD.findall(self.notation))

    @property
    def has_literal_digits(self) -> bool:
        """Whether the text between the fields holds digits, so that a line's form depends on its digits."""
        return any(character.isdigit() for character in "".join(self._between))

    def pattern(self, wanted: Sequence[str]) -> str:
        """The regular expression that the notation stands for: each field as short as possible, from left to right."""
        groups = {field: f"(?P<{field}>.*?)" if field in wanted else "(?:.*?)" for field in self.fields}
        return f"^{self._joined(groups)}$"

    def quick_pattern(self, wanted: Sequence[str]) -> str | None:
        """A stricter expression that is read without looking back; where it matches, it gives the same fields.

        No field but the last may hold a blank, the first character of the text that follows it, or nothing at all; so
        every choice that the full expression tries first is the one made here. None where the notation does not end
        with a field.
        """
        groups = {}
        pieces = _FIELD.split(self.notation)
        if pieces[-1]:
            return None
        for before, field, after in zip(pieces[0::2], pieces[1::2], pieces[2::2], strict=False):
            stop = re.escape(after[:1].strip())
            inner = f"[^ \\t{stop}]+" if after else "[^ \\t].*" if before[-1:].isspace() else ".+"
            groups[field] = f"(?P<{field}>{inner})" if field in wanted else f"(?:{inner})"
        return f"^{self._joined(groups)}$"

    def _joined(self, groups: dict[str, str]) -> str:
        pieces = _FIELD.split(self.notation)
        literals = ["[ \\t]+".join(map(re.escape, _BLANKS.split(text))) for text in pieces[0::2]]
        names = [groups[name] for name in pieces[1::2]]
        return "".join(literal + name for literal, name in zip(literals, [*names, ""], strict=True))

    def parse(self, lines: pl.Series, wanted: Sequence[str]) -> pl.DataFrame:
        """The wanted fields of every line, one column each; null where a line is blank or does not have this form."""
        if not "".join(self._between).strip(" \t"):
            lines = lines.set(~lines.str.contains("[^ \\t]"), None)
        ways: list[_Way] = []
        if self._ends:
            ways.append(lambda left: self._words(left, wanted))
        if quick := self.quick_pattern(wanted):
            ways.append(lambda left: _groups(left, quick))
        ways.append(lambda left: _groups(left, self.pattern(wanted)))
        found = ways[0](lines)
        for way in ways[1:]:
            missed = (found[wanted[0]].is_null() & lines.is_not_null()).arg_true()
            if missed.is_empty():
                break
            again = way(lines.gather(missed))
            found = found.with_columns(found[name].scatter(missed, again[name]) for name in wanted)
        return found

    @cached_property
    def _between(self) -> tuple[str, ...]:
        """The text before the first field, between the fields, and after the last."""
        return tuple(_FIELD.split(self.notation)[0::2])

    @cached_property
    def _ends(self) -> tuple[str, ...]:
        """What each field but the last ends with before the blanks that part it from the next; () where others do."""
        first, *between, last = self._between
        ends = tuple(text.rstrip(" \t") for text in between)
        parted = all(text != end and not _BLANKS.search(end) for text, end in zip(between, ends, strict=True))
        return ends if parted and not first and not last else ()

    def _words(self, lines: pl.Series, wanted: Sequence[str]) -> pl.DataFrame:
        """The wanted fields of lines whose fields are parted by one space each; null for other lines.

        Where it reads a line, it gives what quick_pattern would, in 4.5 seconds of processor time for 11 million lines
        of HDFS instead of 7.1.
        """
        words = lines.str.splitn(" ", len(self.fields)).struct.unnest()
        words.columns = self.fields
        ends = dict(zip(self.fields, self._ends, strict=False))
        last = pl.col(self.fields[-1])
        reads = [pl.lit(~lines.str.contains("\t", literal=True)), last.str.len_bytes() > 0, ~last.str.starts_with(" ")]
        for field, end in ends.items():
            word = pl.col(field)
            reads.append(word.str.len_bytes() > len(end.encode()))
            if end:
                reads += [word.str.ends_with(end), word.str.count_matches(end[0], literal=True) == end.count(end[0])]
        return words.with_columns(pl.all_horizontal(reads).alias("/reads")).select(
            pl.when("/reads").then(pl.col(field).str.strip_suffix(ends.get(field, ""))) for field in wanted
        )

    def times(self, fields: pl.DataFrame) -> pl.Series:
        """The time of every line in microseconds, null where it cannot be read; in UTC where the log states a zone.

        A log whose times have no year (syslog) is put into the year 2000, one without dates on its first day: order and
        distances hold within a year or a day.
        """
        if self.time_format is None:
            return pl.repeat(None, fields.height, dtype=pl.Datetime("us"), eager=True).alias("time")
        text = fields.select(pl.concat_str(self.time_fields, separator=" ").alias("time"))["time"]
        if self.time_format == "epoch":
            seconds = text.cast(pl.Float64, strict=False).to_frame("time")
            # Anything else (milliseconds, a garbled number) would be a year that no calendar here has.
            known = seconds.select(pl.when(pl.col("time").is_between(*_EPOCH_SECONDS)).then("time"))["time"]
            return (known * 1e6).round().cast(pl.Int64).cast(pl.Datetime("us"))
        return _read_times(text, self.time_format)


def _groups(lines: pl.Series, pattern: str) -> pl.DataFrame:
    return lines.str.extract_groups(pattern).struct.unnest()


def _read_times(text: pl.Series, form: str) -> pl.Series:
    parts = set(re.findall(r"%[A-Za-z]", form))
    if not parts & _YEAR_PARTS:
        prefix, prefix_form = ("2000 ", "%Y ") if parts & _DATE_PARTS else ("2000 01 01 ", "%Y %m %d ")
        text, form = prefix + text, prefix_form + form
    before_fraction = form[: form.find("%f")][-1:] if "%f" in form else ""
    if before_fraction:
        # Polars reads a fraction of any length only after a point.
        text, form = text.str.replace_all(before_fraction, ".", literal=True), form.replace(before_fraction, ".")
        form = form.replace(".%f", "%.f")
    times = text.str.to_datetime(form, time_unit="us", strict=False)
    return times.dt.replace_time_zone(None).alias("time") if "%z" in form else times.alias("time")
