"""Two finished runs side by side: settings that differ, what was measured, and what it cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from storage.errors import FormatError
from storage.layout import Layout, current
from storage.report_tables import Cell, Percent, Table, megabytes, seconds
from storage.summaries import THRESHOLDS, Summary

SCORES = "window_scores.parquet"
Differences = Mapping[str, tuple[float, float, float]]
"""B minus A with the ends of its interval, by kind of threshold."""


def same_test_windows(one: Summary, other: Summary, layout: Layout | None = None) -> pl.DataFrame | None:
    """The labelled test windows of two runs with both scores (`score`, `score_other`); None where they differ.

    The same: as many, with the same numbers, contents (hash of the tokens) and labels.
    """
    left, right = (_test_windows(summary, layout) for summary in (one, other))
    keys = ["window_id", "sequence_hash", "label"]
    both = left.join(right, on=keys, how="inner", suffix="_other").sort("window_id")
    return both if len(both) == len(left) == len(right) > 0 else None


def _test_windows(summary: Summary, layout: Layout | None) -> pl.DataFrame:
    path = (layout or current()).run(summary.run.run_id) / SCORES
    try:
        scores = pl.read_parquet(path, columns=["window_id", "sequence_hash", "split", "label", "score"])
    except (OSError, pl.exceptions.PolarsError):
        raise FormatError(f"There is no readable {path}; start the run again: {summary.run.command}") from None
    return scores.filter((pl.col("split") == "test") & pl.col("label").is_not_null()).drop("split")


def comparison_tables(one: Summary, other: Summary, differences: Differences | None) -> list[Table]:
    """What differs between two runs, in tables with a column each.

    `differences` are None where the runs were not judged by the same windows.
    """
    made = [_settings(one, other), _metrics(one, other, differences), _costs(one, other)]
    return [table for table in made if table.rows]


def _settings(one: Summary, other: Summary) -> Table:
    left, right = flat(one.run.config), flat(other.run.config)
    names = [name for name in {**left, **right} if left.get(name) != right.get(name)]
    rows: list[list[Cell]] = [[name, _text(left.get(name)), _text(right.get(name))] for name in names]
    note = "" if rows else "The two runs have the same settings."
    columns = ["setting", *_names(one, other)]
    return Table("Settings that differ", columns, rows or [["none", None, None]], note)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted paths."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _text(value: object) -> str | None:
    return None if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _names(one: Summary, other: Summary) -> list[str]:
    return [f"A: {one.run.run_id}", f"B: {other.run.run_id}"]


def _metrics(one: Summary, other: Summary, differences: Differences | None) -> Table:
    a, b = one.findings, other.findings
    rows: list[list[Cell]] = [["score that decides", _score(a), _score(b), None, None]]
    for kind in THRESHOLDS:
        left, right = _f1(a, kind), _f1(b, kind)
        if left is not None or right is not None:
            title = f"F1, {kind.replace('_', '-')} threshold"
            rows.append([title, left, right, *_difference(kind, left, right, differences)])
    for name, title in (("auroc", "AUROC"), ("average_precision", "average precision")):
        rows.append([title, a.get(name), b.get(name), _minus(a.get(name), b.get(name)), None])
    for name in ("precision", "recall", "false_alarm_rate"):
        left, right = (_rate(found, name) for found in (a, b))
        rows.append([f"{name.replace('_', ' ')}, label-free", left, right, _minus(left, right), None])
    rows.append(["test windows", a.get("windows"), b.get("windows"), None, None])
    note = (
        "All test windows, at natural prevalence. Interval: 95 %, bootstrap over the same test windows of both runs, "
        "thresholds taken as fixed; where it holds 0 the runs cannot be told apart."
        if differences is not None
        else "The runs were not judged by the same test windows (other data, split or seed of the split), so their "
        "difference has no paired interval: part of it is the luck of the draw."
    )
    return Table("What they measured", ["", *_names(one, other), "B - A", "interval"], rows, note)


def _score(found: Mapping[str, Any]) -> str:
    return found["score"] if found.get("k") is None else f"{found['score']}, K = {found['k']}"


def _f1(found: Mapping[str, Any], kind: str) -> float | None:
    return (found.get(kind) or {}).get("f1")


def _rate(found: Mapping[str, Any], name: str) -> float | None:
    value = (found.get("label_free") or {}).get(name)
    return value if value is None or name != "false_alarm_rate" else Percent(value)


def _minus(left: float | None, right: float | None) -> float | None:
    if left is None or right is None:
        return None
    return Percent(right - left) if isinstance(left, Percent) else right - left


def _difference(kind: str, left: float | None, right: float | None, differences: Differences | None) -> Sequence[Cell]:
    if differences is None or kind not in differences:
        return [_minus(left, right), None]
    estimate, low, high = differences[kind]
    return [estimate, f"[{low:.3f}, {high:.3f}]"]


def _costs(one: Summary, other: Summary) -> Table:
    a, b = one.training, other.training
    amounts = (
        ("trained parameters", "trainable_parameters", "{:,}".format),
        ("message up", "bytes_up_per_client_round", megabytes),
        ("message down", "bytes_down_per_client_round", megabytes),
        ("sent in all", "bytes_sent", megabytes),
        ("windows trained on", "examples", "{:,}".format),
        ("training", "train_seconds", seconds),
        ("scoring", "score_seconds", seconds),
    )
    rows: list[list[Cell]] = []
    for title, name, written in amounts:
        left, right = getattr(a, name), getattr(b, name)
        rows.append([title, written(left), written(right), f"{right / left:.3g} x" if left else None])
    note = "Times are only as comparable as the machines were: " + "; ".join(
        f"{letter}: {summary.run.hardware.get('processor', 'unknown')}, {summary.run.hardware.get('cores', '?')} cores"
        for letter, summary in (("A", one), ("B", other))
    )
    return Table("What they cost", ["", *_names(one, other), "B / A"], rows, note)
