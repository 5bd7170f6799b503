"""Model and rules side by side: who catches what, and rules fitted on few windows."""

import numpy as np
import pytest
from sklearn import metrics

from fl.baselines import fit
from fl.evaluation import evaluate
from fl.metrics_table import Windows
from fl.rule_comparison import RuleJudge

CONTENTS = [(0, 1), (1, 0), (0, 0, 1), (0, 2), (5,), (1, 1, 1)]
"""Four normal sequences, then two anomalous ones."""


def _windows(seed: int = 0) -> Windows:
    generator = np.random.default_rng(seed)
    split = np.repeat(["train", "calibration", "validation", "test"], 100)
    sequence = generator.choice(4, 400, p=[0.6, 0.3, 0.08, 0.02])
    bad = np.isin(split, ("validation", "test")) & (generator.random(400) < 0.15)
    sequence[bad] = generator.integers(4, 6, int(bad.sum()))
    flat = np.array([event for s in sequence for event in CONTENTS[s]], dtype=np.uint32)
    lengths = np.array([len(CONTENTS[s]) for s in sequence])
    return Windows(sequence, split, bad.astype(np.int8), flat, lengths)


# The model sees the first kind of anomaly, takes the rare normal sequence for one, and misses the second kind.
COLUMNS = {"rarity": np.array([0.1, 0.1, 0.2, 0.9, 0.8, 0.05])}


def test_who_catches_what_adds_up_to_recall_and_false_alarms() -> None:
    windows = _windows()
    found = evaluate(windows, {0: COLUMNS}, false_alarm_rate=0.05).findings
    caught = found["headline"]["caught"]
    test = windows.split == "test"
    flagged = COLUMNS["rarity"][windows.sequence[test]] > found["label_free"]["threshold"]
    bad = windows.label[test] == 1
    assert caught["both"] + caught["model_only"] == (bad & flagged).sum()
    assert sum(caught[name] for name in ("both", "model_only", "rule_only", "neither")) == bad.sum()
    assert caught["model_false_alarms"] == (~bad & flagged).sum()
    assert caught["rule_only"] == (windows.sequence[test] == 5).sum()


def test_rules_with_few_windows_are_averaged_over_draws_of_that_many() -> None:
    windows = _windows()
    found = evaluate(windows, {0: COLUMNS}, trained_windows=5, seed=3).findings["rules_with_few_windows"]
    assert (found["windows"], found["draws"]) == (5, 10)
    generator = np.random.default_rng(3)
    train, test = np.flatnonzero(windows.split == "train"), np.flatnonzero(windows.split == "test")
    f1 = []
    for _ in range(10):
        drawn = generator.choice(train, 5, replace=False)
        rule = fit("unseen sequence", {CONTENTS[windows.sequence[i]] for i in drawn})
        flags = rule.flags([CONTENTS[windows.sequence[i]] for i in test])
        f1.append(metrics.f1_score(windows.label[test], flags))
    sequence_rule = next(row for row in found["rules"] if row["rule"] == "unseen sequence")
    assert sequence_rule["f1"] == pytest.approx(np.mean(f1))


@pytest.mark.parametrize("count", [None, 0, 100, 1000])
def test_there_are_no_rules_with_few_windows_where_the_model_saw_none_or_all(count: int | None) -> None:
    assert RuleJudge(_windows()).with_few_windows(count, seed=0) is None
