"""storage/rounds.py: questions to DuckDB over runs in any state."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage.adapters import commit_round
from storage.errors import DataError
from storage.layout import Layout
from storage.rounds import VIEWS, query
from storage.score_store import ScoreStore


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Two runs with rounds, one only begun, a run's scores and detection's; below a path with a quote and `runs`."""
    layout = Layout(tmp_path_factory.mktemp("home") / "it's" / "runs" / "home")
    for run, factor in (("alpha", 1), ("beta", 10)):
        for number in range(3):
            clients = [
                {
                    "round": number,
                    "partition": p,
                    "tokens": 100,
                    "bytes_up": factor * 7,
                    "bytes_down": 5,
                    "seconds": 1.5,
                }
                for p in range(2 if number else 0)
            ]
            summary = {"round": number, "clients": len(clients), "adapter_hash": f"{run}{number}"}
            arrays = {"w": np.zeros(1, np.float32)}
            commit_round(layout.run(run), number, arrays, f"{run}{number}", clients, summary)
    layout.run("gamma").mkdir()
    (layout.scores / "way").mkdir(parents=True)
    surprises = [[0.5, 0.5], [2.0]]
    scores = pl.DataFrame({"sequence_hash": ["x", "y"], "max_token": [1.0, 2.0], "message_surprise": surprises})
    scores.write_parquet(layout.scores / "way" / "alpha2.parquet")
    detecting = ScoreStore(layout.scores / "detect-way" / "alpha2.parquet")
    detecting.add({"x": 3.0, "z": 4.0})
    detecting.save()
    pl.DataFrame({"round": [2], "f1": [0.75]}).write_parquet(layout.run("beta") / "metrics.parquet")
    return layout


def test_rounds_and_clients_of_all_runs_are_rows_with_their_run(layout: Layout) -> None:
    counted = query("SELECT run_id, count(*) AS n, sum(clients)::INT AS c FROM rounds GROUP BY 1 ORDER BY 1", layout)
    assert counted.rows() == [("alpha", 3, 4), ("beta", 3, 4)]
    assert query("SELECT DISTINCT run_id FROM clients ORDER BY 1", layout)["run_id"].to_list() == ["alpha", "beta"]


def test_costs_add_up_over_the_rounds(layout: Layout) -> None:
    costs = query("SELECT round, bytes_up, bytes_so_far FROM costs WHERE run_id = 'beta' ORDER BY round", layout)
    assert costs.rows() == [(1, 140, 150), (2, 140, 300)]


def test_shared_scores_belong_to_the_runs_and_rounds_of_their_adapter(layout: Layout) -> None:
    found = query("SELECT * FROM scores", layout)
    assert found.columns == ["run_id", "round", "scored_as", "adapter_hash", "sequence_hash", "max_token"]
    assert sorted(found.rows()) == [("alpha", 2, "way", "alpha2", "x", 1.0), ("alpha", 2, "way", "alpha2", "y", 2.0)]


def test_metrics_of_the_runs_that_have_them_can_be_asked(layout: Layout) -> None:
    assert query("SELECT run_id, f1 FROM metrics", layout).rows() == [("beta", 0.75)]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_exists_where_nothing_has_run(view: str, tmp_path: Path) -> None:
    found = query(f"SELECT * FROM {view}", Layout(tmp_path))
    assert len(found) == 0
    assert "run_id" in found.columns


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM rounds", '"nothing" not found'),
        ("SELECT * FROM windows", "The views are runs, rounds, clients, .*, costs, cells, fig3"),
        ("SELECT CAST('x' AS INT) FROM (SELECT 1)", "Could not convert string 'x'"),
        ("SELECT CAST(run_id AS INT) FROM rounds", "Could not convert string 'alpha'"),
        ("", "no rows"),
    ],
)
def test_a_wrong_query_is_told_in_one_line(sql: str, told: str, layout: Layout) -> None:
    with pytest.raises(DataError, match=told) as error:
        query(sql, layout)
    assert "\n" not in str(error.value)
