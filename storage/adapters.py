"""Committed rounds of a run: the adapter, its card and its metrics, in a folder that appears whole or not at all."""

import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from storage.disks import unwritten

ADAPTER = "adapter.safetensors"
STATE = "server.safetensors"
CARD = "card.json"
CLIENTS = "clients.parquet"
ROUND = "round.parquet"

CLIENT_SCHEMA: dict[str, pl.DataType] = {
    "round": pl.UInt32(),
    "partition": pl.UInt32(),
    "examples": pl.UInt64(),
    "tokens": pl.UInt64(),
    "computed_tokens": pl.UInt64(),
    "steps": pl.UInt32(),
    "loss": pl.Float64(),
    "seconds": pl.Float64(),
    "peak_memory_mb": pl.Float64(),
    "bytes_down": pl.UInt64(),
    "bytes_up": pl.UInt64(),
    "learning_rate": pl.Float64(),
    "update_norm": pl.Float64(),
}
"""One row a client and round. examples: windows in its share (n_i of equation 1); tokens: trained on, no padding;
computed_tokens: after prefixes are shared; bytes: adapter as serialized in the message; update_norm: L2 norm of what it
changed, before a norm bound, null under differential privacy."""

ROUND_SCHEMA: dict[str, pl.DataType] = {
    "round": pl.UInt32(),
    "clients": pl.UInt32(),
    "loss": pl.Float64(),
    "seconds": pl.Float64(),
    "learning_rate": pl.Float64(),
    "bytes_down": pl.UInt64(),
    "bytes_up": pl.UInt64(),
    "adapter_hash": pl.String(),
    "epsilon": pl.Float64(),
    "clipping_norm": pl.Float64(),
}
"""One row a round. loss: mean over its clients, weighted by examples; null for round 0, the untouched model, and for a
round that drew nobody; epsilon: spent up to here, null without noise."""


@dataclass(frozen=True)
class CommittedRound:
    """A round on disk."""

    number: int
    folder: Path
    adapter_hash: str
    facts: dict[str, Any]
    """What else the card says: the job's fingerprint, the clients drawn."""

    @property
    def adapter(self) -> Path:
        """The adapter's safetensors file."""
        return self.folder / ADAPTER

    def arrays(self) -> dict[str, np.ndarray]:
        """The adapter's arrays by name."""
        return load_safetensors(self.adapter.read_bytes())

    def state(self) -> dict[str, np.ndarray]:
        """The arrays the server's strategy carries from round to round; empty for one that carries none."""
        return load_safetensors((self.folder / STATE).read_bytes())


def round_folder(run_folder: Path, number: int) -> Path:
    """Where a committed round lies."""
    return run_folder / "rounds" / f"round-{number:04d}"


def commit_round(
    run_folder: Path,
    number: int,
    arrays: Mapping[str, np.ndarray],
    adapter_hash: str,
    clients: Iterable[Mapping[str, Any]],
    summary: Mapping[str, Any],
    *,
    state: Mapping[str, np.ndarray] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> CommittedRound:
    """Put a round in place by one rename, after all its bytes are on the disk.

    `clients` and `summary` are rows of CLIENT_SCHEMA and ROUND_SCHEMA. Raises DiskFull for want of room,
    StorageError where nothing can be written.
    """
    final = round_folder(run_folder, number)
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        files = {
            ADAPTER: _safetensors(arrays),
            STATE: _safetensors(state or {}),
            CLIENTS: _parquet(list(clients), CLIENT_SCHEMA),
            ROUND: _parquet([summary], ROUND_SCHEMA),
        }
        card = {
            "round": number,
            "adapter_hash": adapter_hash,
            "committed": datetime.now(UTC).isoformat(timespec="seconds"),
            "facts": dict(facts or {}),
            "files": {
                name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
            },
        }
        for name, data in {**files, CARD: json.dumps(card, indent=1).encode()}.items():
            _write_through(temporary / name, data)
        _put_in_place(temporary, final)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise unwritten(error, f"round {number} was not kept in {final.parent}, the rounds before it were") from error
    return CommittedRound(number, final, adapter_hash, dict(facts or {}))


def _safetensors(arrays: Mapping[str, np.ndarray]) -> bytes:
    # No metadata: its entries have no fixed order, and equal adapters must be equal bytes.
    return save_safetensors({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})


def _parquet(rows: list[Mapping[str, Any]], schema: dict[str, pl.DataType]) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema).write_parquet(buffer)
    return buffer.getvalue()


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put_in_place(temporary: Path, final: Path) -> None:
    _sync_folder(temporary)
    if final.exists():  # damaged, or it would not be computed again
        shutil.rmtree(final)
    temporary.rename(final)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def committed_rounds(run_folder: Path) -> list[CommittedRound]:
    """The intact rounds from 0 on, without a gap: a damaged round and all after it do not count."""
    rounds: list[CommittedRound] = []
    while (found := _load_round(round_folder(run_folder, len(rounds)), len(rounds))) is not None:
        rounds.append(found)
    return rounds


def _load_round(folder: Path, number: int) -> CommittedRound | None:
    try:
        card = json.loads((folder / CARD).read_text())
        for name, facts in card["files"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != facts["sha256"]:
                return None
        return CommittedRound(number, folder, card["adapter_hash"], card["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def discard_unfinished(run_folder: Path) -> int:
    """Remove what a killed job left half written; return how many rounds that were."""
    leftovers = list((run_folder / "rounds").glob(".round-*"))
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return len(leftovers)
