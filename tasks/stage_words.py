"""What a stage counted, in words: for the terminal and for the log on the run's page."""

from collections.abc import Mapping
from typing import Any

_SHOWN = {
    "lines": "lines",
    "windows": "windows",
    "anomalous": "anomalous",
    "rejected": "lines rejected",
    "messages": "distinct messages",
    "sequences": "distinct windows",
    "tokens": "tokens",
    "truncated": "windows cut",
    "train": "to train",
    "calibration": "to calibrate",
    "validation": "to validate",
    "test": "to test",
    "changed_windows": "test windows changed",
    "clients": "clients",
    "rounds": "rounds",
    "scored": "windows scored",
    "alerts": "windows explained",
    "continued": "beginnings continued",
    "figures": "figures",
}


def stage_facts(counts: Mapping[str, Any]) -> str:
    """The numbers of a stage that say most, in words."""
    if "auroc" in counts:
        k = f" (K = {counts['k']})" if counts["k"] is not None else ""
        known = "" if counts["auroc"] is None else f", AUROC {counts['auroc']:.3f}"
        return f"score {counts['score']}{k} of round {counts['round']}{known}"
    if "bytes_sent" in counts:
        return (
            f"{counts['bytes_sent'] / 1e6:,.1f} MB sent; full fine-tuning: {counts['bytes_sent_by_full'] / 1e6:,.1f} MB"
        )
    if "milliseconds" in counts:
        return f"{counts['milliseconds']:,.4g} ms a window, at most {counts['peak_mb']:,.0f} MB"
    if "alias" in counts:
        return f"{counts['name']} version {counts['version']}, alias {counts['alias']}"
    shown = [
        f"{counts[name]:,} {word}"
        for name, word in _SHOWN.items()
        if isinstance(counts.get(name), int) and counts[name]
    ]
    return ", ".join(shown)
