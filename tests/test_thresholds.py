"""Thresholds and metrics against scikit-learn and against brute force."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from fl.calibration import threshold_note
from fl.errors import ScoreError
from fl.rarity import rarity
from fl.thresholds import (
    auroc,
    average_precision,
    balanced_sample,
    best_f1_threshold,
    calibration_note,
    expected_false_alarms,
    label_free_threshold,
    metrics_at,
    rank,
    rank_counts,
    reference_threshold,
)

# Few distinct values, so that ties are the rule.
SAMPLES = st.lists(st.tuples(st.integers(-3, 6), st.integers(0, 1)), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def _split(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    values, labels = zip(*rows, strict=True)
    return np.array(values) / 7, np.array(labels)


@settings(deadline=None)
@given(SAMPLES)
def test_auroc_and_average_precision_equal_scikit_learn_with_ties(rows: list[tuple[int, int]]) -> None:
    scores, labels = _split(rows)
    assert auroc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert average_precision(scores, labels) == pytest.approx(metrics.average_precision_score(labels, scores))


@settings(deadline=None)
@given(SAMPLES, st.floats(-1, 1))
def test_metrics_at_a_threshold_equal_scikit_learn(rows: list[tuple[int, int]], threshold: float) -> None:
    scores, labels = _split(rows)
    flags = scores > threshold
    found = metrics_at(scores, labels, threshold)
    assert [found.tn, found.fp, found.fn, found.tp] == metrics.confusion_matrix(labels, flags).ravel().tolist()
    assert found.f1 == pytest.approx(metrics.f1_score(labels, flags, zero_division=0))
    assert found.precision == pytest.approx(metrics.precision_score(labels, flags, zero_division=0))
    assert found.recall == pytest.approx(metrics.recall_score(labels, flags))
    assert found.false_alarm_rate == pytest.approx(flags[labels == 0].mean())


@settings(deadline=None)
@given(SAMPLES)
def test_the_best_f1_threshold_beats_every_other_threshold(rows: list[tuple[int, int]]) -> None:
    scores, labels = _split(rows)
    tried = np.concatenate([scores, [scores.min() - 1]])
    best = max(metrics.f1_score(labels, scores > threshold, zero_division=0) for threshold in tried)
    assert metrics_at(scores, labels, best_f1_threshold(scores, labels)).f1 == pytest.approx(best)


def test_the_best_f1_threshold_lies_midway_and_prefers_fewer_alarms() -> None:
    assert best_f1_threshold([0.0, 1.0, 3.0], [0, 0, 1]) == 2.0
    # Flagging one of the two anomalies, or everything: both have F1 2/3.
    assert best_f1_threshold([3.0, 2.0, 2.0, 1.0], [1, 0, 0, 1]) == 2.5


def test_the_best_f1_threshold_separates_neighbouring_floats() -> None:
    lower, upper = 1.0, float(np.nextafter(1.0, 2.0))
    assert metrics_at([lower, upper], [0, 1], best_f1_threshold([lower, upper], [0, 1])).f1 == 1.0


def test_counted_groups_rank_like_their_single_windows() -> None:
    generator = np.random.default_rng(5)
    scores, labels = generator.integers(0, 9, 300) / 9, generator.integers(0, 2, 300)
    values = np.append(np.unique(scores), np.nan)  # a group without windows needs no score
    anomalous = [int(((scores == value) & (labels == 1)).sum()) for value in values]
    normal = [int(((scores == value) & (labels == 0)).sum()) for value in values]
    counted = rank_counts(values, anomalous, normal)
    assert counted.auroc == auroc(scores, labels)
    assert counted.at(0.4) == metrics_at(scores, labels, 0.4)


@pytest.mark.parametrize(("rate", "flagged"), [(0.0, 0), (0.1, 10), (0.0999, 9), (0.3, 30)])
def test_the_label_free_threshold_leaves_at_most_the_stated_share_above(rate: float, flagged: int) -> None:
    scores = np.random.default_rng(1).permutation(100) / 10
    assert (scores > label_free_threshold(scores, rate)).sum() == flagged


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0, 0.9))
def test_ties_never_raise_the_label_free_rate_above_the_stated_one(values: list[int], rate: float) -> None:
    scores = np.array(values, dtype=float)
    threshold = label_free_threshold(scores, rate)
    assert (scores > threshold).mean() <= rate + 1e-9
    # And it is the lowest score for which that holds.
    lower = scores[scores < threshold]
    assert not lower.size or (scores > lower.max()).mean() > rate - 1e-9


def test_few_calibration_windows_take_the_highest_score_and_say_so() -> None:
    assert label_free_threshold([0.1, 0.5, 0.3], 0.002) == 0.5
    note = calibration_note(3, 0.002)
    assert note is not None
    assert "the threshold is their highest score, and about 1 in 4" in note
    assert "666 would do" in note
    assert calibration_note(666, 0.002) is None


@pytest.mark.parametrize(("windows", "rate"), [(1, 0.002), (7, 0.0), (9, 0.3), (10, 0.3), (19, 0.1), (20, 0.1)])
def test_the_expected_false_alarms_of_one_score_are_those_of_a_fresh_window_at_every_rank(
    windows: int, rate: float
) -> None:
    """Where any order of n + 1 windows is as likely, the fresh one has each rank once in n + 1 times."""
    threshold = label_free_threshold(np.arange(windows), rate)
    flagged = np.mean([rank - 0.5 > threshold for rank in range(windows + 1)])
    assert expected_false_alarms(windows, rate) == pytest.approx(flagged)


@pytest.mark.parametrize("windows", [50, 500, 1109])
def test_where_the_rarer_of_two_scores_decides_the_expected_false_alarms_are_those_that_are_drawn(windows: int) -> None:
    drawn, caught = np.random.default_rng(0), []
    for _ in range(400):
        known = drawn.permuted(np.tile(np.arange(windows), (2, 1)), axis=1)
        # A fresh window of a rank is half a rank above the known one below it.
        fresh = np.arange(windows + 1) - 0.5
        own = np.max([rarity(values, np.arange(windows)) for values in known], axis=0)
        new = rarity(fresh, np.arange(windows))
        share = float(np.mean(new > label_free_threshold(own, 0.002)))
        caught.append(1 - (1 - share) ** 2)  # by the one score, by the other, or by both
    assert np.mean(caught) == pytest.approx(expected_false_alarms(windows, 0.002, ways=2), rel=0.05)


def test_where_more_false_alarms_are_expected_than_asked_for_the_note_tells_how_many() -> None:
    assert "highest score, and about 2 in 51 " in str(calibration_note(50, 0.002, ways=2))
    told = str(calibration_note(1109, 0.002, ways=2))
    assert "about 4 in 1,110 " in told
    assert "highest score" not in told
    assert expected_false_alarms(0, 0.002) == 0.002
    assert "about 2 in 51" in str(threshold_note(50, 0.002, score="rarity"))
    assert "about 1 in 51" in str(threshold_note(50, 0.002, score="mean_token"))


@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("rate", [0.002, 0.003, 0.05])
def test_the_note_ends_with_the_windows_from_which_on_no_more_than_one_and_a_half_times_as_many_are_expected(
    ways: int, rate: float
) -> None:
    enough = int(re.findall(r"([\d,]+) would do", str(calibration_note(1, rate, ways)))[0].replace(",", ""))
    assert expected_false_alarms(enough - 1, rate, ways) > 1.5 * rate
    assert all(expected_false_alarms(windows, rate, ways) <= 1.5 * rate for windows in range(enough, 9 * enough))
    assert calibration_note(enough - 1, rate, ways) is not None
    assert calibration_note(enough, rate, ways) is None


def test_what_cannot_be_computed_is_an_error_or_none() -> None:
    with pytest.raises(ScoreError, match="No anomalous windows"):
        best_f1_threshold([1.0, 2.0], [0, 0])
    with pytest.raises(ScoreError, match="1 of 2 scores"):
        rank([1.0, np.nan], [0, 1])
    with pytest.raises(ScoreError, match="Labels must be 0 or 1"):
        rank([1.0, 2.0], [0, -1])
    with pytest.raises(ScoreError, match="2 scores for 1 labels"):
        rank([1.0, 2.0], [0])
    with pytest.raises(ScoreError, match="No calibration windows"):
        label_free_threshold([])
    with pytest.raises(ScoreError, match="not possible"):
        label_free_threshold([1.0], 1.5)
    assert auroc([1.0, 2.0], [0, 0]) is None
    assert average_precision([1.0, 2.0], [0, 0]) is None


def test_the_reference_search_equals_its_plain_loop() -> None:
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 200)
    accuracy = np.clip(0.9 - 0.3 * labels + generator.normal(0, 0.15, 200), 0, 1)
    betas = np.linspace(0, 1, 1000)
    f1 = [metrics.f1_score(labels, accuracy < beta, zero_division=0) for beta in betas]
    assert reference_threshold(accuracy, labels) == (betas[np.argmax(f1)], pytest.approx(max(f1)))


def test_the_balanced_sample_holds_equally_many_of_both_classes() -> None:
    labels = np.array([0] * 50 + [1] * 7)
    rows = balanced_sample(labels, per_class=1000, seed=1)
    assert labels[rows].sum() == 7
    assert len(set(rows.tolist())) == 14
    assert np.array_equal(rows, balanced_sample(labels, per_class=1000, seed=1))
    assert len(balanced_sample(labels, per_class=3)) == 6
    assert len(balanced_sample(np.zeros(5))) == 0
