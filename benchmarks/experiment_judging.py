"""How well windows are told apart: every score under every threshold, beside the simple rules on the same windows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.experiment_data import Corpus
from benchmarks.experiment_plan import Test
from fl.metrics_table import Windows, metric_rows
from fl.rule_comparison import RuleJudge

FALSE_ALARM_RATE = 0.002
_DIGITS = 5


def spread(corpus: Corpus, rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Score columns of some distinct windows as columns of all, NaN for the others."""
    found = {}
    for name, values in columns.items():
        found[name] = np.full(len(corpus.token_ids), np.nan)
        found[name][rows] = values
    return found


def judge(corpus: Corpus, test: Test, columns: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """What each score reaches on the test windows, all of them and those whose sequence training never saw."""
    windows = corpus.windows(test.split, test.order)
    rows = [row for row in metric_rows(windows, {0: columns}, FALSE_ALARM_RATE, seed) if row["split"] == "test"]
    found: dict[str, Any] = {"windows": int((windows.split == "test").sum()), "scores": {}}
    found["anomalies"] = int(windows.label[windows.split == "test"].sum())
    found["splits"] = {name: int((windows.split == name).sum()) for name in ("train", "calibration", "validation")}
    for population in ("all", "unseen"):
        found["scores"][population] = _scores([row for row in rows if row["population"] == population])
    found["rules"] = rules(windows, seed)
    return found


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for row in rows:
        name = row["score"] if row["k"] is None else f"{row['score']}_{row['k']}"
        score = scores.setdefault(name, {"auroc": rounded(row["auroc"]), "ap": rounded(row["average_precision"])})
        score[row["threshold_kind"]] = {
            field: rounded(row[field]) for field in ("f1", "precision", "recall", "false_alarm_rate", "threshold")
        }
    return scores


def rules(windows: Windows, seed: int, fitted_on: Sequence[str] = ("train",)) -> dict[str, Any]:
    """The four simple rules, fitted on the windows of these splits."""
    judged = RuleJudge(windows)
    rows = judged.rows(judged.flags(np.flatnonzero(np.isin(windows.split, fitted_on))), seed)
    return {
        row["rule"]: {name: rounded(row[name]) for name in ("f1", "precision", "recall", "false_alarm_rate")}
        for row in rows
        if row["population"] == "all"
    }


def rounded(value: float | None) -> float | None:
    """As many digits as mean anything."""
    return None if value is None else round(float(value), _DIGITS)
