"""A proxy between sites and their link that ends TLS on both sides and keeps every byte that a site sends.

It has the link's certificate, as only the link has: this is the view of whoever holds the link's key. What was kept is
read back frame by frame (HTTP/2, RFC 9113) into gRPC requests, or line by line (HTTP/1.1, RFC 9112) where the site
asked for the base model, so that nothing that was sent is left unread.
"""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpack import Decoder

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _CONTINUATION = 0, 1, 9
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20


@dataclass
class Request:
    """One gRPC request as a site sent it."""

    path: str = ""
    headers: dict[str, str | bytes] = field(default_factory=dict)
    body: bytes = b""

    @property
    def call(self) -> str:
        """The name of the call."""
        return self.path.rpartition("/")[2]

    def messages(self) -> Iterator[bytes]:
        """The request's messages; a compressed one would be an error here."""
        rest = self.body
        while rest:
            assert rest[0] == 0, "a compressed message"
            size = int.from_bytes(rest[1:5], "big")
            yield rest[5 : 5 + size]
            rest = rest[5 + size :]


class RecordingProxy:
    """Listens at an address of its own; `connections`: from where, and the bytes sent from there, TLS taken off."""

    def __init__(self, certs: Path, link: tuple[str, int], host: str = "127.0.0.1", port: int = 0) -> None:
        self._link, self._certs = link, certs
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(certs / "server.crt", certs / "server.key")
        self._server.set_alpn_protocols(["h2"])
        self.connections: list[tuple[str, bytearray]] = []
        self._socket = socket.create_server((host, port))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, address = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(plain, address[0]), daemon=True).start()

    def _connect(self, plain: socket.socket, host: str) -> None:
        with contextlib.suppress(OSError):
            client = self._server.wrap_socket(plain, server_side=True)
            context = ssl.create_default_context(cafile=str(self._certs / "ca.crt"))
            if client.selected_alpn_protocol():
                context.set_alpn_protocols(["h2"])
            link = context.wrap_socket(socket.create_connection(self._link), server_hostname="localhost")
            kept = bytearray()
            self.connections.append((host, kept))
            self._open += [client, link]
            _pump(client, link, kept)

    def close(self) -> None:
        """Stop listening and end all connections."""
        self._socket.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.close()

    def requests(self) -> list[Request]:
        """Everything that was sent, read as gRPC requests."""
        return [request for _, kept in self.connections for request in read_requests(bytes(kept))]


def read_fetches(data: bytes) -> list[tuple[str, dict[str, str]]]:
    """Request line and headers of each request of one connection's bytes; a body would be taken for a request line."""
    fetches = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        line, *headers = head.decode("ascii").split("\r\n")
        fetches.append((line, dict(header.split(": ", 1) for header in headers)))
    return fetches


def _pump(client: ssl.SSLSocket, link: ssl.SSLSocket, kept: bytearray) -> None:
    """Hand bytes on in both directions until one side ends; in one thread, as TLS connections want it."""
    try:
        while True:
            ready = [each for each in (client, link) if each.pending()]
            ready = ready or select.select([client, link], [], [])[0]
            for source in ready:
                data = source.recv(1 << 16)
                if not data:
                    return
                if source is client:
                    kept += data
                (link if source is client else client).sendall(data)
    except OSError:
        pass
    finally:
        for each in (client, link):
            with contextlib.suppress(OSError):
                each.close()


def read_requests(data: bytes) -> list[Request]:
    """The requests of one connection's bytes."""
    assert data.startswith(_PREFACE), data[:40]
    decoder = Decoder()
    streams: dict[int, Request] = {}
    block = b""
    rest = data[len(_PREFACE) :]
    while len(rest) >= 9:
        size, kind, flags = int.from_bytes(rest[:3], "big"), rest[3], rest[4]
        stream = int.from_bytes(rest[5:9], "big") & 0x7FFFFFFF
        payload, rest = rest[9 : 9 + size], rest[9 + size :]
        if len(payload) < size:
            break  # the connection ended within a frame
        if kind in {_DATA, _HEADERS} and flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        if kind == _HEADERS and flags & _PRIORITY:
            payload = payload[5:]
        if kind == _DATA:
            streams[stream].body += payload
        elif kind in {_HEADERS, _CONTINUATION}:
            block += payload
            if flags & _END_HEADERS:
                headers = dict(decoder.decode(block, raw=True))
                named = {bytes(key).decode(): bytes(value) for key, value in headers.items()}
                request = streams.setdefault(stream, Request())
                request.headers |= named
                request.path = request.path or named.get(":path", b"").decode()
                block = b""
    return list(streams.values())
