"""What a log has gained: only new whole lines, the same part until it is done, everything where it is another log."""

from pathlib import Path

import pytest

from storage.datasets import DatasetConfig, DatasetSpec, resolve
from storage.layout import Layout
from storage.new_lines import NewLines, begin, finish, new_lines

SPEC: DatasetSpec = resolve(DatasetConfig(name="hdfs"))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "home")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "datanode.log"
    path.write_text("one\ntwo\n")
    return path


def _take(log: Path, layout: Layout) -> NewLines | None:
    return new_lines(DatasetConfig(name="hdfs", source=str(log)), SPEC, layout)


def _text(found: NewLines | None) -> str:
    assert found is not None
    assert found.source is not None
    return Path(found.source).read_text()


def _done(log: Path, layout: Layout) -> None:
    found = _take(log, layout)
    assert found is not None
    finish(begin(found, None, SPEC, layout), SPEC, layout)


def test_all_lines_are_new_the_first_time_and_none_after_that(log: Path, layout: Layout) -> None:
    assert _text(_take(log, layout)) == "one\ntwo\n"
    _done(log, layout)
    assert _take(log, layout) is None


def test_only_what_a_log_gained_is_new(log: Path, layout: Layout) -> None:
    _done(log, layout)
    with log.open("a") as file:
        file.write("three\nfour\n")
    found = _take(log, layout)
    assert _text(found) == "three\nfour\n"
    assert found is not None
    assert found.lines == 2


def test_a_line_that_is_still_being_written_waits(log: Path, layout: Layout) -> None:
    _done(log, layout)
    with log.open("a") as file:
        file.write("three\nfo")
    assert _text(_take(log, layout)) == "three\n"
    _done(log, layout)
    with log.open("a") as file:
        file.write("ur\n")
    assert _text(_take(log, layout)) == "four\n"


def test_a_part_that_was_begun_stays_the_same_while_the_log_grows(log: Path, layout: Layout) -> None:
    found = _take(log, layout)
    assert found is not None
    held = begin(found, "models:/hdfs/1", SPEC, layout)
    with log.open("a") as file:
        file.write("three\n")
    again = _take(log, layout)
    assert again == held
    assert again is not None
    assert begin(again, "models:/hdfs/2", SPEC, layout).start_from == "models:/hdfs/1"
    assert _text(again) == "one\ntwo\n"
    finish(again, SPEC, layout)
    assert _text(_take(log, layout)) == "three\n"


@pytest.mark.parametrize("content", ["1\n2\n3\n4\n5\n", "one\n"], ids=["another log", "a shorter log"])
def test_a_rotated_log_is_new_as_a_whole(content: str, log: Path, layout: Layout) -> None:
    _done(log, layout)
    log.write_text(content)
    assert _text(_take(log, layout)) == content


def test_labels_beside_the_log_come_along(log: Path, layout: Layout) -> None:
    (log.parent / "anomaly_label.csv").write_text("BlockId,Label\n")
    found = _take(log, layout)
    assert found is not None
    assert (Path(str(found.source)).parent / "anomaly_label.csv").is_file()


def test_a_folder_is_taken_as_a_whole_whenever_it_changed(log: Path, layout: Layout) -> None:
    log.rename(log.parent / "HDFS.log")
    found = _take(log.parent, layout)
    assert found is not None
    assert (found.source, found.lines) == (None, None)
    _done(log.parent, layout)
    assert _take(log.parent, layout) is None
    (log.parent / "HDFS.log").write_text("other\n")
    assert _take(log.parent, layout) is not None
