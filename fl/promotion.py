"""Whether a detector should take another's place: both judged on the same windows, by labels where there are enough."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fl.bootstrap import f1_difference
from fl.errors import ScoreError
from fl.score_choice import FEWEST_ANOMALIES
from fl.thresholds import Floats, metrics_at

MARGIN = 0.01
"""How much better a challenger has to be: in F1 with labels, as a share of the loss without."""


@dataclass(frozen=True)
class Candidate:
    """A detector's scores of the windows that both are judged on."""

    called: str
    """As a person names it."""
    threshold: float
    validation: Floats
    """Anomaly scores of the validation windows."""
    calibration: Floats
    """Anomaly scores of the calibration windows."""
    loss: float | None
    """Nats a token on the calibration windows; none where it cannot be compared with the other's."""
    false_alarm_rate: float
    """Share of the calibration windows that it may flag."""

    @property
    def alerts(self) -> float:
        """Share of the calibration windows that it flags."""
        return float(np.mean(self.calibration > self.threshold))


@dataclass(frozen=True)
class Decision:
    """Who wins, why in one line, and the figures."""

    wins: bool
    line: str
    figures: dict[str, Any]


def decide(
    challenger: Candidate, champion: Candidate, labels: npt.NDArray[np.int8], margin: float = MARGIN
) -> Decision:
    """Whether `challenger` beats `champion`; labels of the validation windows are 1, 0, or -1 for unknown.

    With `FEWEST_ANOMALIES` labelled anomalies or more, by F1 at each detector's own threshold. With fewer, by alerts on
    the calibration windows (no more than allowed) and loss there. Raises ScoreError where the losses are needed and
    cannot be compared.
    """
    known = labels >= 0
    if int((labels == 1).sum()) >= FEWEST_ANOMALIES and (labels == 0).any():
        return _by_labels(challenger, champion, labels, known, margin)
    return _by_loss(challenger, champion, int((labels == 1).sum()), margin)


def _by_labels(
    challenger: Candidate,
    champion: Candidate,
    labels: npt.NDArray[np.int8],
    known: npt.NDArray[np.bool_],
    margin: float,
) -> Decision:
    truth = labels[known]
    found = [metrics_at(each.validation[known], truth, each.threshold) for each in (challenger, champion)]
    flags = [each.validation[known] > each.threshold for each in (challenger, champion)]
    difference = f1_difference(truth, flags[0], flags[1])
    wins = difference.estimate >= margin
    sides = (challenger, champion)
    figures = {
        "how": "labels",
        "margin": margin,
        "windows": int(known.sum()),
        "anomalies": int((truth == 1).sum()),
        "difference": [difference.estimate, difference.low, difference.high],
        **{
            side: {
                "called": each.called,
                "threshold": each.threshold,
                "f1": rates.f1,
                "precision": rates.precision,
                "recall": rates.recall,
                "false_alarm_rate": rates.false_alarm_rate,
            }
            for side, each, rates in zip(("challenger", "champion"), sides, found, strict=True)
        },
    }
    line = (
        f"F1 {found[0].f1:.3f} against {found[1].f1:.3f} of {champion.called} on {figures['windows']:,} labelled "
        f"validation windows ({figures['anomalies']:,} anomalous): {difference.estimate:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}], {margin:+.3f} {'was' if wins else 'is'} needed"
    )
    return Decision(wins, line, figures)


def _by_loss(challenger: Candidate, champion: Candidate, anomalies: int, margin: float) -> Decision:
    if challenger.loss is None or champion.loss is None:
        raise ScoreError(
            f"Only {anomalies} labelled validation anomalies, {FEWEST_ANOMALIES} are needed, and the losses of "
            f"{challenger.called} and {champion.called} cannot be compared: they read other tokens."
        )
    allowed = challenger.alerts <= challenger.false_alarm_rate
    lower = challenger.loss <= champion.loss * (1 - margin)
    figures = {
        "how": "alerts and loss",
        "margin": margin,
        "windows": len(challenger.calibration),
        "anomalies": anomalies,
        **{
            side: {"called": each.called, "threshold": each.threshold, "alerts": each.alerts, "loss": each.loss}
            for side, each in (("challenger", challenger), ("champion", champion))
        },
    }
    counted = f"{anomalies or 'no'} labelled anomalies, {FEWEST_ANOMALIES} are needed to judge by F1"
    line = (
        f"loss {challenger.loss:.3f} against {champion.loss:.3f} of {champion.called} on {figures['windows']:,} "
        f"calibration windows, {margin:.0%} less {'was' if lower else 'is'} needed; alerts there "
        f"{challenger.alerts:.2%}, {challenger.false_alarm_rate:.2%} allowed ({counted})"
    )
    return Decision(bool(allowed and lower), line, figures)
