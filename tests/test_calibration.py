"""Label-free thresholds by a tail."""

import numpy as np
import pytest

from fl.calibration import calibrated_threshold, tail_threshold, threshold_note
from fl.errors import ScoreError
from fl.thresholds import label_free_threshold

WINDOWS = 1000


def _exponential(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).exponential(2.0, size)


def test_of_exponential_scores_the_tail_gives_the_distribution_s_own_quantile() -> None:
    # The quantile of an exponential distribution of mean 2 that a share of 0.002 exceeds.
    assert tail_threshold(_exponential(500_000), 0.002) == pytest.approx(-2.0 * np.log(0.002), rel=0.02)


def test_over_many_draws_the_tail_varies_less_than_the_quantile() -> None:
    draws = [_exponential(WINDOWS, seed) for seed in range(200)]
    assert np.std([tail_threshold(each) for each in draws]) < np.std([label_free_threshold(each) for each in draws])


def test_a_few_rare_normal_windows_do_not_set_the_threshold() -> None:
    usual = np.linspace(0.0, 0.1, 1105)
    scores = np.concatenate([usual, [0.39, 0.40, 0.42, 0.43]])
    assert label_free_threshold(scores) == 0.40
    assert 0.1 < tail_threshold(scores) < 0.35


def test_a_lower_rate_gives_a_higher_threshold_and_units_do_not_matter() -> None:
    scores = _exponential(WINDOWS)
    found = [tail_threshold(scores, rate) for rate in (0.01, 0.005, 0.002, 0.0005)]
    assert found == sorted(found)
    assert tail_threshold(3 * scores + 5, 0.002) == pytest.approx(3 * tail_threshold(scores, 0.002) + 5)


@pytest.mark.parametrize(
    ("scores", "rate"),
    [
        (_exponential(19), 0.002),
        (_exponential(WINDOWS), 0.05),
        (np.ones(WINDOWS), 0.002),
        (_exponential(WINDOWS), 0.0),
    ],
    ids=["too few windows", "a rate beyond the tail", "no window above the tail's start", "no false alarms at all"],
)
def test_where_there_is_no_tail_the_quantile_stands(scores: np.ndarray, rate: float) -> None:
    assert tail_threshold(scores, rate) == label_free_threshold(scores, rate)


def test_a_rule_is_called_by_its_name_and_both_refuse_what_is_impossible() -> None:
    scores = _exponential(WINDOWS)
    assert calibrated_threshold(scores, 0.002, "quantile") == label_free_threshold(scores, 0.002)
    assert calibrated_threshold(scores, 0.002, "tail") == tail_threshold(scores, 0.002)
    for rule in ("quantile", "tail"):
        with pytest.raises(ScoreError, match="No calibration windows"):
            calibrated_threshold([], 0.002, rule)


def test_a_report_says_when_the_threshold_is_a_tail_s() -> None:
    assert threshold_note(1000, 0.002) is None
    assert threshold_note(1000, 0.002, "tail") == (
        "The label-free threshold follows from an exponential tail of the highest calibration scores."
    )
    assert "beyond what 100 calibration windows show" in str(threshold_note(100, 0.002, "tail"))
    assert "too few" in str(threshold_note(100, 0.002))
    # Of 600 windows one may be flagged, so a tail does not lie beyond them; a quantile of them flags 2 in 601.
    assert "beyond" not in str(threshold_note(600, 0.002, "tail"))
    assert "about 2 in 601" in str(threshold_note(600, 0.002))
