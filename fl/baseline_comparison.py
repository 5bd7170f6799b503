"""The learned baselines judged as the model is: three thresholds, AUROC, average precision, three populations."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fl.baseline_models import MODELS
from fl.bootstrap import f1_ends
from fl.calibration import ThresholdRule, calibrated_threshold
from fl.event_models import ScoreKind
from fl.metrics_table import METRIC_TYPES, POPULATIONS, Row, Rows, Windows, detection_of, metrics_of
from fl.thresholds import THRESHOLDS, Floats, Ranking, rank_counts

BASELINE_TYPES: dict[str, type] = {"method": str} | {
    name: kind for name, kind in METRIC_TYPES.items() if name not in {"round", "split", "k"}
}
"""Columns of the baselines' table."""
PUBLISHED = "published"
"""The threshold that the publication fixes, beside the three of every detector."""
_FOUND = ("threshold", "f1", "precision", "recall", "false_alarm_rate", "flagged")
_RANKED = ("windows", "anomalies", "auroc", "average_precision")


def baseline_rows(
    windows: Windows,
    scores: Mapping[str, Floats],
    false_alarm_rate: float,
    seed: int,
    rule: ThresholdRule = "quantile",
) -> list[Row]:
    """Metrics on the test split: a row for each method, score, population and kind of threshold that can be had.

    `scores` holds one value a window under `<method>.<score>`.
    """
    return [
        {"method": method, "score": kind.name, **row}
        for method, model in MODELS.items()
        for kind in model.kinds
        if f"{method}.{kind.name}" in scores
        for row in _judged(windows, scores[f"{method}.{kind.name}"], kind, (false_alarm_rate, rule), seed)
    ]


def _judged(
    windows: Windows, scores: Floats, kind: ScoreKind, how: tuple[float, ThresholdRule], seed: int
) -> Iterator[Row]:
    thresholds = {"label_free": calibrated_threshold(scores[windows.rows("calibration")], *how)}
    if kind.published is not None:
        thresholds[PUBLISHED] = kind.published
    validation = _ranking(windows, scores, windows.labelled("validation"))
    if validation.anomalies:
        thresholds["validated"] = validation.best_f1_threshold()
    for population in POPULATIONS:
        rows = windows.population(population, "test", seed)
        if not rows.size:
            continue
        ranking = _ranking(windows, scores, rows)
        oracle = {"oracle": ranking.best_f1_threshold()} if ranking.anomalies else {}
        for name, threshold in {**thresholds, **oracle}.items():
            metrics = metrics_of(ranking, threshold, bool((windows.label[rows] >= 0).all()))
            yield {"population": population, "threshold_kind": name, **metrics}


def _ranking(windows: Windows, scores: Floats, rows: Rows) -> Ranking:
    anomalous = windows.label[rows] == 1
    return rank_counts(scores[rows], anomalous, ~anomalous)


def baseline_findings(rows: Sequence[Row], trained: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the report tells of the baselines: one entry a method and score, the score that stands for it first.

    `trained` holds what is known of each method's training, by `method`.
    """
    return [
        {
            **facts,
            "title": MODELS[facts["method"]].title,
            "score": kind.name,
            "score_title": kind.title,
            "main": kind is MODELS[facts["method"]].kinds[0],
            "populations": {name: _population(rows, facts["method"], kind.name, name) for name in POPULATIONS},
        }
        for facts in trained
        for kind in MODELS[facts["method"]].kinds
    ]


def _population(rows: Sequence[Row], method: str, score: str, population: str) -> Row:
    wanted = {"method": method, "score": score, "population": population}
    found = {row["threshold_kind"]: row for row in rows if wanted.items() <= row.items()}
    first: Row = next(iter(found.values()), {})
    rates = {
        kind: {**{name: found[kind][name] for name in _FOUND}, **f1_ends(detection_of(found[kind]))}
        if kind in found
        else None
        for kind in (*THRESHOLDS, PUBLISHED)
    }
    return {**{name: first.get(name) for name in _RANKED}, **rates}
