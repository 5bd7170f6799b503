"""Archives: the same log and labels from every kind of source, nothing written elsewhere, damage told in one line."""

import bz2
import gzip
import hashlib
import io
import lzma
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest

from storage.archives import fetch, source_fingerprint
from storage.datasets import BGL, HDFS, HDFS_SIM, DatasetConfig
from storage.errors import FormatError, SourceError, StorageError
from storage.stages import new_stage

LOG = b"".join(b"081109 203530 %d INFO dfs.X: Receiving block blk_%d of %d\n" % (n, n, n * n) for n in range(4000))
LABELS = b"BlockId,Label\nblk_1,Normal\n"


def _tar(path: Path, mode: Literal["w", "w:gz", "w:bz2", "w:xz"], inside: str = "") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in (("HDFS.log", LOG), ("README.md", b"read me"), ("anomaly_label.csv", LABELS)):
            member = tarfile.TarInfo(inside + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _zip(path: Path) -> Path:
    """The layout of the official HDFS_v1.zip: labels in a folder of their own."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("preprocessed/anomaly_label.csv", LABELS)
        archive.writestr("HDFS.log", LOG)
    return path


def _folder(path: Path) -> Path:
    (path / "deep").mkdir(parents=True)
    (path / "HDFS.log").write_bytes(LOG)
    (path / "deep" / "anomaly_label.csv").write_bytes(LABELS)
    (path / "deep" / "HDFS.log").write_bytes(b"another one, deeper")
    return path


def _beside(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    (path.parent / "anomaly_label.csv").write_bytes(LABELS)
    return path


SOURCES: dict[str, Callable[[Path], Path]] = {
    "tar.gz": lambda place: _tar(place / "x.tar.gz", "w:gz"),
    "tar.bz2": lambda place: _tar(place / "x.tar.bz2", "w:bz2"),
    "tar.xz": lambda place: _tar(place / "x.tar.xz", "w:xz"),
    "tar": lambda place: _tar(place / "x.tar", "w", inside="HDFS_1/"),
    "zip": lambda place: _zip(place / "x.zip"),
    "folder": lambda place: _folder(place / "x"),
    "log": lambda place: _beside(place / "mine.log", LOG),
    "gz": lambda place: _beside(place / "mine.log.gz", gzip.compress(LOG)),
    "bz2": lambda place: _beside(place / "mine.log.bz2", bz2.compress(LOG)),
    "xz": lambda place: _beside(place / "mine.log.xz", lzma.compress(LOG)),
    "zst": lambda place: _beside(place / "mine.log.zst", pa.compress(LOG, codec="zstd", asbytes=True)),
}


def _fetch(source: str | Path, into: Path, sha256: str | None = None) -> None:
    into.mkdir(exist_ok=True)
    fetch(DatasetConfig(name="hdfs", source=str(source), sha256=sha256), HDFS, into, into.parent / "downloads")


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_official_files(kind: str, tmp_path: Path) -> None:
    into = tmp_path / "stage"
    _fetch(SOURCES[kind](tmp_path), into)
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {"HDFS.log": LOG, "anomaly_label.csv": LABELS}


def test_an_address_gives_the_official_files(tmp_path: Path) -> None:
    archive = _tar(tmp_path / "HDFS_1.tar.gz", "w:gz")
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        into = tmp_path / "stage"
        _fetch(
            f"http://127.0.0.1:{server.server_port}/{archive.name}",
            into,
            hashlib.sha256(archive.read_bytes()).hexdigest(),
        )
        server.shutdown()
    assert (into / "HDFS.log").read_bytes() == LOG


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip", "gz", "bz2", "xz", "zst", "tar"])
@pytest.mark.parametrize("share", [0.0005, 0.3, 0.9, 0.9999])
def test_a_truncated_source_is_told_wherever_it_is_cut(kind: str, share: float, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    content = source.read_bytes()
    # The last blocks of a plain tar are padding: nothing is lost with them.
    source.write_bytes(content[: int(len(content.rstrip(b"\0") if kind == "tar" else content) * share)])
    with pytest.raises(SourceError) as told:
        _fetch(source, tmp_path / "stage")
    assert "\n" not in str(told.value)
    assert str(source) in str(told.value)


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "gz", "bz2", "xz"])
def test_flipped_bits_are_told(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    content = bytearray(source.read_bytes())
    content[len(content) // 2] ^= 0xFF
    source.write_bytes(content)
    with pytest.raises(SourceError, match="damaged"):
        _fetch(source, tmp_path / "stage")


@pytest.mark.parametrize("inside", ["../../", "/elsewhere/", "a/../../b/"])
def test_an_archive_cannot_write_elsewhere(inside: str, tmp_path: Path) -> None:
    source = _tar(tmp_path / "x.tar.gz", "w:gz", inside)
    before = set(tmp_path.rglob("*"))
    _fetch(source, tmp_path / "stage")
    new = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before}
    assert new == {"stage", "stage/HDFS.log", "stage/anomaly_label.csv"}


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not for logs")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("HDFS.log")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    with pytest.raises(SourceError, match=r"does not hold HDFS\.log and anomaly_label\.csv"):
        _fetch(tmp_path / "x.tar.gz", tmp_path / "stage")


def test_a_log_without_its_labels_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.log").write_bytes(LOG)
    with pytest.raises(SourceError, match=r"does not hold anomaly_label\.csv; check that it is the archive"):
        _fetch(tmp_path / "mine.log", tmp_path / "stage")


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.tar\.gz does not exist; give source="):
        _fetch(tmp_path / "none.tar.gz", tmp_path / "stage")


def test_a_wrong_checksum_of_a_local_file_is_told(tmp_path: Path) -> None:
    source = SOURCES["tar.gz"](tmp_path)
    with pytest.raises(SourceError, match="has the SHA-256"):
        _fetch(source, tmp_path / "stage", "0" * 64)
    _fetch(source, tmp_path / "stage", hashlib.sha256(source.read_bytes()).hexdigest())


def test_a_dataset_without_a_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has no source; give source=FILE"):
        fetch(DatasetConfig(name="hdfs"), HDFS.model_copy(update={"url": None}), tmp_path, tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("kind", ["tar.gz", "zip", "folder", "log"])
def test_a_full_disk_is_not_taken_for_a_damaged_archive(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    with (
        pytest.raises(StorageError, match="The disk is full"),
        new_stage(tmp_path / "stages", "download", "key") as new,
    ):
        (new.path / "HDFS.log").symlink_to("/dev/full")
        _fetch(source, new.path)
    assert list((tmp_path / "stages" / "download").iterdir()) == []


def test_the_simulated_log_is_written_with_its_labels(tmp_path: Path) -> None:
    counts = fetch(DatasetConfig(name="hdfs-sim", blocks=50, seed=3), HDFS_SIM, tmp_path, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"HDFS.log", "anomaly_label.csv"}
    assert counts["blocks"] == 50


@pytest.mark.real_logs
def test_the_real_archives_are_unpacked(hdfs_archive: Path, bgl_archive: Path, tmp_path: Path) -> None:
    fetch(DatasetConfig(name="hdfs", source=str(hdfs_archive)), HDFS, tmp_path, tmp_path)
    fetch(DatasetConfig(name="bgl", source=str(bgl_archive)), BGL, tmp_path, tmp_path)
    assert (tmp_path / "HDFS.log").read_bytes().count(b"\n") == 222_579
    assert (tmp_path / "BGL.log").read_bytes().count(b"\n") == 100_000


# Fingerprints


@pytest.mark.parametrize("kind", SOURCES)
def test_a_local_source_is_known_by_its_content(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    first = source_fingerprint(DatasetConfig(name="hdfs", source=str(source)))
    assert source_fingerprint(DatasetConfig(name="hdfs", source=str(source), limit=3)) == first
    changed = source / "HDFS.log" if source.is_dir() else source
    changed.write_bytes(changed.read_bytes() + b" ")
    assert source_fingerprint(DatasetConfig(name="hdfs", source=str(source))) != first


def test_labels_beside_a_log_are_part_of_its_content(tmp_path: Path) -> None:
    source = SOURCES["log"](tmp_path)
    first = source_fingerprint(DatasetConfig(name="hdfs", source=str(source)))
    (tmp_path / "anomaly_label.csv").write_bytes(LABELS + b"blk_2,Anomaly\n")
    assert source_fingerprint(DatasetConfig(name="hdfs", source=str(source))) != first


def test_other_wanted_files_of_the_same_source_are_another_download(tmp_path: Path) -> None:
    source = tmp_path / "app-2026.log"
    source.write_bytes(LOG)
    described = 'name = "app"\nformat = "<Date> <Time> <Content>"\nwindow = {kind = "count", size = 5}\n'
    labels = '[labels]\nfile = "labels.csv"\n'
    found = set()
    for text in (described, f'log = "app-2026.log"\n{described}', described + labels):
        (tmp_path / "app.toml").write_text(text)
        found.add(source_fingerprint(DatasetConfig(name=str(tmp_path / "app.toml"), source=str(source))))
    assert len(found) == 3


def test_a_log_that_grows_while_its_folder_is_copied_is_not_taken_for_damaged(tmp_path: Path) -> None:
    source = _folder(tmp_path / "x")
    written = []

    def write_on(*_: object) -> None:
        if not written:
            written.append((source / "HDFS.log").open("ab").write(b"one line more\n"))

    into = tmp_path / "stage"
    into.mkdir()
    fetch(DatasetConfig(name="hdfs", source=str(source)), HDFS, into, tmp_path, write_on)
    assert (into / "HDFS.log").read_bytes().startswith(LOG)


def test_an_address_is_known_by_itself_and_its_checksum() -> None:
    plain = DatasetConfig(name="hdfs", source="https://mirror.example/HDFS_1.tar.gz")
    checked = plain.model_copy(update={"sha256": "0" * 64})
    official = DatasetConfig(name="hdfs")
    assert len({source_fingerprint(config) for config in (plain, checked, official)}) == 3
    assert HDFS.md5 is not None
    assert HDFS.md5 in source_fingerprint(official)


def test_a_simulation_is_known_by_blocks_and_seed() -> None:
    configs = [DatasetConfig(name="hdfs-sim", blocks=blocks, seed=seed) for blocks in (5, 6) for seed in (0, 1)]
    assert len({source_fingerprint(config) for config in configs}) == 4
