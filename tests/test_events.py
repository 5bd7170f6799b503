"""storage/events.py: what a job tells, read while it is being written."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from storage.events import append_event, read_events


def test_events_are_read_from_where_the_last_reading_stopped(tmp_path: Path) -> None:
    assert read_events(tmp_path) == ([], 0)
    append_event(tmp_path, "started", rounds=2)
    first, offset = read_events(tmp_path)
    append_event(tmp_path, "finished")
    second, end = read_events(tmp_path, offset)
    assert [(event["event"], event.get("rounds")) for event in first + second] == [("started", 2), ("finished", None)]
    assert read_events(tmp_path, end) == ([], end)


def test_a_line_still_being_written_is_left_for_later_and_a_torn_one_is_skipped(tmp_path: Path) -> None:
    append_event(tmp_path, "one")
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write('{"event": "tw')
    events, offset = read_events(tmp_path)
    assert [event["event"] for event in events] == ["one"]
    with (tmp_path / "progress.jsonl").open("a") as file:
        file.write("\n")
    append_event(tmp_path, "three")
    assert [event["event"] for event in read_events(tmp_path, offset)[0]] == ["three"]


def test_writers_at_the_same_time_lose_no_event(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: append_event(tmp_path, "client", number=number), range(400)))
    assert sorted(event["number"] for event in read_events(tmp_path)[0]) == list(range(400))


def test_a_folder_that_is_gone_loses_the_event_and_not_the_job(tmp_path: Path) -> None:
    append_event(tmp_path / "gone", "started")
    assert not (tmp_path / "gone").exists()
