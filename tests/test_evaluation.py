"""The metrics table and the findings against plain recomputation window by window."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn import metrics

from fl.anomaly_scores import anomaly_score
from fl.baselines import RULES, fit
from fl.calibration import tail_threshold
from fl.errors import ScoreError
from fl.evaluation import Evaluation, evaluate, most_anomalous
from fl.metrics_table import METRIC_TYPES, Windows, score_names
from fl.rule_comparison import RULE_TYPES

SPLITS = ("train", "calibration", "validation", "test")
NORMAL = [(0, 1, 2), (0, 1, 1, 2), (0, 2, 1), (0, 1, 2, 2)]
ANOMALOUS = [(0, 9), (0, 1, 2, 0, 1), (2, 2, 2)]
RARE = (2, 1, 0)  # normal, but never in training


def _windows(seed: int = 0, anomalies: bool = True, known: bool = True) -> tuple[Windows, list[tuple[int, ...]]]:
    """600 windows of eight distinct sequences; anomalies in validation and test only."""
    generator = np.random.default_rng(seed)
    sequences = [*NORMAL, *ANOMALOUS, RARE]
    split = generator.choice(SPLITS, 600, p=[0.5, 0.2, 0.15, 0.15])
    sequence = generator.integers(0, len(NORMAL), 600)
    judged = np.isin(split, ("validation", "test"))
    if anomalies:
        chosen = judged & (generator.random(600) < 0.2)
        sequence[chosen] = generator.integers(len(NORMAL), len(NORMAL) + len(ANOMALOUS), chosen.sum())
    sequence[judged & (generator.random(600) < 0.1)] = len(sequences) - 1
    label = np.isin(sequence, range(len(NORMAL), len(sequences) - 1)).astype(np.int8)
    kind = np.array([f"kind {s}" if bad else None for s, bad in zip(sequence, label, strict=True)], dtype=object)
    contents = [sequences[s] for s in sequence]
    flat = np.array([m for content in contents for m in content], dtype=np.uint32)
    lengths = np.array([len(content) for content in contents])
    return Windows(sequence, split, label if known else np.full(600, -1, np.int8), flat, lengths, kind), contents


def _columns(noise: float, seed: int = 0) -> dict[str, np.ndarray]:
    """Scores of the eight sequences: the anomalous ones higher, more or less."""
    generator = np.random.default_rng(seed)
    surprise = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 1.0, 0.35, 0.5]) + generator.normal(0, noise, 8)
    columns = {name: surprise * (1 + i) for i, name in enumerate(("rarity", "max_token", "mean_message"))}
    columns |= {f"top_{k}": 1 - surprise / k for k in (1, 3)} | {f"unaligned_{k}": surprise * 0 for k in (1, 3)}
    return columns | {"loss_sum": surprise * 10, "loss_tokens": np.full(8, 10)}


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(_windows()[0], {0: _columns(0.6, 1), 1: _columns(0.0)})


def test_every_row_of_the_metrics_equals_a_plain_recomputation(evaluation: Evaluation) -> None:
    windows, _ = _windows()
    train = set(windows.sequence[windows.split == "train"].tolist())
    for row in evaluation.metrics:
        if row["population"] == "balanced":
            continue
        rows = windows.split == row["split"]
        if row["population"] == "unseen":
            rows &= ~np.isin(windows.sequence, list(train))
        columns = _columns(0.6, 1) if row["round"] == 0 else _columns(0.0)
        scores = anomaly_score(columns, row["score"], row["k"])[windows.sequence]
        labels, flags = windows.label[rows], scores[rows] > row["threshold"]
        assert row["f1"] == pytest.approx(metrics.f1_score(labels, flags, zero_division=0))
        assert row["auroc"] == pytest.approx(metrics.roc_auc_score(labels, scores[rows]))
        assert row["average_precision"] == pytest.approx(metrics.average_precision_score(labels, scores[rows]))
        assert (row["windows"], row["anomalies"], row["flagged"]) == (rows.sum(), labels.sum(), flags.sum())
        if row["threshold_kind"] == "label_free":
            assert (scores[windows.split == "calibration"] > row["threshold"]).mean() <= 0.002


def test_the_table_holds_every_round_split_population_score_and_threshold(evaluation: Evaluation) -> None:
    keys = {
        (r["round"], r["split"], r["population"], r["score"], r["k"], r["threshold_kind"]) for r in evaluation.metrics
    }
    assert len(keys) == len(evaluation.metrics)
    # Two rounds, three populations, seven scores; validation has no oracle.
    assert len(keys) == 2 * 3 * 7 * (2 + 3)


def test_the_tables_have_the_stated_columns_even_without_labels(evaluation: Evaluation) -> None:
    for found in (evaluation, evaluate(_windows(known=False)[0], {0: _columns(0.0)})):
        for rows, types in ((found.metrics, METRIC_TYPES), (found.rules, RULE_TYPES)):
            assert all(list(row) == list(types) for row in rows)
            table = pl.DataFrame(rows, schema=types)
            assert pl.Null not in table.dtypes


def test_the_oracle_is_never_below_the_other_thresholds(evaluation: Evaluation) -> None:
    test = [row for row in evaluation.metrics if row["split"] == "test"]
    best = {
        tuple(r[f] for f in ("round", "population", "score", "k")): r["f1"]
        for r in test
        if r["threshold_kind"] == "oracle"
    }
    assert all(row["f1"] <= best[tuple(row[f] for f in ("round", "population", "score", "k"))] for row in test)


def test_the_validated_threshold_knows_nothing_of_the_test_labels() -> None:
    windows, _ = _windows()
    changed = Windows(windows.sequence, windows.split, windows.label.copy(), windows.message_ids, windows.lengths)
    rows = np.flatnonzero(windows.split == "test")
    changed.label[rows] = np.random.default_rng(1).permutation(windows.label[rows])
    first, second = (evaluate(w, {0: _columns(0.3)}).findings for w in (windows, changed))
    for kind in ("label_free", "validated"):
        assert first[kind]["threshold"] == second[kind]["threshold"]
    assert (first["score"], first["k"]) == (second["score"], second["k"])
    assert first["oracle"]["threshold"] != second["oracle"]["threshold"]


def test_the_headline_sets_the_label_free_f1_against_the_best_rule(evaluation: Evaluation) -> None:
    windows, contents = _windows()
    rows = np.flatnonzero(windows.split == "test")
    labels = windows.label[rows]
    train = {content for content, split in zip(contents, windows.split, strict=True) if split == "train"}
    rules = {name: metrics.f1_score(labels, fit(name, train).flags([contents[i] for i in rows])) for name in RULES}
    assert {row["rule"]: pytest.approx(row["f1"]) for row in evaluation.findings["rules"]} == rules
    best = evaluation.findings["best_rule"]
    assert best["f1"] == pytest.approx(max(rules.values()))
    headline = evaluation.findings["headline"]
    estimate = evaluation.findings["label_free"]["f1"] - best["f1"]
    assert headline["difference"]["estimate"] == pytest.approx(estimate)
    assert headline["difference"]["low"] <= estimate <= headline["difference"]["high"]
    expected = (
        "better" if headline["difference"]["low"] > 0 else "worse" if headline["difference"]["high"] < 0 else "unclear"
    )
    assert headline["verdict"] == expected


def test_every_f1_that_is_told_has_the_interval_of_resampled_windows(evaluation: Evaluation) -> None:
    windows, contents = _windows()
    rows = np.flatnonzero(windows.split == "test")
    labels, train = windows.label[rows], {c for c, s in zip(contents, windows.split, strict=True) if s == "train"}
    found = evaluation.findings
    told = {row["rule"]: (row, fit(row["rule"], train).flags([contents[i] for i in rows])) for row in found["rules"]}
    for kind in ("label_free", "validated", "oracle"):
        told[kind] = (found[kind], evaluation.window_scores[rows] > found[kind]["threshold"])
    drawn = np.random.default_rng(5).integers(0, len(rows), (2000, len(rows)))
    for name, (row, flags) in told.items():
        bad, flagged = (part[drawn].astype(int) for part in (labels == 1, flags))
        f1 = 2 * (bad * flagged).sum(1) / np.maximum((bad + flagged).sum(1), 1)
        assert (row["f1_low"], row["f1_high"]) == pytest.approx(np.quantile(f1, [0.025, 0.975]), abs=0.03), name
        assert row["f1_low"] <= row["f1"] <= row["f1_high"]


def test_recall_by_kind_adds_up_to_the_recall(evaluation: Evaluation) -> None:
    findings = evaluation.findings
    kinds = findings["recall_by_kind"]
    assert [kind["kind"] for kind in kinds] == ["kind 4", "kind 5", "kind 6"]
    caught = sum(kind["recall"] * kind["windows"] for kind in kinds)
    assert caught / findings["anomalies"] == pytest.approx(findings["label_free"]["recall"])


def test_the_most_anomalous_windows_are_of_different_sequences(evaluation: Evaluation) -> None:
    windows, _ = _windows()
    found = most_anomalous(windows, evaluation.window_scores, count=3)
    assert len({row["sequence"] for row in found}) == 3
    test = windows.split == "test"
    assert found[0]["score"] == evaluation.window_scores[test].max()
    assert all(windows.split[row["window"]] == "test" for row in found)
    assert found[0]["windows"] == (windows.sequence[test] == found[0]["sequence"]).sum()


def test_the_loss_by_round_is_that_of_the_calibration_windows(evaluation: Evaluation) -> None:
    windows, _ = _windows()
    calibration = windows.sequence[windows.split == "calibration"]
    assert [row["loss"] for row in evaluation.findings["rounds"]] == [
        pytest.approx(columns["loss_sum"][calibration].sum() / columns["loss_tokens"][calibration].sum())
        for columns in (_columns(0.6, 1), _columns(0.0))
    ]


def test_every_score_is_told_before_training_and_after(evaluation: Evaluation) -> None:
    windows, _ = _windows()
    told = {(row["score"], row["k"]): row for row in evaluation.findings["by_score"]}
    assert set(told) == {(name, k) for name, k in score_names(_columns(0.0)) if name != "unaligned"}
    test = windows.split == "test"
    label = windows.label[test]
    for model, columns in (("untouched", _columns(0.6, 1)), ("tuned", _columns(0.0))):
        for (name, k), row in told.items():
            scores = (columns[name] if k is None else 1 - columns[f"top_{k}"])[windows.sequence[test]]
            assert row[model]["auroc"] == pytest.approx(metrics.roc_auc_score(label, scores))
            thresholds = [scores.min() - 1, *np.unique(scores)]
            best = max(metrics.f1_score(label, scores > threshold) for threshold in thresholds)
            assert row[model]["oracle_f1"] == pytest.approx(best)
    alone = evaluate(windows, {0: _columns(0.0)}).findings["by_score"]
    assert all("tuned" not in row for row in alone)


def test_findings_are_json_and_the_same_twice(evaluation: Evaluation) -> None:
    again = evaluate(_windows()[0], {0: _columns(0.6, 1), 1: _columns(0.0)})
    assert json.dumps(again.findings) == json.dumps(evaluation.findings)
    assert again.metrics == evaluation.metrics


def test_logs_without_labels_get_a_threshold_and_a_note_but_no_f1() -> None:
    windows, _ = _windows(known=False)
    found = evaluate(windows, {0: _columns(0.0)})
    assert found.findings["score"] == "rarity"
    assert found.findings["headline"] is None
    assert found.findings["label_free"]["f1"] is None
    assert found.findings["label_free"]["flagged"] > 0
    assert found.findings["oracle"] is None
    assert "no labels" in " ".join(found.findings["notes"])
    assert {row["threshold_kind"] for row in found.metrics} == {"label_free"}
    assert len(found.findings["most_anomalous"]) == 3


def test_the_rule_that_is_asked_for_gives_every_label_free_threshold() -> None:
    windows, _ = _windows()
    calibration = np.flatnonzero(windows.split == "calibration")
    windows.sequence[calibration[:6]] = 7
    found = evaluate(windows, {0: _columns(0.0)}, "rarity", rule="tail")
    expected = tail_threshold(_columns(0.0)["rarity"][windows.sequence[calibration]], 0.002)
    assert (
        found.findings["label_free"]["threshold"]
        == expected
        != evaluate(windows, {0: _columns(0.0)}, "rarity").findings["label_free"]["threshold"]
    )
    assert found.findings["threshold_rule"] == "tail"
    assert any("exponential tail" in note for note in found.findings["notes"])


def test_a_test_split_without_anomalies_has_false_alarms_only() -> None:
    found = evaluate(_windows(anomalies=False)[0], {0: _columns(0.0)}).findings
    assert found["label_free"]["f1"] is None
    assert found["label_free"]["false_alarm_rate"] is not None
    assert found["best_rule"] is None
    assert any("no anomalous windows" in note for note in found["notes"])


def test_windows_without_a_label_are_left_out_and_counted() -> None:
    windows, _ = _windows()
    windows.label[np.flatnonzero(windows.split == "test")[:5]] = -1
    found = evaluate(windows, {0: _columns(0.0)}).findings
    assert found["windows"] == (windows.split == "test").sum() - 5
    assert any(note.startswith("5 test windows") for note in found["notes"])


def test_the_score_names_are_those_of_the_columns_with_the_default_first() -> None:
    names = score_names(_columns(0.0))
    assert names[0] == ("rarity", None)
    assert names[3:] == [("top_k", 1), ("top_k", 3), ("unaligned", 1), ("unaligned", 3)]


def test_missing_scores_are_one_clear_error() -> None:
    windows, _ = _windows()
    columns = _columns(0.0)
    columns["max_token"][0] = np.nan
    with pytest.raises(ScoreError, match="not finite"):
        evaluate(windows, {0: columns})
    with pytest.raises(ScoreError, match="Round 7 has no scores: choose one of 0, 2"):
        evaluate(windows, {0: _columns(0.0), 2: _columns(0.0)}, reported_round=7)
    with pytest.raises(ScoreError, match="No round"):
        evaluate(windows, {})
    with pytest.raises(ScoreError, match="7 sequences have scores, but windows refer to 8"):
        evaluate(windows, {0: {name: values[:7] for name, values in _columns(0.0).items()}})


def test_an_earlier_round_can_be_reported() -> None:
    windows, _ = _windows()
    found = evaluate(windows, {0: _columns(0.6, 1), 1: _columns(0.0)}, reported_round=0).findings
    assert found["round"] == 0
    assert found["auroc"] == found["rounds"][0]["auroc"]


def test_without_test_windows_there_is_still_a_chosen_score() -> None:
    windows, _ = _windows()
    windows.split[windows.split == "test"] = "unused"
    found = evaluate(windows, {0: _columns(0.0)}).findings
    assert found["headline"] is None
    assert found["windows"] is None
    assert found["most_anomalous"] == []
    assert found["score"] == "rarity"


def test_where_few_anomalies_are_all_found_the_note_tells_what_the_bootstrap_cannot() -> None:
    windows, _ = _windows()
    test = np.flatnonzero((windows.split == "test") & (windows.label == 1))
    split = windows.split.copy()
    split[test[9:]] = "unused"
    few = replace(windows, split=split)
    known = {"rarity": np.isin(np.arange(8), range(len(NORMAL), len(NORMAL) + len(ANOMALOUS))).astype(float)}
    found = evaluate(few, {0: _columns(0.0) | known}, "rarity").findings
    assert (found["anomalies"], found["label_free"]["recall"]) == (9, 1.0)
    least = stats.beta.ppf(0.025, 9, 1)
    assert f"Clopper-Pearson a recall of {least:.2f} at least" in " ".join(found["notes"])
    missed = evaluate(few, {0: _columns(0.0) | {"rarity": np.zeros(8)}}, "rarity").findings
    assert "Clopper" not in " ".join(missed["notes"])
