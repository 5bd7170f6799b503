"""A log that is read piece by piece makes the windows that the stages make of the whole log."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.datasets import DatasetConfig, DatasetSpec, resolve
from storage.errors import FormatError, SourceError
from storage.hdfs_generator import generate
from storage.log_inputs import Piece, read_logs
from storage.log_stream import LogStream
from storage.masks import MaskRules, mask_log
from storage.open_windows import Closing
from storage.windows import WindowRule, window_log

FACTS = ("key", "site", "first_time", "last_time", "lines")
RULES = {
    "session": WindowRule(kind="session", key=r"blk_-?\d+"),
    "count": WindowRule(kind="count", size=50),
    "overlapping": WindowRule(kind="count", size=50, step=20),
    "time": WindowRule(kind="time", size=600),
    "overlapping time": WindowRule(kind="time", size=600, step=200),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    generate(folder, blocks=60, seed=3)
    raw = folder / "HDFS.log"
    raw.write_text(raw.read_text().replace("\n", "\nnot of the form\n\n", 2))
    return raw


def spec() -> DatasetSpec:
    return resolve(DatasetConfig(name="hdfs-sim")).model_copy(update={"label_file": None})


def stream(rule: WindowRule, **how: Any) -> LogStream:  # noqa: ANN401
    return LogStream(spec(), rule, MaskRules(preset="hdfs"), **how)


def whole_log(log: Path, rule: WindowRule, into: Path) -> tuple[pl.DataFrame, list[list[str]]]:
    """The stages' windows, and each window's masked messages."""
    for name in ("window", "mask"):
        (into / name).mkdir()
    window_log(log, spec(), rule, None, into / "window")
    mask_log(log, into / "window", spec(), MaskRules(preset="hdfs"), into / "mask")
    texts = pl.read_parquet(into / "mask" / "messages.parquet")
    lines = pl.read_parquet(into / "mask" / "line_messages.parquet").join(texts, on="message_id")
    events = pl.read_parquet(into / "window" / "events.parquet").join(
        lines.select("line_number", "text"), on="line_number", maintain_order="left", how="left"
    )
    messages = events.group_by("window_id", maintain_order=True).agg("text")["text"].to_list()
    return pl.read_parquet(into / "window" / "windows.parquet"), messages


def gathered(made: LogStream, pieces: Iterator[Piece]) -> tuple[pl.DataFrame, list[list[str]], list[list[str]]]:
    """Windows in the order they closed, each one's masked messages and its raw lines."""
    tables, messages, raw = [], [], []
    for windows in made.windows(pieces):
        tables.append(windows.table.select(FACTS))
        messages += [[windows.texts[number] for number in row] for row in windows.table["messages"]]
        texts = made.blocks.read(windows.table["line_numbers"].explode())
        raw += [[texts[number].text for number in row] for row in windows.table["line_numbers"]]
    return pl.concat(tables), messages, raw


@pytest.mark.parametrize("kind", RULES)
def test_windows_messages_and_raw_lines_equal_those_of_the_whole_log(
    kind: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, messages = whole_log(log, RULES[kind], tmp_path)
    monkeypatch.setattr("storage.raw_lines.CHUNK_BYTES", 3000)
    monkeypatch.setattr("storage.open_windows.BATCH", 7)
    made = stream(RULES[kind])
    table, found, raw = gathered(made, read_logs([log]))
    assert table.equals(expected.select(FACTS))
    assert found == messages
    events = pl.read_parquet(tmp_path / "window" / "events.parquet").group_by("window_id", maintain_order=True)
    lines = log.read_text().splitlines()
    assert raw == [[lines[number] for number in row] for row in events.agg("line_number")["line_number"]]
    assert (made.counts.misread, made.counts.rejected["blank"]) == (2, 2)
    assert made.counts.lines == len(lines)
    assert (made.left_open, made.blocks.bytes) == (0, 0)


def test_raw_lines_are_told_with_file_and_line_across_logs(log: Path, tmp_path: Path) -> None:
    lines = log.read_text().splitlines(keepends=True)
    paths = [tmp_path / "a.log", tmp_path / "b.log"]
    paths[0].write_text("".join(lines[:300]).rstrip("\n"))
    paths[1].write_text("".join(lines[300:]))
    made = stream(RULES["session"])
    for windows in made.windows(read_logs(paths)):
        for raw in made.blocks.read(windows.table["line_numbers"].explode()).values():
            assert Path(raw.file).read_text().splitlines()[raw.line - 1] == raw.text


def _line(second: int, key: int, text: str = "x") -> str:
    return f"081109 {second // 3600:02d}{second // 60 % 60:02d}{second % 60:02d} 1 INFO a: {text} blk_{key}\n"


def _pieces(*lines: str) -> Iterator[Piece]:
    for number, line in enumerate(lines):
        yield Piece("log", number, line.encode())


def test_a_session_ends_when_the_log_has_gone_on_for_longer_than_the_gap_without_it() -> None:
    lines = [_line(0, 1), _line(50, 2), _line(59, 1), _line(120, 2), _line(121, 3), _line(130, 1)]
    closed = [
        list(zip(windows.table["key"], windows.table["lines"], strict=True))
        for windows in stream(RULES["session"], closing=Closing(gap=60)).windows(_pieces(*lines))
    ]
    # At second 120 session 1 is idle for 61 s, session 2 comes 70 s after its first line, too late for a gap of 60.
    assert closed == [[("blk_1", 2)], [("blk_2", 2), ("blk_3", 1), ("blk_1", 1)]]


def test_windows_that_may_still_grow_can_be_left_alone() -> None:
    made = stream(RULES["session"], closing=Closing(gap=60, leave_open=True))
    keys = [key for windows in made.windows(_pieces(_line(0, 1), _line(100, 2))) for key in windows.table["key"]]
    assert (keys, made.left_open) == (["blk_1"], 1)


@pytest.mark.parametrize("elsewhere", [_line(0, 2).replace("0811", "3611"), _line(0, 2).replace("0811", "0211")])
def test_one_line_of_another_year_ends_no_session(elsewhere: str) -> None:
    lines = [_line(0, 1), _line(1, 2), elsewhere, _line(2, 1), _line(3, 2), _line(100, 3), _line(101, 3)]
    made = stream(RULES["session"], closing=Closing(gap=60, leave_open=True))
    closed = {
        key: count
        for windows in made.windows(_pieces(*lines))
        for key, count in windows.table.select("key", "lines").iter_rows()
    }
    assert (closed, made.left_open) == ({"blk_1": 2, "blk_2": 3}, 1)


def test_sessions_go_on_where_the_clock_is_set_back_and_end_by_what_passes_after_it() -> None:
    before, after = 7200 + 3590, 7205
    lines = [_line(before, 1), _line(before + 5, 2), _line(after, 3), _line(after + 1, 1), _line(after + 2, 2)]
    rest = [_line(after + 70, 4), _line(after + 71, 4)]
    made = stream(RULES["session"], closing=Closing(gap=60, leave_open=True))
    closed = [
        row for windows in made.windows(_pieces(*lines, *rest)) for row in windows.table.select("key", "lines").rows()
    ]
    assert (sorted(closed), made.left_open) == ([("blk_1", 2), ("blk_2", 2), ("blk_3", 1)], 1)


def test_while_a_log_is_waited_for_the_clock_ends_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("storage.log_stream.time.monotonic", lambda: now[0])

    def pieces() -> Iterator[Piece]:
        yield from _pieces(_line(0, 1))
        for seconds in (59.0, 61.0):
            now[0] = seconds
            yield Piece("log", 1, b"")
            told.append((seconds, made.left_open))

    told: list[tuple[float, int]] = []
    made = stream(RULES["session"], closing=Closing(gap=60, leave_open=True))
    list(made.windows(pieces()))
    assert told == [(59.0, 1), (61.0, 0)]


def test_memory_is_bounded_by_closing_what_waited_longest_and_it_is_counted() -> None:
    lines = [_line(number, number) for number in range(500)] + [_line(500, 499)]
    made = stream(RULES["session"], memory_bytes=20_000)
    most = 0
    keys: list[str] = []
    for windows in made.windows(_pieces(*lines)):
        keys += windows.table["key"].to_list()
        most = max(most, made.left_open)
    assert sorted(keys) == sorted(f"blk_{number}" for number in range(500))
    assert 0 < most < 200
    assert made.counts.closed_early > 300


def test_messages_that_no_open_window_has_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.log_stream._MANY_MESSAGES", 50)
    words = random.Random(0)
    texts = ["".join(words.choices("abcdefgh", k=12)) for _ in range(300)]
    lines = [_line(10 * number, number // 3, text) for number, text in enumerate(texts)]
    made = stream(RULES["session"], closing=Closing(gap=60))
    _, messages, _ = gathered(made, _pieces(*lines))
    assert [text for window in messages for text in window] == [f"{text} blk_<*>" for text in texts]
    assert len(made._texts) < 100


@pytest.mark.parametrize(
    ("text", "error", "complaint"),
    [
        ("", SourceError, "empty"),
        ("\n \n", SourceError, "empty"),
        ("GET / HTTP/1.1\n" * 3, FormatError, "3 of 3 lines"),
        ("GET / HTTP/1.1\n" * 400 + _line(0, 1) * 100, FormatError, "not of the form"),
        ("081109 000000 1 INFO a: no key\n", FormatError, "No line of log is in a window"),
    ],
)
def test_a_log_that_is_not_for_the_detector_is_refused(text: str, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint) as caught:
        list(stream(RULES["session"], most_misread=0.5).windows(iter([Piece("log", 0, text.encode())] if text else [])))
    assert "\n" not in str(caught.value)
