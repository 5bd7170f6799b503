"""benchmarks/rule_experiments.py: rules fitted on what a model has, and how many windows a change alters."""

from dataclasses import replace

import numpy as np

from benchmarks.experiment_data import AS_IT_IS, random_corpus
from benchmarks.rule_experiments import judged_rules


def test_a_rule_that_also_learned_the_calibration_windows_flags_no_window_that_they_hold() -> None:
    corpus = random_corpus([AS_IT_IS], ["default"], [])
    codes = corpus.splits["default"]
    # Every test window stands among the calibration windows, and none among those to train with.
    order = corpus.orders[AS_IT_IS].copy()
    order[codes == 0] = 0
    order[codes == 3] = order[codes == 1][0]
    rows = list(judged_rules("log", replace(corpus, orders={AS_IT_IS: order})))
    assert {(row["fitted_on"], row["windows"]) for row in rows} == {
        ("train", int((codes == 0).sum())),
        ("train and calibration", int((codes < 2).sum())),
    }
    flagged = {row["fitted_on"]: row["recall"] for row in rows if row["rule"] == "unseen sequence"}
    assert flagged == {"train": 1.0, "train and calibration": 0.0}


def test_the_windows_that_a_change_alters_are_counted_among_the_test_windows_of_the_default_split_alone() -> None:
    corpus = random_corpus([AS_IT_IS, "changed"], ["default", "other"], [])
    plain, codes = corpus.orders[AS_IT_IS], corpus.splits["default"]
    changed = plain.copy()
    first = np.flatnonzero(codes == 3)[:7]
    changed[first] = (plain[first] + 1) % 60
    rows = list(judged_rules("log", replace(corpus, orders={AS_IT_IS: plain, "changed": changed})))
    told = {(row["split"], row["change"]): row["altered_windows"] for row in rows}
    assert told == {("default", AS_IT_IS): 0, ("default", "changed"): 7, ("other", AS_IT_IS): 0}
    assert {row["test_windows"] for row in rows} == {int((codes == 3).sum())}
