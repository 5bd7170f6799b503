"""A disk that becomes full in the middle of a write: what was there stays, and nothing half is added."""

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from storage.disks import append_whole, is_full, no_room, unwritten
from storage.errors import DataError, DiskFull, StorageError
from storage.ledger import Ledger


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: the system then takes a part of a write, as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_whole(path, b"first\n", 0o600)
    with room(10), pytest.raises(OSError, match="File too large"):
        append_whole(path, b"second line\n")
    assert path.read_bytes() == b"first\n"
    append_whole(path, b"second line\n", through=True)
    assert path.read_bytes() == b"first\nsecond line\n"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_want_of_room_is_known_through_whatever_it_became() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    told = unwritten(caught.value, "round 3 was not kept")
    assert isinstance(told, DiskFull)
    assert str(told) == "The disk is full: round 3 was not kept; free some space and run again."
    try:
        raise DataError("wrapped") from told
    except DataError as error:
        assert no_room(error)
    assert no_room(caught.value)
    assert not no_room(OSError(errno.EACCES, "Permission denied"))
    assert not no_room(None)


def test_what_else_hinders_a_write_is_told_with_its_reason() -> None:
    told = unwritten(PermissionError(errno.EACCES, "Permission denied"), "the alerts were not written to a.csv")
    assert type(told) is StorageError
    assert str(told).startswith("The alerts were not written to a.csv: Permission denied; check")


def test_a_disk_with_room_is_not_full(tmp_path: Path) -> None:
    assert not is_full(tmp_path)


def test_a_ledger_without_room_takes_no_entry_counts_nothing_and_loses_no_poll(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.call("PushMessages", b"12345")
    before = (tmp_path / "ledger.jsonl").read_bytes()
    with room(len(before) + 20):
        ledger.call("SendNodeHeartbeat", b"1234")
        with pytest.raises(StorageError, match="takes no entry, so nothing is sent"):
            ledger.call("PushObject", b"123")
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert ledger.bytes_sent == 9
    ledger.call("PushObject", b"123")
    lines = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert '"SendNodeHeartbeat": 1' in lines[1]
    assert ledger.bytes_sent == 12
