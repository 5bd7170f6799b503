"""A log reads the same however it is packed, damage is told in one line, and a growing log is read through rotation."""

import bz2
import gzip
import lzma
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from storage.datasets import HDFS
from storage.errors import SourceError
from storage.log_inputs import Piece, find_logs, follow_file, follow_standard_input, read_logs
from storage.log_order import in_time_order

LINES = b"".join(b"line %d\n" % number for number in range(5000))


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


def text_of(*paths: Path) -> bytes:
    return b"".join(piece.data for piece in read_logs(list(paths)))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd, bz2.compress, lzma.compress])
def test_a_log_reads_the_same_whatever_it_is_packed_with_or_called(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(pack(LINES))
    assert text_of(path) == LINES


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_several_packed_parts_after_each_other_are_one_log(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "parts"
    path.write_bytes(pack(LINES[:9000]) + pack(LINES[9000:]))
    assert text_of(path) == LINES


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bz2.compress, lzma.compress])
def test_a_packed_log_that_is_cut_off_is_told_in_one_line(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    _told_as_damaged(pack(LINES)[:-9], tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_log_that_is_damaged_is_told_in_one_line(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    packed = pack(LINES)
    _told_as_damaged(packed[:40] + b"\xff" * 9 + packed[49:], tmp_path)


def _told_as_damaged(data: bytes, folder: Path) -> None:
    (folder / "broken").write_bytes(data)
    with pytest.raises(SourceError, match="damaged or cut off") as caught:
        text_of(folder / "broken")
    assert "\n" not in str(caught.value)


def test_pieces_number_the_lines_of_their_own_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.raw_lines.CHUNK_BYTES", 100)
    paths = [tmp_path / "a.log", tmp_path / "b.log"]
    paths[0].write_bytes(LINES[:1000].rpartition(b"\n")[0])  # without a last line feed
    paths[1].write_bytes(LINES[:500])
    for path in paths:
        pieces = [piece for piece in read_logs(paths) if piece.source == str(path)]
        assert len(pieces) > 3
        for piece in pieces:
            before = b"".join(each.data for each in pieces if each.first_line < piece.first_line)
            assert before.count(b"\n") == piece.first_line


def test_a_folder_stands_for_its_files_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("app.log.10", "app.log.2", ".hidden"):
        (tmp_path / name).write_text("x\n")
    (tmp_path / "folder").mkdir()
    assert find_logs([str(tmp_path)]) == [tmp_path / "app.log.2", tmp_path / "app.log.10"]


@pytest.mark.parametrize(
    ("named", "complaint"),
    [(["nowhere.log"], "no file nowhere.log"), (["-", "-"], "read alone"), (["empty"], "no file in the folder")],
)
def test_inputs_that_cannot_be_meant_are_told(
    named: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=complaint):
        find_logs(named)


def test_rotated_logs_are_read_in_the_order_of_their_times(tmp_path: Path) -> None:
    line = "0811{:02d} 000000 1 INFO a: b\n"
    for name, day in (("app.log", 9), ("app.log.1", 5), ("app.log.2.gz", 2)):
        text = line.format(day).encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = in_time_order(find_logs([str(tmp_path)]), HDFS)
    assert [Path(log).name for log in found] == ["app.log.2.gz", "app.log.1", "app.log"]
    (tmp_path / "app.log.1").write_text("no time\n")
    (tmp_path / "app.log.3").write_text("")
    found = in_time_order(find_logs([str(tmp_path)]), HDFS)
    assert [Path(log).name for log in found] == ["app.log.2.gz", "app.log", "app.log.1", "app.log.3"]


def test_pipes_are_read_once_in_the_order_given(tmp_path: Path) -> None:
    pipes = [tmp_path / "b.log", tmp_path / "a.log"]
    for day, pipe in zip((9, 5), pipes, strict=True):
        os.mkfifo(pipe)
        threading.Thread(target=pipe.write_text, args=(f"0811{day:02d} 000000 1 INFO a: b\n",), daemon=True).start()
    read = b"".join(piece.data for piece in read_logs(in_time_order(list(pipes), HDFS)))
    assert [line.split()[0] for line in read.splitlines()] == [b"081109", b"081105"]


class Follower:
    """Reads a growing file, acting on it whenever there is nothing to read."""

    def __init__(self, path: Path, *acts: Callable[[], Any]) -> None:
        self.acts, self.pieces = list(acts), follow_file(path, wait=lambda seconds: None)

    def lines(self) -> Iterator[Piece]:
        for piece in self.pieces:
            if piece.data:
                yield piece
            elif not self.acts:
                return
            else:
                self.acts.pop(0)()


def test_a_growing_log_is_read_through_rotation_and_truncation_without_losing_or_doubling_a_line(
    tmp_path: Path,
) -> None:
    path = tmp_path / "app.log"
    path.write_text("one\ntw")

    def add(text: str) -> Callable[[], Any]:
        def write() -> None:
            with path.open("a") as file:
                file.write(text)

        return write

    def rotate() -> None:
        add("three\n")()
        path.rename(tmp_path / "app.log.1")

    follower = Follower(
        path, add("o\n"), rotate, lambda: None, add("four\nfive\n"), lambda: path.write_text("six\n"), lambda: None
    )
    pieces = list(follower.lines())
    assert b"".join(piece.data for piece in pieces).split() == [b"one", b"two", b"three", b"four", b"five", b"six"]
    assert [piece.first_line for piece in pieces] == [0, 1, 2, 0, 0]


def test_a_packed_log_cannot_be_followed(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_bytes(gzip.compress(LINES))
    with pytest.raises(SourceError, match="leave --follow out"):
        next(follow_file(tmp_path / "app.log"))


def test_standard_input_is_read_whole_and_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for read in (lambda: read_logs(["-"]), follow_standard_input):
        reading, writing = os.pipe()
        os.write(writing, gzip.compress(LINES[:80]) if read is not follow_standard_input else LINES[:80])
        os.close(writing)
        with os.fdopen(reading, "rb") as file, monkeypatch.context() as patch:
            patch.setattr("sys.stdin", file)
            assert b"".join(piece.data for piece in read()) == LINES[:80]
