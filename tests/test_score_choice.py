"""The score is chosen on validation only, and a named one is kept."""

from typing import Any

import pytest

from fl.errors import ScoreError
from fl.score_choice import choose_score


def _row(score: str, k: int | None, f1: float | None, precision: float = 0.5, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    named = {"split": "validation", "population": "all", "threshold_kind": "label_free", "score": score, "k": k}
    return {**named, "f1": f1, "average_precision": precision, "anomalies": 50 if f1 is not None else 0, **changes}


def test_the_best_label_free_f1_on_validation_wins_and_average_precision_breaks_ties() -> None:
    rows = [_row("max_token", None, 0.5), _row("mean_token", None, 0.8, 0.6), _row("top_k", 3, 0.8, 0.7)]
    name, k, reason = choose_score(rows)
    assert (name, k) == ("top_k", 3)
    assert "validation" in reason


def test_of_equal_scores_the_first_is_taken() -> None:
    assert choose_score([_row("max_token", None, 0.8), _row("mean_token", None, 0.8)])[0] == "max_token"


@pytest.mark.parametrize(
    "changes", [{"split": "test"}, {"population": "balanced"}, {"threshold_kind": "validated"}, {"score": "unaligned"}]
)
def test_nothing_but_the_natural_validation_split_and_the_label_free_threshold_decides(changes: dict[str, Any]) -> None:
    rows = [_row("max_token", None, 0.2), {**_row("top_k", 1, 1.0, 1.0), **changes}]
    assert choose_score(rows)[:2] == ("max_token", None)


def test_without_labels_the_default_is_taken_and_the_reason_says_so() -> None:
    for rows in ([], [_row("max_token", None, None)]):
        name, k, reason = choose_score(rows)
        assert (name, k) == ("rarity", None)
        assert "no labelled anomalies" in reason


def test_a_handful_of_anomalies_decides_nothing() -> None:
    rows = [_row("max_token", None, 0.2, anomalies=3), _row("top_k", 1, 1.0, 1.0, anomalies=3)]
    name, k, reason = choose_score(rows)
    assert (name, k) == ("rarity", None)
    assert "has 3 labelled anomalies to choose by, 20 are needed" in reason


def test_a_named_score_is_kept_and_only_its_k_is_chosen() -> None:
    rows = [_row("max_token", None, 0.9), _row("top_k", 1, 0.3), _row("top_k", 5, 0.4), _row("unaligned", 3, 0.95)]
    assert choose_score(rows, "mean_token")[:2] == ("mean_token", None)
    assert choose_score(rows, "top_k")[:2] == ("top_k", 5)
    assert choose_score(rows, "top_k", 1)[:2] == ("top_k", 1)
    assert choose_score(rows, "unaligned")[:2] == ("unaligned", 3)
    assert choose_score([], "top_k")[:2] == ("top_k", 1)


def test_a_wrong_score_or_k_is_one_clear_line() -> None:
    with pytest.raises(ScoreError, match="There is no score 'max': choose auto or one of top_k"):
        choose_score([], "max")
    with pytest.raises(ScoreError, match="k=3 has no meaning for score=auto"):
        choose_score([], "auto", 3)
    with pytest.raises(ScoreError, match="k=3 has no meaning for score=max_token"):
        choose_score([], "max_token", 3)
