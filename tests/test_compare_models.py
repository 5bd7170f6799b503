"""Beginnings of real windows continued by both models, and what a window costs, from stages at rest."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from staged_data import prepared_stages

from fl.adapter import adapter_arrays, adapter_hash, attach_adapter
from fl.hyperparameters import LocalTraining, Tuning
from fl.model import load_model, prepare_model
from storage.adapters import commit_round
from storage.composer import TokenRule
from storage.layout import Layout
from storage.stages import Stage, new_stage
from tasks.compare_models import compare_models
from tasks.measure_costs import measure_costs

TUNING = Tuning(rank=2)


@pytest.fixture(scope="module")
def stages(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    """Prepared data, two rounds, and as much of scores and findings as is read."""
    home = Layout(tmp_path_factory.mktemp("home"))
    found = prepared_stages(home, tiny_model, 30, TokenRule(max_tokens=200))
    base = prepare_model(str(tiny_model), home.models)
    with new_stage(home.stages, "model", "k") as new:
        for name in ("config.json", "tokenizer.json"):
            (new.path / name).write_bytes((base / name).read_bytes())
        weights = json.loads((base / "card.json").read_text())["weights_sha256"]
        new.counts |= {"name": str(tiny_model), "weights_sha256": weights}
    found["model"] = new.done
    arrays = adapter_arrays(attach_adapter(load_model(base), TUNING, 0))
    tuned = {name: array + np.float32(0.1) for name, array in arrays.items()}
    with new_stage(home.stages, "train", "k") as new:
        for number, each in enumerate((arrays, tuned)):
            row = {
                "round": number,
                "partition": 0,
                "bytes_down": 2_000_000,
                "bytes_up": 1_000_000 + 400_000 * number,
                "steps": 1,
            }
            facts = {"examples": 4, "tokens": 100, "computed_tokens": 50, "seconds": 1.0}
            commit_round(new.path, number, each, adapter_hash(each), [row | facts], {"round": number, "seconds": 1.0})
        new.counts["rounds"] = 1
    found["trained"] = new.done
    with new_stage(home.stages, "evaluate", "k") as new:
        windows = pl.read_parquet(found["tokenized"].file("windows.parquet"), columns=["window_id"])
        windows.with_columns(pl.lit("calibration").alias("split")).write_parquet(new.path / "window_scores.parquet")
        (new.path / "findings.json").write_text(json.dumps({"round": 1}))
    found["evaluated"] = new.done
    with new_stage(home.stages, "score", "k") as new:
        sequences = pl.read_parquet(found["tokenized"].file("sequences.parquet"), columns=["sequence_id"])
        sequences.with_columns(seconds=pl.lit(0.25)).write_parquet(new.path / "round-0001.parquet")
        new.counts |= {"rounds": [0, 1], "seconds": 2.0}
    found["scored"] = new.done
    return found


@pytest.fixture(autouse=True)
def _same_home(stages: dict[str, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATALAIA_HOME", str(Path(stages["model"].path).parents[2]))


def test_both_models_go_on_from_halves_of_real_windows(stages: dict[str, Stage], tmp_path: Path) -> None:
    names = ("model", "tokenized", "trained", "evaluated")
    with new_stage(tmp_path, "compare", "k") as new:
        compare_models._write(new, *(stages[name] for name in names), TUNING, 0, "none", "cpu")
    found = json.loads(new.done.file("continuations.json").read_text())
    assert (len(found), new.done.counts["continued"]) == (1, 1)
    texts = pl.read_parquet(stages["mask"].file("messages.parquet"))["text"].to_list()
    for each in found:
        assert each["prefix"].split(" ;-;")[0] in texts
        assert each["prefix"].endswith(" ;-;")
        assert each["followed"].split(" ;-; ")[0].strip() in texts
        assert each["base"] != each["tuned"]
        assert each["base_nats"] != each["tuned_nats"]
    with new_stage(tmp_path, "compare", "untouched") as new:
        untouched = Tuning(kind="none")
        compare_models._write(new, *(stages[name] for name in names), untouched, 0, "none", "cpu")
    assert json.loads(new.done.file("continuations.json").read_text()) == []


def test_costs_hold_the_time_of_one_window_beside_the_bytes_of_a_message(
    stages: dict[str, Stage], tmp_path: Path
) -> None:
    names = ("model", "tokenized", "trained", "scored")
    with new_stage(tmp_path, "costs", "k") as new:
        chosen = [stages[name] for name in names]
        measure_costs._write(new, *chosen, LocalTraining(batch_size=4), TUNING, 0, "none", "cpu")
    found = json.loads(new.done.file("costs.json").read_text())
    assert found["bytes_up_per_client_round"] == 1_200_000  # the mean of both rounds
    assert found["latency_windows"] == min(3, pl.read_parquet(stages["scored"].file("round-0001.parquet")).height)
    assert found["latency_ms"] > 0
    assert found["together_ms"] == pytest.approx(250)
    assert found["latency_peak_mb"] > 100
