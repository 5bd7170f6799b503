"""Tables of what detectors miss: counts, recall by kind of failure, and the missed sequences themselves."""

from typing import Any

from storage.report_tables import Cell, Percent, Table
from storage.summaries import Summary

_LONGEST = 90


def _missed(summary: Summary) -> dict[str, Any]:
    nothing: dict[str, Any] = {"detectors": [], "sequences": [], "kinds": []}
    return summary.findings.get("missed") or nothing


def missed_table(summary: Summary) -> Table:
    """How many anomalous test windows each detector misses."""
    rows: list[list[Cell]] = [
        [
            one["detector"],
            one["missed"],
            Percent(one["missed"] / one["anomalies"]),
            one["missed_sequences"],
            one["sequences"],
        ]
        for one in _missed(summary)["detectors"]
    ]
    note = (
        "All detectors without labels, all test windows: the models and learned baselines with label-free thresholds."
    )
    columns = ["detector", "missed windows", "share", "missed sequences", "of distinct sequences"]
    return Table("Anomalies that are missed", columns, rows, note)


def kinds_table(summary: Summary) -> Table:
    """Recall of every detector by kind of failure, where the dataset names kinds."""
    missed = _missed(summary)
    names = [one["detector"] for one in missed["detectors"]]
    rows: list[list[Cell]] = [
        [one["kind"], one["windows"], *(one["recall"][name] for name in names)] for one in missed["kinds"]
    ]
    note = "Recall: share of the windows of a kind that are flagged, without labels."
    return Table("Recall by kind of failure, every detector", ["kind", "test windows", *names], rows, note)


def missed_sequences_table(summary: Summary) -> Table:
    """The distinct anomalous sequences that some detector misses, with what is rarest in them."""
    rows: list[list[Cell]] = [
        [
            one["window"],
            one["kind"],
            one["windows"],
            one["messages"],
            "; ".join(_rare(message) for message in one["rarest"]),
            ", ".join(one["missed_by"]),
        ]
        for one in _missed(summary)["sequences"]
    ]
    note = (
        "One row for each distinct sequence, those missed by most detectors first. Rarest: the masked messages that "
        "the fewest training windows have."
    )
    columns = ["window", "kind", "windows", "messages", "rarest messages", "missed by"]
    if not any(row[1] for row in rows):
        columns, rows = [columns[0], *columns[2:]], [[row[0], *row[2:]] for row in rows]
    return Table("Which anomalies are missed, and by whom", columns, rows, note)


def _rare(message: dict[str, Any]) -> str:
    text = message["text"] or ""
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return f"{short} (x {message['times']}, in {message['train_windows']:,} training windows)"
