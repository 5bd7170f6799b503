"""storage/sweeps.py: what a sweep's cells came to, side by side and over seeds."""

import statistics

import pytest
from run_folders import run_facts, save_run, training_facts

from storage.errors import DataError
from storage.layout import Layout
from storage.rounds import query
from storage.runs import summary_of
from storage.sweeps import (
    CellRecord,
    SweepRecord,
    cell_rows,
    failures,
    mean_words,
    read_sweep,
    record_sweep,
    sweep_id_of,
    sweep_tables,
)


def _cell(group: str, seed: int, **changes: object) -> CellRecord:
    values = {"name": f"{group}, seed {seed}", "group": group, "seed": seed, "command": "atalaia run demo"}
    return CellRecord(**values | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Two cells of R=8 with results, the untouched model, and a cell that failed."""
    layout = Layout(tmp_path_factory.mktemp("home"))
    for seed in (0, 1):
        save_run(layout, run_facts(f"lora-{seed}", seed=seed), noise=2.0, labels_seed=seed)
    nothing = {"trainable_parameters": 0, "bytes_up_per_client_round": 0, "bytes_down_per_client_round": 0}
    save_run(layout, run_facts("pt", tuning="none", rank=None), training_facts(**nothing, train_seconds=0), noise=4.0)
    cells = [
        _cell("PT", 0, status="cached", run_id="pt", seconds=2.0),
        _cell("R=8", 0, status="finished", run_id="lora-0", seconds=200.0),
        _cell("R=8", 1, status="finished", run_id="lora-1", seconds=100.0),
        _cell("FFT", 0, status="failed", reason="out of memory", seconds=9.0),
    ]
    record = SweepRecord(
        sweep_id="s-1",
        grid="small",
        command="atalaia sweep small",
        started="2026-11-21T21:00:00",
        status="failed",
        cells=cells,
    )
    record_sweep(record, layout)
    return layout


def test_a_record_survives_its_file_and_counts_its_cells(layout: Layout) -> None:
    record = read_sweep("s-1", layout)
    assert record.counts() == {"cached": 1, "finished": 2, "failed": 1}
    assert failures(record) == ["FFT, seed 0: out of memory"]


def test_an_unknown_sweep_is_told_with_those_there_are(layout: Layout) -> None:
    with pytest.raises(DataError, match="There is no sweep 's-2'; the newest are: s-1"):
        read_sweep("s-2", layout)


def test_the_same_cells_are_the_same_sweep() -> None:
    assert sweep_id_of("/some/where/mine.toml", ["a", "b"]) == sweep_id_of("mine.toml", ["a", "b"])
    assert sweep_id_of("small", ["a", "b"]) != sweep_id_of("small", ["a", "c"])


def test_every_cell_has_its_quality_and_costs_and_one_without_results_has_none(layout: Layout) -> None:
    rows = cell_rows(read_sweep("s-1", layout), layout)
    found = summary_of("lora-0", layout).findings
    assert (rows[1]["f1"], rows[1]["auroc"], rows[1]["oracle_f1"]) == (
        found["label_free"]["f1"],
        found["auroc"],
        found["oracle"]["f1"],
    )
    assert rows[1]["f1_low"] <= rows[1]["f1"] <= rows[1]["f1_high"]
    assert rows[1]["times_below_full"] == pytest.approx(538_090_408 / 1_870_000)
    assert rows[0]["times_below_full"] is None
    assert {rows[3][name] for name in ("f1", "auroc", "message_bytes", "train_seconds")} == {None}


def test_means_and_deviations_are_taken_over_the_seeds(layout: Layout) -> None:
    means, cells = sweep_tables(read_sweep("s-1", layout), layout)
    row = {row[0]: row for row in means.rows}["R=8"]
    auroc = [summary_of(run, layout).findings["auroc"] for run in ("lora-0", "lora-1")]
    assert row[1] == "2"
    assert row[3] == f"{statistics.mean(auroc):.3f} ± {statistics.stdev(auroc):.3f}"
    assert {row[0]: row[1] for row in means.rows} == {"PT": "1", "R=8": "2", "FFT": "0 of 1"}
    assert [row[1] for row in cells.rows] == ["cached", "finished", "finished", "failed"]
    assert all(len(row) == len(table.columns) for table in (means, cells) for row in table.rows)


def test_a_mean_tells_of_how_many_seeds_it_is_where_some_have_no_value() -> None:
    assert mean_words([0.9, None, None], 3) == "0.900 (1 of 3)"
    assert mean_words([0.8, None, 0.9], 3) == "0.850 ± 0.071 (2 of 3)"
    assert mean_words([0.9], 1) == "0.900"
    assert mean_words([None], 1) is None


def test_cells_can_be_asked_by_query(layout: Layout) -> None:
    found = query(
        "SELECT cell, variant, status, reason FROM cells WHERE sweep_id = 's-1' AND status <> 'finished'", layout
    )
    assert found.rows() == [("PT, seed 0", "PT", "cached", None), ("FFT, seed 0", "FFT", "failed", "out of memory")]


def test_a_cell_whose_run_was_removed_since_is_told_and_spoils_no_table(layout: Layout) -> None:
    record = read_sweep("s-1", layout)
    gone = record.model_copy(update={"cells": [*record.cells, _cell("R=8", 2, status="finished", run_id="gone")]})
    assert "There is no run 'gone'" in cell_rows(gone, layout)[-1]["reason"]
    assert {row[0]: row[1] for row in sweep_tables(gone, layout)[0].rows}["R=8"] == "2 of 3"
