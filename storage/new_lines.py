"""What a log has gained since it was last taken: the lines after a bookmark, or all of it where it is another log.

A plain file that has only grown gives its new lines. A file that was rotated or rewritten, an archive or a folder gives
everything it holds now. What an address holds is not asked again: it is new where the address or its SHA-256 is. A part
once taken stays the same until it is marked as done, so that what is cut off goes on with the very same lines although
the log has grown in the meantime; one that cannot be trained on is put back, and grows with the log.
"""

import hashlib
import os
import shutil
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.archives import TAR, TAR_MAGIC, ZIP, source_fingerprint
from storage.datasets import DatasetConfig, DatasetSpec
from storage.errors import StorageError
from storage.layout import Layout
from storage.log_inputs import is_compressed
from storage.raw_lines import count_lines

Kind = TypeVar("Kind", bound=BaseModel)

_CHUNK = 1 << 20
_HEAD = 4096
"""Bytes by which a file that only grew is known again."""


class Bookmark(BaseModel):
    """How far a source was taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: str
    """The path or address."""
    end: int = 0
    """Bytes of a plain file that were taken; 0 for any other source."""
    head: str = ""
    """Hash of the file's first bytes (as many as there were, at most 4,096)."""
    head_bytes: int = 0
    """How many bytes `head` covers."""
    fingerprint: str = ""
    """Of any other source: its content."""


class NewLines(BaseModel):
    """A part of a log that was not taken before."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    source: str | None
    """Where the part lies; None: the source as the dataset's configuration has it."""
    lines: int | None
    """How many lines; None: not counted (an archive, a folder, an address)."""
    words: str
    """What it is, in words."""
    bookmark: Bookmark
    """How far the source is taken once the part is done."""
    begun: bool = False
    """Whether work on it has begun."""
    start_from: str | None = None
    """The detector that the work on it started from."""


def new_lines(config: DatasetConfig, spec: DatasetSpec, layout: Layout) -> NewLines | None:
    """The part that is not done yet: the one that was begun, else what was gained; None where there is nothing new."""
    folder = _folder(spec, layout)
    if (begun := _read(folder / "begun.json", NewLines)) is not None:
        return begun
    done = _read(folder / "done.json", Bookmark)
    path = _plain_file(config, spec)
    found = _changed(config, done) if path is None else _grown(path, done, folder / spec.raw_name)
    if found is not None and found.source is not None and path is not None and spec.label_file:
        labels = path.parent / spec.label_file
        if labels.is_file():
            shutil.copyfile(labels, folder / spec.label_file)
    return found


def begin(found: NewLines, start_from: str | None, spec: DatasetSpec, layout: Layout) -> NewLines:
    """Hold the part, and what the work on it starts from, until it is done; as it was begun, where it was."""
    if found.begun:
        return found
    held = found.model_copy(update={"begun": True, "start_from": start_from})
    _write(_folder(spec, layout) / "begun.json", held)
    return held


def finish(found: NewLines, spec: DatasetSpec, layout: Layout) -> None:
    """Mark the part as done; the next one begins where it ends."""
    folder = _folder(spec, layout)
    _write(folder / "done.json", found.bookmark)
    (folder / "begun.json").unlink(missing_ok=True)


def put_back(spec: DatasetSpec, layout: Layout) -> None:
    """Let go of a part that cannot be trained on: the next one begins where it did, and holds what came since."""
    (_folder(spec, layout) / "begun.json").unlink(missing_ok=True)


def _folder(spec: DatasetSpec, layout: Layout) -> Path:
    folder = layout.home / "nightly" / spec.name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _plain_file(config: DatasetConfig, spec: DatasetSpec) -> Path | None:
    """The log itself where the source is one plain file that may grow."""
    source = config.source or spec.source
    if source is None or "://" in source:
        return None
    path = Path(source).expanduser()
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(512)
    packed = is_compressed(head) or head.startswith(ZIP) or head[TAR_MAGIC] == TAR
    return None if packed else path.resolve()


def _changed(config: DatasetConfig, done: Bookmark | None) -> NewLines | None:
    mark = Bookmark(source=config.source or config.name, fingerprint=source_fingerprint(config))
    if done == mark:
        return None
    words = f"the whole of {mark.source}" + (", which has changed" if done else "")
    return NewLines(source=None, lines=None, words=words, bookmark=mark)


def _grown(path: Path, done: Bookmark | None, part: Path) -> NewLines | None:
    """The lines after the bookmark as a file of their own; a line that is still being written is left for later."""
    start = done.end if done is not None and _same_file(path, done) else 0
    lines, end = _copy_lines(path, start, part)
    if not lines:
        return None
    with path.open("rb") as file:
        head = file.read(min(end, _HEAD))
    mark = Bookmark(source=str(path), end=end, head=hashlib.sha256(head).hexdigest(), head_bytes=len(head))
    words = f"{lines:,} lines after byte {start:,}" if start else f"all {lines:,} lines"
    if done is not None and not start:
        words += ", as it is not the file it was"
    return NewLines(source=str(part), lines=lines, words=words, bookmark=mark)


def _same_file(path: Path, done: Bookmark) -> bool:
    """Whether a file begins as it did and is not shorter."""
    if done.source != str(path) or path.stat().st_size < done.end:
        return False
    with path.open("rb") as file:
        return hashlib.sha256(file.read(done.head_bytes)).hexdigest() == done.head


def _copy_lines(path: Path, start: int, part: Path) -> tuple[int, int]:
    """Copy whole lines from `start` on; how many there were, and where they end."""
    lines, end, pending = 0, start, b""
    with path.open("rb") as source, part.open("wb") as target:
        source.seek(start)
        while chunk := source.read(_CHUNK):
            chunk = pending + chunk
            before, feed, pending = chunk.rpartition(b"\n")
            if whole := before + feed:
                target.write(whole)
                lines += count_lines(whole)
                end += len(whole)
    return lines, end


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    try:
        return kind.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StorageError(f"{path} cannot be read; remove it to take the whole log anew.") from error


def _write(path: Path, value: BaseModel) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(value.model_dump_json(indent=1))
    temporary.replace(path)
