"""Alert files hold the same in every format, take only new alerts when appended to, and tell what cannot be written."""

import csv
import errno
import json
import os
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage.alert_files import AlertFile
from storage.alerts import AlertKinds, FoundAlert, share_below, unusual_words
from storage.errors import DiskFull, FormatError, StorageError
from storage.raw_blocks import RawLine
from storage.summaries import SurprisingMessage

REASON = SurprisingMessage(text="disk <*> failed", surprise=9.5, position=2, token="failed", expected="ok")


def alert(number: int, score: float = 7.5, kind: str = "k", day: int = 1) -> FoundAlert:
    return FoundAlert(
        window=f"job-{number}",
        score=score,
        threshold=6.0,
        higher_than=1.0,
        calibration_windows=1109,
        site="web1",
        first_time=datetime(2026, 5, day, 10, microsecond=1500),
        last_time=None,
        lines=2,
        truncated=False,
        reasons=[REASON] if number % 2 else None,
        by_token=True,
        raw=[RawLine(file="a.log", line=4, text='"disk" 7, failed;\téß'), RawLine(file="a.log", line=9, text="=1+1")],
        sequence_hash=kind,
        detector="shop version 3",
    )


def written(path: Path, *alerts: FoundAlert, append: bool = False) -> list[FoundAlert]:
    with AlertFile(str(path), append) as file:
        return file.add(alerts)


def test_json_lines_and_parquet_hold_the_whole_alert(tmp_path: Path) -> None:
    alerts = [alert(1), alert(2)]
    written(tmp_path / "a.jsonl", *alerts)
    written(tmp_path / "a.parquet", *alerts)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    table = pl.read_parquet(tmp_path / "a.parquet").to_dicts()
    for found in (rows, table):
        assert [found[i].pop("unusual") for i in (0, 1)] == ["higher than all 1,109 calibration windows"] * 2
        assert [FoundAlert.model_validate(row) for row in found] == alerts


def test_csv_holds_a_row_an_alert_with_its_lines_and_reasons_as_text(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", alert(1), alert(2))
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["window"] for row in rows] == ["job-1", "job-2"]
    assert rows[0]["raw"] == '"disk" 7, failed;\téß\n=1+1'
    assert [row["reasons"] for row in rows] == ["disk <*> failed [failed]", ""]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_appending_adds_only_alerts_that_the_file_lacks(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    assert len(written(path, alert(1), alert(2), append=True)) == 2
    assert [found.window for found in written(path, alert(2), alert(3), append=True)] == ["job-3"]
    assert written(path, alert(1), alert(3), append=True) == []
    text = path.read_text()
    assert [text.count(f"job-{number}") for number in (1, 2, 3)] == [1, 1, 1]
    written(path, alert(9))
    assert "job-1" not in path.read_text()


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_the_same_window_of_another_day_is_another_alert(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    timeless = alert(1).model_copy(update={"first_time": None})
    for found in (alert(1), alert(1, day=2), timeless):
        assert written(path, found, append=True) == [found]
        assert written(path, found, append=True) == []


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_row_cut_off_anywhere_is_written_again_and_none_else_is_lost(ending: str, tmp_path: Path) -> None:
    whole = tmp_path / f"whole.{ending}"
    written(whole, alert(1), alert(2))
    start = whole.stat().st_size
    written(whole, alert(3), append=True)
    content = whole.read_bytes()
    for end in range(start + 1, len(content)):
        path = tmp_path / f"cut.{ending}"
        path.write_bytes(content[:end])
        assert [found.window for found in written(path, alert(1), alert(2), alert(3), append=True)] == ["job-3"]
        assert path.read_bytes() == content


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_an_only_line_without_a_line_feed_gets_one(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    written(path, alert(1))
    content = path.read_text() if ending == "jsonl" else path.read_text().splitlines()[0]
    path.write_text(content.rstrip())
    written(path, alert(2), append=True)
    assert [found.window for found in written(path, alert(2), alert(3), append=True)] == ["job-3"]


def test_a_batch_for_which_there_is_no_room_leaves_no_part_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "a.jsonl", os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:-50])

    written(path, alert(1))
    before = path.read_bytes()
    with pytest.raises(DiskFull), AlertFile(str(path), append=True) as file:
        monkeypatch.setattr(os, "write", half)
        file.add([alert(2)])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [found.window for found in written(path, alert(2), append=True)] == ["job-2"]


def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", b'{"note": "mine"}'), ("a.csv", b"window,note\n1,mine"), ("b.jsonl", b"mine")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match="does not hold alerts"):
            written(tmp_path / name, alert(1), append=True)
        assert (tmp_path / name).read_bytes() == content


def test_a_parquet_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), AlertFile(str(tmp_path / "a.parquet")) as file:
        file.add([alert(1)])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    written(tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "a.parquet").height == 0


@pytest.mark.parametrize(
    ("name", "append", "error", "complaint"),
    [
        ("a.txt", False, FormatError, ".jsonl, .csv or .parquet"),
        ("a.parquet", True, FormatError, "nothing can be added"),
        ("nowhere/a.jsonl", False, StorageError, "No such file or directory"),
        ("other.jsonl", True, FormatError, "does not hold alerts"),
        ("other.csv", True, FormatError, "does not hold alerts"),
    ],
)
def test_an_output_that_cannot_be_is_told(
    name: str, append: bool, error: type[Exception], complaint: str, tmp_path: Path
) -> None:
    for other in ("other.jsonl", "other.csv"):
        (tmp_path / other).write_text("a,b\n1,2\n")
    with pytest.raises(error, match=complaint) as caught:
        written(tmp_path / name, alert(1), append=append)
    assert "\n" not in str(caught.value)


def test_how_unusual_a_score_is_counts_calibration_scores_below_it() -> None:
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    assert [share_below(scores, score) for score in (0.5, 2.0, 2.5, 9.0)] == [0.0, 0.25, 0.75, 1.0]
    assert unusual_words(0.9999, 10_000) == "higher than 99.99 % of 10,000 calibration windows"
    assert unusual_words(share_below(scores[:0], 1.0), 0) == "no calibration windows to compare with"


def test_of_many_alerts_the_most_anomalous_of_each_kind_are_kept_in_bounded_memory() -> None:
    kinds = AlertKinds()
    for number in range(3000):
        kinds.add(alert(number, score=float(number % 300), kind=f"kind-{number % 300}"))
    assert [found.score for found in kinds.shown] == [float(score) for score in range(299, 249, -1)]
    assert kinds.alike["kind-299"] == 10
