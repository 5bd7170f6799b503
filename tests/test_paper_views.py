"""storage/paper_views.py: the paper's tables and figures over runs of every kind, and over none."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from run_folders import run_facts, save_run, training_facts

from storage.adapters import commit_round
from storage.layout import Layout
from storage.paper_views import PAPER_VIEWS, size_of, tuning_label
from storage.rounds import query
from storage.runs import record_run, summary_of

SHAPES = pl.DataFrame(
    {
        "size": ["135M", "135M"],
        "tuning": ["R=8", "FFT"],
        "computed_mb": [1.8636, 538.09],
        "computed_parameters_m": [0.4608, 134.515],
        "flower_bytes_up": [1.0, 2.0],
        "flower_bytes_down": [1.0, 2.0],
    }
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A finished LoRA run of two rounds, and one that failed before its report."""
    layout = Layout(tmp_path_factory.mktemp("home"))
    costs = training_facts(latency_ms=900, latency_deviation_ms=20, latency_windows=10, together_ms=30.0)
    save_run(layout, run_facts("lora8"), costs)
    record_run(run_facts("broken", rank=2, status="failed"), layout)
    for number, loss in enumerate((None, 0.9, 0.4)):
        clients = [
            {"round": number, "partition": p, "bytes_up": 10, "bytes_down": 7} for p in range(2 if number else 0)
        ]
        arrays = {"w": np.zeros(1, np.float32)}
        commit_round(layout.run("lora8"), number, arrays, f"a{number}", clients, {"round": number, "loss": loss})
    f1 = {(0, 1): 0.99, (1, 1): 0.8, (2, 1): 0.8, (1, 3): 0.5, (2, 3): 0.6}
    rows = [
        {
            "round": r,
            "split": "test",
            "population": "balanced",
            "score": "top_k",
            "k": k,
            "threshold_kind": "oracle",
            "f1": v,
        }
        for (r, k), v in f1.items()
    ]
    pl.DataFrame(rows).write_parquet(layout.run("lora8") / "metrics.parquet")
    return layout


def test_table_1_shows_the_papers_marks_and_says_of_every_other_method_that_it_was_not_run(layout: Layout) -> None:
    rows = {row["method"]: row for row in query("SELECT * FROM table1", layout).to_dicts()}
    assert list(rows) == ["LogBERT", "LogGPT", "LogLLM", "LogFiT", "FedLog", "the paper"]
    assert {name for name, row in rows.items() if row["measured"] == "not run"} == set(rows) - {"the paper"}
    ours = rows["the paper"]
    assert (ours["run_id"], ours["federated"], ours["pretrained"]) == ("lora8", True, True)
    told = f"135M, R=8: F1 {ours['f1_label_free']:.3f} at a label-free threshold, AUROC {ours['auroc']:.3f}"
    assert ours["measured"] == f"{told}, {ours['test_windows']} test windows"
    assert ours["test_windows"] == summary_of("lora8", layout).findings["splits"]["test"]["windows"] > 0


def test_table_1_measures_on_the_log_as_it_is_and_calls_small_models_what_they_are(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    altered = {
        "plain": {"split": {"contamination": 0.0}, "privacy": {"noise": "none"}},
        "spoilt": {"split": {"contamination": 0.1}},
        "few": {"split": {"train_windows": 57}},
        "reworded": {"instability": {"kind": "reworded"}},
        "alone": {"partition": {"only": 3}},
        "hidden": {"privacy": {"noise": "central"}},
        "packed": {"federation": {"codec": "int8"}},
    }
    for hour, (name, config) in enumerate(altered.items()):
        save_run(layout, run_facts(name, config=config, started=f"2026-11-21T{hour:02}:00:00Z"), noise=hour)
        path = layout.run(name) / "report.json"
        report = json.loads(path.read_text())
        judged = {"label_free": {"f1": hour / 10}, "auroc": 0.5}
        model = {"method": "logbert", "title": "LogBERT-style masked model", "main": True}
        report["findings"]["baselines"] = [model | {"populations": {"all": judged}}]
        path.write_text(json.dumps(report))
    rows = {row["method"]: row for row in query("SELECT * FROM table1", layout).to_dicts()}
    assert rows["the paper"]["run_id"] == "plain"
    # A small model is not trained by the paper's way of sending, so its newest run on the log as it is counts.
    assert rows["LogBERT"]["run_id"] == "packed"
    told = "LogBERT-style masked model: F1 0.600 at a label-free threshold, AUROC 0.500"
    assert rows["LogBERT"]["measured"] == f"{told}, {rows['LogBERT']['test_windows']} test windows"


def test_table_1_calls_nothing_measured_without_labels_since_these_may_have_chosen_the_score(layout: Layout) -> None:
    told = query("SELECT measured FROM table1 WHERE run_id = 'lora8'", layout)["measured"].item()
    assert "at a label-free threshold" in told
    assert "without labels" not in told


def test_of_several_runs_table_1_takes_the_one_with_the_most_test_windows_and_of_these_the_newest(
    tmp_path: Path,
) -> None:
    layout = Layout(tmp_path)
    for hour, (name, windows) in enumerate({"large, old": 900, "large, new": 900, "small, newest": 300}.items()):
        save_run(layout, run_facts(name, started=f"2026-11-21T{hour:02}:00:00Z"))
        path = layout.run(name) / "report.json"
        report = json.loads(path.read_text())
        report["findings"]["splits"]["test"]["windows"] = windows
        path.write_text(json.dumps(report))
    ours = query("SELECT run_id, test_windows FROM table1 WHERE method = 'the paper'", layout)
    assert ours.rows() == [("large, new", 900)]


def test_table_2_sets_the_printed_values_beside_the_computed_and_the_sent(layout: Layout) -> None:
    found = query("SELECT * FROM table2", layout, {"table2": lambda: SHAPES})
    assert len(found) == 15
    row = found.row(by_predicate=(pl.col("size") == "135M") & (pl.col("tuning") == "R=8"), named=True)
    assert (row["printed_mb"], row["printed_parameters_m"], row["equal"]) == (1.86, 0.46, True)
    assert (row["sent_up"], row["runs"]) == (training_facts().bytes_up_per_client_round, 1)
    others = found.filter((pl.col("size") != "135M") | (pl.col("tuning") != "R=8"))
    assert others["runs"].to_list() == [0] * 14
    assert others["sent_up"].null_count() == 14


def test_table_3_sets_the_printed_times_beside_the_measured_and_says_what_was_not_run(layout: Layout) -> None:
    found = query("SELECT size, printed_ms, way, measured_ms, measured_windows, measured_on FROM table3", layout)
    here = "some processor, 2 cores"
    assert found.rows() == [
        ("135M", 30.8908, "scored alone", 900, 10, here),
        ("135M", 30.8908, "scored together", 30, 0, here),
        ("360M", 62.3438, None, None, None, "not run"),
        ("1.7B", 253.0354, None, None, None, "not run"),
    ]


def test_table_3_has_times_measured_apart_with_their_kind_of_weights(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name, text in (("a", '{"machine": 3}'), ("b", "[]"), ("c", "not JSON")):
        (layout.latency / name).mkdir(parents=True)
        (layout.latency / name / "latency.json").write_text(text)
    figures = {"mean_ms": 7.5, "deviation_ms": 0.5, "median_ms": 7.0, "p99_ms": 9.0, "peak_mb": 8000.0, "samples": 30}
    ways = {"float32:padded": figures, "bfloat16:plain": {"failed": "out of memory"}}
    facts = {"machine": {"gpu": "some GPU"}, "log": "a log", "weights": "random, seeded", "1.7B": ways}
    (layout.latency / "gpu").mkdir()
    (layout.latency / "gpu" / "latency.json").write_text(json.dumps(facts))
    columns = "size, way, measured_ms, measured_p99_ms, measured_windows, weights, measured_on"
    found = query(f"SELECT {columns} FROM table3 WHERE way IS NOT NULL", layout)
    assert found.rows() == [("1.7B", "float32:padded", 7.5, 9.0, 30, "random, seeded", "some GPU")]


def test_figure_3_is_the_training_loss_of_each_round(layout: Layout) -> None:
    found = query("SELECT round, loss, size, tuning, seed FROM fig3 WHERE run_id = 'lora8'", layout)
    assert found.rows() == [(1, 0.9, "135M", "R=8", 3), (2, 0.4, "135M", "R=8", 3)]


def test_figure_4_is_the_best_round_of_each_k_without_the_untouched_model(layout: Layout) -> None:
    assert query("SELECT k, max_f1, best_round FROM fig4", layout).rows() == [(1, 0.8, 1), (3, 0.6, 2)]


def test_figure_5_counts_what_was_sent_until_the_best_round(layout: Layout) -> None:
    assert query("SELECT k, bytes_up, bytes_down FROM fig5", layout).rows() == [(1, 20, 14), (3, 40, 28)]


@pytest.mark.parametrize("view", PAPER_VIEWS)
def test_every_view_of_the_paper_exists_where_nothing_has_run(view: str, tmp_path: Path) -> None:
    printed = {"table1": 6, "table2": 15, "table3": 3}
    assert len(query(f"SELECT * FROM {view}", Layout(tmp_path))) == printed.get(view, 0)


def test_a_models_size_is_read_from_its_name() -> None:
    names = {
        "smollm2-135m-instruct": "135M",
        "HuggingFaceTB/SmolLM-1.7B": "1.7B",
        "/tmp/7b/tiny-model": None,
        "bert": None,
    }
    assert {name: size_of(name) for name in names} == names


def test_a_tuning_is_named_as_in_the_papers_figures() -> None:
    assert [tuning_label("none", None), tuning_label("lora", 8), tuning_label("full", None)] == ["PT", "R=8", "FFT"]
    assert tuning_label("sb", 16) == "sb R=16"
