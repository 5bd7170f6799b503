"""Scoring by adapter: each distinct sequence once, whatever is asked for again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fl.adapter import Tuning, adapter_arrays, adapter_hash, attach_adapter
from fl.local_models import local_files
from fl.model import load_model
from fl.scoring import score_sequences
from storage.adapters import CommittedRound, commit_round
from storage.progress import Progress, silent
from storage.stages import Stage, new_stage
from tasks.prepare_model import prepare_model
from tasks.score_windows import Scorer, _completed


@pytest.fixture
def scorer(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scorer:
    monkeypatch.setenv("ATALAIA_HOME", str(tmp_path / "home"))
    with new_stage(tmp_path, "model", "key") as new:
        prepare_model._write(new, str(tiny_model), local_files(str(tiny_model)))
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
    table, computed = scorer.scores(untouched, _sequences(["a", "b", "a"]), silent)
    assert computed == 2
    assert table["sequence_id"].to_list() == [0, 1, 2]
    assert table["mean_token"][0] == table["mean_token"][2]


def test_what_was_scored_before_is_looked_up(scorer: Scorer, untouched: CommittedRound) -> None:
    first, _ = scorer.scores(untouched, _sequences(["a", "b"]), silent)
    again, computed = scorer.scores(untouched, _sequences(["b", "c", "a"]), silent)
    assert computed == 1
    assert (
        dict(zip(again["sequence_hash"], again["mean_token"], strict=True)).items()
        >= dict(zip(first["sequence_hash"], first["mean_token"], strict=True)).items()
    )


def test_devices_of_one_kind_share_what_they_scored_and_other_kinds_score_anew(
    scorer: Scorer, untouched: CommittedRound
) -> None:
    scorer.scores(untouched, _sequences(["a", "b"]), silent)
    second = Scorer(scorer._model, Tuning(), 0, (1, 3), "none", "cpu:1")
    assert second.scores(untouched, _sequences(["a", "b"]), silent)[1] == 0
    other = Scorer(scorer._model, Tuning(), 0, (1, 3), "none", "cuda:1")
    assert other._file(Tuning(), untouched.adapter_hash) != scorer._file(Tuning(), untouched.adapter_hash)


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
    expected, computed = bare.scores(nothing, wanted, silent)
    assert computed == 3
    again = Scorer(model, tuning, 5, (1, 3), "none", "cpu")
    table, computed = again.scores(untrained, _sequences(["a", "b", "c", "d"]), silent)
    assert computed == 1
    assert table["mean_token"].to_list()[:3] == expected["mean_token"].to_list()
    own = attach_adapter(load_model(tiny_model), tuning, 5)
    tokens, starts = ([row.to_numpy() for row in wanted[name]] for name in ("token_ids", "message_starts"))
    plain = score_sequences(own, load_model(tiny_model), tokens, starts, (1, 3))
    assert plain["mean_token"].tolist() == pytest.approx(expected["mean_token"].to_list(), abs=1e-6)
    assert again.scores(trained, wanted, silent)[1] == 3


def test_runs_that_score_the_same_adapter_at_once_keep_the_scores_of_all(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def run(number: int) -> pl.DataFrame:
        def score(missing: pl.DataFrame, _: Progress) -> tuple[pl.DataFrame, int]:
            together.wait(30)
            return missing.select("sequence_hash", mean_token=pl.lit(float(number))), len(missing)

        hashes = ["of all", *(f"{number} {each}" for each in range(20_000))]
        own = pl.DataFrame({"sequence_hash": hashes, "token_ids": [[number]] * len(hashes)})
        table, computed = _completed(tmp_path / "way" / "adapter.parquet", own, score, silent)
        assert computed == len(own)
        return own.select("sequence_hash").join(table, on="sequence_hash", how="left")

    with ThreadPoolExecutor(8) as runs:
        tables = list(runs.map(run, range(8)))
    kept = pl.read_parquet(tmp_path / "way" / "adapter.parquet")
    assert len(kept) == kept["sequence_hash"].n_unique() == 8 * 20_000 + 1
    for table in tables:
        assert table.equals(table.select("sequence_hash").join(kept, on="sequence_hash", how="left"))


def test_what_was_scored_before_a_run_was_stopped_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.score_windows._PORTION_TOKENS", 100)
    drawn = np.random.default_rng(0)
    tokens = [drawn.integers(1, 5, drawn.integers(1, 40)).tolist() for _ in range(60)]
    wanted = pl.DataFrame({"sequence_hash": [str(number) for number in range(60)], "token_ids": tokens})
    path, scored, told = tmp_path / "way" / "adapter.parquet", [], []

    def score(portion: pl.DataFrame, progress: Progress) -> tuple[pl.DataFrame, int]:
        if len(scored) == 2 and not path.with_suffix(".stopped").exists():
            path.with_suffix(".stopped").touch()
            raise KeyboardInterrupt
        scored.append(portion["sequence_hash"].to_list())
        assert sum(map(len, portion["token_ids"])) <= 100 + 2 * 40
        assert portion["token_ids"].to_list() == sorted(portion["token_ids"].to_list())
        progress(1, 2)
        return portion.select("sequence_hash", mean_token=pl.col("token_ids").list.sum() * 1.0), len(portion)

    with pytest.raises(KeyboardInterrupt):
        _completed(path, wanted, score, silent)
    table, computed = _completed(path, wanted, score, lambda done, total, note="": told.append((done, total)))
    assert sorted(chain.from_iterable(scored)) == sorted(wanted["sequence_hash"])
    assert computed == 60 - len(scored[0]) - len(scored[1])
    assert told == [(number + 0.5, len(scored) - 2) for number in range(len(scored) - 2)]
    sums = dict(zip(table["sequence_hash"], table["mean_token"], strict=True))
    assert sums == {name: sum(ids) for name, ids in wanted.iter_rows()}
