"""Which score detects best without labels: `python -m benchmarks.score_research RESULTS FILE.npz [OUT.md]`.

RESULTS is the folder of benchmarks.gpu_experiments, FILE.npz what that read. For each kept model every score and
combination is judged at a label-free threshold; the one chosen is the best on the validation split (label-free F1, then
average precision), and the test split only tells what that choice is worth.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiment_data import AS_IT_IS, Corpus, load_corpora
from benchmarks.experiment_judging import FALSE_ALARM_RATE, rules
from benchmarks.experiment_plan import CHANGES
from benchmarks.window_scores import Predicted, Scores, kept_surprises, predicted, window_scores
from fl.thresholds import label_free_threshold, rank

Row = dict[str, Any]
CASES = (
    ("headline", "hdfs", "default", AS_IT_IS),
    ("large", "hdfs", "large", AS_IT_IS),
    ("bgl", "bgl", "default", AS_IT_IS),
    ("untouched", "hdfs", "default", AS_IT_IS),
    *(("headline", "hdfs", "default", change) for change in CHANGES),
    *(("bgl", "bgl", "default", change) for change in CHANGES),
)
"""Experiment, log, split and change of the test windows."""


def judged(corpus: Corpus, split: str, order: str, scores: Scores, rate: float = FALSE_ALARM_RATE) -> list[Row]:
    """Each score on the validation and test windows, best on validation first (on test where there is none)."""
    part, sequence, label = corpus.split(split), corpus.orders[order], ~corpus.normal
    rows = []
    for name, column in scores.items():
        values = column[sequence]
        threshold = label_free_threshold(values[part == "calibration"], rate)
        row: Row = {"score": name, "threshold": threshold}
        for judging in ("validation", "test"):
            if not (mine := part == judging).any():
                continue
            ranking = rank(values[mine], label[mine].astype(int))
            found = ranking.at(threshold)
            row[judging] = {
                "auroc": ranking.auroc,
                "ap": ranking.average_precision,
                "f1": found.f1,
                "precision": found.precision,
                "recall": found.recall,
                "false_alarm_rate": found.false_alarm_rate,
                "best_f1": ranking.at(ranking.best_f1_threshold()).f1,
            }
        rows.append(row)
    return sorted(rows, key=lambda row: _merit(row.get("validation", row["test"])), reverse=True)


def _merit(found: Row) -> tuple[float, float]:
    return found["f1"], found["ap"]


def kept_predictions(kept: Mapping[str, np.ndarray], experiment: str, log: str, order: str) -> Predicted | None:
    """How a model predicted a log's windows, changed ones too where `order` has them; None where not all is kept."""
    unstable = f"{experiment.replace('headline', '').strip()} unstable, {log}".strip()
    names = [f"{experiment}, {log}"] + [unstable] * (order != AS_IT_IS)
    if any(f"{name}.rows" not in kept for name in names):
        return None
    plain, *changed = (predicted(kept, name) for name in names)
    return Predicted({**changed[0].surprise, **plain.surprise}, None) if changed else plain


def research(results: Path, corpora: dict[str, Corpus]) -> list[Row]:
    """All cases that the results hold."""
    found = []
    kept = kept_surprises(results)
    for experiment, log, split, order in CASES:
        merged = kept_predictions(kept, experiment, log, order) if log in corpora else None
        if merged is None:
            continue
        plain = predicted(kept, f"untouched, {log}") if f"untouched, {log}.rows" in kept else None
        corpus = corpora[log]
        scores = {
            name: values
            for name, values in window_scores(corpus, split, order, merged, plain).items()
            if np.isfinite(values[corpus.judged(split, order)]).all()
        }
        rows = judged(corpus, split, order, scores)
        best_rules = rules(corpus.windows(split, order), 0)
        found.append({"experiment": experiment, "log": log, "split": split, "order": order, "scores": rows})
        found[-1]["rules"] = best_rules
    return found


def as_markdown(case: Row, most: int = 25) -> str:
    """A case as a table."""
    lines = [f"## {case['experiment']}: {case['log']}, {case['split']} split, {case['order']}", ""]
    lines += ["| score | validation F1 | test F1 | recall | false alarms | AUROC | AP | best F1 there is |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in case["scores"][:most]:
        test, chosen_by = row["test"], row.get("validation")
        chosen = f"{chosen_by['f1']:.3f}" if chosen_by else "–"
        lines.append(
            f"| {row['score']} | {chosen} | {test['f1']:.3f} | {test['recall']:.3f} | "
            f"{test['false_alarm_rate']:.2%} | {test['auroc']:.4f} | {test['ap']:.3f} | {test['best_f1']:.3f} |"
        )
    for name, rule in case["rules"].items():
        lines.append(
            f"| rule: {name} | | {rule['f1']:.3f} | {rule['recall']:.3f} | {rule['false_alarm_rate']:.2%} | | | |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    """Judge all that is kept, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of benchmarks.gpu_experiments")
    parser.add_argument("windows", type=Path, help="file of benchmarks.gpu_experiment_windows")
    parser.add_argument("out", type=Path, nargs="?", help="where to write the tables; figures beside them as .json")
    given = parser.parse_args()
    cases = research(given.results, load_corpora(given.windows))
    text = "\n".join(as_markdown(case) for case in cases)
    if given.out is None:
        sys.stdout.write(text + "\n")
        return
    given.out.write_text(text + "\n")
    given.out.with_suffix(".json").write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main()
