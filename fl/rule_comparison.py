"""The model beside the simple rules: the headline, who catches what, and rules that saw as little as the model."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from fl.baselines import DistinctWindows, SimpleRule, distinct_windows, fit_all
from fl.bootstrap import ENDS, f1_difference, f1_ends
from fl.metrics_table import Row, Rows, Windows
from fl.thresholds import THRESHOLDS, Detection, Flags, Floats, metrics_at

_RATES = ("f1", "precision", "recall", "false_alarm_rate")
RULE_TYPES: dict[str, type] = {"rule": str, "population": str} | dict.fromkeys((*_RATES, *ENDS), float)
"""Columns of the rules' table."""


class RuleJudge:
    """The four rules on one run's windows; distinct windows are looked at once."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._distinct: DistinctWindows = distinct_windows(windows.message_ids, windows.lengths)

    def flags(self, fitted_on: Rows) -> dict[str, Flags]:
        """What each rule, fitted on these windows, flags among all windows."""
        seen = [self._distinct.windows[i] for i in np.unique(self._distinct.index[fitted_on])]
        return {rule.name: self._flags(rule) for rule in fit_all(seen)}

    def _flags(self, rule: SimpleRule) -> Flags:
        return rule.flags(self._distinct.windows)[self._distinct.index]

    def rows(self, flags: Mapping[str, Flags], seed: int) -> list[Row]:
        """One row a population and rule, on the test split; no rates where labels are missing."""
        windows = self._windows
        return [
            {"rule": name, "population": population, **_rates(found), **f1_ends(found)}
            for population in ("all", "unseen", "balanced")
            if (rows := windows.population(population, "test", seed)).size
            for name, flagged in flags.items()
            for found in [_detection(windows, rows, flagged)]
        ]

    def with_few_windows(self, count: int | None, seed: int, draws: int = 10) -> dict[str, Any] | None:
        """The rules fitted on `count` training windows drawn at random, their rates averaged over the draws.

        None where the model saw no fewer windows than the rules, or where labels are missing.
        """
        train, test = self._windows.rows("train"), self._windows.labelled("test")
        if count is None or not 0 < count < len(train) or not (self._windows.label[test] == 1).any():
            return None
        generator = np.random.default_rng(seed)
        found: dict[str, list[Row]] = {}
        for _ in range(draws):
            for name, flagged in self.flags(generator.choice(train, count, replace=False)).items():
                found.setdefault(name, []).append(_rates(_detection(self._windows, test, flagged)))
        means = [
            {"rule": name, **{rate: float(np.mean([row[rate] for row in rows])) for rate in _RATES}}
            for name, rows in found.items()
        ]
        return {"windows": count, "draws": draws, "rules": means}


def _detection(windows: Windows, rows: Rows, flags: Flags) -> Detection | None:
    labels = windows.label[rows]
    return metrics_at(flags[rows], labels, 0.5) if (labels == 1).any() and (labels >= 0).all() else None


def _rates(found: Detection | None) -> Row:
    return {field: getattr(found, field, None) for field in _RATES}


def against_rules(windows: Windows, scores: Floats, flags: Mapping[str, Flags], findings: Row, seed: int) -> Row:
    """The headline: label-free F1 with its interval, beside the best rule of all by its own test F1."""
    if not findings["anomalies"]:
        return {"headline": None, "best_rule": None, "recall_by_kind": []}
    rows = windows.labelled("test")
    labels = windows.label[rows]
    flagged = scores[rows] > findings["label_free"]["threshold"]
    best = max(findings["rules"], key=lambda row: row["f1"])
    rule_flags = flags[best["rule"]][rows]
    difference = f1_difference(labels, flagged, rule_flags, seed=seed)
    verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else "unclear"
    return {
        "headline": {
            "difference": asdict(difference),
            "verdict": verdict,
            "f1": {kind: _interval(findings[kind]) for kind in THRESHOLDS if findings[kind]},
            "caught": _who_catches(labels == 1, flagged, rule_flags),
        },
        "best_rule": {"name": best["rule"], "f1": best["f1"]},
        "recall_by_kind": _recall_by_kind(windows, rows, flagged, rule_flags),
    }


def _interval(found: Row) -> Row:
    low, high = (found[end] for end in ENDS)
    return {"estimate": found["f1"], "low": low, "high": high}


def _who_catches(anomalous: Flags, flagged: Flags, rule_flags: Flags) -> Row:
    """Anomalous windows that both, one or none of model and rule catch, and the false alarms of each."""
    bad, good = anomalous, ~anomalous
    return {
        "both": int((bad & flagged & rule_flags).sum()),
        "model_only": int((bad & flagged & ~rule_flags).sum()),
        "rule_only": int((bad & ~flagged & rule_flags).sum()),
        "neither": int((bad & ~flagged & ~rule_flags).sum()),
        "model_false_alarms": int((good & flagged).sum()),
        "rule_false_alarms": int((good & rule_flags).sum()),
    }


def _recall_by_kind(windows: Windows, rows: Rows, flagged: Flags, rule_flags: Flags) -> list[Row]:
    if windows.kind is None:
        return []
    kinds = windows.kind[rows]
    named = sorted({kind for kind, label in zip(kinds, windows.label[rows], strict=True) if kind and label == 1})
    members = {kind: (kinds == kind) & (windows.label[rows] == 1) for kind in named}
    return [
        {
            "kind": kind,
            "windows": int(member.sum()),
            "recall": float(flagged[member].mean()),
            "best_rule_recall": float(rule_flags[member].mean()),
        }
        for kind, member in members.items()
    ]
