"""Raw lines: the same whatever the chunks, and none lost."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import raw_lines
from storage.errors import SourceError
from storage.raw_lines import decode_lines, read_chunks, read_raw_lines, work_on_chunks

_BYTES = st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b"\xff", "é".encode(), b"x^", b" ", b"\r", b"\x00"])).map(
    b"".join
)


def _expected(data: bytes) -> list[str]:
    """Split at line feeds alone, one carriage return dropped before each, by Python."""
    lines = data.removesuffix(b"\n").split(b"\n") if data else []
    return [line.removesuffix(b"\r").decode(errors="replace") for line in lines]


def _lines(path: Path) -> list[str]:
    lines = []
    for chunk in read_chunks(path):
        decoded = decode_lines(chunk)
        lines += [decoded.undecodable.get(row, text) for row, text in enumerate(decoded.text)]
    return lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=_BYTES, size=st.integers(1, 9))
def test_lines_are_those_of_the_file_whatever_the_chunk_size(
    data: bytes, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(data)
    monkeypatch.setattr(raw_lines, "CHUNK_BYTES", size)
    assert _lines(path) == _expected(data)


def test_a_chunk_that_starts_like_a_compressed_file_is_read_as_text() -> None:
    assert decode_lines(b"x^ of caller\nnext\n").text.to_list() == ["x^ of caller", "next"]


def test_undecodable_lines_keep_their_number_and_readable_parts() -> None:
    decoded = decode_lines(b"good\nbad \xff byte\n\nlast")
    assert decoded.text.to_list() == ["good", None, "", "last"]
    assert decoded.undecodable == {1: "bad � byte"}


def test_other_encodings_become_unicode() -> None:
    assert decode_lines("Größe\nfin\n".encode("latin-1"), "latin-1").text.to_list() == ["Größe", "fin"]
    assert decode_lines("日本\n".encode("shift_jis"), "shift_jis").text.to_list() == ["日本"]


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "bom.log"
    path.write_bytes(b"\xef\xbb\xbffirst\nsecond\n")
    assert _lines(path) == ["first", "second"]


def test_work_comes_back_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.log"
    path.write_text("".join(f"{number}\n" for number in range(5000)))
    monkeypatch.setattr(raw_lines, "CHUNK_BYTES", 100)
    parts = list(work_on_chunks(path, lambda chunk, _: decode_lines(chunk).text))
    assert pl.concat(parts).to_list() == [str(number) for number in range(5000)]


def test_an_error_in_the_work_reaches_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("a\n")
    with pytest.raises(ZeroDivisionError):
        list(work_on_chunks(path, lambda chunk, _: 1 // (len(chunk) - 2)))


def test_raw_lines_are_found_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"zero\none\xff\ntwo\n\nfour")
    monkeypatch.setattr(raw_lines, "CHUNK_BYTES", 6)
    assert read_raw_lines(path, [4, 1, 0, 99]) == {0: "zero", 1: "one�", 4: "four"}


def test_a_missing_log_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Cannot read .*; check the path"):
        list(read_chunks(tmp_path / "none.log"))
