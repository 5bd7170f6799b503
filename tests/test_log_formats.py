"""Log formats: fields as loghub's own regular expressions give them, and times as Python reads them."""

import re
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.archives import fetch
from storage.datasets import BGL, HDFS, DatasetConfig
from storage.log_formats import LogFormat

HDFS_NOTATION = "<Date> <Time> <Pid> <Level> <Component>: <Content>"


def _loghub_pattern(notation: str) -> re.Pattern[str]:
    """The notation as logparser builds it: lazy groups, runs of blanks as one class, anchored at both ends."""
    pattern = ""
    for number, piece in enumerate(re.split(r"(<[^<>]+>)", notation)):
        pattern += (
            f"(?P{piece}.*?)" if number % 2 else r"[ \t]+".join(re.escape(part) for part in re.split(" +", piece))
        )
    return re.compile(f"^{pattern}$")


def _by_python(lines: list[str], notation: str) -> list[dict[str, str] | None]:
    """Blank lines have no form, though `<Content>` alone would take them."""
    pattern = _loghub_pattern(notation)
    return [match.groupdict() if line.strip(" \t") and (match := pattern.match(line)) else None for line in lines]


def _parsed(lines: list[str], notation: str) -> list[dict[str, str] | None]:
    form = LogFormat(notation=notation)
    table = form.parse(pl.Series("line", lines, dtype=pl.String), form.fields)
    return [None if row[form.fields[0]] is None else row for row in table.iter_rows(named=True)]


@settings(max_examples=400, deadline=None)
@given(
    lines=st.lists(st.text(st.sampled_from("ab:]|[ \t-é5"), max_size=16), max_size=8),
    notation=st.sampled_from(
        [
            "<A> <B>: <Content>",
            "<A> <B>  <Content>",
            "<A> <B>]: <Content>",
            "<A>:: <B> <Content>",
            "<A> [<B>] <Content>",
            "<A>|<B>|<Content>",
            "[<A>] <Content>]",
            "<A>:<Content>",
            "<Content>",
            "<A> - <Content>",
            "<A>]-<B>  <Content>",
        ]
    ),
)
def test_fields_are_those_of_loghubs_regular_expression(lines: list[str], notation: str) -> None:
    assert _parsed(lines, notation) == _by_python(lines, notation)


@pytest.mark.parametrize("mark", list("^&~#-.*+?(){}\\/$@!%=,;'\""))
def test_any_mark_may_stand_between_fields(mark: str) -> None:
    lines = [f"one{mark}two {mark} three", "none", f"{mark}{mark}x"]
    assert _parsed(lines, f"<A>{mark}<Content>") == _by_python(lines, f"<A>{mark}<Content>")


@pytest.mark.real_logs
@pytest.mark.parametrize("name", ["hdfs", "bgl"])
def test_every_real_line_is_taken_apart_as_by_python(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    spec = {"hdfs": HDFS, "bgl": BGL}[name]
    archive = request.getfixturevalue(f"{name}_archive")
    fetch(DatasetConfig(name=name, source=str(archive)), spec, tmp_path, tmp_path)
    lines = (tmp_path / spec.raw_name).read_text().splitlines()
    assert _parsed(lines, spec.log_format.notation) == _by_python(lines, spec.log_format.notation)


@pytest.mark.parametrize(
    ("form", "text", "time"),
    [
        ("%y%m%d %H%M%S", "081109 203530", datetime(2008, 11, 9, 20, 35, 30)),
        ("%Y-%m-%d-%H.%M.%S.%f", "2005-06-03-15.42.50.363779", datetime(2005, 6, 3, 15, 42, 50, 363779)),
        ("%Y-%m-%d %H:%M:%S,%f", "2015-07-29 17:41:41,648", datetime(2015, 7, 29, 17, 41, 41, 648000)),
        ("%Y-%m-%dT%H:%M:%S%z", "2015-07-29T17:41:41+0200", datetime(2015, 7, 29, 15, 41, 41)),
        ("%b %d %H:%M:%S", "Feb 29 03:04:05", datetime(2000, 2, 29, 3, 4, 5)),
        ("%H:%M:%S", "23:59:58", datetime(2000, 1, 1, 23, 59, 58)),
        ("epoch", "1117838570.5", datetime(2005, 6, 3, 22, 42, 50, 500000)),
        ("%Y-%m-%d", "not a time", None),
        ("epoch", "soon", None),
        ("epoch", "1717000000000", None),
        ("epoch", "253402300799", datetime(9999, 12, 31, 23, 59, 59)),
        ("epoch", "nan", None),
        ("epoch", "inf", None),
    ],
)
def test_times_are_read_in_the_stated_form(form: str, text: str, time: datetime | None) -> None:
    log_format = LogFormat(notation="<Time>|<Content>", time_format=form, time_fields=("Time",))
    assert log_format.times(pl.DataFrame({"Time": [text]})).to_list() == [time]


@pytest.mark.parametrize(
    ("notation", "complaint"),
    [
        ("<Date> <Time>", "no <Content> field"),
        ("<A><Content>", "some text between"),
        ("<A> <A> <Content>", "twice"),
        ("<Log-Level> <Content>", "plain name"),
    ],
)
def test_a_notation_that_cannot_work_is_refused(notation: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LogFormat(notation=notation)


def test_a_time_field_that_the_format_lacks_is_refused() -> None:
    with pytest.raises(ValidationError, match="Stamp is not in the format; its fields are Date, Time"):
        LogFormat(notation=HDFS_NOTATION, time_format="%s", time_fields=("Stamp",))
