"""Where alerts go: JSON Lines, CSV or Parquet, by the file's ending. They hold raw lines, as the logs themselves do."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import polars as pl

from storage.alerts import FoundAlert, Identity
from storage.disks import append_whole, unwritten
from storage.errors import FormatError
from storage.summaries import SurprisingMessage
from storage.tables import TableWriter

ENDINGS = (".jsonl", ".csv", ".parquet")
STANDARD_OUTPUT = "-"
_CUT = "surrogateescape"
"""Part of a character, where a row was cut off, is read as what it is."""
_TYPES: dict[Any, Any] = {str: pl.String, int: pl.UInt32}
_REASON = pl.Struct(
    {name: _TYPES.get(field.annotation, pl.Float64) for name, field in SurprisingMessage.model_fields.items()}
)
_SCHEMA: dict[str, Any] = {
    "unusual": pl.String,
    "window": pl.String,
    "score": pl.Float64,
    "threshold": pl.Float64,
    "higher_than": pl.Float64,
    "calibration_windows": pl.UInt32,
    "site": pl.String,
    "first_time": pl.Datetime("us"),
    "last_time": pl.Datetime("us"),
    "lines": pl.UInt32,
    "truncated": pl.Boolean,
    "reasons": pl.List(_REASON),
    "by_token": pl.Boolean,
    "raw": pl.List(pl.Struct({"file": pl.String, "line": pl.UInt64, "text": pl.String})),
    "sequence_hash": pl.String,
    "detector": pl.String,
}
"""Columns of a Parquet file; the keys of JSON Lines and the columns of CSV have the same names."""


class _Sink(Protocol):
    def write(self, alerts: Sequence[FoundAlert]) -> None: ...

    def close(self, finished: bool) -> None: ...


class AlertFile(AbstractContextManager["AlertFile"]):
    """Takes alerts as they are found."""

    def __init__(self, output: str | None, append: bool = False) -> None:
        """`output`: a file, `-` for JSON Lines on standard output, or None; `append`: add what the file lacks.

        Raises FormatError for an unknown ending, StorageError where the file cannot be written.
        """
        self._known: set[Identity] = set()
        self._sink: _Sink | None = _JsonLines(_print) if output == STANDARD_OUTPUT else None
        self._path = Path(output or "").expanduser()
        if output is not None and self._sink is None:
            self._sink = self._opened(append)

    def _opened(self, append: bool) -> _Sink:
        path = self._path
        if path.suffix not in ENDINGS:
            raise FormatError(f"{path} should end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}: that says its format.")
        if append and path.suffix == ".parquet":
            raise FormatError(f"{path} is Parquet, which nothing can be added to; write .jsonl or .csv.")
        with _told_as_storage_error(path):
            if path.suffix == ".parquet":
                return _Parquet(path)
            more = append and path.is_file() and path.stat().st_size > 0
            if more:
                self._known = _kept(path)
            else:
                path.write_bytes(b"")
            write = partial(_append, path)
            return _JsonLines(write) if path.suffix == ".jsonl" else _Csv(write, header=not more)

    def add(self, alerts: Iterable[FoundAlert]) -> list[FoundAlert]:
        """Write alerts, and give back those that the file did not hold before."""
        fresh = [alert for alert in alerts if alert.identity not in self._known]
        if self._sink is not None:
            with _told_as_storage_error(self._path):
                self._sink.write(fresh)
        return fresh

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sink is not None:
            with _told_as_storage_error(self._path):
                self._sink.close(finished=error is None)


class _JsonLines:
    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def write(self, alerts: Sequence[FoundAlert]) -> None:
        self._write("".join(json.dumps(alert.row(), ensure_ascii=False) + "\n" for alert in alerts))

    def close(self, finished: bool) -> None:
        """Every batch is written at once."""


class _Csv:
    def __init__(self, write: Callable[[str], None], header: bool) -> None:
        self._write = write
        if header:
            self._write(self._text(lambda table: table.writeheader()))

    def write(self, alerts: Sequence[FoundAlert]) -> None:
        self._write(self._text(lambda table: table.writerows(map(self._row, alerts))))

    def close(self, finished: bool) -> None:
        """Every batch is written at once."""

    @staticmethod
    def _text(fill: Callable[["csv.DictWriter[str]"], object]) -> str:
        text = io.StringIO(newline="")
        fill(csv.DictWriter(text, list(_SCHEMA)))
        return text.getvalue()

    @staticmethod
    def _row(alert: FoundAlert) -> dict[str, Any]:
        reasons = [f"{message.text} [{message.token}]" for message in alert.reasons or []]
        raw = [line.text for line in alert.raw]
        return alert.row() | {"reasons": "\n".join(reasons), "raw": "\n".join(raw)}


class _Parquet:
    """Half a Parquet file cannot be read, so it takes its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._part = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._writer = TableWriter(self._part, _SCHEMA)

    def write(self, alerts: Sequence[FoundAlert]) -> None:
        rows = [{"unusual": alert.unusual, **alert.model_dump()} for alert in alerts]
        self._writer.add(pl.DataFrame(rows, schema=_SCHEMA))

    def close(self, finished: bool) -> None:
        self._writer.close()
        if finished:
            self._part.replace(self._path)
        else:
            self._part.unlink()


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _append(path: Path, text: str) -> None:
    """All of it or nothing: half a row would be all that the file is known by the next time."""
    append_whole(path, text.encode())


def _kept(path: Path) -> set[Identity]:
    """The alerts that a file of ours holds, cut off after the last whole one; raises FormatError where it is none."""
    try:
        with path.open(encoding="utf-8", errors=_CUT, newline="") as file:
            known, end = _csv_rows(file) if path.suffix == ".csv" else _json_rows(file)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise FormatError(f"{path} does not hold alerts that could be added to; name another file.") from error
    if end < path.stat().st_size:
        os.truncate(path, end)  # what wrote it was killed in the middle of a row
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        ended = file.read() == b"\n"
    if not ended:
        _append(path, "\n")  # written by hand
    return known


def _json_rows(file: TextIO) -> tuple[set[Identity], int]:
    """The alerts of the whole lines, and the bytes that these take."""
    known: set[Identity] = set()
    end = 0
    for line in file:
        if known and not line.endswith("\n"):
            break
        known.add(_identity(json.loads(line)))
        end += len(line.encode(errors=_CUT))
    return known, end


def _csv_rows(file: TextIO) -> tuple[set[Identity], int]:
    """The alerts of the whole rows, and the bytes that these take; the raw lines in a row have ends of their own."""
    read, last = 0, ""

    def lines() -> Iterator[str]:
        nonlocal read, last
        for last in file:
            read += len(last.encode(errors=_CUT))
            yield last

    table = csv.DictReader(lines())
    if table.fieldnames != list(_SCHEMA):
        raise ValueError("other columns")
    known: set[Identity] = set()
    end = read
    for row in table:
        if None in row.values() or not last.endswith("\n"):
            break
        known.add(_identity(row))
        end = read
    return known, end


def _identity(row: Mapping[str, Any]) -> Identity:
    return row["window"], row["first_time"] or "", row["sequence_hash"], int(row["lines"])


@contextmanager
def _told_as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise unwritten(error, f"the alerts were not written to {path}") from error
