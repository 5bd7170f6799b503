"""Scoring by adapter: each distinct sequence once, whatever is asked for again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fl.adapter import Tuning, adapter_arrays, adapter_hash, attach_adapter
from fl.model import load_model
from fl.scoring import score_sequences
from storage.adapters import CommittedRound, commit_round
from storage.stages import Stage, new_stage
from tasks.prepare_model import prepare_model
from tasks.score_windows import Scorer, _completed


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


@pytest.mark.parametrize("tuning", [Tuning(), Tuning(rank=2), Tuning(kind="ffa"), Tuning(kind="full")])
def test_the_untouched_model_is_scored_once_whatever_is_to_be_trained(
    tuning: Tuning, tiny_model: Path, scorer: Scorer, tmp_path: Path
) -> None:
    load_model.cache_clear()
    arrays = adapter_arrays(attach_adapter(load_model(tiny_model), tuning, 5))
    untrained = commit_round(tmp_path / "before", 0, arrays, adapter_hash(arrays), [], {"round": 0})
    changed = {name: array + np.float32(0.5) for name, array in arrays.items()}
    trained = commit_round(tmp_path / "after", 0, changed, adapter_hash(changed), [], {"round": 0})
    nothing = commit_round(tmp_path / "nothing", 0, {}, adapter_hash({}), [], {"round": 0})
    model = scorer._model
    load_model.cache_clear()
    wanted = _sequences(["a", "b", "c"])
    bare = Scorer(model, Tuning(kind="none"), 0, (1, 3), "none", "cpu")
    expected, computed = bare.scores(nothing, wanted, lambda *_: None)
    assert computed == 3
    again = Scorer(model, tuning, 5, (1, 3), "none", "cpu")
    table, computed = again.scores(untrained, _sequences(["a", "b", "c", "d"]), lambda *_: None)
    assert computed == 1
    assert table["mean_token"].to_list()[:3] == expected["mean_token"].to_list()
    own = attach_adapter(load_model(tiny_model), tuning, 5)
    tokens, starts = ([row.to_numpy() for row in wanted[name]] for name in ("token_ids", "message_starts"))
    plain = score_sequences(own, load_model(tiny_model), tokens, starts, (1, 3))
    assert plain["mean_token"].tolist() == pytest.approx(expected["mean_token"].to_list(), abs=1e-6)
    assert again.scores(trained, wanted, lambda *_: None)[1] == 3


def test_runs_that_score_the_same_adapter_at_once_keep_the_scores_of_all(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def run(number: int) -> pl.DataFrame:
        def score(missing: pl.DataFrame) -> tuple[pl.DataFrame, int]:
            together.wait(30)
            return missing.with_columns(mean_token=pl.lit(float(number))), len(missing)

        own = pl.DataFrame({"sequence_hash": ["of all", *(f"{number} {each}" for each in range(20_000))]})
        table, computed = _completed(tmp_path / "way" / "adapter.parquet", own, score)
        assert computed == len(own)
        return own.join(table, on="sequence_hash", how="left")

    with ThreadPoolExecutor(8) as runs:
        tables = list(runs.map(run, range(8)))
    kept = pl.read_parquet(tmp_path / "way" / "adapter.parquet")
    assert len(kept) == kept["sequence_hash"].n_unique() == 8 * 20_000 + 1
    for table in tables:
        assert table.equals(table.select("sequence_hash").join(kept, on="sequence_hash", how="left"))
