"""Downloads: against a real server on this machine that breaks off, refuses, and forgets what it promised."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from storage.downloads import Patience, download
from storage.errors import SourceError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(tries=4, pause=0.01, timeout=5)


@dataclass
class Behaviour:
    """What the server does, and what it was asked."""

    content: bytes = CONTENT
    breaks_after: list[int] = field(default_factory=list)
    """Bytes sent before each of the first connections is cut."""
    refusals: list[int] = field(default_factory=list)
    """Status codes of the first answers."""
    honours_ranges: bool = True
    etag: str | None = '"one"'
    content_type: str = "application/gzip"
    ranges: list[str | None] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    behaviour: Behaviour

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        asked = self.behaviour
        asked.ranges.append(self.headers.get("Range"))
        if asked.refusals:
            self.send_error(asked.refusals.pop(0))
            return
        begin = self._begin()
        if begin and begin >= len(asked.content):
            self.send_error(416)
            return
        body = asked.content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Type", asked.content_type)
        self.send_header("Content-Length", str(len(body)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(asked.content) - 1}/{len(asked.content)}")
        if asked.etag:
            self.send_header("ETag", asked.etag)
        self.end_headers()
        if asked.breaks_after:
            self.wfile.write(body[: asked.breaks_after.pop(0)])
            self.wfile.flush()
            self.connection.close()
        else:
            self.wfile.write(body)

    def _begin(self) -> int:
        asked = self.behaviour
        wanted = self.headers.get("Range")
        if not wanted or not asked.honours_ranges or self.headers.get("If-Range") != asked.etag:
            return 0
        return int(wanted.removeprefix("bytes=").removesuffix("-"))


@pytest.fixture
def server() -> Iterator[tuple[str, Behaviour]]:
    behaviour = Behaviour()
    handler: Any = type("Handler", (_Handler,), {"behaviour": behaviour})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    running.handle_error = lambda *_: None  # type: ignore[method-assign]
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/files/HDFS_1.tar.gz?download=1", behaviour
    running.shutdown()
    running.server_close()


def test_a_file_arrives_whole_with_its_name_and_progress(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    told: list[tuple[float, float | None]] = []
    path = download(server[0], tmp_path, SHA256, progress=lambda done, total, note="": told.append((done, total)))
    assert path.name == "HDFS_1.tar.gz"
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert not list(tmp_path.rglob("*.part"))


def test_a_second_download_asks_nothing(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    download(server[0], tmp_path, SHA256)
    download(server[0], tmp_path, SHA256)
    assert server[1].ranges == [None]


def test_two_runs_at_once_fetch_a_file_once(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(server[0], tmp_path, SHA256), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert server[1].ranges == [None]


def test_a_broken_connection_is_resumed_where_it_broke(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].breaks_after = [300_000, 200_000]
    assert download(server[0], tmp_path, SHA256, patience=QUICK).read_bytes() == CONTENT
    assert server[1].ranges == [None, "bytes=300000-", "bytes=500000-"]


def test_a_later_run_goes_on_after_what_an_earlier_one_got(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].breaks_after = [400_000]
    with pytest.raises(SourceError, match=r"run again to go on after 400,000 bytes"):
        download(server[0], tmp_path, SHA256, patience=Patience(tries=1, pause=0.01))
    assert download(server[0], tmp_path, SHA256, patience=QUICK).read_bytes() == CONTENT
    assert server[1].ranges == [None, "bytes=400000-"]


def test_a_server_without_ranges_is_read_from_the_start_again(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].breaks_after, server[1].honours_ranges = [300_000], False
    assert download(server[0], tmp_path, SHA256, patience=QUICK).read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_not_joined_to_the_old_part(
    server: tuple[str, Behaviour], tmp_path: Path
) -> None:
    url, behaviour = server
    behaviour.breaks_after = [300_000]
    with pytest.raises(SourceError):
        download(url, tmp_path, patience=Patience(tries=1, pause=0.01))
    behaviour.content, behaviour.etag = CONTENT[::-1], '"two"'
    assert download(url, tmp_path, patience=QUICK).read_bytes() == CONTENT[::-1]


def test_without_a_validator_nothing_is_joined(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].breaks_after, server[1].etag = [300_000], None
    assert download(server[0], tmp_path, SHA256, patience=QUICK).read_bytes() == CONTENT
    assert server[1].ranges == [None, None]


def test_a_part_that_is_already_whole_is_taken(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    path = download(server[0], tmp_path, SHA256)
    path.rename(path.with_name(f"{path.name}.part"))
    assert download(server[0], tmp_path, SHA256, patience=QUICK).read_bytes() == CONTENT
    assert server[1].ranges == [None, f"bytes={len(CONTENT)}-"]


def test_a_busy_server_is_asked_again(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].refusals = [503, 429, 500]
    assert download(server[0], tmp_path, SHA256, patience=QUICK).read_bytes() == CONTENT


def test_pauses_grow_and_have_an_end() -> None:
    patience = Patience(pause=1.0, longest_pause=10.0)
    assert [patience.before(failures) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]


def test_a_server_that_stays_busy_is_given_up(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].refusals = [503] * 10
    with pytest.raises(SourceError, match=r"cannot be fetched \(503 .*, 4 tries\)") as told:
        download(server[0], tmp_path, SHA256, patience=QUICK)
    assert "\n" not in str(told.value)
    assert len(server[1].ranges) == 4


def test_a_missing_file_is_told_at_once(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].refusals = [404]
    with pytest.raises(SourceError, match="answers 404 Not Found; check the address"):
        download(server[0], tmp_path, patience=QUICK)
    assert len(server[1].ranges) == 1


def test_a_web_page_instead_of_the_file_is_refused(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    server[1].content_type = "text/html; charset=utf-8"
    with pytest.raises(SourceError, match="web page instead of a file"):
        download(server[0], tmp_path, patience=QUICK)


def test_a_wrong_checksum_is_told_and_the_file_removed(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"has the SHA-256 {SHA256} where {'0' * 64} was expected"):
        download(server[0], tmp_path, "0" * 64, patience=QUICK)
    with pytest.raises(SourceError, match="has the MD5"):
        download(server[0], tmp_path, md5="0" * 32, patience=QUICK)
    assert not [path for path in tmp_path.rglob("HDFS*") if path.suffix != ".json"]


def test_a_kept_file_that_was_damaged_is_fetched_again(server: tuple[str, Behaviour], tmp_path: Path) -> None:
    download(server[0], tmp_path, SHA256).write_bytes(b"damaged")
    assert download(server[0], tmp_path, SHA256).read_bytes() == CONTENT


def test_an_address_that_nobody_answers_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot be fetched .*refused.*, or give source=FILE"):
        download("http://127.0.0.1:9/x.tar.gz", tmp_path, patience=Patience(tries=2, pause=0.01))
