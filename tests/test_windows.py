"""Windows: held against plain Python over the same lines, whatever the chunks; bad input told in one line and kept."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage import raw_lines
from storage.archives import fetch
from storage.datasets import BGL, HDFS, DatasetConfig, DatasetSpec
from storage.errors import FormatError, SourceError, StorageError
from storage.log_formats import LogFormat
from storage.masks import MaskRules
from storage.sorted_events import SortedEvents
from storage.stages import new_stage
from storage.windows import WindowRule, window_log

SESSIONS = WindowRule(kind="session", key=r"id=\d+")


def _spec(**changes: object) -> DatasetSpec:
    form = LogFormat(
        notation="<Date> <Time> <Host>: <Content>", time_format="%Y-%m-%d %H:%M:%S", time_fields=("Date", "Time")
    )
    facts = {
        "name": "own",
        "raw_name": "own.log",
        "log_format": form,
        "window": SESSIONS,
        "mask": MaskRules(preset="none"),
    }
    return DatasetSpec.model_validate(facts | changes)


def _line(second: int, text: str, host: str = "h") -> str:
    return f"{datetime(2024, 5, 1) + timedelta(seconds=second)} {host}: {text}"


def _cut(
    folder: Path, lines: Sequence[str | bytes], rule: WindowRule = SESSIONS, limit: int | None = None, **changes: object
) -> tuple[dict[str, Any], pl.DataFrame, dict[str, list[int]]]:
    """Counts, windows, and the line numbers of each window by its key."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "own.log"
    raw.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    into = folder / "out"
    into.mkdir()
    counts = window_log(raw, _spec(**changes), rule, limit, into, max_rejected=0.5)
    windows = pl.read_parquet(into / "windows.parquet")
    events = pl.read_parquet(into / "events.parquet")
    assert events["window_id"].is_sorted()
    by_id = events.group_by("window_id", maintain_order=True).agg("line_number")
    keys = windows["key"].to_list()
    return counts, windows, {keys[window]: lines for window, lines in by_id.iter_rows()}


# Sessions


@pytest.mark.real_logs
def test_the_sample_has_the_facts_its_description_states(hdfs_archive: Path, tmp_path: Path) -> None:
    fetch(DatasetConfig(name="hdfs", source=str(hdfs_archive)), HDFS, tmp_path, tmp_path)
    into = tmp_path / "out"
    into.mkdir()
    counts = window_log(tmp_path / "HDFS.log", HDFS, HDFS.window, None, into)
    expected = {"lines": 222_579, "windows": 11_501, "anomalous": 350, "two_mention_lines": 27_822, "rejected": 0}
    assert expected.items() <= counts.items()
    windows = pl.read_parquet(into / "windows.parquet")
    assert (windows["lines"].min(), windows["lines"].max()) == (2, 44)
    assert windows["first_time"].min() == datetime(2008, 11, 9, 20, 35, 30)
    assert windows["last_time"].max().strftime("%F %H:%M") == "2008-11-11 11:12"  # type: ignore[union-attr]
    _same_sessions_as_python(tmp_path / "HDFS.log", into, windows)


def _same_sessions_as_python(raw: Path, into: Path, windows: pl.DataFrame) -> None:
    expected: dict[str, list[int]] = {}
    for number, line in enumerate(raw.read_text().splitlines()):
        for key in dict.fromkeys(re.findall(r"blk_-?\d+", line)):
            expected.setdefault(key, []).append(number)
    events = pl.read_parquet(into / "events.parquet").group_by("window_id", maintain_order=True).agg("line_number")
    assert windows["key"].to_list() == list(expected)
    assert events["line_number"].to_list() == list(expected.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(names=st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=20), size=st.integers(1, 200))
def test_sessions_are_the_same_whatever_the_chunks(
    names: list[list[int]], size: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_lines, "CHUNK_BYTES", size)
    lines = [_line(second, " ".join(f"id={name}" for name in line) + ".") for second, line in enumerate(names)]
    expected: dict[str, list[int]] = {}
    for number, line in enumerate(names):
        for name in dict.fromkeys(line):
            expected.setdefault(f"id={name}", []).append(number)
    if not expected:
        return
    counts, windows, found = _cut(tmp_path_factory.mktemp("log"), lines)
    assert found == expected
    assert windows["key"].to_list() == list(expected)
    assert windows["lines"].to_list() == [len(each) for each in expected.values()]
    assert windows["first_time"].to_list() == [
        datetime(2024, 5, 1) + timedelta(seconds=each[0]) for each in expected.values()
    ]
    assert counts["two_key_lines"] == sum(len(set(line)) > 1 for line in names)
    assert counts["lines_outside"] == sum(not line for line in names)


def test_a_line_that_names_a_key_twice_counts_once_and_one_with_two_keys_belongs_to_both(tmp_path: Path) -> None:
    counts, _, found = _cut(tmp_path, [_line(0, "id=1 again id=1"), _line(1, "id=2 copies id=1")])
    assert found == {"id=1": [0, 1], "id=2": [1]}
    assert (counts["two_key_lines"], counts["two_mention_lines"]) == (1, 2)


def test_the_key_is_the_first_group_of_the_pattern_where_it_has_one(tmp_path: Path) -> None:
    rule = WindowRule(kind="session", key=r"user (\w+)")
    _, windows, _ = _cut(tmp_path, [_line(0, "user ann met user bob")], rule)
    assert windows["key"].to_list() == ["ann", "bob"]


def test_the_key_may_be_in_another_field(tmp_path: Path) -> None:
    rule = WindowRule(kind="session", key=".+", key_field="Host")
    _, _, found = _cut(tmp_path, [_line(0, "x", "web1"), _line(1, "y", "web2"), _line(2, "z", "web1")], rule)
    assert found == {"web1": [0, 2], "web2": [1]}


def test_limit_keeps_the_first_windows_whole(tmp_path: Path) -> None:
    counts, windows, found = _cut(tmp_path, [_line(n, f"id={n % 3}") for n in range(9)], limit=2)
    assert found == {"id=0": [0, 3, 6], "id=1": [1, 4, 7]}
    assert counts["windows"] == windows.height == 2


# Counts and spans


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(lines=st.integers(1, 40), size=st.integers(1, 9), step=st.integers(1, 12), chunk=st.integers(1, 300))
def test_counted_windows_are_slices_of_the_log(
    lines: int,
    size: int,
    step: int,
    chunk: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(raw_lines, "CHUNK_BYTES", chunk)
    rule = WindowRule(kind="count", size=size, step=step)
    _, _, found = _cut(tmp_path_factory.mktemp("log"), [_line(n, "x") for n in range(lines)], rule)
    expected: dict[str, list[int]] = {}
    for start in range(0, lines, step):
        if start and start - step + size >= lines:
            break  # the window before already reaches the end
        expected[str(start // step)] = list(range(lines))[start : start + size]
    assert found == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    seconds=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    size=st.integers(1, 20),
    step=st.integers(1, 20),
    chunk=st.integers(1, 300),
)
def test_time_windows_hold_the_lines_of_their_span(
    seconds: list[int],
    size: int,
    step: int,
    chunk: int,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds.sort()
    monkeypatch.setattr(raw_lines, "CHUNK_BYTES", chunk)
    rule = WindowRule(kind="time", size=size, step=step)
    epoch = datetime(1970, 1, 1)
    times = [datetime(2024, 5, 1) + timedelta(seconds=second) for second in seconds]
    start = epoch + (times[0] - epoch) // timedelta(seconds=step) * timedelta(seconds=step)
    expected = {}
    while start <= times[-1]:
        inside = [n for n, time in enumerate(times) if start <= time < start + timedelta(seconds=size)]
        if inside:
            expected[start.isoformat()] = inside
        start += timedelta(seconds=step)
    lines = [_line(second, "x") for second in seconds]
    if not expected:
        with pytest.raises(FormatError, match=r"No line of own\.log is in a window"):
            _cut(tmp_path_factory.mktemp("log"), lines, rule)
        return
    _, _, found = _cut(tmp_path_factory.mktemp("log"), lines, rule)
    assert found == expected


def test_a_line_out_of_order_is_in_the_window_of_its_own_time(tmp_path: Path) -> None:
    rule = WindowRule(kind="time", size=60)
    _, windows, found = _cut(tmp_path, [_line(180, "x"), _line(5, "late"), _line(190, "y")], rule)
    assert found == {"2024-05-01T00:03:00": [0, 2], "2024-05-01T00:00:00": [1]}
    assert windows["window_id"].to_list() == [0, 1]


# Labels


def test_labels_of_keys_pass_to_windows_that_are_not_sessions(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("Key,Label,Kind\nid=1,Anomaly,disk\nid=2,Normal,\n")
    lines = [
        _line(0, "id=2"),
        _line(1, "id=2 id=1"),
        _line(2, "id=2"),
        _line(3, "none"),
        _line(4, "id=3"),
        _line(5, "none"),
    ]
    rule = WindowRule(kind="count", size=2)
    counts, windows, _ = _cut(tmp_path, lines, rule, label_file="labels.csv")
    assert windows["label"].to_list() == [1, 0, None]
    assert windows["kind"].to_list() == ["disk", None, None]
    assert (counts["anomalous"], counts["windows_unlabelled"]) == (1, 1)


def test_labels_of_unknown_keys_and_keys_without_a_label_are_counted(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("Key,Label,Kind\nid=1,Anomaly,disk\nid=2,Normal,\nid=9,Normal,\n")
    lines = [_line(0, "id=1"), _line(1, "id=2"), _line(2, "id=3")]
    counts, windows, _ = _cut(tmp_path, lines, label_file="labels.csv")
    assert windows["label"].to_list() == [1, 0, None]
    assert windows["kind"].to_list() == ["disk", None, None]
    assert (counts["anomalous"], counts["labels_unknown"], counts["windows_unlabelled"]) == (1, 1, 1)


def test_a_limit_does_not_make_labels_unknown(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("Key,Label\nid=1,0\nid=2,1\n")
    counts, _, _ = _cut(tmp_path, [_line(0, "id=1"), _line(1, "id=2")], limit=1, label_file="labels.csv")
    assert (counts["anomalous"], counts["labels_unknown"]) == (0, 0)


def test_a_window_with_one_anomalous_line_is_anomalous_and_named_by_it(tmp_path: Path) -> None:
    form = LogFormat(notation="<Label> <Content>")
    rule = WindowRule(kind="count", size=2)
    lines = ["- a", "- b", "- c", "DISK d", "NET e", "DISK f"]
    counts, windows, _ = _cut(tmp_path, lines, rule, log_format=form, label_field="Label")
    assert windows["label"].to_list() == [0, 1, 1]
    assert windows["kind"].to_list() == [None, "DISK", "NET"]
    assert counts["anomalous"] == 2


@pytest.mark.real_logs
def test_bgl_windows_are_anomalous_where_a_line_is(bgl_archive: Path, tmp_path: Path) -> None:
    fetch(DatasetConfig(name="bgl", source=str(bgl_archive)), BGL, tmp_path, tmp_path)
    into = tmp_path / "out"
    into.mkdir()
    counts = window_log(tmp_path / "BGL.log", BGL, BGL.window, None, into)
    words = [line.split(" ", 1)[0] for line in (tmp_path / "BGL.log").read_text().splitlines()]
    assert sum(word != "-" for word in words) == 2613
    stretches = [words[start : start + 100] for start in range(0, len(words), 100)]
    expected = [next((word for word in stretch if word != "-"), None) for stretch in stretches]
    assert pl.read_parquet(into / "windows.parquet")["kind"].to_list() == expected
    assert counts["anomalous"] == sum(kind is not None for kind in expected)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Key,Label\nid=1,maybe\n", "holds the label 'maybe'; known are Normal and Anomaly"),
        ("Key,Label\nid=1,Normal\nid=1,Anomaly\n", "calls 1 keys both normal and anomalous"),
        ("Key\nid=1\n", "one column; it needs a header and two"),
        ("", "is not a CSV file of keys and labels"),
    ],
)
def test_labels_that_cannot_be_right_are_refused(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(FormatError, match=complaint) as told:
        _cut(tmp_path, [_line(0, "id=1")], label_file="labels.csv")
    assert "\n" not in str(told.value)


def test_a_missing_label_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Cannot read the labels labels\.csv"):
        _cut(tmp_path, [_line(0, "id=1")], label_file="labels.csv")


# Lines that cannot be read


def test_rejected_lines_keep_number_reason_and_text(tmp_path: Path) -> None:
    lines: list[str | bytes] = [
        _line(0, "id=1"),
        "no form",
        "",
        b"2024-05-01 00:00:02 h: id=2 \xff",
        "2024-13-01 00:00:02 h: id=3",
        _line(3, "id=1"),
    ]
    counts, _, found = _cut(tmp_path, [*lines, *[_line(4, "id=1")] * 4])
    assert found == {"id=1": [0, 5, 6, 7, 8, 9]}
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet")
    assert rejects.rows() == [
        (1, "form", "no form"),
        (2, "blank", ""),
        (3, "undecodable", "2024-05-01 00:00:02 h: id=2 �"),
        (4, "time", "2024-13-01 00:00:02 h: id=3"),
    ]
    assert (counts["lines"], counts["parsed"], counts["rejected"]) == (10, 6, 4)


def test_too_many_rejects_stop_the_run_and_are_kept_where_it_says(tmp_path: Path) -> None:
    raw = tmp_path / "own.log"
    raw.write_text("\n".join([*[_line(n, "id=1") for n in range(98)], "bad one", "bad two"]))
    with pytest.raises(FormatError, match=r"2 of 100 lines of own\.log \(2\.0%, limit 1\.0%\)") as told:  # noqa: SIM117
        with new_stage(tmp_path / "stages", "window", "key") as new:
            window_log(raw, _spec(), SESSIONS, None, new.path)
    assert "\n" not in str(told.value)
    kept = Path(str(told.value).split("see ")[1].split(", then")[0])
    assert pl.read_parquet(kept)["raw"].to_list() == ["bad one", "bad two"]
    assert not list((tmp_path / "stages" / "window").glob("*key*"))


def test_times_of_another_form_are_told_as_such(tmp_path: Path) -> None:
    lines = [f"{datetime(2024, 5, 1)}Z h: id={number}" for number in range(9)]
    with pytest.raises(FormatError, match=r"with a time %Y-%m-%d %H:%M:%S'.* then correct the time_format of own"):
        _cut(tmp_path, lines)


@pytest.mark.parametrize("content", ["", "\n\n \n"])
def test_an_empty_log_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"own\.log is empty"):
        _cut(tmp_path / "contents", [content] if content else [], log_format=LogFormat(notation="<Content>"))
    with pytest.raises(FormatError, match=r"own\.log is empty"):
        _cut(tmp_path, [content] if content else [])


def test_a_key_that_no_line_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"No line of own\.log is in a window; check the window rule"):
        _cut(tmp_path, [_line(0, "nothing")])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("file", ["windows.parquet", "events.parquet", "rejects.parquet"])
def test_a_full_disk_is_told_and_leaves_nothing_behind(file: str, tmp_path: Path) -> None:
    raw = tmp_path / "own.log"
    raw.write_text("\n".join(_line(n, f"id={n}") for n in range(1000)))
    with pytest.raises(StorageError, match="The disk is full"), new_stage(tmp_path / "stages", "window", "key") as new:
        (new.path / file).symlink_to("/dev/full")
        window_log(raw, _spec(), SESSIONS, None, new.path)
    assert list((tmp_path / "stages" / "window").iterdir()) == []


# Rules


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ({"kind": "session"}, "need a key"),
        ({"kind": "count", "size": 5, "key": "x"}, "need a size, and no key"),
        ({"kind": "time"}, "need a size"),
        ({"kind": "session", "key": "("}, "not a regular expression"),
        ({"kind": "session", "key": "(?<=a)b"}, "without look-around"),
        ({"kind": "count", "size": 0}, "greater than 0"),
        ({"kind": "weekly"}, "'session', 'count' or 'time'"),
    ],
)
def test_a_rule_that_cannot_work_is_refused(rule: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        WindowRule.model_validate(rule)


def test_time_windows_of_a_log_without_times_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="Time windows need times"):
        _cut(tmp_path, ["x"], WindowRule(kind="time", size=60), log_format=LogFormat(notation="<Content>"))


def test_a_key_field_that_the_format_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="key_field Pid is not in the format of own; its fields are Date, Time"):
        _cut(tmp_path, [_line(0, "x")], WindowRule(kind="session", key="x", key_field="Pid"))


def test_the_events_of_a_window_lie_in_one_row_group_however_many_they_are(tmp_path: Path) -> None:
    """Tokenizing reads a row group at a time; Arrow cuts a table of more than 2^20 rows where it is not told not to."""
    lines = np.arange(1_200_000, dtype=np.uint32)
    with SortedEvents(tmp_path) as events:
        events.add(lines, lines % 3)
        events.write(tmp_path / "events.parquet", 3)
    file = pq.ParquetFile(tmp_path / "events.parquet")
    groups = [pl.DataFrame(file.read_row_group(number)) for number in range(file.num_row_groups)]
    assert sum(group["window_id"].n_unique() for group in groups) == 3
    whole = pl.concat(groups)
    assert whole["window_id"].is_sorted()
    assert (whole["line_number"] % 3 == whole["window_id"]).all()
    assert whole["line_number"].n_unique() == len(lines)
