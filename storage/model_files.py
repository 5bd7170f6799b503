"""A base model given from the link to its sites: files over HTTPS, fetched once, resumed where they broke off.

The link gives the files of one folder by name and nothing else; a site checks each by its SHA-256, and the weights by
the hash in the rules its operator agreed to.
"""

import contextlib
import json
import re
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any

from storage.certificates import SERVER, SERVER_KEY
from storage.downloads import Patience, download
from storage.errors import SourceError
from storage.progress import Progress, silent
from storage.stages import hash_file

LISTING = "files.json"
_CHUNK = 1 << 20
_GIVEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.(safetensors|json|txt|model)")
"""Names that are given and taken: never a path, never a pickle."""


def listed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a model's folder that sites need, with bytes and SHA-256."""
    paths = sorted(path for path in folder.iterdir() if _GIVEN.fullmatch(path.name) and path.name != "card.json")
    return {path.name: {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in paths}


@contextmanager
def giving_model(folder: Path, certs: Path, host: str, port: int) -> Iterator[None]:
    """Give a model's files at an address of this machine for as long as the block runs.

    Raises SourceError where the address cannot be had.
    """
    try:
        server = _Giver((host, port), folder, certs)
    except OSError as error:
        raise SourceError(f"The model cannot be given at {host} port {port}: {error.strerror}.") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Giver(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], folder: Path, certs: Path) -> None:
        self.folder, self.files = folder, listed_files(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certs / SERVER, certs / SERVER_KEY)
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[socket, Any]:
        """Accept a connection; the handshake waits for the thread that serves it, so that nobody holds up others."""
        plain, address = super().get_request()
        plain.settimeout(60)
        return self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A connection that broke off is the site's to tell."""


class _Handler(BaseHTTPRequestHandler):
    server: _Giver
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """One file, or the rest of it."""
        name = self.path.lstrip("/")
        if name == LISTING:
            self._send(json.dumps(self.server.files).encode())
        elif name in self.server.files:
            self._send_file(name)
        else:
            self.send_error(404)

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_file(self, name: str) -> None:
        facts = self.server.files[name]
        tag, size = f'"{facts["sha256"]}"', int(facts["bytes"])
        start = self._start(tag)
        if start > size or (start == size and start):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(size - start))
        self.send_header("ETag", tag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        with (self.server.folder / name).open("rb") as file, contextlib.suppress(OSError):
            file.seek(start)
            shutil.copyfileobj(file, self.wfile, _CHUNK)

    def _start(self, tag: str) -> int:
        """The byte to go on from, where the file is still the one that was begun."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found and self.headers.get("If-Range", tag) == tag else 0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
        """Nothing: the link's log is Flower's."""


def fetch_model(
    address: str, authority: Path, folder: Path, progress: Progress = silent, patience: Patience | None = None
) -> Path:
    """The model that a link gives at https://`address`, in a folder; files that are there and right are not fetched.

    Raises SourceError where the link does not give it, or gives other bytes than it lists.
    """
    context = ssl.create_default_context(cafile=str(authority))
    base = f"https://{address}"
    parts = folder.with_name(f".{folder.name}.parts")
    (parts / "listing").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(parts / "listing")  # always the one of now
    listing = download(f"{base}/{LISTING}", parts / "listing", progress=progress, patience=patience, context=context)
    files = _read_listing(listing)
    folder.mkdir(parents=True, exist_ok=True)
    for name, facts in files.items():
        target = folder / name
        if target.is_file() and target.stat().st_size == facts["bytes"] and hash_file(target) == facts["sha256"]:
            continue
        download(f"{base}/{name}", parts, facts["sha256"], None, progress, patience, context).replace(target)
    shutil.rmtree(parts)
    return folder


def _read_listing(path: Path) -> dict[str, dict[str, Any]]:
    try:
        files = json.loads(path.read_text())
        good = all(_GIVEN.fullmatch(name) and len(facts["sha256"]) == 64 for name, facts in files.items())
        if not good or not any(name.endswith(".safetensors") for name in files):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            "The link lists no model's files; ask its operator, or give the model with --model."
        ) from error
    return dict(files)
