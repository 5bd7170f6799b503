"""Raw log files, read as numbered lines in chunks, so that memory does not grow with the file."""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import polars as pl

from storage.errors import SourceError
from storage.progress import Progress, silent

CHUNK_BYTES = 4 << 20
"""Big enough that the work on a chunk outweighs starting it, small enough that all cores have some of a small log."""

THREADS = min(4, max(2, os.cpu_count() or 2))
"""Chunks in work at a time; each takes a few times its bytes in memory."""

_ZEROED = bytes.maketrans(b"0123456789", b"0000000000")
"""In UTF-8 no byte of another character is a digit's."""

_LINE_FEED = ord("\n")

T = TypeVar("T")


@dataclass(frozen=True)
class Lines:
    """The lines of a chunk."""

    text: pl.Series
    """Null where the bytes cannot be decoded."""
    undecodable: dict[int, str]
    """Those lines by row, with U+FFFD for what is wrong."""


def decode_lines(data: bytes, encoding: str = "utf-8", zeroed: bool = False) -> Lines:
    """Split bytes at line feeds (a carriage return before one goes with it) and decode them.

    `zeroed` makes every digit 0, so that lines that differ in digits alone become equal.
    """
    try:
        if encoding != "utf-8":
            data = data.decode(encoding).encode()
        elif not data.isascii():
            data.decode()
    except UnicodeDecodeError:
        lines = _decode_one_by_one(data, encoding)
        return Lines(lines.text.str.replace_all("[0-9]", "0"), lines.undecodable) if zeroed else lines
    return Lines(_split(data.translate(_ZEROED) if zeroed else data), {})


def _split(data: bytes) -> pl.Series:
    # The line feed in front keeps Polars from taking a chunk that starts like a compressed file ("x^") for one.
    return pl.read_lines(b"\n" + data, name="line")["line"].slice(1)


def _decode_one_by_one(data: bytes, encoding: str) -> Lines:
    lines = data.removesuffix(b"\n").split(b"\n")
    texts: list[str | None] = []
    undecodable = {}
    for row, line in enumerate(lines):
        try:
            texts.append(line.removesuffix(b"\r").decode(encoding))
        except UnicodeDecodeError:
            texts.append(None)
            undecodable[row] = line.removesuffix(b"\r").decode(encoding, errors="replace")
    return Lines(pl.Series("line", texts, dtype=pl.String), undecodable)


def read_chunks(raw: Path) -> Iterator[bytes]:
    """The file's bytes in chunks of whole lines; raises SourceError where the file cannot be read."""
    try:
        with raw.open("rb") as file:
            yield from whole_lines(file)
    except OSError as error:
        raise SourceError(f"Cannot read {raw}: {error.strerror}; check the path and its permissions.") from error


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """What is left of a file in chunks of whole lines, about CHUNK_BYTES each, without a UTF-8 byte order mark."""
    rest = file.read(3).removeprefix(b"\xef\xbb\xbf")
    while block := file.read(CHUNK_BYTES):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = block[cut:]
        else:
            rest += block
    if rest:
        yield rest


def count_lines(chunk: bytes) -> int:
    """The number of lines in a chunk; the last may lack its line feed."""
    # A fifth of the time of bytes.count, and other threads go on meanwhile.
    return int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == _LINE_FEED)) + (not chunk.endswith(b"\n"))


def work_on_chunks(raw: Path, work: Callable[[bytes, int], T], progress: Progress = silent) -> Iterator[T]:
    """What `work` makes of each chunk and its first line's number, in the file's order; a few are in work at a time."""
    total = raw.stat().st_size if raw.exists() else 0
    done = first = 0
    waiting: deque[tuple[int, Future[T]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for chunk in read_chunks(raw):
                waiting.append((len(chunk), pool.submit(work, chunk, first)))
                first += count_lines(chunk)
                if len(waiting) > THREADS:
                    size, result = waiting.popleft()
                    yield result.result()
                    done += size
                    progress(done, total, "bytes of the log")
            while waiting:
                yield waiting.popleft()[1].result()
            progress(total, total, "bytes of the log")
        finally:
            for _, result in waiting:
                result.cancel()


def read_raw_lines(raw: Path, line_numbers: Collection[int], encoding: str = "utf-8") -> dict[int, str]:
    """The raw text of some lines by their number (0 is the file's first); numbers past the end are left out."""
    wanted = sorted(set(line_numbers))
    found: dict[int, str] = {}
    first = 0
    for chunk in read_chunks(raw):
        if len(found) == len(wanted):
            break
        count = count_lines(chunk)
        rows = [number - first for number in wanted if first <= number < first + count]
        if rows:
            lines = decode_lines(chunk, encoding)
            found |= {first + row: lines.undecodable.get(row) or lines.text[row] for row in rows}
        first += count
    return found
