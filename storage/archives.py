"""Raw logs brought into a stage: from an address, an archive, a folder or a plain file, or simulated."""

import gzip
import hashlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import pyarrow as pa

from storage.datasets import DatasetConfig, DatasetSpec, resolve
from storage.downloads import checksum, download
from storage.errors import FormatError, SourceError
from storage.hdfs_generator import generate
from storage.log_inputs import decompressed
from storage.progress import Progress, silent

_CHUNK = 1 << 20
_BROKEN = (
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    pa.ArrowException,
    tarfile.TarError,
    zipfile.BadZipFile,
    RuntimeError,
)
ZIP = b"PK\x03\x04"
"""How a ZIP archive begins."""
TAR = b"ustar"
TAR_MAGIC = slice(257, 262)
"""Where a tar archive says that it is one, by `TAR`."""


def fetch(
    config: DatasetConfig, spec: DatasetSpec, into: Path, downloads: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Bring the raw log and its labels into a folder under their official names; returns counts.

    Raises SourceError where the source is missing, truncated, has another checksum, or lacks a file.
    """
    if spec.name == "hdfs-sim":
        return dict(generate(into, config.blocks, config.seed, progress))
    source = _source(config, spec)
    if _is_address(source):
        path = download(source, downloads, config.sha256, spec.md5 if source == spec.url else None, progress)
    else:
        path = _local(source)
        _check_local(path, config.sha256)
    _unpack(path, spec, into, progress)
    return {"raw_bytes": (into / spec.raw_name).stat().st_size}


def source_fingerprint(config: DatasetConfig) -> str:
    """What stands for the fetched files in a cache key: their names, and the source's content, an address with its
    checksum (what it holds is not asked again), or a simulation's seed."""
    spec = resolve(config)
    if spec.name == "hdfs-sim":
        return f"simulated blocks={config.blocks} seed={config.seed}"
    return " ".join(filter(None, [spec.raw_name, spec.label_file, _content(config, spec)]))


def _content(config: DatasetConfig, spec: DatasetSpec) -> str:
    source = _source(config, spec)
    if _is_address(source):
        return f"{source} {config.sha256 or (spec.md5 if source == spec.url else '') or ''}".strip()
    path = _local(source)
    digest = hashlib.sha256()
    for name, file in sorted(_plain_files(path, spec).items()) if path.is_dir() else [(path.name, path)]:
        digest.update(f"{name} {checksum(file, 'SHA-256')}\n".encode())
    labels = path.parent / (spec.label_file or "")
    if not path.is_dir() and spec.label_file and labels.is_file():
        digest.update(checksum(labels, "SHA-256").encode())
    return digest.hexdigest()[:32]


def _source(config: DatasetConfig, spec: DatasetSpec) -> str:
    source = config.source or spec.source or spec.url
    if source is None:
        raise FormatError(f"Dataset {spec.name} has no source; give source=FILE, or `source` in its file.")
    return source


def _is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _local(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise SourceError(f"{source} does not exist; give source= the path of the archive, folder or log.")
    return path.resolve()


def _check_local(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    if path.is_dir():
        raise SourceError(f"{path} is a folder, which has no SHA-256; leave sha256 out.")
    found = checksum(path, "SHA-256")
    if found != sha256:
        raise SourceError(f"{path} has the SHA-256 {found} where {sha256} was expected; fetch it again.")


def _unpack(path: Path, spec: DatasetSpec, into: Path, progress: Progress) -> None:
    """Copy the wanted files by name alone, wherever an archive says they lie: so none can write elsewhere."""
    wanted = {spec.raw_name, *([spec.label_file] if spec.label_file else [])}
    with _told_as_source_error(path):
        if path.is_dir():
            found = _copy_plain(_plain_files(path, spec), into, progress)
        elif _begins_with(path, ZIP):
            found = _unzip(path, wanted, into, progress)
        else:
            with _decompressed(path) as stream:
                is_tar = stream.read(512)[TAR_MAGIC] == TAR
            with _decompressed(path) as stream:
                if is_tar:
                    found = _untar(stream, wanted, into, progress)
                else:
                    found = _copy_log(stream, path, spec, into, progress)
    missing = wanted - found
    if missing:
        names = " and ".join(sorted(missing))
        raise SourceError(f"{path} does not hold {names}; check that it is the archive, folder or log of {spec.name}.")


@contextmanager
def _told_as_source_error(path: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise SourceError(f"{path} is truncated or damaged ({_reason(error)}); fetch it again.") from error
    except OSError as error:
        if error.errno is None:  # bz2 and zstd tell of damaged data this way
            raise SourceError(f"{path} is damaged ({error}); fetch it again.") from error
        raise


def _begins_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


@contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        yield decompressed(file)[1]


def _plain_files(folder: Path, spec: DatasetSpec) -> dict[str, Path]:
    """The wanted files anywhere in a folder, the least deep of each name."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*"), key=lambda path: (len(path.parts), str(path))):
        if path.name in {spec.raw_name, spec.label_file} and path.is_file():
            found.setdefault(path.name, path)
    return found


def _copy_plain(files: dict[str, Path], into: Path, progress: Progress) -> set[str]:
    for name, path in files.items():
        with path.open("rb") as stream:
            _copy(stream, into / name, path.stat().st_size, progress)
    return set(files)


def _copy_log(stream: IO[bytes], path: Path, spec: DatasetSpec, into: Path, progress: Progress) -> set[str]:
    """A log by itself, perhaps compressed; its labels lie beside it."""
    _copy(stream, into / spec.raw_name, None, progress)
    labels = path.parent / (spec.label_file or "")
    if spec.label_file and labels.is_file():
        shutil.copyfile(labels, into / spec.label_file)
        return {spec.raw_name, spec.label_file}
    return {spec.raw_name}


def _unzip(path: Path, wanted: set[str], into: Path, progress: Progress) -> set[str]:
    found: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for member in sorted(archive.infolist(), key=lambda member: member.filename.count("/")):
            name = PurePosixPath(member.filename).name
            if name in wanted - found and not member.is_dir() and "__MACOSX" not in member.filename:
                with archive.open(member) as stream:
                    _copy(stream, into / name, member.file_size, progress)
                found.add(name)
    return found


def _untar(stream: IO[bytes], wanted: set[str], into: Path, progress: Progress) -> set[str]:
    """Reads to the very end, so that a truncated archive is noticed even where the wanted files are whole."""
    found: set[str] = set()
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name in wanted - found and member.isreg() and (content := archive.extractfile(member)):
                _copy(content, into / name, member.size, progress)
                found.add(name)
    while stream.read(_CHUNK):
        pass
    return found


def _copy(stream: IO[bytes], target: Path, total: int | None, progress: Progress) -> None:
    done = 0
    with target.open("wb") as file:
        while chunk := stream.read(_CHUNK):
            file.write(chunk)
            done += len(chunk)
            progress(done, total, f"bytes of {target.name}")
    if total is not None and done < total:  # a log that is being written may hold more by now
        raise EOFError(f"{target.name} ends after {done:,} of {total:,} bytes")
