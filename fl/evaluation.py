"""What a run found out: the metrics of every round, and the headline against the simple rules, win or lose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.anomaly_scores import DEFAULT_SCORE, anomaly_score
from fl.bootstrap import f1_ends
from fl.calibration import ThresholdRule, threshold_note
from fl.errors import ScoreError
from fl.metrics_table import Columns, Row, Rows, Windows, detection_of, metric_rows, score_names
from fl.rule_comparison import RuleJudge, against_rules
from fl.score_choice import choose_score
from fl.thresholds import THRESHOLDS, Flags, Floats

TUNED, UNTOUCHED = "tuned model", "untouched model"
_FEW_ANOMALIES = 30


@dataclass(frozen=True)
class Evaluation:
    """The metrics table, the simple rules, the findings in a few numbers, and the scores behind them."""

    metrics: list[Row]
    """Rows of metrics.parquet."""
    rules: list[Row]
    """One row for each population and simple rule, on the test split."""
    findings: dict[str, Any]
    """JSON: chosen score, three thresholds, intervals, rules, rounds, recall by kind; see `evaluate`."""
    window_scores: Floats
    """The chosen score of every window in the reported round; NaN where its sequence was not scored."""
    untouched_scores: Floats | None
    """The same of the untouched model, where round 0 was scored."""
    flagged: dict[str, Flags]
    """By detector (the models with their label-free thresholds, the simple rules): which windows it flags."""


def evaluate(
    windows: Windows,
    rounds: Mapping[int, Columns],
    score: str = "auto",
    k: int | None = None,
    false_alarm_rate: float = 0.002,
    reported_round: int | None = None,
    trained_windows: int | None = None,
    seed: int = 0,
    rule: ThresholdRule = "quantile",
) -> Evaluation:
    """Judge the scores of every round; the last one (or `reported_round`) gives the headline.

    `rounds[r]` holds one column a score (see fl/scoring), one row a distinct sequence, NaN where not scored; sequences
    of calibration, validation and test windows must be scored. Round 0 is the untouched model. `trained_windows`, how
    many windows the model was trained on, also shows the simple rules fitted on no more than that.
    """
    if not rounds:
        raise ScoreError("No round has scores: score the windows before evaluating.")
    reported = max(rounds) if reported_round is None else reported_round
    if reported not in rounds:
        raise ScoreError(f"Round {reported} has no scores: choose one of {', '.join(map(str, sorted(rounds)))}.")
    metrics = metric_rows(windows, rounds, false_alarm_rate, seed, rule)
    name, chosen_k, reason = choose_score([row for row in metrics if row["round"] == reported], score, k)
    scores = anomaly_score(rounds[reported], name, chosen_k)[windows.sequence]
    judge = RuleJudge(windows)
    flags = judge.flags(windows.rows("train"))
    rules = judge.rows(flags, seed)
    findings = {
        "round": reported,
        "score": name,
        "k": chosen_k,
        "chosen": reason,
        "false_alarm_rate": false_alarm_rate,
        "threshold_rule": rule,
        "splits": _splits(windows),
        **_thresholds(metrics, reported, name, chosen_k, "test", "all"),
        "populations": {
            population: _thresholds(metrics, reported, name, chosen_k, "test", population)
            for population in ("unseen", "balanced")
        },
        "without_labels": {"score": DEFAULT_SCORE, **_label_free(metrics, reported, DEFAULT_SCORE)},
        "rules": [row for row in rules if row["population"] == "all"],
        "rules_by_population": rules,
        "rules_with_few_windows": judge.with_few_windows(trained_windows, seed),
        "rounds": _rounds(windows, rounds, metrics, name, chosen_k),
        "by_score": _by_score(metrics, rounds, reported),
        "paper": _paper(metrics),
        "most_anomalous": most_anomalous(windows, scores),
    }
    findings |= against_rules(windows, scores, flags, findings, seed)
    findings["notes"] = _notes(windows, findings)
    untouched = anomaly_score(rounds[0], name, chosen_k)[windows.sequence] if 0 in rounds else None
    models = {UNTOUCHED: (0, untouched), TUNED if reported else UNTOUCHED: (reported, scores)}
    flagged = _flagged(findings["rounds"], models) | {f"rule: {rule}": one for rule, one in flags.items()}
    return Evaluation(metrics, rules, findings, scores, untouched, flagged)


def _flagged(rounds: Sequence[Row], models: Mapping[str, tuple[int, Floats | None]]) -> dict[str, Flags]:
    """What each model flags with the label-free threshold of its round, the tuned one first."""
    thresholds = {row["round"]: row["label_free"]["threshold"] for row in rounds if row["label_free"]}
    return {
        name: scores > thresholds[number]
        for name, (number, scores) in sorted(models.items(), key=lambda item: -item[1][0])
        if scores is not None and number in thresholds
    }


def most_anomalous(windows: Windows, scores: Floats, count: int = 3) -> list[Row]:
    """The test windows with the highest scores, one for each distinct sequence, with how many windows share it."""
    rows = windows.rows("test")
    sequences, first, copies = np.unique(windows.sequence[rows], return_index=True, return_counts=True)
    order = np.lexsort((rows[first], -scores[rows[first]]))[:count]
    return [
        {
            "window": int(rows[first[i]]),
            "sequence": int(sequences[i]),
            "score": float(scores[rows[first[i]]]),
            "label": int(windows.label[rows[first[i]]]),
            "windows": int(copies[i]),
        }
        for i in order
    ]


def _thresholds(metrics: Sequence[Row], round_number: int, score: str, k: int | None, split: str, pop: str) -> Row:
    """AUROC, average precision and, for each kind of threshold, what it catches."""
    wanted = {"round": round_number, "score": score, "k": k, "split": split, "population": pop}
    rows = {row["threshold_kind"]: row for row in metrics if wanted.items() <= row.items()}
    if not rows:
        return dict.fromkeys(("windows", "anomalies", "prevalence", "auroc", "average_precision", *THRESHOLDS))
    any_row = next(iter(rows.values()))
    fields = ("threshold", "f1", "precision", "recall", "false_alarm_rate", "flagged")
    anomalies = any_row["anomalies"]
    return {
        **{field: any_row[field] for field in ("windows", "anomalies", "auroc", "average_precision")},
        "prevalence": None if anomalies is None else anomalies / any_row["windows"],
        **{
            kind: {**{f: rows[kind][f] for f in fields}, **f1_ends(detection_of(rows[kind]))} if kind in rows else None
            for kind in THRESHOLDS
        },
    }


def _label_free(metrics: Sequence[Row], round_number: int, score: str) -> Row:
    """What a detector catches for which not even the score was chosen by labels."""
    return _thresholds(metrics, round_number, score, None, "test", "all")["label_free"] or {}


def _rounds(windows: Windows, rounds: Mapping[int, Columns], metrics: Sequence[Row], score: str, k: int | None) -> list:
    """The chosen score by round, and the loss per token on calibration windows, which are normal and not trained on."""
    calibration = windows.sequence[windows.rows("calibration")]
    rows = []
    for number in sorted(rounds):
        test = _thresholds(metrics, number, score, k, "test", "all")
        row = {"round": number, "auroc": test["auroc"], "average_precision": test["average_precision"]}
        row |= {f"{kind}_f1": test[kind]["f1"] if test[kind] else None for kind in THRESHOLDS}
        rows.append(row | {"loss": _loss(rounds[number], calibration), "label_free": test["label_free"]})
    return rows


def _by_score(metrics: Sequence[Row], rounds: Mapping[int, Columns], reported: int) -> list[Row]:
    """Every score but the unaligned variant on all test windows, before training and after."""
    rows = [row for row in metrics if (row["split"], row["population"]) == ("test", "all")]
    known = {(row["round"], row["score"], row["k"], row["threshold_kind"]): row for row in rows}
    models = {"untouched": 0, "tuned": reported} if reported else {"untouched": 0}

    def told(number: int, score: str, k: int | None) -> Row | None:
        found = {kind: known.get((number, score, k, kind)) for kind in THRESHOLDS}
        any_row = next(filter(None, found.values()), None)
        f1 = {f"{kind}_f1": row["f1"] if row else None for kind, row in found.items()}
        return {"auroc": any_row["auroc"], **f1} if any_row else None

    return [
        {"score": score, "k": k, **{model: told(number, score, k) for model, number in models.items()}}
        for score, k in score_names(rounds[reported])
        if score != "unaligned"
    ]


def _loss(columns: Columns, sequences: Rows) -> float | None:
    if "loss_sum" not in columns or not sequences.size:
        return None
    total, tokens = (float(np.sum(columns[name][sequences])) for name in ("loss_sum", "loss_tokens"))
    return total / tokens if tokens else None


def _paper(metrics: Sequence[Row]) -> list[Row]:
    """The paper's figure for each K: best oracle F1 of aligned top-K over the rounds, on the balanced sample."""
    rows = [r for r in metrics if r["split"] == "test" and r["population"] == "balanced" and r["score"] == "top_k"]
    rows = [row for row in rows if row["threshold_kind"] == "oracle"]
    best = [max((r for r in rows if r["k"] == k), key=lambda r: r["f1"]) for k in sorted({row["k"] for row in rows})]
    return [{"k": row["k"], "f1": row["f1"], "round": row["round"], "windows": row["windows"]} for row in best]


def _splits(windows: Windows) -> dict[str, Row]:
    return {
        split: {
            "windows": int((windows.split == split).sum()),
            "anomalies": int(((windows.split == split) & (windows.label == 1)).sum()),
            "unlabelled": int(((windows.split == split) & (windows.label < 0)).sum()),
        }
        for split in ("train", "calibration", "validation", "test", "unused")
    }


def _notes(windows: Windows, findings: Row) -> list[str]:
    """What a reader must know before believing the figures."""
    splits = findings["splits"]
    how = (findings["false_alarm_rate"], findings["threshold_rule"], findings["score"])
    notes = [threshold_note(splits["calibration"]["windows"], *how)]
    if (windows.label < 0).all():
        notes.append("These logs have no labels: windows are presumed mostly normal, and only alerts can be given.")
    elif unknown := splits["test"]["unlabelled"]:
        notes.append(f"{unknown} test windows have no label and are left out of the metrics.")
    elif not findings["anomalies"]:
        notes.append("The test split has no anomalous windows: precision, recall and F1 cannot be told.")
    elif findings["anomalies"] < _FEW_ANOMALIES:
        few = findings["anomalies"]
        told = "1 test window is" if few == 1 else f"{few} test windows are"
        all_found = (findings["label_free"] or {}).get("recall") == 1
        least = f"; a bootstrap of no misses shows none, Clopper-Pearson a recall of {0.025 ** (1 / few):.2f} at least"
        notes.append(f"Only {told} anomalous: the intervals are wide{least if all_found else ''}.")
    return [note for note in notes if note]
