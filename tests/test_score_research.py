"""Scores of windows from kept surprises: the product's own, made without labels, judged by the product's metrics."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_experiments
from benchmarks.experiment_data import AS_IT_IS, Corpus, load_corpora, random_corpus, write_corpora
from benchmarks.experiment_plan import plan
from benchmarks.rarity_research import Case, candidates, left_out, model_cases, table
from benchmarks.recall_by_kind import detectors, set_apart
from benchmarks.recall_by_kind import table as recalls
from benchmarks.score_research import as_markdown, judged, research
from benchmarks.window_scores import Predicted, window_scores
from fl.misses import misses
from fl.rarity import usual_windows
from fl.scoring import TokenScores, score_columns
from fl.usual_messages import NEW_WINDOWS, message_surprises


def made_up(corpus: Corpus) -> tuple[Predicted, dict[str, np.ndarray]]:
    """Random predictions of every token, and the product's scores of them."""
    drawn = np.random.default_rng(1)
    ranks = [drawn.integers(0, 12, len(window)) for window in corpus.token_ids]
    logs = [-drawn.exponential(1.0, len(window)) for window in corpus.token_ids]
    tokens = TokenScores(ranks, logs, [np.zeros((len(window), 10), int) for window in corpus.token_ids], 0)
    columns = score_columns(corpus.token_ids, corpus.message_starts, tokens, (1, 3, 5, 10), unaligned=False)
    return Predicted(dict(enumerate(-log for log in logs)), dict(enumerate(ranks))), columns


def test_scores_from_kept_surprises_are_the_products() -> None:
    corpus = random_corpus([AS_IT_IS], ["default"], [])
    found, columns = made_up(corpus)
    scores = window_scores(corpus, "default", AS_IT_IS, found, found)
    for name in ("mean_token", "max_token", "mean_message", "max_message"):
        np.testing.assert_allclose(scores[name], columns[name])
    for k in (1, 3, 5, 10):
        np.testing.assert_allclose(scores[f"top_{k}"], 1 - columns[f"top_{k}"])
    assert (scores["gain"] == 0).all()


def test_no_score_depends_on_labels_or_on_the_windows_that_are_judged() -> None:
    corpus = random_corpus([AS_IT_IS], ["default"], [])
    found, _ = made_up(corpus)
    other = Corpus(
        corpus.token_ids, corpus.message_starts, corpus.message_ids, ~corpus.normal, corpus.orders, dict(corpus.splits)
    )
    swapped = corpus.splits["default"].copy()
    swapped[corpus.splits["default"] >= 2] = 5 - swapped[corpus.splits["default"] >= 2]
    other.splits["default"] = swapped
    before, after = (window_scores(each, "default", AS_IT_IS, found) for each in (corpus, other))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_a_window_of_known_counts_has_no_distance_and_each_line_more_adds_one() -> None:
    corpus = random_corpus([AS_IT_IS], ["default"], [])
    known = int(corpus.orders[AS_IT_IS][corpus.split("default") == "train"][0])
    longer = np.append(corpus.message_ids[known], [11, 11])
    corpus.message_ids[0] = longer
    found, _ = made_up(corpus)
    distances = window_scores(corpus, "default", AS_IT_IS, found)["count_distance"]
    assert distances[known] == 0 and 0 < distances[0] <= 2


def test_the_best_on_validation_comes_first_and_perfect_scores_are_perfect() -> None:
    corpus = random_corpus([AS_IT_IS], ["default"], [])
    truth = np.zeros(len(corpus.token_ids))
    truth[corpus.orders[AS_IT_IS][~corpus.normal]] = 1
    rows = judged(corpus, "default", AS_IT_IS, {"bad": -truth, "good": truth})
    assert [row["score"] for row in rows] == ["good", "bad"]
    assert rows[0]["test"]["f1"] == rows[0]["validation"]["f1"] == rows[0]["test"]["auroc"] == 1


def test_a_window_is_told_by_what_no_learned_window_has() -> None:
    corpus = random_corpus([AS_IT_IS], ["default"], [])
    learned = np.isin(corpus.split("default"), ("train", "calibration"))
    known = set(np.concatenate([corpus.message_ids[n] for n in corpus.orders[AS_IT_IS][learned]]).tolist())
    shortest = min(len(corpus.message_ids[n]) for n in corpus.orders[AS_IT_IS][learned])
    corpus.message_ids[0] = np.append(99, corpus.message_ids[0])
    corpus.message_ids[5] = np.array(sorted(known)[:1])
    texts = [f"message {number}" for number in range(100)]
    found = set_apart(corpus, texts)
    for window, words in zip(corpus.orders[AS_IT_IS], found, strict=True):
        unseen = [message for message in corpus.message_ids[window].tolist() if message not in known]
        few = len(corpus.message_ids[window]) < shortest
        assert words.startswith(f"`{texts[unseen[0]]}`" if unseen else "only known")
        assert unseen or ("fewer" in words) == few
    assert {words.split(",")[0] for words in found} >= {"`message 99`", "only known messages"}
    assert found[5].endswith(f"fewer than {shortest}")


def test_recalls_are_shares_of_the_anomalous_windows_of_a_kind() -> None:
    corpus = random_corpus([AS_IT_IS], ["default"], [])
    windows = corpus.windows("default")
    windows = replace(windows, kind=np.where(windows.sequence % 2, "odd", "even").astype(object))
    truth = np.zeros(len(corpus.token_ids))
    truth[corpus.orders[AS_IT_IS][~corpus.normal]] = 1
    flagged = detectors(windows, {"rarity": truth, "mean_token": -truth})
    kinds = misses(windows, flagged)["kinds"]
    names = ["model, rarity", "model, mean surprise"]
    test = (windows.split == "test") & (windows.label == 1)
    lines = recalls(kinds, names)
    for kind in ("odd", "even"):
        assert f"| {kind} | {(windows.kind[test] == kind).sum()} | 1.000 | 0.000 |" in lines


def test_the_cases_of_an_experiments_folder_are_judged_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ["headline", "untouched", "unstable"]
    monkeypatch.setattr(sys, "argv", ["-", str(tmp_path), "--tiny", "--device", "cpu", "--only", *only])
    assert gpu_experiments.main() == 0
    corpora = gpu_experiments.tiny_corpora([each for each in plan() if each.name in only])
    cases = research(tmp_path, corpora)
    assert [case["order"] for case in cases][:3] == [AS_IT_IS, AS_IT_IS, "reworded windows 0.05"] and len(cases) == 20
    assert {"gain", "top_1", "rarity", "fisher mean_token+count_distance"} <= {
        row["score"] for row in cases[0]["scores"]
    }
    write_corpora(corpora, tmp_path / "windows.npz")
    back = load_corpora(tmp_path / "windows.npz")
    assert research(tmp_path, back)[0]["scores"] == cases[0]["scores"]
    assert as_markdown(cases[0], 5).count("\n") == 2 + 2 + 5 + 4
    models = list(model_cases(tmp_path, corpora))
    assert len(models) == len(cases)
    _assert_as_shipped(models[0])
    assert [line.count("|") for line in table(models, "quantile")] == [2 + 4] * (2 + len(candidates(models[0])))


def _assert_as_shipped(case: Case) -> None:
    """What the choice was made of is what the product computes."""
    times = np.bincount(case.calibration, minlength=len(case.mean))
    usual = usual_windows(case.found, case.mean, times)
    shipped, found = usual.columns(case.found, case.mean), candidates(case)
    weight = f"{NEW_WINDOWS:g}"
    assert found[f"highest excess, {weight} new"][0] == pytest.approx(shipped["max_excess"])
    assert found[f"the rarer of mean and excess, {weight} new"][0] == pytest.approx(shipped["rarity"])


def test_a_window_that_is_left_out_is_judged_by_the_others() -> None:
    windows: list[tuple[int, float]] = [(1, 2.0), (1, 4.0), (2, 9.0)]
    found = message_surprises([np.array([m], np.uint64) for m, _ in windows], [np.array([s, 0.0]) for _, s in windows])
    assert left_out(found, np.array([1, 1, 1])).tolist() == [0.0, 2.0, 9.0]
    assert left_out(found, np.array([2, 1, 1]))[1] == 2.0
    assert left_out(found, np.array([1, 2, 1]))[1] == pytest.approx((4.0 - 3.0) / (1 + 1.0))
