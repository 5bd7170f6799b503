"""The learned baselines are judged like the model: by hand-counted rates, and beside the rules in the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn import metrics

from fl.baseline_comparison import PUBLISHED, baseline_findings, baseline_rows
from fl.event_settings import EventBaselines
from fl.federation import Federation
from fl.metrics_table import Row, Windows
from flows.presets import PRESETS
from flows.settings import command_of, run_config
from storage.report_tables import learned_table, markdown_table
from storage.stages import Stage, new_stage
from tasks.search_threshold import search_threshold
from tasks.train_event_models import scores_of_baselines, train_event_models

FACTS: dict[str, Any] = {
    "method": "deeplog", "parameters": 9, "message_bytes": 36, "trained_windows": 4, "rounds": 1, "losses": [1.0],
    "seconds": 0.5,
}  # fmt: skip


def _windows(known: bool = True) -> tuple[Windows, dict[str, np.ndarray]]:
    """Forty windows a split; every fourth test and validation window is anomalous, and scores higher."""
    split = np.repeat(["train", "calibration", "validation", "test"], 40)
    bad = np.isin(split, ("validation", "test")) & (np.arange(160) % 4 == 0)
    scores = np.random.default_rng(0).normal(size=160) + 2.0 * bad
    label = np.where(known, bad.astype(np.int8), np.int8(-1))
    lengths = np.ones(160, np.int64)
    windows = Windows(np.arange(160) % 50, split, label, np.arange(160, dtype=np.uint32), lengths)
    return windows, {"deeplog.surprise": scores, "deeplog.rank": np.where(scores > 1.5, 12.0, 3.0)}


def _row(rows: list[Row], **wanted: str) -> Row:
    [row] = [row for row in rows if wanted.items() <= row.items()]
    return row


def test_a_baseline_has_the_calibration_quantile_and_the_rates_that_counting_gives() -> None:
    windows, scores = _windows()
    rows = baseline_rows(windows, scores, false_alarm_rate=0.1, seed=0)
    found = _row(rows, score="surprise", population="all", threshold_kind="label_free")
    values = scores["deeplog.surprise"]
    assert found["threshold"] == np.sort(values[windows.split == "calibration"])[-5]
    test = windows.split == "test"
    flagged = values[test] > found["threshold"]
    assert found["f1"] == pytest.approx(metrics.f1_score(windows.label[test], flagged))
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(windows.label[test], values[test]))
    assert found["average_precision"] == pytest.approx(
        metrics.average_precision_score(windows.label[test], values[test])
    )


def test_the_published_rule_has_its_own_threshold_and_no_other_score_has_one() -> None:
    windows, scores = _windows()
    rows = baseline_rows(windows, scores, 0.1, 0)
    assert _row(rows, score="rank", population="all", threshold_kind=PUBLISHED)["threshold"] == 9.0
    assert {row["score"] for row in rows if row["threshold_kind"] == PUBLISHED} == {"rank"}


def test_without_labels_there_are_alarms_and_no_rates() -> None:
    windows, scores = _windows(known=False)
    rows = baseline_rows(windows, scores, 0.1, 0)
    found = _row(rows, score="surprise", population="all", threshold_kind="label_free")
    assert found["flagged"] > 0
    assert found["f1"] is None
    assert {row["threshold_kind"] for row in rows} == {"label_free", PUBLISHED}


def test_the_report_shows_every_score_with_its_thresholds_and_what_it_cost() -> None:
    windows, scores = _windows()
    rows = baseline_rows(windows, scores, 0.1, 0)
    shown = markdown_table(learned_table(baseline_findings(rows, [FACTS])))
    published = _row(rows, score="rank", population="all", threshold_kind=PUBLISHED)
    [line] = [line for line in shown.splitlines() if "worst rank" in line]
    assert f"| {published['f1']:.3f} |" in line
    assert shown.count("highest surprise of an event") == 3
    assert "9 parameters, 0.036 kB a message, 4 windows trained on in 1 rounds" in shown


def _stage(root: Path, name: str, files: dict[str, pl.DataFrame]) -> Stage:
    with new_stage(root, name, "key") as new:
        for file, table in files.items():
            table.write_parquet(new.path / file)
        new.counts["rounds"] = [0]
    return new.done


@pytest.fixture
def stages(tmp_path: Path) -> dict[str, Stage]:
    """Windows that count to three; in validation and test some count wrongly. The share of client 1 is the longer."""
    messages = [[7, 8, 9] if i < 120 or i % 5 else [7, 9, 8] for i in range(200)]
    split = ["train"] * 80 + ["calibration"] * 40 + ["validation"] * 40 + ["test"] * 40
    wrong = [int(window == [7, 9, 8]) for window in messages]
    windows = pl.DataFrame(
        {
            "window_id": pl.Series(range(200), dtype=pl.UInt32), "message_ids": messages, "label": wrong,
            "sequence_id": wrong, "sequence_hash": [str(one) for one in wrong], "kind": [None] * 200,
        }
    )  # fmt: skip
    texts = pl.DataFrame({"message_id": [7, 8, 9], "text": ["one", "two", "three"]})
    ids = windows["window_id"]
    dealt = pl.DataFrame({"window_id": ids[:80], "partition": [0] * 30 + [1] * 50})
    sequences = windows.unique("sequence_id").sort("sequence_id").select("sequence_id", "message_ids")
    surprises = [[0.1] * (1 + len(ids)) for ids in sequences["message_ids"]]
    scored = pl.DataFrame({"sequence_id": [0, 1], "mean_token": [0.1, 0.9], "message_surprise": surprises})
    return {
        "tokenized": _stage(
            tmp_path,
            "tokenize",
            {"windows.parquet": windows, "sequences.parquet": sequences, "messages.parquet": texts},
        ),
        "split": _stage(tmp_path, "split", {"splits.parquet": pl.DataFrame({"window_id": ids, "split": split})}),
        "partition": _stage(tmp_path, "partition", {"shares.parquet": dealt}),
        "scored": _stage(tmp_path, "score", {"round-0000.parquet": scored}),
    }


def test_baselines_are_trained_and_judged_beside_the_rules(stages: dict[str, Stage], tmp_path: Path) -> None:
    settings = EventBaselines(("deeplog", "logbert"), baseline_rounds=4, baseline_steps=10, baseline_windows=16)
    with new_stage(tmp_path, "baselines", "key") as trained:
        train_event_models._write(trained, stages["tokenized"], stages["partition"], settings, 2, 1.0, 0)
    inputs = (stages["tokenized"], stages["split"], stages["scored"])
    with new_stage(tmp_path, "evaluate", "key") as judged:
        search_threshold._write(judged, *inputs, "auto", None, 0.002, 0, baselines=trained.done)
    findings = json.loads(judged.done.file("findings.json").read_text())
    main = {one["method"]: one["populations"]["all"] for one in findings["baselines"] if one["main"]}
    assert main["deeplog"]["auroc"] == 1.0
    assert main["deeplog"]["label_free"]["f1"] == 1.0
    assert set(main) == {"deeplog", "logbert"}
    table = pl.read_parquet(judged.done.file("baselines.parquet"))
    assert set(table["population"]) == {"all", "unseen", "balanced"}
    assert findings["rules"]


def test_each_client_trains_on_its_own_share(stages: dict[str, Stage]) -> None:
    settings = EventBaselines(("deeplog",), baseline_rounds=1, baseline_steps=1, baseline_windows=64)
    told: list[str] = []
    federation = Federation(clients=2, fraction=1.0)
    inputs = (stages["tokenized"], stages["partition"], settings, federation)
    _, [facts] = scores_of_baselines(*inputs, lambda done, total, note="": told.append(note))
    assert facts["trained_windows"] == 30 + 50
    assert len(told) == 1


def test_with_its_end_as_an_event_a_window_cut_short_stands_out(tmp_path: Path) -> None:
    messages = [[7, 8, 9]] * 40 + [[7, 8]]
    windows = pl.DataFrame({"window_id": range(41), "message_ids": messages})
    dealt = pl.DataFrame({"window_id": range(40), "partition": [0] * 40})
    stages = (
        _stage(tmp_path, "tokenize", {"windows.parquet": windows}),
        _stage(tmp_path, "partition", {"shares.parquet": dealt}),
    )
    found = {}
    for end in (False, True):
        settings = EventBaselines(("deeplog",), 4, 10, 8, baseline_end=end)
        scores, _ = scores_of_baselines(*stages, settings, Federation(clients=1, fraction=1.0), lambda *_: None)
        found[end] = scores["deeplog.surprise"].to_list()
    assert found[True][-1] > 10 * found[True][0]
    assert found[False][-1] <= found[False][0]


@pytest.mark.parametrize("preset", PRESETS)
def test_baselines_are_trained_unless_told_otherwise_and_typed_as_they_are_told(preset: str) -> None:
    assert run_config(preset, []).baselines.methods == ("deeplog", "logbert", "fedlog")
    assert run_config(preset, ["methods="]).baselines.methods == ()


def test_chosen_baselines_are_told_in_the_command() -> None:
    asked = run_config("demo", ["methods=fedlog,deeplog", "baseline_rounds=3"])
    assert asked.baselines.methods == ("fedlog", "deeplog")
    assert command_of(asked) == "atalaia run demo baselines.methods=fedlog,deeplog baselines.baseline_rounds=3"
