"""The report of a sweep as one HTML file that needs nothing beside it."""

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from storage.html_page import html_figures, html_page, html_table
from storage.layout import Layout
from storage.paper_views import NOT_RUN
from storage.report_tables import Cell, Hundredths, Table
from storage.summaries import THRESHOLDS, Summary
from storage.sweep_results import CellResult
from storage.sweeps import DONE, SweepRecord, failures, mean_words, sweep_tables
from storage.verdicts import headline

_DATA = ("dataset", "window", "mask", "tokens", "split", "partition", "instability", "baselines")
"""Parts of a run that rules and learned baselines depend on."""
_POPULATIONS = {"all": "all test windows", "unseen": "sequences never seen", "balanced": "balanced, as in the paper"}


def sweep_report(
    record: SweepRecord,
    cells: Sequence[CellResult],
    figures: Mapping[str, Path],
    paper: Mapping[str, pl.DataFrame],
    layout: Layout | None = None,
) -> str:
    """One HTML file: what came out over seeds and cell by cell, the paper's tables, and how to get it again.

    `cells` are those of the record, `figures` are SVG files by caption, `paper` the answers of the paper's views by
    their titles.
    """
    counts = ", ".join(f"{count} {status}" for status, count in record.counts().items())
    failed = "".join(f"<li>{html.escape(line)}</li>" for line in failures(record))
    parts = [
        f"<h1>Sweep {html.escape(record.sweep_id)}</h1>",
        f'<p class="headline">{len(record.cells)} cells: {html.escape(counts)}. {html.escape(best_cell(cells))}</p>',
        f"<ul>{failed}</ul>" if failed else "",
        *map(html_table, [*sweep_tables(record, layout), *protocol_tables(cells)]),
        html_figures(figures),
        *(html_table(frame_table(title, frame)) for title, frame in paper.items()),
        f"<h2>The same again</h2><pre>{html.escape(record.command)}</pre>",
        html_table(_command_table(record)),
        html_table(_machine_table(record, cells)),
    ]
    return html_page(f"Sweep {record.sweep_id}", parts)


def best_cell(cells: Sequence[CellResult]) -> str:
    """The cell with the highest label-free F1 as its own report tells of it, and that the test windows chose it."""
    judged = [(cell, cell.summary.findings) for cell in cells if cell.summary and cell.summary.findings["headline"]]
    if not judged:
        return "No cell has an F1 to compare."
    cell, found = max(judged, key=lambda one: one[1]["label_free"]["f1"])
    alike = sum(other["label_free"]["f1"] == found["label_free"]["f1"] for _, other in judged) - 1
    named = f"{cell.panel}, {cell.variant}, seed {cell.seed}{f', and {alike} others with the same F1' if alike else ''}"
    chosen = "" if len(judged) < 2 else " The intervals do not allow for the choice among the cells."
    return f"Best of {len(judged)} cells, chosen by the test windows: {named}. {headline(found)}{chosen}"


def protocol_tables(cells: Sequence[CellResult]) -> list[Table]:
    """Every detector on every kind of windows: the models by tuning, then the simple rules and learned baselines."""
    made = [_model_table(cells), _other_table(cells)]
    return [table for table in made if table.rows]


def _model_table(cells: Sequence[CellResult]) -> Table:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell.panel, cell.variant), []).extend([cell.summary.findings] if cell.summary else [])
    rows: list[list[Cell]] = []
    for (panel, variant), found in groups.items():
        if not found:
            rows.append([panel, variant, NOT_RUN, *[None] * (3 + len(THRESHOLDS))])
            continue
        for population, words in _POPULATIONS.items():
            parts = [one if population == "all" else one["populations"][population] for one in found]
            parts = [part for part in parts if part["windows"]]
            f1 = [mean_words([(part[kind] or {}).get("f1") for part in parts], len(parts)) for kind in THRESHOLDS]
            ranks = [mean_words([part[name] for part in parts], len(parts)) for name in ("auroc", "average_precision")]
            rows.append([panel, variant, words, len(parts), *f1, *ranks])
    kinds = [f"{kind.replace('_', '-')} F1" for kind in THRESHOLDS]
    columns = ["model", "tuning", "windows", "seeds", *kinds, "AUROC", "average precision"]
    note = (
        "Mean ± standard deviation over seeds. Many test windows are copies of training windows, and a balanced sample "
    )
    return Table("Three thresholds on three kinds of windows", columns, rows, note + "flatters precision.")


def _other_table(cells: Sequence[CellResult]) -> Table:
    """Rules and baselines depend on the seed and the data and not on the tuning: one cell of each tells of them."""
    told = _by_data([cell.summary for cell in cells if cell.summary])
    several = len(told) > 1
    rows: list[list[Cell]] = []
    for data, by_seed in told.items():
        for name, values in _other_f1(by_seed.values()).items():
            seeds = len(values.get("all", []))
            f1 = [mean_words(values.get(population, []), seeds) for population in _POPULATIONS]
            rows.append([name, *([data] if several else []), str(seeds), *f1])
    columns = ["detector", *(["data"] if several else []), "seeds", *(f"F1, {one}" for one in _POPULATIONS.values())]
    note = "Without labels: the rules have no threshold, the learned baselines have the label-free one. "
    return Table("Simple rules and learned baselines", columns, rows, note + "Fitted on all training windows.")


def _by_data(summaries: Sequence[Summary]) -> dict[str, dict[int, dict[str, Any]]]:
    """The findings of one cell by its data and seed; data are named by those of their settings that differ."""
    settings = [_data_settings(summary.run.config) for summary in summaries]
    names = dict.fromkeys(name for each in settings for name in each)
    differing = [name for name in names if len({each.get(name) for each in settings}) > 1]
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for summary, each in zip(summaries, settings, strict=True):
        data = ", ".join(f"{name}={each.get(name)}" for name in differing)
        found.setdefault(data, {})[summary.run.seed] = summary.findings
    return found


def _data_settings(config: Mapping[str, Any]) -> dict[str, str]:
    """Every setting but seeds of what rules and baselines are fitted on and judged by, as text."""
    parts = {part: config.get(part) for part in _DATA}
    # Who is drawn is the same by the same share; what else federates, the baselines do not have.
    parts["federation"] = {"fraction": config.get("federation", {}).get("fraction")}
    return {
        f"{part}.{name}": str(value)
        for part, own in parts.items()
        for name, value in (own or {}).items()
        if name != "seed"
    }


def _other_f1(found: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """F1 of each rule and baseline in the cells' findings, by kind of windows."""
    detectors: dict[str, dict[str, list[float | None]]] = {}
    for findings in found:
        for row in findings.get("rules_by_population") or findings["rules"]:
            detector = detectors.setdefault(f"rule: {row['rule']}", {})
            detector.setdefault(row.get("population", "all"), []).append(row["f1"])
        for one in findings.get("baselines", []):
            if one["main"]:
                detector = detectors.setdefault(one["title"], {})
                for population, part in one["populations"].items():
                    detector.setdefault(population, []).append((part["label_free"] or {}).get("f1"))
    return detectors


def frame_table(title: str, frame: pl.DataFrame) -> Table:
    """An answer of a query as a table of a report; columns that hold nothing are left out."""
    shown = frame.select(name for name in frame.columns if frame[name].null_count() < len(frame))
    rows: list[list[Cell]] = [
        [_cell(name, value) for name, value in zip(shown.columns, row, strict=True)] for row in shown.rows()
    ]
    return Table(title, [_heading(name) for name in shown.columns], rows)


def _heading(name: str) -> str:
    """A column's name with its unit as people write it."""
    for unit, written in {"_mb": "(MB)", "_ms": "(ms)", "_m": "(M)"}.items():
        name = f"{name.removesuffix(unit)} {written}" if name.endswith(unit) else name
    return name.replace("_", " ")


def _cell(name: str, value: Any) -> Cell:  # noqa: ANN401 (whatever a query answers)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return Hundredths(value) if name.endswith(("_mb", "_ms", "_m")) or abs(value) < 100 else round(value)
    return value if value is None or isinstance(value, str | int) else str(value)


def _command_table(record: SweepRecord) -> Table:
    rows: list[list[Cell]] = [
        [cell.name, str(cell.seed), cell.status if cell.status in DONE else NOT_RUN, cell.run_id, cell.command]
        for cell in record.cells
    ]
    return Table("Every cell alone", ["cell", "seed", "state", "run", "command"], rows)


def _machine_table(record: SweepRecord, cells: Sequence[CellResult]) -> Table:
    """Hardware and versions of the cells' runs; where they differ, each value with how many cells had it."""
    found: dict[str, list[str]] = {}
    runs = [cell.summary.run for cell in cells if cell.summary]
    for run in runs:
        for name, value in {**run.hardware, **run.versions}.items():
            found.setdefault(name, []).append(value)
    rows: list[list[Cell]] = [["sweep last started", record.started]]
    for name, values in found.items():
        distinct = dict.fromkeys(values)
        told = [f"{value} ({values.count(value)} cells)" for value in distinct] if len(distinct) > 1 else list(distinct)
        rows.append([name, "; ".join(told)])
    return Table("Machine and versions", ["what", "value"], rows)
