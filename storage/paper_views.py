"""The paper's tables and figures as views: what it printed beside what the runs of this home measured."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from storage.errors import DataError
from storage.latencies import TIMES, timed_table
from storage.layout import Layout
from storage.paper_values import printed_table_1, printed_table_2, printed_table_3
from storage.runs import records, summary_of
from storage.summaries import RunFacts, Summary

NOT_RUN = "not run"
SIZES = {"size": pl.String(), "tuning": pl.String()}
COMPUTED_TABLE_2 = SIZES | {
    "computed_mb": pl.Float64(),
    "computed_parameters_m": pl.Float64(),
    "flower_bytes_up": pl.Float64(),
    "flower_bytes_down": pl.Float64(),
}
"""What follows from a model's shapes alone: whoever asks brings it, since storage knows no models."""
CODECS = SIZES | {"codec": pl.String(), **dict.fromkeys(("bytes_up", "bytes_down", "times_below_full"), pl.Float64())}

_RUNS = {name: pl.String() for name in ("run_id", "dataset", "model", "size", "tuning", "codec", "status")} | {
    "seed": pl.Int64(),
    "started": pl.String(),
    "hardware": pl.String(),
    "bytes_up": pl.Int64(),
    "bytes_down": pl.Int64(),
}
_METHODS = {
    "method": pl.String(),
    "model": pl.String(),
    "dataset": pl.String(),
    "f1": pl.Float64(),
    "auroc": pl.Float64(),
    "windows": pl.Int64(),
    "run_id": pl.String(),
}
_METHOD_NAMES = {"logbert": "LogBERT", "fedlog": "FedLog", "logfit": "LogFiT"}
"""Learned baselines that stand for a row of Table 1."""
_UNALTERED: dict[str, dict[str, Any]] = {
    "instability": {"kind": "none"},
    "split": {"contamination": 0, "train_windows": None, "calibration_windows": None, "rest": "unused"},
    "partition": {"only": None},
}
"""Settings of runs that learn at all sites from all training windows, normal ones, and judge by the log as it is."""
_AS_THE_PAPER: dict[str, dict[str, Any]] = {
    "federation": {"strategy": "fedavg", "codec": "none", "downlink_codec": "none"},
    "privacy": {"noise": "none"},
}
"""Settings of runs that train as the paper does."""

# A round's training loss by model and rank; the figure of the best K of each tuning; what was sent until then.
_SQL = {
    "fig3": """
        SELECT tuned.run_id, dataset, model, size, tuning, tuned.seed, rounds.round, loss
        FROM rounds JOIN tuned USING (run_id) WHERE rounds.round > 0 ORDER BY size, tuning, seed, run_id, round""",
    "fig4": """
        SELECT tuned.run_id, dataset, model, size, tuning, tuned.seed, k, population, threshold_kind,
               f1 AS max_f1, round AS best_round
        FROM metrics JOIN tuned USING (run_id)
        WHERE split = 'test' AND score = 'top_k' AND f1 IS NOT NULL AND (round > 0 OR tuning = 'PT')
        QUALIFY row_number() OVER (PARTITION BY run_id, k, population, threshold_kind ORDER BY f1 DESC, round) = 1
        ORDER BY size, tuning, tuned.seed, run_id, population, threshold_kind, k""",
    "fig5": """
        SELECT fig4.*, coalesce(sum(bytes_up), 0)::UBIGINT AS bytes_up,
               coalesce(sum(bytes_down), 0)::UBIGINT AS bytes_down
        FROM fig4 LEFT JOIN costs ON costs.run_id = fig4.run_id AND costs.round <= best_round
        GROUP BY ALL ORDER BY size, tuning, seed, run_id, population, threshold_kind, k""",
    "table1": """
        SELECT method, federated, unsupervised, without_parser, parameter_efficient, pretrained, source,
               coalesce(printf('%s: F1 %.3f at a label-free threshold, AUROC %.3f, %d test windows',
                               model, f1, auroc, windows),
                        '"""
    + NOT_RUN
    + """') AS measured,
               dataset, f1 AS f1_label_free, auroc, windows AS test_windows, run_id
        FROM printed1 LEFT JOIN methods USING (method) ORDER BY printed1.place, dataset""",
    "table2": """
        SELECT size, tuning, printed_mb, computed_mb, printed_parameters_m, computed_parameters_m,
               round(computed_mb, 2) = printed_mb AND round(computed_parameters_m, 2) = printed_parameters_m AS equal,
               flower_bytes_up::UBIGINT AS flower_bytes_up, flower_bytes_down::UBIGINT AS flower_bytes_down,
               sent_up, sent_down, coalesce(runs, 0) AS runs, source
        FROM printed2 LEFT JOIN computed2 USING (size, tuning) LEFT JOIN (
            SELECT size, tuning, max(bytes_up) AS sent_up, max(bytes_down) AS sent_down, count(*) AS runs
            FROM tuned WHERE status = 'finished' AND codec = 'none' GROUP BY ALL) USING (size, tuning)
        ORDER BY printed2.place""",
    "table3": """
        SELECT size, printed_ms, printed_deviation_ms, printed_peak_mb, measured_ms, measured_deviation_ms,
               measured_median_ms, measured_p99_ms, measured_peak_mb, measured_windows, way, weights,
               coalesce(measured_on, '"""
    + NOT_RUN
    + """') AS measured_on, tuning, run_id, source
        FROM printed3 LEFT JOIN (SELECT * FROM timed WHERE measured_ms IS NOT NULL) USING (size)
        ORDER BY printed3.place, started, run_id, way""",
    "codecs": "SELECT * FROM computed_codecs",
}
PAPER_VIEWS = tuple(_SQL)
"""table1, table2, table3 (printed beside measured), fig3, fig4, fig5 (the data behind them), and codecs (bytes of a
message of each tuning of Table 2, and of adapters that send less, under each codec)."""

Computed = Mapping[str, Callable[[], pl.DataFrame]]
"""Tables that only the learning can compute, by the view that needs them; called only where that view is asked."""


def paper_views(sql: str, layout: Layout, computed: Computed) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """The tables to register and the views to create, in order, for the views of the paper that a query names."""
    named = [name for name in PAPER_VIEWS if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
    if not named:
        return {}, []
    if "fig5" in named and "fig4" not in named:
        named.insert(0, "fig4")
    facts = records(layout)
    summaries = {each.run_id: summary for each in facts if (summary := _summary(each, layout))}
    tables = {"tuned": _frame([_run(each, summaries.get(each.run_id)) for each in facts], _RUNS)}
    if "table1" in named:
        tables |= {"printed1": _placed(printed_table_1()), "methods": _frame(_methods(summaries), _METHODS)}
    if "table2" in named:
        tables |= {"printed2": _placed(printed_table_2()), "computed2": _computed(computed, "table2", COMPUTED_TABLE_2)}
    if "table3" in named:
        tables |= {"printed3": _placed(printed_table_3()), "timed": timed_table(_timed(facts, summaries), layout)}
    if "codecs" in named:
        tables["computed_codecs"] = _computed(computed, "codecs", CODECS)
    return tables, [f"CREATE VIEW {name} AS {_SQL[name]}" for name in sorted(named)]


def _computed(computed: Computed, view: str, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    return computed[view]().select(list(schema)) if view in computed else pl.DataFrame(schema=schema)


def _placed(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the order of its rows, which joins do not keep."""
    return table.with_row_index("place")


def _frame(rows: Sequence[Mapping[str, Any]], schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema, orient="row")


def _summary(facts: RunFacts, layout: Layout) -> Summary | None:
    """A run's report, where it has come to one."""
    try:
        return summary_of(facts.run_id, layout)
    except DataError:
        return None


def _run(facts: RunFacts, summary: Summary | None) -> dict[str, Any]:
    """A run as the paper's figures name it: by size and tuning."""
    cost = summary.training if summary else None
    own = {name: getattr(facts, name) for name in ("run_id", "dataset", "model", "seed", "status", "started")}
    return own | {
        "size": size_of(facts.model),
        "tuning": tuning_label(facts.tuning, facts.rank),
        "codec": facts.config.get("federation", {}).get("codec", "none"),
        "hardware": _hardware(facts),
        "bytes_up": cost.bytes_up_per_client_round if cost else None,
        "bytes_down": cost.bytes_down_per_client_round if cost else None,
    }


def _hardware(facts: RunFacts) -> str:
    return f"{facts.hardware.get('processor', 'unknown')}, {facts.hardware.get('cores', '?')} cores"


def _timed(facts: Sequence[RunFacts], summaries: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """How long scoring a window took in each run: by itself, and as its share of scoring all of them together."""
    rows = []
    for each in facts:
        if each.run_id not in summaries:
            continue
        cost = summaries[each.run_id].training
        own = {"size": size_of(each.model), "run_id": each.run_id, "tuning": tuning_label(each.tuning, each.rank)}
        own |= {"weights": "the model's own", "measured_on": _hardware(each), "started": each.started}
        alone = {f"measured_{name}": getattr(cost, f"latency_{name}") for name in TIMES}
        rows.append(own | alone | {"way": "scored alone", "measured_windows": cost.latency_windows})
        shared = {"measured_ms": cost.together_ms, "measured_windows": cost.together_windows}
        rows.append(own | shared | {"way": "scored together"})
    return rows


def size_of(model: str) -> str | None:
    """The number of parameters in a model's name as the paper writes it, such as 135M; None where it has none."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([mb])(?![a-z])", model.rpartition("/")[2], re.IGNORECASE)
    return f"{found[1]}{found[2].upper()}" if found else None


def tuning_label(kind: str, rank: int | None) -> str:
    """A tuning as the paper's figures name it: PT, R=8 or FFT; other kinds of adapters with their kind."""
    names = {"none": "PT", "full": "FFT", "lora": f"R={rank}"}
    return names.get(kind, f"{kind} R={rank}")


def _methods(summaries: Mapping[str, Summary]) -> list[dict[str, Any]]:
    """What was measured for each method of Table 1 on each dataset, by the run with the most test windows.

    The newest of several; runs on an altered log do not count.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for run_id, summary in summaries.items():
        if not _has(summary, _UNALTERED):
            continue
        tested = summary.findings["splits"]["test"]["windows"]
        where = {"dataset": summary.run.dataset, "windows": tested, "run_id": run_id}
        for method, measured in _measured(summary):
            place = method, summary.run.dataset
            if place not in found or tested >= found[place]["windows"]:
                found[place] = {"method": method, **where, **measured}
    return list(found.values())


def _has(summary: Summary, settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether a run has these settings; those that runs from before them do not name count as had."""
    config = summary.run.config
    return all(
        config.get(part, {}).get(name, value) == value for part, own in settings.items() for name, value in own.items()
    )


def _measured(summary: Summary) -> list[tuple[str, dict[str, Any]]]:
    """F1 at a label-free threshold and AUROC on all test windows, of the tuned model and of the learned baselines.

    Both are by the score that decides, which labelled validation windows may have chosen. The baselines are small
    models in the style of the methods, and are called so.
    """
    findings, run, rows = summary.findings, summary.run, []
    free = findings.get("label_free")
    if run.tuning == "lora" and free and free["f1"] is not None and _has(summary, _AS_THE_PAPER):
        model = f"{size_of(run.model) or run.model}, {tuning_label(run.tuning, run.rank)}"
        rows.append(("the paper", {"model": model, "f1": free["f1"], "auroc": findings["auroc"]}))
    for one in findings.get("baselines", []):
        told = one["populations"]["all"]
        if one["main"] and one["method"] in _METHOD_NAMES and told["label_free"]:
            measured = {"model": one["title"], "f1": told["label_free"]["f1"], "auroc": told["auroc"]}
            rows.append((_METHOD_NAMES[one["method"]], measured))
    return rows
