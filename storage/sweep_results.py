"""What the figures of a sweep show of each cell: where it stands in the grid, and what its run left on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl

from storage.errors import DataError
from storage.layout import Layout, current
from storage.paper_views import size_of
from storage.runs import summary_of
from storage.summaries import Summary
from storage.sweeps import DONE, CellRecord, SweepRecord


@dataclass(frozen=True)
class CellResult:
    """A cell; without a summary it has no results."""

    panel: str
    """The base model's size as the paper writes it, or its name."""
    variant: str
    """The tuning as the paper's figures name it, or the whole cell without its seed where that is not enough."""
    seed: int
    status: str
    summary: Summary | None = None
    folder: Path | None = field(default=None, repr=False)

    @cached_property
    def losses(self) -> pl.DataFrame:
        """Training loss of each round (round, loss); empty for the untouched model."""
        rounds = self._parquet("rounds/round-*/round.parquet", {"round": pl.Int64(), "loss": pl.Float64()})
        return rounds.filter((pl.col("round") > 0) & pl.col("loss").is_not_null()).sort("round")

    @cached_property
    def bytes_by_round(self) -> pl.DataFrame:
        """Bytes that all clients of a round sent and got (round, bytes)."""
        kinds = {"round": pl.Int64(), "bytes_up": pl.Int64(), "bytes_down": pl.Int64()}
        clients = self._parquet("rounds/round-*/clients.parquet", kinds)
        return clients.group_by("round").agg(bytes=(pl.col("bytes_up") + pl.col("bytes_down")).sum()).sort("round")

    @cached_property
    def scored_rounds(self) -> list[int]:
        """The rounds whose adapters were scored, without the untouched model's."""
        rounds = self._parquet("metrics.parquet", {"round": pl.Int64()})
        return rounds["round"].filter(rounds["round"] > 0).unique().sort().to_list()

    def best_f1(self, population: str, threshold: str) -> pl.DataFrame:
        """The best test F1 over the rounds for each K of top-K accuracy (k, f1, round); the earliest of equal rounds.

        Round 0, the untouched model, only counts where nothing was trained.
        """
        kinds: dict[str, pl.DataType] = {
            "round": pl.Int64(),
            **dict.fromkeys(("split", "population", "score", "threshold_kind"), pl.String()),
            "k": pl.Int64(),
            "f1": pl.Float64(),
        }
        metrics = self._parquet("metrics.parquet", kinds)
        wanted = {"split": "test", "population": population, "score": "top_k", "threshold_kind": threshold}
        metrics = metrics.filter(pl.col("f1").is_not_null(), *(pl.col(name) == one for name, one in wanted.items()))
        if self.summary is None or self.summary.run.tuning != "none":
            metrics = metrics.filter(pl.col("round") > 0)
        return (
            metrics.sort("f1", -pl.col("round"), descending=True)
            .group_by("k")
            .first()
            .sort("k")
            .select("k", "f1", "round")
        )

    def soonest_best(self, population: str, threshold: str) -> tuple[float, int] | None:
        """The best test F1 over rounds and K, and the earliest round that has it; None where there is no F1."""
        best = self.best_f1(population, threshold).sort("f1", -pl.col("round"), descending=True)
        return next(best.select("f1", "round").iter_rows(), None)

    def bytes_until(self, number: int) -> int:
        """Bytes sent by all clients, both ways, up to a round."""
        return int(self.bytes_by_round.filter(pl.col("round") <= number)["bytes"].sum())

    @cached_property
    def test_scores(self) -> pl.DataFrame:
        """Labelled test windows (label, score; higher is more anomalous)."""
        kinds = {"split": pl.String(), "label": pl.Int8(), "score": pl.Float64()}
        scores = self._parquet("window_scores.parquet", kinds)
        known = pl.col("label").is_not_null() & pl.col("score").is_not_null()
        return scores.filter((pl.col("split") == "test") & known).select("label", "score")

    def _parquet(self, pattern: str, kinds: Mapping[str, pl.DataType]) -> pl.DataFrame:
        files = sorted(self.folder.glob(pattern)) if self.folder else []
        if not files:
            return pl.DataFrame(schema=kinds)
        tables = [pl.read_parquet(file, columns=list(kinds)) for file in files]
        return pl.concat([table.cast(kinds) for table in tables])  # type: ignore[arg-type]


def cell_results(record: SweepRecord, layout: Layout | None = None) -> list[CellResult]:
    """Every cell of a sweep, in the grid's order."""
    places = [(_panel(cell), cell.tuning or cell.group) for cell in record.cells]
    alone = len({(*place, cell.seed) for place, cell in zip(places, record.cells, strict=True)}) == len(record.cells)
    found = []
    for cell, (panel, variant) in zip(record.cells, places, strict=True):
        summary, folder = _results(cell, layout or current())
        named = variant if alone else cell.group
        found.append(CellResult(panel, named, cell.seed, cell.status, summary, folder))
    return found


def _panel(cell: CellRecord) -> str:
    return size_of(cell.model) or Path(cell.model).name or "all"


def _results(cell: CellRecord, layout: Layout) -> tuple[Summary | None, Path | None]:
    if cell.status not in DONE or cell.run_id is None:
        return None, None
    try:
        return summary_of(cell.run_id, layout), layout.run(cell.run_id)
    except DataError:  # its folder was removed since
        return None, None


def grouped(cells: Sequence[CellResult]) -> dict[str, dict[str, list[CellResult]]]:
    """Cells by panel and variant, each in the grid's order; those of one variant differ by seed."""
    found: dict[str, dict[str, list[CellResult]]] = {}
    for cell in cells:
        found.setdefault(cell.panel, {}).setdefault(cell.variant, []).append(cell)
    return found
