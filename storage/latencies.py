"""Times of a window and peak memory for the paper's Table 3: of runs, and measured apart.

What is measured apart lies in `latency/<name>/latency.json` under the home folder, of `atalaia latency` or
benchmarks.gpu_latency: the machine, the log, what the weights are, and by shape and TYPE:WAY the figures.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from storage.layout import Layout
from storage.report_tables import Cell, Table

TIMES = ("ms", "deviation_ms", "median_ms", "p99_ms", "peak_mb")
_TYPES: dict[str, pl.DataType] = {
    "size": pl.String(),
    **{f"measured_{name}": pl.Float64() for name in TIMES},
    "measured_windows": pl.Int64(),
    **dict.fromkeys(("way", "weights", "measured_on", "tuning", "run_id", "started"), pl.String()),
}
_MEASURED = {"ms": "mean_ms"} | {name: name for name in TIMES[1:]}


def timed_table(runs: Iterable[Mapping[str, Any]], layout: Layout) -> pl.DataFrame:
    """The runs' rows and those of `latency/<name>/latency.json` under the home folder, one for each model and way."""
    apart = [row for path in sorted(layout.latency.glob("*/latency.json")) for row in _rows(path)]
    return pl.DataFrame([*runs, *apart], schema=_TYPES, orient="row")


def _rows(path: Path) -> list[dict[str, Any]]:
    """A file's rows; none where it is not as `keep_timings` writes it."""
    try:
        found = json.loads(path.read_text())
        machine, weights = found.pop("machine"), found.pop("weights")
        own = {"weights": weights, "measured_on": machine_words(machine), "run_id": None}
        return [
            own | {"size": size, "way": way} | _times(figures)
            for size, ways in found.items()
            if isinstance(ways, dict)
            for way, figures in ways.items()
            if "mean_ms" in figures
        ]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []


def machine_words(machine: Mapping[str, Any]) -> str:
    """What was measured on, in words: the GPU, or the processor and how many threads."""
    return str(machine.get("gpu") or f"{machine.get('processor', 'CPU')}, {machine.get('threads', '?')} threads")


def keep_timings(
    log: str, weights: str, timings: Sequence[tuple[str, str, Mapping[str, Any]]], layout: Layout
) -> list[Path]:
    """Add figures to the files of the machines that they were measured on; the files.

    `timings` holds shape, way and, of each, `machine`, `dtype` and `figures`. Others of the same machine and log stay,
    but for those of the same shape, type and way.
    """
    files = []
    for shape, way, found in timings:
        machine = found["machine"]
        name = re.sub(r"[^a-z0-9]+", "-", f"{machine_words(machine)} {log}".lower()).strip("-")
        path = layout.latency / name / "latency.json"
        kept = _kept(path) | {"machine": machine, "log": log, "weights": weights}
        kept[shape] = {**kept.get(shape, {}), f"{found['dtype']}:{way}": found["figures"]}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(kept, indent=1) + "\n")
        part.replace(path)
        files.append(path)
    return list(dict.fromkeys(files))


def timings_table(path: Path) -> Table:
    """What a file of `keep_timings` holds, as a table to be shown."""
    columns = ["size", "type:way", "windows", "mean, ms", "deviation", "median", "99th percentile", "peak, MB"]
    rows = _rows(path)
    cells: list[list[Cell]] = [
        [row["size"], row["way"], row["measured_windows"], *(row[f"measured_{name}"] for name in TIMES)] for row in rows
    ]
    where = rows[0]["measured_on"] if rows else "nothing"
    note = (
        "Time of a window with random weights of the shape. padded: batch 1, a row of 1,024 tokens, as the paper's "
        "figures suggest; alone: Atalaia scores one window; together: all of them, a window's share, with the spread "
        "of repetitions. The peak holds the weights; on a CPU it is the whole process's."
    )
    return Table(f"Table 3 on {where}", columns, cells, note)


def _kept(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none that can be read."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _times(figures: Mapping[str, Any]) -> dict[str, Any]:
    windows = figures.get("windows", figures.get("samples"))
    return {f"measured_{name}": figures.get(key) for name, key in _MEASURED.items()} | {"measured_windows": windows}
