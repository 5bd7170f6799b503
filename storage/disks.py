"""Writing to disks that may be full or forbidden: one wording for it, and lines that are there whole or not at all."""

import errno
import os
import shutil
from pathlib import Path

from storage.errors import DiskFull, StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_ENOUGH = 1 << 20
"""Bytes that must be free on a disk that is not full."""


def unwritten(error: OSError, what: str) -> StorageError:
    """The error that says what was not written, and why; DiskFull where room is what it wants for."""
    if error.errno in _FULL:
        return DiskFull(f"The disk is full: {what}; free some space and run again.")
    return StorageError(f"{what[0].upper()}{what[1:]}: {error.strerror}; check the folder and its permissions.")


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is a disk without room."""
    while error is not None:
        if isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in _FULL):
            return True
        error = error.__cause__
    return False


def is_full(folder: Path) -> bool:
    """Whether the disk of a folder has no room to speak of."""
    return shutil.disk_usage(folder).free < _ENOUGH


def append_whole(path: Path, data: bytes, mode: int = 0o644, *, through: bool = False) -> None:
    """Append to a file that nobody else appends to, all or nothing; `through`: on the disk when this returns.

    A disk that becomes full takes the beginning of a write without an error: such a beginning is removed again. Raises
    OSError.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, mode)
    try:
        before, written = os.fstat(descriptor).st_size, 0
        try:
            while written < len(data):
                written += os.write(descriptor, data[written:])
            if through:
                os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)
