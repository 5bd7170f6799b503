"""Which tables a report has, in order."""

from collections.abc import Callable

from storage.missed_tables import kinds_table, missed_sequences_table, missed_table
from storage.report_tables import (
    Table,
    baseline_table,
    cost_table,
    data_table,
    detection_table,
    few_windows_table,
    kind_table,
    paper_table,
    population_table,
    privacy_table,
    round_table,
    rule_table,
    score_table,
    threshold_table,
)
from storage.summaries import Summary

_TABLES: list[Callable[[Summary], Table]] = [
    detection_table,
    few_windows_table,
    baseline_table,
    threshold_table,
    population_table,
    rule_table,
    missed_table,
    lambda summary: kinds if (kinds := kinds_table(summary)).rows else kind_table(summary),
    missed_sequences_table,
    score_table,
    round_table,
    paper_table,
    cost_table,
    privacy_table,
    data_table,
]


def tables(summary: Summary) -> list[Table]:
    """Every table of a report that has something to say, the headline's first."""
    made = [make(summary) for make in _TABLES]
    return [table for table in made if table.rows]
