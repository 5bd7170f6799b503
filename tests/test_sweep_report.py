"""The report of a sweep: figures and tables of what ran, and of what did not run that it did not."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from run_folders import run_facts, save_run, training_facts

from storage.adapters import commit_round
from storage.layout import Layout
from storage.paper_views import PAPER_VIEWS
from storage.pictures import Picture
from storage.rounds import query
from storage.runs import summary_of
from storage.sweep_figures import DRAWN, best_f1
from storage.sweep_files import PAPER_TABLES, write_sweep
from storage.sweep_html import best_cell, protocol_tables
from storage.sweep_results import CellResult, cell_results, grouped
from storage.sweep_tracking import paper_metrics
from storage.sweeps import CellRecord, SweepRecord

SENT = 1_870_000
"""Bytes of a message of rank 8 in run_folders."""


def _cell(size: str, tuning: str, seed: int, **changes: object) -> CellRecord:
    group = f"{size}, {tuning}"
    values = {"name": f"{group}, seed {seed}", "group": group, "seed": seed, "command": f"atalaia run x seed={seed}"}
    return CellRecord(**values | {"model": f"HuggingFaceTB/SmolLM-{size}", "tuning": tuning} | changes)  # type: ignore[arg-type]


def _top_k(round_number: int, k: int, f1: float) -> dict[str, object]:
    return {"round": round_number, "split": "test", "population": "balanced", "score": "top_k", "k": k} | {
        "threshold_kind": "oracle",
        "f1": f1,
    }


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, SweepRecord]:
    """Two seeds of R=8 and the untouched model at one size; a failed cell, and a size of which nothing ran."""
    layout = Layout(tmp_path_factory.mktemp("home"))
    for seed in (0, 1):
        save_run(layout, run_facts(f"lora-{seed}", seed=seed), noise=2.0, labels_seed=seed)
        folder = layout.run(f"lora-{seed}")
        for number in range(3):
            clients = [
                {"round": number, "partition": place, "bytes_up": SENT, "bytes_down": SENT}
                for place in range(2 if number else 0)
            ]
            facts = {"round": number, "loss": 1.0 / number if number else None}
            commit_round(folder, number, {"w": np.zeros(1, np.float32)}, f"a{seed}{number}", clients, facts)
        rows = [_top_k(0, 1, 0.99), _top_k(1, 1, 0.7), _top_k(2, 1, 0.7), _top_k(1, 3, 0.5), _top_k(2, 3, 0.9)]
        known = pl.read_parquet(folder / "metrics.parquet")
        pl.concat([known, pl.DataFrame(rows)], how="diagonal_relaxed").write_parquet(folder / "metrics.parquet")
    nothing = {"trainable_parameters": 0, "bytes_up_per_client_round": 0, "bytes_down_per_client_round": 0}
    facts = training_facts(**nothing, client_rounds=0, train_seconds=0)
    save_run(layout, run_facts("pt", tuning="none", rank=None), facts, noise=4.0)
    cells = [
        _cell("135M", "PT", 0, status="cached", run_id="pt"),
        _cell("135M", "R=8", 0, status="finished", run_id="lora-0"),
        _cell("135M", "R=8", 1, status="finished", run_id="lora-1"),
        _cell("135M", "FFT", 0, status="failed", reason="out of memory"),
        _cell("1.7B", "R=8", 0),
    ]
    named = {"sweep_id": "s-1", "grid": "small", "command": "atalaia sweep small", "started": "2026-11-21T21:00:00"}
    return layout, SweepRecord(**named, status="failed", cells=cells)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(swept: tuple[Layout, SweepRecord]) -> dict[str, Path]:
    """The files of the sweep's report by name."""
    layout, record = swept
    paper = {view: query(f"SELECT * FROM {view}", layout) for view in PAPER_TABLES}
    return {path.name: path for path in write_sweep(record, paper, layout)}


def _cells(swept: tuple[Layout, SweepRecord]) -> list[CellResult]:
    return cell_results(swept[1], swept[0])


def test_cells_stand_by_size_and_tuning(swept: tuple[Layout, SweepRecord]) -> None:
    groups = grouped(_cells(swept))
    names = {panel: {name: len(cells) for name, cells in variants.items()} for panel, variants in groups.items()}
    assert names == {"135M": {"PT": 1, "R=8": 2, "FFT": 1}, "1.7B": {"R=8": 1}}


def test_the_best_f1_of_each_k_is_the_earliest_best_trained_round_and_bytes_are_counted_until_then(
    swept: tuple[Layout, SweepRecord],
) -> None:
    cell = _cells(swept)[1]
    assert cell.best_f1("balanced", "oracle").rows() == [(1, 0.7, 1), (3, 0.9, 2)]
    assert cell.bytes_until(1) == 2 * 2 * SENT
    assert cell.bytes_until(2) == 4 * 2 * SENT
    assert cell.losses.rows() == [(1, 1.0), (2, 0.5)]


def test_of_values_of_k_with_the_same_best_f1_the_one_that_had_it_first_tells_what_was_sent(
    swept: tuple[Layout, SweepRecord], tmp_path: Path
) -> None:
    cell = replace(_cells(swept)[1], folder=tmp_path)
    assert cell.soonest_best("balanced", "oracle") is None
    rows = [_top_k(3, 1, 0.9), _top_k(2, 3, 0.9), _top_k(1, 3, 0.8), _top_k(1, 5, 0.7), _top_k(3, 10, 0.9)]
    pl.DataFrame(rows).with_columns(split=pl.lit("test")).write_parquet(tmp_path / "metrics.parquet")
    assert cell.soonest_best("balanced", "oracle") == (0.9, 2)


def test_cells_that_vary_otherwise_are_told_apart_by_their_names(swept: tuple[Layout, SweepRecord]) -> None:
    layout, record = swept
    cells = [
        cell.model_copy(update={"group": f"codec {place}", "tuning": "R=8"}) for place, cell in enumerate(record.cells)
    ]
    found = cell_results(record.model_copy(update={"cells": cells}), layout)
    assert [cell.variant for cell in found] == [f"codec {place}" for place in range(5)]


def test_where_only_last_rounds_were_scored_figures_do_not_speak_of_a_choice_among_rounds(
    swept: tuple[Layout, SweepRecord], tmp_path: Path
) -> None:
    cells = _cells(swept)
    assert "chosen by the test labels" in best_f1(cells, tmp_path / "several").caption
    once = []
    for number, cell in enumerate(cells):
        if cell.folder:
            folder = tmp_path / str(number)
            folder.mkdir()
            kept = pl.read_parquet(cell.folder / "metrics.parquet").filter(pl.col("round") != 1)
            kept.write_parquet(folder / "metrics.parquet")
            cell = replace(cell, folder=folder)
        once.append(cell)
    told = best_f1(once, tmp_path / "once").caption
    assert "only the last round" in told
    assert "chosen" not in told


def test_every_figure_is_there_for_reports_papers_and_screens(written: dict[str, Path]) -> None:
    drawn = {path.stem for path in written.values() if path.suffix == ".svg"}
    assert {"figure_3_losses", "figure_4_best_f1", "figure_5_communication", "cost_against_quality"} <= drawn
    for name in drawn:
        assert ElementTree.parse(written[f"{name}.svg"]).getroot().tag.endswith("svg")
        assert written[f"{name}.pdf"].read_bytes().startswith(b"%PDF-")
        assert written[f"{name}.png"].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("variant", ["R=8", "codec=elias_fano, clients=16, partition=dirichlet, R=8"])
def test_no_word_of_a_figure_of_one_panel_runs_past_its_edge(
    name: str, variant: str, swept: tuple[Layout, SweepRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def kept(figure: Figure, path: Path, caption: str) -> Picture:
        drawn.append(figure)
        figure.draw_without_rendering()
        return Picture(caption, path, path, path)

    monkeypatch.setattr("storage.sweep_figures.save", kept)
    DRAWN[name]([replace(cell, variant=variant) for cell in _cells(swept) if cell.panel == "135M"], tmp_path / name)
    [figure] = drawn
    words = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        words += [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels()]
        words += [text for text in axes.findobj(Text) if text.get_text().startswith("not run")]
    # Numbers along an axis may stand beyond what of it is drawn, where they are not shown.
    shown = [word for word in words if re.search("[a-z=]", word.get_text()) and word.get_visible()]
    assert shown
    for word in shown:
        box = word.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, word
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1, word


def test_the_page_needs_nothing_from_elsewhere_and_has_commands_seeds_hardware_and_what_was_not_run(
    written: dict[str, Path],
) -> None:
    page = written["sweep.html"].read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(addresses) == 6
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "http" not in page.replace("http://www.w3.org", "")
    text = re.sub(r"<[^>]+>", " ", page)
    for told in (
        "atalaia sweep small",
        "atalaia run x seed=1",
        "some processor",
        "out of memory",
        "1.7B R=8 not run",
        "not run atalaia run x",
        "the round is chosen by the test labels",
        "on a CPU the memory is the whole process",
        "253.04",
    ):
        assert told in " ".join(text.split()).replace("– ", ""), told


def test_sizes_factors_and_durations_sort_by_their_bytes_and_seconds(
    swept: tuple[Layout, SweepRecord], written: dict[str, Path]
) -> None:
    page = written["sweep.html"].read_text()
    row = page[page.index("135M, R=8, seed 1") :].partition("</tr>")[0]
    found = re.findall(r'data-value="([^"]+)">([^<]*)<', row)
    cost = next(cell.summary for cell in _cells(swept) if cell.seed == 1 and cell.summary).training
    factor = cost.full_model_bytes / SENT
    told = {f"{SENT / 1e6:.2f} MB": SENT, f"{factor:.0f} x": factor, "90.0 s": cost.train_seconds, "30.0 s": 30.0}
    assert {text: float(value) for value, text in found if text in told} == pytest.approx(told)


def test_the_headline_is_the_best_cells_with_its_intervals_and_says_that_the_test_windows_chose_it(
    swept: tuple[Layout, SweepRecord], written: dict[str, Path]
) -> None:
    judged = [(cell, cell.summary.findings) for cell in _cells(swept) if cell.summary]
    cell, found = max(judged, key=lambda one: one[1]["label_free"]["f1"])
    interval, difference = found["headline"]["f1"]["label_free"], found["headline"]["difference"]
    page, text = (html.unescape(written[name].read_text()) for name in ("sweep.html", "sweep.md"))
    for told in (
        f"Best of 3 cells, chosen by the test windows: 135M, {cell.variant}, seed {cell.seed}",
        f"F1 {found['label_free']['f1']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]",
        f"a difference of {difference['estimate']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]",
        "do not allow for the choice",
    ):
        assert told in page
        assert told in text


@pytest.mark.parametrize(("low", "verdict"), [(-0.1, "unclear"), (0.1, "better")])
def test_the_headline_calls_the_best_cell_better_only_where_the_interval_of_the_difference_does(
    swept: tuple[Layout, SweepRecord], low: float, verdict: str
) -> None:
    cell = next(cell for cell in _cells(swept) if cell.summary)
    findings = json.loads(json.dumps(cell.summary.findings)) if cell.summary else {}
    findings["headline"] |= {"difference": {"estimate": 0.2, "low": low, "high": 0.4}, "verdict": verdict}
    told = best_cell([replace(cell, summary=cell.summary and cell.summary.model_copy(update={"findings": findings}))])
    assert ("cannot tell" in told) == (low < 0)
    assert ("better than the best simple rule" in told) == (low > 0)
    assert best_cell([replace(cell, summary=None)]) == "No cell has an F1 to compare."


def test_cells_with_the_same_best_f1_are_counted(swept: tuple[Layout, SweepRecord]) -> None:
    cell = next(cell for cell in _cells(swept) if cell.summary)
    assert "and 2 others with the same F1" in best_cell([cell] * 3)
    assert "others" not in best_cell([cell])


def test_the_papers_tables_are_files_and_metrics(swept: tuple[Layout, SweepRecord], written: dict[str, Path]) -> None:
    assert set(PAPER_TABLES) <= set(PAPER_VIEWS)
    assert len(pl.read_csv(written["table2.csv"])) == 15
    found = paper_metrics({"table2": query("SELECT * FROM table2", swept[0])}, {})
    assert found["table2/135M/R_8/sent_up"] == SENT
    assert found["table2/1.7B/FFT/printed_mb"] == 6845.53
    assert all(re.fullmatch(r"[\w./-]+", name) for name in found)


def test_table_3_is_of_the_sweeps_own_cells_and_of_what_was_measured_apart(
    tmp_path: Path,
) -> None:
    layout, times = Layout(tmp_path), {"mine-2": 20.0, "mine-8": 80.0, "other-8": 5.0, "other-big": 7.0}
    sizes = {"other-big": "HuggingFaceTB/SmolLM-1.7B"}
    for run_id, mean in times.items():
        rank = 2 if run_id.endswith("2") else 8
        facts = run_facts(run_id, rank=rank, model=sizes.get(run_id, "HuggingFaceTB/SmolLM-135M"))
        save_run(layout, facts, training_facts(latency_ms=mean, latency_windows=10))
    (layout.latency / "gpu").mkdir(parents=True)
    apart = {"machine": {"gpu": "some GPU"}, "weights": "random", "135M": {"padded": {"mean_ms": 9.0}}}
    (layout.latency / "gpu" / "latency.json").write_text(json.dumps(apart))
    cells = [_cell("135M", f"R={rank}", 0, status="finished", run_id=f"mine-{rank}") for rank in (2, 8)]
    named = {"sweep_id": "s-1", "grid": "small", "command": "atalaia sweep small", "started": "2026-11-21T21:00:00"}
    record = SweepRecord(**named, status="finished", cells=cells)  # type: ignore[arg-type]
    paper = {"table3": query("SELECT * FROM table3", layout)}
    found = paper_metrics(paper, {cell.run_id: cell.name for cell in cells if cell.run_id})
    measured = {name: value for name, value in found.items() if name.endswith("measured_ms")}
    assert measured == {
        "table3/135M__R_2__seed_0/scored_alone/measured_ms": 20.0,
        "table3/135M__R_8__seed_0/scored_alone/measured_ms": 80.0,
        "table3/135M/padded/some_GPU/measured_ms": 9.0,
    }
    files = {path.name: path for path in write_sweep(record, paper, layout)}
    kept = pl.read_csv(files["table3.csv"]).select("size", "printed_ms", "measured_ms", "run_id", "measured_on")
    here = "some processor, 2 cores"
    assert kept.rows() == [
        ("135M", 30.8908, 20.0, "mine-2", here),
        ("135M", 30.8908, 80.0, "mine-8", here),
        ("135M", 30.8908, 9.0, None, "some GPU"),
        ("360M", 62.3438, None, None, "not run"),
        ("1.7B", 253.0354, None, None, "not run"),
    ]


def test_rules_stand_apart_by_the_data_they_were_fitted_on(tmp_path: Path) -> None:
    layout, cells, f1 = Layout(tmp_path), [], {}
    for place, windows in enumerate((57, None)):
        for tuning, rank in (("R=2", 2), ("R=8", 8)):
            config = {"split": {"train_windows": windows, "seed": 0}, "tuning": {"rank": rank}}
            run_id = f"{windows}-{rank}"
            save_run(layout, run_facts(run_id, rank=rank, seed=0, config=config), labels_seed=place)
            cells.append(_cell("135M", f"{tuning}, {windows}", 0, status="finished", run_id=run_id))
            for rule in summary_of(run_id, layout).findings["rules"]:
                f1[f"rule: {rule['rule']}", f"split.train_windows={windows}"] = rule["f1"]
    named = {"sweep_id": "s-1", "grid": "mine", "command": "atalaia sweep mine", "started": "2026-11-21T21:00:00"}
    results = cell_results(SweepRecord(**named, cells=cells), layout)  # type: ignore[arg-type]
    table = protocol_tables(results)[1]
    assert table.columns[:4] == ["detector", "data", "seeds", "F1, all test windows"]
    told = {(row[0], row[1]): (row[2], row[3]) for row in table.rows}
    assert told == {key: ("1", f"{value:.3f}") for key, value in f1.items()}
    few, rest = ([value for (_, data), value in f1.items() if data.endswith(end)] for end in ("57", "None"))
    assert few != rest
    # Where the data are the same but for their seeds, nothing has to be told apart.
    assert protocol_tables(results[:2])[1].columns[:2] == ["detector", "seeds"]


def test_a_mean_over_fewer_seeds_than_its_row_has_says_so(swept: tuple[Layout, SweepRecord]) -> None:
    whole = [cell for cell in _cells(swept) if cell.summary and cell.variant == "R=8"]
    findings = json.loads(json.dumps(whole[1].summary.findings)) if whole[1].summary else {}
    findings |= {"auroc": None, "validated": None}
    findings["rules_by_population"] = [row | {"f1": None} for row in findings["rules_by_population"]]
    summary = whole[1].summary and whole[1].summary.model_copy(update={"findings": findings})
    first = whole[0].summary.findings if whole[0].summary else {}
    models, rules = protocol_tables([whole[0], replace(whole[1], summary=summary)])
    row = dict(zip(models.columns, models.rows[0], strict=True))
    assert row["seeds"] == 2
    assert row["AUROC"] == f"{first['auroc']:.3f} (1 of 2)"
    assert row["validated F1"] == f"{first['validated']['f1']:.3f} (1 of 2)"
    assert " ± " in str(row["label-free F1"]) and "of 2" not in str(row["label-free F1"])
    told = dict(zip(rules.columns, rules.rows[0], strict=True))
    assert (told["seeds"], told["F1, all test windows"]) == ("2", f"{first['rules'][0]['f1']:.3f} (1 of 2)")
