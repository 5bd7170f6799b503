"""The site's own account of everything it sends: one JSON object a line, readable by people and by programs.

call     a request to the link: time, call, what it carries, bytes, sha256 of the request as it is sent
polls    calls that carry no more than the site's public key or its number at the link, up to a minute of them: time of
         the first, counts, bytes, sha256 of the requests one after the other
reply    what a reply says in words: kind, numbers by name, bytes of arrays
fetch    files of the base model that are asked for by HTTPS, unless they are kept here: where
consent  rules that the operator agreed to, by their hash

Beside these bytes each request has headers: the site's public key, the time, a signature of it, Flower's version.
"""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.disks import append_whole, unwritten
from storage.errors import DiskFull

_POLLS = {"ActivateNode", "PullMessages", "SendNodeHeartbeat", "PullObject", "ConfirmMessageReceived"}
"""Calls that carry no more than the site's public key or number."""
_POLLS_TOGETHER = 600
_POLLS_SECONDS = 60.0


class Ledger:
    """Appends lines, on the disk before anything is sent; a line that cannot be written stops what was to be sent."""

    def __init__(self, path: Path | None) -> None:
        """`path`: the file, None to keep none; raises StorageError where it cannot be written."""
        self._path = path
        self._lock = threading.Lock()
        self._polls: dict[str, Any] = {}
        self._polls_hash = hashlib.sha256()
        self._polls_since = 0.0
        self.bytes_sent = 0
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write()

    def call(self, name: str, data: bytes) -> None:
        """Account for a request that is about to be sent."""
        with self._lock:
            if name in _POLLS:
                self._poll(name, data)
                return
            line = {"time": _now(), "entry": "call", "call": name, "carries": _carries(name, data)}
            self._write(line | {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            self.bytes_sent += len(data)

    def reply(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Say in words what the calls that follow hold."""
        with self._lock:
            self._write({"time": _now(), "entry": "reply", "kind": kind, **facts})

    def fetch(self, address: str) -> None:
        """Files of the base model are about to be asked for."""
        with self._lock:
            self._write({"time": _now(), "entry": "fetch", "address": address})

    def consent(self, digest: str, number: int) -> None:
        """Rules were agreed to."""
        with self._lock:
            self._write({"time": _now(), "entry": "consent", "rules_sha256": digest, "number": number})

    def close(self) -> None:
        """Write the polls not yet accounted for."""
        with self._lock:
            self._write()

    def _poll(self, name: str, data: bytes) -> None:
        if not self._polls:
            self._polls = {"time": _now(), "entry": "polls", "calls": {}, "bytes": 0}
            self._polls_hash, self._polls_since = hashlib.sha256(), time.monotonic()
        calls = self._polls["calls"]
        calls[name] = calls.get(name, 0) + 1
        self._polls["bytes"] += len(data)
        self._polls_hash.update(data)
        self._polls["sha256"] = self._polls_hash.hexdigest()
        self.bytes_sent += len(data)
        if sum(calls.values()) >= _POLLS_TOGETHER or time.monotonic() - self._polls_since > _POLLS_SECONDS:
            # They carry nothing, and stay in memory until there is room: a site with a full disk is not a dead one.
            with contextlib.suppress(DiskFull):
                self._write()

    def _write(self, line: Mapping[str, Any] | None = None) -> None:
        if self._path is None:
            return
        lines = [each for each in (self._polls, line) if each]
        data = "".join(json.dumps(each) + "\n" for each in lines).encode()
        try:
            append_whole(self._path, data, 0o600, through=True)
        except OSError as error:
            raise unwritten(error, f"the ledger {self._path} takes no entry, so nothing is sent") from error
        self._polls = {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _carries(name: str, data: bytes) -> str:
    """What a request holds, in words: Flower's objects say at their beginning what they are."""
    if name == "PushObject":
        for kind in ("ArrayChunk", "ArrayRecord", "MetricRecord", "ConfigRecord", "RecordDict", "Message", "Array"):
            if f"{kind} ".encode() in data[:400]:
                return f"a part of a reply ({kind})"
        return "a part of a reply"
    words = {
        "DeactivateNode": "the site's number at the link",
        "PushMessages": "a reply's head: numbers of run, site and message, times, hashes of its parts",
    }
    return words.get(name, "")
