"""Raw logs to judge: files (plain or compressed), folders of them, standard input, and a file that still grows.

What a file is compressed with is told by its first bytes, whatever it is called.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import select
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from storage.errors import SourceError
from storage.raw_lines import CHUNK_BYTES, count_lines, whole_lines

STANDARD_INPUT = "-"
POLL_SECONDS = 0.5
"""Time between two looks at a growing file."""
_HEAD_BYTES = 1 << 16
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC: dict[bytes, tuple[str, Callable[[BinaryIO], Any]]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    _ZSTD: ("zstd", lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
}


@dataclass(frozen=True)
class Piece:
    """Whole lines of one source, the last perhaps without its line feed; none while a growing file is waited for."""

    source: str
    first_line: int
    """Number of its first line within the source, from 0."""
    data: bytes


def find_logs(named: Sequence[str]) -> list[Path | str]:
    """The files that are meant: a folder stands for those directly in it, hidden ones left out, by natural name.

    Raises SourceError where one does not exist, a folder is empty, or standard input is named beside others.
    """
    found: list[Path | str] = []
    for name in named:
        path = Path(name).expanduser()
        if name == STANDARD_INPUT:
            found.append(name)
        elif path.is_dir():
            found += _files_in(path)
        elif path.exists():
            found.append(path)
        else:
            raise SourceError(f"There is no file {name}; check the path.")
    if not found:
        raise SourceError("There is no log to read; name a file, a folder, or - for standard input.")
    if STANDARD_INPUT in found and len(found) > 1:
        raise SourceError("Standard input (-) is read alone; leave the other files out, or pipe them in too.")
    return found


def _files_in(folder: Path) -> list[Path]:
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    if not files:
        raise SourceError(f"There is no file in the folder {folder}; name one that holds logs.")
    return sorted(files, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A name's order with numbers by value: log.2 before log.10."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]


def first_lines(path: Path) -> bytes:
    """The beginning of a log, decompressed."""
    with _opened(path) as file:
        return file.read(_HEAD_BYTES)


def read_logs(logs: Sequence[Path | str]) -> Iterator[Piece]:
    """The logs' lines in large pieces, one log after the other.

    Raises SourceError where one cannot be read, or is compressed and damaged or cut off.
    """
    for log in logs:
        first = 0
        with _opened(log) as file:
            for data in whole_lines(file):
                yield Piece(str(log), first, data)
                first += count_lines(data)


@contextmanager
def _opened(log: Path | str) -> Iterator[BinaryIO]:
    """A log's bytes, decompressed; what goes wrong within the block is told as SourceError."""
    what = ""
    try:
        with _raw(log) as raw:
            what, file = decompressed(raw)
            yield file
    except (EOFError, lzma.LZMAError, zlib.error, OSError, pa.ArrowException) as error:
        if what:
            raise SourceError(f"{log} is damaged or cut off ({what}: {_reason(error)}); copy it again.") from error
        raise SourceError(f"Cannot read {log}: {_reason(error)}; check the path and its permissions.") from error


def _raw(log: Path | str) -> io.BufferedReader:
    if log == STANDARD_INPUT:
        # A reader of its own: closing it at the end leaves standard input itself open.
        return open(sys.stdin.fileno(), "rb", closefd=False)
    return Path(log).open("rb")


def is_compressed(start: bytes) -> bool:
    """Whether a file that begins so is compressed in a way known here."""
    return start.startswith(tuple(_MAGIC))


def decompressed(file: io.BufferedReader) -> tuple[str, BinaryIO]:
    """How a file is compressed (empty: it is not), and its content, to be read once from its beginning."""
    start = file.peek(8)[:8]
    for magic, (what, opened) in _MAGIC.items():
        if start.startswith(magic):
            return what, cast(BinaryIO, opened(file))
    return "", file


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0][:120]


def follow_file(path: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[Piece]:
    """The lines of a file that grows, as they come; an empty piece whenever there are none. Never ends by itself.

    A file that was renamed or removed is read to its end before the new one of that name; one that was cut off in place
    is read from its beginning. A last line without a line feed waits for the rest of it.
    """
    while True:
        yield from _follow_one(path, wait)


def _follow_one(path: Path, wait: Callable[[float], None]) -> Iterator[Piece]:
    """The lines of the file that has the name now, until another one has it or it was cut off."""
    with _opened(path) as opened:
        file = cast(io.BufferedReader, opened)
        if not isinstance(file, io.BufferedReader):
            raise SourceError(f"{path} is compressed; only a plain log can be followed, so leave --follow out.")
        rest, first = b"", 0
        while True:
            replaced = _is_replaced(path, file)
            block = file.read(CHUNK_BYTES)
            lines, rest = _cut(rest + block, whole=replaced and not block)
            if lines:
                yield Piece(str(path), first, lines)
                first += count_lines(lines)
            if replaced and not block:
                break
            if not block:
                yield Piece(str(path), first, b"")
                wait(POLL_SECONDS)
    while not path.exists():
        yield Piece(str(path), 0, b"")
        wait(POLL_SECONDS)


def _is_replaced(path: Path, file: io.BufferedReader) -> bool:
    """Whether the name stands for another file now, or the file is shorter than what was read of it."""
    opened = os.fstat(file.fileno())
    try:
        named = path.stat()
    except FileNotFoundError:
        return True
    return (named.st_ino, named.st_dev) != (opened.st_ino, opened.st_dev) or opened.st_size < file.tell()


def _cut(data: bytes, whole: bool = False) -> tuple[bytes, bytes]:
    """Whole lines, and what is left of the data after them."""
    end = len(data) if whole else data.rfind(b"\n") + 1
    return data[:end], data[end:]


def follow_standard_input() -> Iterator[Piece]:
    """The lines of standard input as they come, until it ends; an empty piece whenever there are none."""
    descriptor = sys.stdin.fileno()
    rest, first = b"", 0
    while True:
        if not select.select([descriptor], [], [], POLL_SECONDS)[0]:
            yield Piece(STANDARD_INPUT, first, b"")
            continue
        block = os.read(descriptor, CHUNK_BYTES)
        lines, rest = _cut(rest + block, whole=not block)
        if lines:
            yield Piece(STANDARD_INPUT, first, lines)
            first += count_lines(lines)
        if not block:
            return
