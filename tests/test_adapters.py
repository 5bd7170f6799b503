"""storage/adapters.py: rounds that are on the disk whole or not at all."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage import adapters
from storage.adapters import CLIENT_SCHEMA, ROUND_SCHEMA, commit_round, committed_rounds, discard_unfinished
from storage.errors import StorageError

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([0.5], np.float32)}


def _commit(run: Path, number: int, **more: object) -> adapters.CommittedRound:
    summary = {"round": number, "clients": 1, "loss": 0.25, "adapter_hash": f"hash-{number}"}
    client = {"round": number, "partition": 3, "examples": 7, "loss": 0.25, "bytes_up": 10}
    return commit_round(run, number, ARRAYS, f"hash-{number}", [client], summary, **more)  # type: ignore[arg-type]


def test_a_round_is_read_back_as_it_was_committed(tmp_path: Path) -> None:
    _commit(tmp_path, 0, state={"m": np.ones(2)}, facts={"drawn": [3]})
    [found] = committed_rounds(tmp_path)
    assert found.adapter_hash == "hash-0"
    assert found.facts == {"drawn": [3]}
    assert {name: array.tolist() for name, array in found.arrays().items()} == {"a": [0.5], "b": [[0, 1, 2], [3, 4, 5]]}
    assert found.state()["m"].tolist() == [1, 1]
    assert dict(pl.read_parquet(found.folder / "clients.parquet").schema) == CLIENT_SCHEMA
    assert dict(pl.read_parquet(found.folder / "round.parquet").schema) == ROUND_SCHEMA
    assert json.loads((found.folder / "card.json").read_text())["round"] == 0


def test_equal_adapters_are_equal_bytes_whatever_the_order_of_their_arrays(tmp_path: Path) -> None:
    one = commit_round(tmp_path / "one", 0, ARRAYS, "", [], {"round": 0}).adapter
    other = commit_round(tmp_path / "other", 0, dict(reversed(ARRAYS.items())), "", [], {"round": 0}).adapter
    assert one.read_bytes() == other.read_bytes()


def test_an_adapter_without_arrays_can_be_committed(tmp_path: Path) -> None:
    assert commit_round(tmp_path, 0, {}, "", [], {"round": 0}).arrays() == {}


def test_rounds_after_a_gap_do_not_count(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        _commit(tmp_path, number)
    assert [found.number for found in committed_rounds(tmp_path)] == [0, 1]


@pytest.mark.parametrize("file", ["adapter.safetensors", "server.safetensors", "clients.parquet", "card.json"])
@pytest.mark.parametrize("damage", ["removed", "cut", "changed"])
def test_a_damaged_round_does_not_count_and_can_be_committed_again(file: str, damage: str, tmp_path: Path) -> None:
    _commit(tmp_path, 0)
    path = _commit(tmp_path, 1).folder / file
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else b"#" + content[1:])
    assert len(committed_rounds(tmp_path)) == 1
    _commit(tmp_path, 1)
    assert len(committed_rounds(tmp_path)) == 2


def test_a_full_disk_keeps_the_rounds_before_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _commit(tmp_path, 0)
    written = []

    def full(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full: round 1 was not kept"):
        _commit(tmp_path, 1)
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["round-0000"]
    assert len(committed_rounds(tmp_path)) == 1


def test_what_a_killed_job_left_half_written_is_discarded(tmp_path: Path) -> None:
    _commit(tmp_path, 0)
    half = tmp_path / "rounds" / ".round-0001.abcd"
    half.mkdir()
    (half / "adapter.safetensors").write_bytes(b"half")
    assert len(committed_rounds(tmp_path)) == 1
    assert discard_unfinished(tmp_path) == 1
    assert [path.name for path in (tmp_path / "rounds").iterdir()] == ["round-0000"]
