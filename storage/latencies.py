"""Times of a window and peak memory for the paper's Table 3: of runs, and measured apart by benchmarks.gpu_latency."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from storage.layout import Layout

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
    """A file's rows; none where it is not as benchmarks.gpu_latency writes it."""
    try:
        found = json.loads(path.read_text())
        machine, weights = found.pop("machine"), found.pop("weights")
        where = str(machine.get("gpu") or f"{machine.get('processor', 'CPU')}, {machine.get('threads', '?')} threads")
        own = {"weights": weights, "measured_on": where, "run_id": None}
        return [
            own | {"size": size, "way": way} | _times(figures)
            for size, ways in found.items()
            if isinstance(ways, dict)
            for way, figures in ways.items()
            if "mean_ms" in figures
        ]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []


def _times(figures: Mapping[str, Any]) -> dict[str, Any]:
    windows = figures.get("windows", figures.get("samples"))
    return {f"measured_{name}": figures.get(key) for name, key in _MEASURED.items()} | {"measured_windows": windows}
