"""Who wins a promotion: by hand-made scores whose F1 and losses can be counted."""

import numpy as np
import pytest

from fl.errors import ScoreError
from fl.promotion import Candidate, decide

LABELS = np.array([1] * 20 + [0] * 80, dtype=np.int8)


def _candidate(
    caught: int, alarms: int = 0, loss: float | None = 1.0, threshold: float = 0.5, called: str = "v"
) -> Candidate:
    """Flags `caught` of 20 anomalies and `alarms` of 80 normal windows."""
    scores = np.array([1.0] * caught + [0.0] * (20 - caught) + [1.0] * alarms + [0.0] * (80 - alarms))
    return Candidate(called, threshold, scores, np.linspace(0, 0.5, 500), loss, 0.002)


def test_a_challenger_wins_by_the_margin_in_f1_and_not_by_less() -> None:
    # F1: 20 of 20 is 1, 19 of 20 is 38 / 39 = 0.974.
    assert decide(_candidate(20), _candidate(19), LABELS, margin=0.02).wins
    assert not decide(_candidate(20), _candidate(19), LABELS, margin=0.03).wins
    assert not decide(_candidate(20), _candidate(20), LABELS, margin=0.01).wins
    decision = decide(_candidate(20), _candidate(19), LABELS, margin=0.02)
    assert decision.figures["difference"][0] == pytest.approx(1 - 38 / 39)
    assert decision.figures["champion"]["recall"] == pytest.approx(0.95)
    assert "F1 1.000 against 0.974" in decision.line


def test_each_detector_is_judged_at_its_own_threshold() -> None:
    assert not decide(_candidate(20, threshold=2.0), _candidate(10), LABELS).wins
    assert decide(_candidate(20), _candidate(20, threshold=2.0), LABELS).wins


def test_windows_without_a_label_count_for_nothing() -> None:
    labels = LABELS.copy()
    labels[60:] = -1
    clean, alarming = _candidate(20), _candidate(20, alarms=80)
    assert decide(clean, alarming, labels).figures["champion"]["precision"] == pytest.approx(20 / 60)


def test_with_too_few_labelled_anomalies_alerts_and_loss_decide() -> None:
    labels = np.where(np.arange(100) < 19, LABELS, 0).astype(np.int8)
    worse_f1 = _candidate(0, loss=0.9)
    assert decide(worse_f1, _candidate(19, loss=1.0), labels, margin=0.05).wins
    assert not decide(worse_f1, _candidate(19, loss=1.0), labels, margin=0.11).wins
    # Half of the calibration windows are above 0.25: far more than 0.2 %.
    assert not decide(_candidate(0, loss=0.1, threshold=0.25), _candidate(0), labels).wins


def test_logs_without_any_label_are_judged_the_same_way() -> None:
    nothing = np.full(100, -1, dtype=np.int8)
    decision = decide(_candidate(0, loss=0.5), _candidate(0, loss=1.0), nothing)
    assert decision.wins
    assert "no labelled anomalies" in decision.line
    assert decision.figures["champion"]["loss"] == 1.0


def test_losses_over_other_tokens_are_not_compared() -> None:
    with pytest.raises(ScoreError, match="other tokens"):
        decide(_candidate(0), _candidate(0, loss=None), np.full(100, -1, dtype=np.int8))
