"""The command sweep: a grid of runs, and where it is."""

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from storage.sweeps import SweepRecord

_SOME_FAILED = 1
"""Exit status of a sweep that ended with cells without results."""


def sweep(
    grid: Annotated[str, typer.Argument(help="A grid: small, sites, codecs, paper, or the path of a .toml file.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads it at run time)
        typer.Argument(metavar="[KEY=VALUE]...", help="For all cells; tuning=PT,R=8 takes some places of an axis."),
    ] = None,
) -> None:
    """Run every cell of a grid; one that fails stops no other, and what lies at rest is reused."""
    from flows.server import prefect_server, quiet_terminal
    from storage.layout import current

    quiet_terminal(current())
    from flows.grids import cells_of, read_grid

    # A wrong grid or setting is told before anything starts.
    cells_of(read_grid(grid), settings or [])
    from rich.console import Console

    progress = SweepProgress(Console(stderr=True, highlight=False))
    with prefect_server(current()):
        from flows.sweep import FailedCells, watching
        from flows.sweep import sweep as flow

        try:
            with watching(progress):
                flow(grid, settings or [])
        except FailedCells as failed:
            record = failed.record
        else:
            record = progress.record
    show_sweep(record)
    if record.status == "failed":
        raise typer.Exit(_SOME_FAILED)


class SweepProgress:
    """Cell i of n with its stages; where several run at once, only their beginnings and ends."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._stack = ExitStack()
        self._at_once = 1
        self.record: SweepRecord

    def sweep_began(self, record: "SweepRecord", at_once: int) -> None:
        """Say what will run."""
        self.record, self._at_once = record, at_once
        running = f", {at_once} at once" if at_once > 1 else ""
        self._console.print(f"[bold]Sweep[/bold] {record.sweep_id}: {len(record.cells)} cells{running}")

    def cell_began(self, number: int, record: "SweepRecord") -> None:
        """Name the cell, and show its stages."""
        from rich.markup import escape

        from flows.cli import RUN
        from flows.terminal import stage_display

        name = escape(record.cells[number].name)
        self._console.print(f"[bold]cell {number + 1} of {len(record.cells)}[/bold]  {name}")
        if self._at_once == 1:
            self._stack.enter_context(stage_display(self._console, RUN))

    def cell_ended(self, number: int, record: "SweepRecord") -> None:
        """Say how it ended."""
        from rich.markup import escape

        from flows.terminal import duration

        self.record = record
        self._stack.close()
        cell = record.cells[number]
        told = {"finished": "[green]✓[/green]", "cached": "[cyan]↺ cached[/cyan]", "failed": "[red]✗ failed[/red]"}
        took = "" if cell.seconds is None else f"  [dim]{duration(cell.seconds)}[/dim]"
        reason = f"  {escape(cell.reason)}" if cell.reason else ""
        mark = told.get(cell.status, cell.status)
        place = f"cell {number + 1} of {len(record.cells)}"
        self._console.print(f"{mark} {place}  {escape(cell.name)}{took}{reason}", soft_wrap=True)

    def timing_began(self, shapes: "Sequence[str]") -> None:
        """Show the stages that take the times."""
        from flows.cli import PREPARE
        from flows.terminal import stage_display
        from tasks.time_shapes import timing_names

        self._console.print(f"[bold]Table 3[/bold]  {', '.join(shapes)} with random weights")
        steps = (*PREPARE, *timing_names(shapes))
        self._stack.enter_context(stage_display(self._console, steps))

    def timing_ended(self, record: "SweepRecord") -> None:
        """Say what could not be timed."""
        from rich.markup import escape

        self.record = record
        self._stack.close()
        if record.untimed:
            self._console.print(f"[red]✗ failed[/red] Table 3  {escape(record.untimed)}", soft_wrap=True)


def show_sweep(record: "SweepRecord") -> None:
    """Print a sweep's tables, and one line on stderr for each cell that failed."""
    from flows.terminal import show_tables
    from storage.sweeps import failures, sweep_folder, sweep_tables

    show_tables(sweep_tables(record))
    # A sweep that was stopped before its first end has none yet.
    if (page := sweep_folder(record.sweep_id) / "sweep.html").is_file():
        print(f"The whole report, figures inside: {page}")
    for line in failures(record):
        print(f"atalaia: {line}", file=sys.stderr)
