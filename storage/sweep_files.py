"""The files that a sweep leaves: its report, its figures, and the paper's tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from storage.layout import Layout
from storage.paper_views import NOT_RUN
from storage.report_tables import markdown_table, markdown_text
from storage.sweep_html import best_cell, protocol_tables, sweep_report
from storage.sweep_results import cell_results
from storage.sweeps import SweepRecord, failures, sweep_folder, sweep_tables

PAPER_TABLES = {
    "table1": "Table 1 of the paper: methods, as printed, and what was measured here",
    "table2": "Table 2 of the paper: a message, printed, computed, and as it was sent",
    "table3": "Table 3 of the paper: time and memory of a window, printed and measured; on a CPU the memory "
    "is the whole process's, with all that earlier cells left in it",
    "codecs": "Bytes of a message under each codec, as Flower serializes them",
}
"""Views that a sweep's report shows, with their titles."""


def write_sweep(record: SweepRecord, paper: Mapping[str, pl.DataFrame], layout: Layout) -> list[Path]:
    """Write sweep.md, sweep.html, the figures and a CSV file of each of the paper's tables; the paths, sweep.md first.

    `paper` holds the answers of the views of PAPER_TABLES.
    """
    # matplotlib takes half a second to import.
    from storage.sweep_figures import draw_sweep

    folder = sweep_folder(record.sweep_id, layout)
    cells = cell_results(record, layout)
    pictures = draw_sweep(cells, folder / "figures")
    text, page = folder / "sweep.md", folder / "sweep.html"
    failed = [f"- {markdown_text(line)}" for line in failures(record)]
    made = [markdown_table(table) for table in [*sweep_tables(record, layout), *protocol_tables(cells)]]
    said = ["", f"**{markdown_text(best_cell(cells))}**", ""]
    text.write_text("\n".join([f"# {markdown_text(record.command)}", *said, *failed, *([""] if failed else []), *made]))
    runs = [cell.run_id for cell in record.cells if cell.run_id]
    own = {view: _of_runs(frame, runs) if view == "table3" else frame for view, frame in paper.items()}
    shown = {
        PAPER_TABLES[view]: frame.drop("source", "f1_label_free", "auroc", strict=False) for view, frame in own.items()
    }
    figures = {picture.caption: picture.svg for picture in pictures}
    page.write_text(sweep_report(record, cells, figures, shown, layout))
    tables = []
    for view, frame in own.items():
        tables.append(folder / f"{view}.csv")
        frame.write_csv(tables[-1])
    drawn = [path for picture in pictures for path in (picture.svg, picture.pdf, picture.png)]
    return [text, page, *tables, *drawn]


def _of_runs(frame: pl.DataFrame, runs: Sequence[str]) -> pl.DataFrame:
    """Table 3 with only these runs and what was measured apart from runs; a size without either was not run."""
    measured = [name for name in frame.columns if name not in {"size", "source"} and not name.startswith("printed_")]
    own = pl.col("run_id").is_null() | pl.col("run_id").is_in(runs)
    first_of_none = ~own.any().over("size") & (pl.int_range(pl.len()).over("size") == 0)
    kept = frame.with_columns(own=own).filter(own | first_of_none)
    return kept.with_columns(
        pl.when("own").then(name).otherwise(pl.lit(NOT_RUN) if name == "measured_on" else None).alias(name)
        for name in measured
    ).drop("own")
