"""Stage outputs: folders that appear whole or not at all, with a card that tells whether they are still intact."""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from storage.disks import unwritten
from storage.errors import StorageError

CARD = "card.json"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Stage:
    """What a task hands to the next: where a stage lies, what it is, and how much it holds; never the data itself."""

    name: str
    key: str
    path: str
    fingerprint: str
    """Hash over the names and contents of the stage's files."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Numbers and short names only: lines, windows, seconds; no log text."""
    work_seconds: float = 0.0
    """How long the work took when the stage was written."""

    def file(self, name: str) -> Path:
        """The path of one of the stage's files."""
        return Path(self.path) / name


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def load_stage(root: Path, name: str, key: str) -> Stage | None:
    """The stage under `root/name/key`, or None where it is missing, incomplete or damaged.

    A file whose size and modification time are as recorded is taken as it was; any other is hashed again.
    """
    folder = root / name / key
    try:
        card = json.loads((folder / CARD).read_text())
        if not all(_intact(folder / file, facts) for file, facts in card["files"].items()):
            return None
        return Stage(
            card["name"], card["key"], str(folder), card["fingerprint"], card["counts"], card.get("work_seconds", 0.0)
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _intact(path: Path, facts: dict[str, Any]) -> bool:
    status = path.stat()
    if status.st_size != facts["bytes"]:
        return False
    return status.st_mtime_ns == facts["mtime_ns"] or hash_file(path) == facts["sha256"]


class NewStage:
    """A stage while it is written: files go into `path`, numbers into `counts`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: dict[str, Any] = {}
        self.work_seconds: float | None = None
        """Set where not all of the time until the stage is committed is work."""
        self.result: Stage | None = None

    @property
    def done(self) -> Stage:
        """The committed stage; only after the `with` block."""
        if self.result is None:
            raise StorageError("The stage was not committed.")
        return self.result


@contextmanager
def new_stage(root: Path, name: str, key: str) -> Iterator[NewStage]:
    """Write a stage beside its final place and move it there in one rename; on any error nothing is left behind.

    Raises DiskFull for want of room, StorageError where the folder cannot be written.
    """
    final = root / name / key
    with _told_as_storage_error(final):
        temporary = root / name / f".{key}.{uuid.uuid4().hex[:8]}"
        temporary.mkdir(parents=True)
        try:
            stage = NewStage(temporary)
            began = time.monotonic()
            yield stage
            work_seconds = time.monotonic() - began if stage.work_seconds is None else stage.work_seconds
            stage.result = _commit(temporary, final, name, key, stage.counts, round(work_seconds, 3))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _commit(temporary: Path, final: Path, name: str, key: str, counts: dict[str, Any], work_seconds: float) -> Stage:
    files = {
        str(path.relative_to(temporary)): {
            "bytes": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
            "sha256": hash_file(path),
        }
        for path in sorted(temporary.rglob("*"))
        if path.is_file()
    }
    content = hashlib.sha256("".join(f"{file}\0{facts['sha256']}\n" for file, facts in files.items()).encode())
    stage = Stage(name, key, str(final), content.hexdigest()[:32], counts, work_seconds)
    card = {**asdict(stage), "files": files}
    del card["path"]
    (temporary / CARD).write_text(json.dumps(card, indent=1))
    replaced = final.parent / f"{temporary.name}.old"
    if final.exists():
        final.rename(replaced)
    temporary.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    return stage


@contextmanager
def _told_as_storage_error(final: Path) -> Iterator[None]:
    kept = f"nothing was kept of {final.parent.name}"
    try:
        yield
    except pl.exceptions.PolarsError as error:
        # Polars tells the system's errors by their text only.
        if os.strerror(errno.ENOSPC) in str(error):
            raise unwritten(OSError(errno.ENOSPC, ""), kept) from error
        raise
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}:
            raise unwritten(error, f"{kept} in {final.parent}") from error
        raise
