"""Questions about all runs, answered by DuckDB over what the runs left on disk."""

from pathlib import Path

import duckdb
import polars as pl

from storage.adapters import CLIENT_SCHEMA, ROUND_SCHEMA
from storage.errors import DataError
from storage.executions import EXECUTION_SCHEMA
from storage.layout import Layout
from storage.paper_views import PAPER_VIEWS, Computed, paper_views
from storage.runs import list_runs
from storage.sweeps import CELL_TYPES, cell_table

_RUN: dict[str, pl.DataType] = {"run_id": pl.String()}
_SCORES: dict[str, pl.DataType] = {
    "scored_as": pl.String(),
    "adapter_hash": pl.String(),
    "sequence_hash": pl.String(),
    "loss_sum": pl.Float64(),
    "loss_tokens": pl.UInt32(),
}
_METRICS: dict[str, pl.DataType] = {
    "round": pl.Int64(),
    **dict.fromkeys(("split", "population", "score"), pl.String()),
    "k": pl.Int64(),
    "threshold_kind": pl.String(),
    **dict.fromkeys(
        ("threshold", "f1", "precision", "recall", "false_alarm_rate", "auroc", "average_precision"), pl.Float64()
    ),
    **dict.fromkeys(("windows", "anomalies"), pl.Int64()),
}

_FILES: dict[str, tuple[tuple[str, ...], dict[str, pl.DataType]]] = {
    "rounds": (("rounds/round-*/round.parquet",), _RUN | ROUND_SCHEMA),
    "clients": (("rounds/round-*/clients.parquet",), _RUN | CLIENT_SCHEMA),
    "executions": (("executions/*.parquet",), _RUN | EXECUTION_SCHEMA),
    "metrics": (("metrics.parquet", "evaluation/metrics.parquet"), _RUN | _METRICS),
}
"""Each view's files below a run's folder, and its columns while no run has such a file."""

# Scores are shared by all runs; a run has those of its adapters. The same adapter may be scored in several ways.
_VIEWS = """
CREATE VIEW scores AS
SELECT rounds.run_id, rounds.round, shared.* FROM shared JOIN rounds USING (adapter_hash);
CREATE VIEW costs AS
SELECT run_id, round, count(*) AS clients, sum(tokens)::UBIGINT AS tokens,
       sum(computed_tokens)::UBIGINT AS computed_tokens,
       sum(seconds) AS client_seconds, max(peak_memory_mb) AS peak_memory_mb,
       sum(bytes_down)::UBIGINT AS bytes_down, sum(bytes_up)::UBIGINT AS bytes_up,
       (sum(sum(bytes_down + bytes_up)) OVER (PARTITION BY run_id ORDER BY round))::UBIGINT AS bytes_so_far
FROM clients GROUP BY run_id, round ORDER BY run_id, round
"""

_HIDDEN = "'filename', 'message_surprise'"
"""Columns of files that no view shows: where a row comes from, and a list for each window."""

VIEWS = ("runs", *_FILES, "scores", "costs", "cells")
"""What can be asked: runs (one row a run), rounds, clients, executions (one row a stage each time a run is
started), scores, metrics, costs (one row a run and round), and cells (one row a cell of a sweep). Beside these, the
paper's tables and figures: PAPER_VIEWS."""
_ALL = ", ".join((*VIEWS, *PAPER_VIEWS))


def query(sql: str, layout: Layout, computed: Computed | None = None) -> pl.DataFrame:
    """The answer to a DuckDB query over the views; every view but `runs` has the column run_id before the file's own.

    `computed` brings what views of the paper need of models' shapes, by view; without it they show none.

    Raises DataError when the query is wrong.
    """
    runs = pl.DataFrame(list_runs(layout), infer_schema_length=None)
    with duckdb.connect(":memory:") as connection:
        connection.register("runs", (runs if runs.width else pl.DataFrame(schema={"run_id": pl.String()})).to_arrow())
        try:
            for name, (patterns, schema) in _FILES.items():
                files = sorted(path for pattern in patterns for path in layout.runs.glob(f"*/{pattern}"))
                _create_view(connection, name, files, f"{_part(layout.runs, 1)} AS run_id", schema)
            adapter = f"split_part({_part(layout.scores, 2)}, '.', 1) AS adapter_hash"
            from_path = f"{_part(layout.scores, 1)} AS scored_as, {adapter}"
            _create_view(connection, "shared", _score_files(layout), from_path, _SCORES)
            connection.execute(_VIEWS)
            tables, statements = paper_views(sql, layout, computed or {})
            tables["cells"] = cell_table(layout) if "cells" in sql.lower() else pl.DataFrame(schema=CELL_TYPES)
            for name, table in tables.items():
                connection.register(name, table.to_arrow())
            for statement in statements:
                connection.execute(statement)
            answer = connection.sql(sql)
            # Rows are computed here; a wrong value is only found then.
            found = None if answer is None else answer.pl()
        except duckdb.Error as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise DataError(f"The query failed: {reason}. The views are {_ALL}.") from error
        if found is None:  # a statement that asks nothing
            raise DataError(f"The query gives no rows; ask with SELECT over {_ALL}.")
        return found


def _score_files(layout: Layout) -> list[Path]:
    """The files of scores that runs have; those that `atalaia detect` keeps beside them are one number a window."""
    return sorted(path for path in layout.scores.glob("*/*.parquet") if not path.parent.name.startswith("detect-"))


def _part(root: Path, position: int) -> str:
    """SQL for a part of a file's path below `root`, counted from 1."""
    return f"split_part(substr(filename, {len(str(root)) + 2}), '/', {position})"


def _create_view(
    connection: duckdb.DuckDBPyConnection, name: str, files: list[Path], from_path: str, schema: dict[str, pl.DataType]
) -> None:
    if not files:
        connection.register(name, pl.DataFrame(schema=schema).to_arrow())
        return
    listed = ", ".join(_quoted(str(path)) for path in files)
    connection.execute(
        f"CREATE VIEW {name} AS SELECT {from_path}, COLUMNS(lambda name: name NOT IN ({_HIDDEN})) "
        f"FROM read_parquet([{listed}], union_by_name = true, filename = true)"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
