"""Files fetched over HTTP: resumed where they broke off, retried with growing pauses, checked, and kept."""

import fcntl
import hashlib
import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from storage.errors import SourceError
from storage.progress import Progress, silent

_CHUNK = 1 << 18
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_WORTH_ANOTHER_TRY = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Patience:
    """How often and how long a failing address is tried again."""

    tries: int = 6
    """Tries in a row that brought nothing new."""
    pause: float = 1.0
    """Seconds before the second try; each later pause is twice as long."""
    longest_pause: float = 60.0
    timeout: float = 60.0
    """Seconds without a byte after which a connection counts as broken."""

    def before(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        return min(self.pause * 2 ** (failures - 1), self.longest_pause)


class _Refused(Exception):
    """The server answered that it will not give the file."""


def file_name(url: str) -> str:
    """The last part of an address's path."""
    return Path(unquote(urlsplit(url).path)).name or "download"


def download(
    url: str,
    folder: Path,
    sha256: str | None = None,
    md5: str | None = None,
    progress: Progress = silent,
    patience: Patience | None = None,
    context: ssl.SSLContext | None = None,
) -> Path:
    """The file at an address, in `folder`; one that was fetched before and has the expected checksum is taken as it is.

    `context` says whose certificates count; None: the system's authorities.
    Raises SourceError where the server refuses, stays unreachable, or gives a file with another checksum.
    """
    place = folder / hashlib.sha256(url.encode()).hexdigest()[:12]
    place.mkdir(parents=True, exist_ok=True)
    done, part = place / file_name(url), place / f"{file_name(url)}.part"
    with (place / ".lock").open("w") as lock:
        # Two runs that want the same file: the second waits and finds it there.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists() and not _wrong_checksum(done, sha256, md5):
            return done
        _fetch_with_patience(url, part, progress, patience or Patience(), context)
        if wrong := _wrong_checksum(part, sha256, md5):
            part.unlink()
            raise SourceError(f"{url} has {wrong}; the file was removed, check the address and the checksum.")
        part.replace(done)
    return done


def _fetch_with_patience(
    url: str, part: Path, progress: Progress, patience: Patience, context: ssl.SSLContext | None
) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            if _fetch(url, part, progress, patience.timeout, context):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code not in _WORTH_ANOTHER_TRY:
                raise SourceError(f"{url} answers {error.code} {error.reason}; check the address.") from error
            reason = f"{error.code} {error.reason}"
        except _Refused as error:
            raise SourceError(f"{url}: {error}; check the address.") from error
        except _NETWORK_ERRORS as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        failures = 1 if _size(part) > before else failures + 1
        if failures >= patience.tries:
            raise SourceError(
                f"{url} cannot be fetched ({reason}, {failures} tries); run again to go on "
                f"after {_size(part):,} bytes, or give source=FILE."
            )
        progress(_size(part), None, f"waiting to try again: {reason}")
        time.sleep(patience.before(failures))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, progress: Progress, timeout: float, context: ssl.SSLContext | None = None) -> bool:
    """One try, going on after what is there if the server can; tells whether the file is whole."""
    have = _size(part)
    mark = _read_mark(part)
    request = urllib.request.Request(url, headers={"User-Agent": "atalaia", "Accept-Encoding": "identity"})
    if have and mark.get("validator"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", mark["validator"])
    elif have:
        have = 0
    try:
        response = urllib.request.urlopen(request, timeout=timeout, context=context)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            # Nothing lies after what is there: it is whole, or no longer a part of the file.
            if have == mark.get("total"):
                return True
            part.unlink(missing_ok=True)
            return False
        raise
    with response:
        return _receive(response, part, have, progress)


def _receive(response: http.client.HTTPResponse, part: Path, have: int, progress: Progress) -> bool:
    if "text/html" in (response.headers.get("Content-Type") or ""):
        raise _Refused("the server sent a web page instead of a file")
    if response.status == 206 and not _starts_at(response, have):
        part.unlink(missing_ok=True)
        return False
    begins = have if response.status == 206 else 0
    length = response.headers.get("Content-Length")
    total = begins + int(length) if length else None
    _write_mark(part, response, total)
    done = begins
    with part.open("ab" if begins else "wb") as file:
        while chunk := _read(response):
            file.write(chunk)
            done += len(chunk)
            progress(done, total, "bytes fetched")
    return total is None or done == total


def _read(response: http.client.HTTPResponse) -> bytes:
    # read1 gives what has arrived, so that nothing is lost when the connection breaks in the middle of a chunk.
    return response.read1(_CHUNK)


def _starts_at(response: http.client.HTTPResponse, have: int) -> bool:
    stated = response.headers.get("Content-Range", "")
    return bool(stated.removeprefix("bytes ").startswith(f"{have}-"))


def _mark_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_mark(part: Path, response: http.client.HTTPResponse, total: int | None) -> None:
    tag = response.headers.get("ETag")
    strong = tag if tag and not tag.startswith("W/") else None
    mark = {"validator": strong or response.headers.get("Last-Modified"), "total": total}
    _mark_path(part).write_text(json.dumps(mark))


def _read_mark(part: Path) -> dict[str, Any]:
    """What tells whether the file on the server is still the one whose beginning is here."""
    try:
        mark = json.loads(_mark_path(part).read_text())
        return mark if isinstance(mark, dict) else {}
    except (OSError, ValueError):
        return {}


def _wrong_checksum(path: Path, sha256: str | None, md5: str | None) -> str | None:
    """What is wrong with a file's checksum, in words; None where nothing is, or nothing is expected."""
    for name, expected in (("SHA-256", sha256), ("MD5", md5)):
        if expected and (found := checksum(path, name)) != expected:
            return f"the {name} {found} where {expected} was expected"
    return None


def checksum(path: Path, name: str) -> str:
    """A file's SHA-256 or MD5, in hex."""
    digest = hashlib.sha256() if name == "SHA-256" else hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
