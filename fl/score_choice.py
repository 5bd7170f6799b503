"""Which score a detector uses: named in the configuration, or chosen on the labelled validation split."""

from collections.abc import Sequence

from fl.anomaly_scores import DEFAULT_SCORE, SCORE_NAMES, SURPRISE_SCORES
from fl.errors import ScoreError
from fl.metrics_table import Row

FEWEST_ANOMALIES = 20
"""Labelled anomalies of the validation split below which a choice among a dozen scores would follow chance."""
_HOW = "by label-free F1, then average precision, on the labelled validation split"


def choose_score(rows: Sequence[Row], score: str = "auto", k: int | None = None) -> tuple[str, int | None, str]:
    """The score to detect with, its K, and why: by label-free F1, then average precision, on the validation split.

    `rows` are one round's metrics. With fewer than `FEWEST_ANOMALIES` to choose by, the default stands. The unaligned
    variant is for comparison only and is taken only when named.
    """
    _check(score, k)
    judged = [row for row in rows if row["split"] == "validation" and row["population"] == "all"]
    judged = [row for row in judged if row["threshold_kind"] == "label_free" and row["f1"] is not None]
    anomalies = max((row["anomalies"] for row in judged), default=0)
    if score == "auto" and anomalies < FEWEST_ANOMALIES:
        counted = "1 labelled anomaly" if anomalies == 1 else f"{anomalies or 'no'} labelled anomalies"
        held = f"{counted} to choose by, {FEWEST_ANOMALIES} are needed"
        return DEFAULT_SCORE, None, f"the default, as the validation split has {held}"
    if score == "auto":
        best = _best([row for row in judged if row["score"] != "unaligned"])
        assert best is not None, "rows with anomalies hold more than the unaligned variant"
        return best["score"], best["k"], f"chosen {_HOW}"
    if score in SURPRISE_SCORES or k is not None:
        return score, k, "as configured"
    best = _best([row for row in judged if row["score"] == score])
    if best is None:
        return score, 1, "as configured; K = 1 for want of labelled validation anomalies"
    return score, best["k"], f"as configured; K chosen {_HOW}"


def _best(rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: (row["f1"], row["average_precision"]), default=None)


def _check(score: str, k: int | None) -> None:
    if score != "auto" and score not in SCORE_NAMES:
        raise ScoreError(f"There is no score {score!r}: choose auto or one of {', '.join(SCORE_NAMES)}.")
    if k is not None and score not in {"top_k", "unaligned"}:
        raise ScoreError(f"k={k} has no meaning for score={score}: leave k out, or give score=top_k.")
