"""Scoring by adapter: each distinct sequence once, whatever is asked for again."""

from pathlib import Path

import polars as pl
import pytest

from fl.adapter import Tuning, adapter_arrays, adapter_hash, attach_adapter
from fl.model import load_model
from storage.adapters import CommittedRound, commit_round
from storage.stages import Stage, new_stage
from tasks.prepare_model import prepare_model
from tasks.score_windows import Scorer


@pytest.fixture
def scorer(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    with new_stage(tmp_path, "model", "key") as new:
        prepare_model._write(new, str(tiny_model))
    model: Stage = new.done
    return Scorer(model, Tuning(), 0, (1, 3), "none", "cpu")


@pytest.fixture
def untouched(tiny_model: Path, tmp_path: Path) -> CommittedRound:
    load_model.cache_clear()
    arrays = adapter_arrays(attach_adapter(load_model(tiny_model), Tuning(), 0))
    return commit_round(tmp_path, 0, arrays, adapter_hash(arrays), [], {"round": 0})


def _sequences(hashes: list[str]) -> pl.DataFrame:
    tokens = [[1 + ord(name[0]) % 7, 3, 5, 8] for name in hashes]
    rows = {"sequence_hash": hashes, "token_ids": tokens, "message_starts": [[0, 2]] * len(hashes)}
    return pl.DataFrame({"sequence_id": range(len(hashes)), **rows})


def test_sequences_that_are_equal_once_truncated_are_scored_once(scorer: Scorer, untouched: CommittedRound) -> None:
    table, computed = scorer.scores(untouched, _sequences(["a", "b", "a"]), lambda *_: None)
    assert computed == 2
    assert table["sequence_id"].to_list() == [0, 1, 2]
    assert table["mean_token"][0] == table["mean_token"][2]


def test_what_was_scored_before_is_looked_up(scorer: Scorer, untouched: CommittedRound) -> None:
    first, _ = scorer.scores(untouched, _sequences(["a", "b"]), lambda *_: None)
    again, computed = scorer.scores(untouched, _sequences(["b", "c", "a"]), lambda *_: None)
    assert computed == 1
    assert (
        dict(zip(again["sequence_hash"], again["mean_token"], strict=True)).items()
        >= dict(zip(first["sequence_hash"], first["mean_token"], strict=True)).items()
    )
