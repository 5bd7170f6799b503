"""What a person sees: the stages of a run as they go, and what runs have left."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from storage.report_words import tuning_words
from tasks.progress import StageEvent, listening
from tasks.stage_words import stage_facts

if TYPE_CHECKING:
    from rich.console import RenderableType

    from flows.config import RunConfig
    from storage.report_tables import Table as ReportTable

_PLAIN_SECONDS = 15.0
"""Seconds between two lines about the same stage where the terminal cannot redraw a line."""
_PAGE_WIDTH, _ENDLESS = 120, 100_000
"""Columns of text, and at most those of a table, where there is no terminal."""
_WIDE = 100
"""Columns from which tables are set wider apart."""
_MARKS = {"cached": ("↺", "cyan"), "ran": ("✓", "green"), "failed": ("✗", "red")}


class _Display(Protocol):
    def __call__(self, event: StageEvent) -> None: ...

    def close(self) -> None: ...


@contextmanager
def showing_progress(config: "RunConfig", steps: Sequence[str]) -> Iterator[Console]:
    """Show what happens while the block runs: a live line where the terminal can redraw, plain lines elsewhere."""
    console = Console(stderr=True, highlight=False)
    console.print(f"[bold]Atalaia[/bold]  {escape(_title(config))}")
    for name, value in config.derived().items():
        console.print(f"[dim]  {name}: {escape(value)}[/dim]")
    with stage_display(console, steps):
        yield console


@contextmanager
def stage_display(console: Console, steps: Sequence[str]) -> Iterator[None]:
    """Show the stages as they go while the block runs."""
    display: _Display = _Live(console, steps) if console.is_terminal else _Plain(console, steps)
    try:
        with listening(display):
            yield
    finally:
        display.close()


def _title(config: "RunConfig") -> str:
    tuning = tuning_words(config.tuning.kind, config.tuning.rank)
    return f"{config.preset}: {config.dataset.name}, {config.model.name}, {tuning}, seed {config.seed}"


class _Steps:
    """The stages in order, and how long each has run."""

    def __init__(self, steps: Sequence[str]) -> None:
        self._steps = list(steps)
        self.width = max([10, *map(len, steps)])
        self._started = 0.0
        self._begun = time.monotonic()

    def start(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the running stage began."""
        return time.monotonic() - self._started

    def place(self, stage: str) -> str:
        """The stage's place among all."""
        if stage not in self._steps:
            return ""
        return f"{self._steps.index(stage) + 1:>2}/{len(self._steps)}"

    def finished(self, event: StageEvent) -> str:
        """The line that stays when a stage has ended."""
        mark, colour = _MARKS[event.state]
        how = "reused" if event.state == "cached" else duration(self.seconds)
        place, facts = self.place(event.stage), escape(stage_facts(event.counts))
        return (
            f"[{colour}]{mark}[/{colour}] [dim]{place}[/dim] {event.stage:<{self.width}} [dim]{how:>8}[/dim]  {facts}"
        )


class _Live:
    """One moving line for the running stage, beneath the lines of those that have ended."""

    def __init__(self, console: Console, steps: Sequence[str]) -> None:
        self._steps = _Steps(steps)
        self._task: TaskID | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[dim]{task.fields[place]}[/dim] {task.description:<" + f"{self._steps.width}}}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[left]}[/dim]  {task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._progress.start()

    def __call__(self, event: StageEvent) -> None:
        if event.state == "started":
            self._steps.start()
            self._remove()
            place = self._steps.place(event.stage)
            self._task = self._progress.add_task(event.stage, total=None, place=place, note="", left="")
        elif event.state == "running" and self._task is not None:
            left = _left(event, self._steps.seconds)
            note = escape(event.note)
            self._progress.update(self._task, completed=event.done, total=event.total, note=note, left=left)
        elif event.state in _MARKS:
            self._remove()
            self._progress.console.print(self._steps.finished(event))

    def _remove(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None

    def close(self) -> None:
        self._progress.stop()


class _Plain:
    """Lines only, for files and pipes."""

    def __init__(self, console: Console, steps: Sequence[str]) -> None:
        self._console = console
        self._steps = _Steps(steps)
        self._told = 0.0

    def __call__(self, event: StageEvent) -> None:
        if event.state == "started":
            self._steps.start()
            self._told = time.monotonic()
        elif event.state == "running" and time.monotonic() - self._told >= _PLAIN_SECONDS:
            self._told = time.monotonic()
            share = f"{100 * event.done / event.total:.0f} %" if event.total else ""
            left = _left(event, self._steps.seconds)
            parts = [part for part in (share, event.note, left) if part]
            stage = f"{event.stage:<{self._steps.width}}"
            self._console.print(f"  {self._steps.place(event.stage)} {stage} {escape(', '.join(parts))}")
        elif event.state in _MARKS:
            self._console.print(self._steps.finished(event), soft_wrap=True)

    def close(self) -> None:
        """Nothing is left open."""


def _left(event: StageEvent, seconds: float) -> str:
    """How long the stage will still take, once that can be told."""
    if not event.total or event.done <= 0 or seconds < 2:
        return ""
    left = seconds * (event.total - event.done) / event.done
    return f"{duration(max(0.0, left))} left"


def duration(seconds: float) -> str:
    """Seconds in the unit one would say them in."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def show_report(run_id: str | None) -> None:
    """Print the summary of a finished run, the newest if none is named."""
    from storage.executions import last_execution
    from storage.layout import current
    from storage.reports import terminal_report
    from storage.runs import newest_finished, summary_of

    chosen = run_id or newest_finished()
    summary = summary_of(chosen)
    console = _page()
    console.print(terminal_report(summary))
    execution = last_execution(chosen)
    if execution is not None:
        console.print(f"[dim]{execution.in_words()}[/dim]")
    console.print(f"[dim]The whole report: {current().run(chosen) / 'report.html'}[/dim]", soft_wrap=True)


_WORDS = {"dataset", "tuning", "score"}
"""Columns of the runs' table that may wrap where a terminal is narrow; numbers and names to type must not."""


def show_runs(found: list[dict[str, Any]]) -> None:
    """Print the runs as a table, newest last, with the label-free F1 of the model and of the best simple rule."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2 if _page().width >= _WIDE else 1, 0, 0))
    for name in ("run_id", "dataset", "tuning", "rounds", "seed", "status", "score", "AUROC", "F1", "rule F1"):
        table.add_column(name, no_wrap=name not in _WORDS, overflow="fold")
    for row in found:
        tuning = f"{row['tuning']} {_cell(row['rank'])}".strip()
        facts = [row["run_id"], row["dataset"], tuning, row["rounds"], row["seed"], row["status"], row["score"]]
        rates = [row["auroc"], (row["label_free"] or {}).get("f1"), (row["best_rule"] or {}).get("f1")]
        table.add_row(*map(_cell, [*facts, *rates]))
    if found:
        _print_table(table)
    else:
        _page().print("No runs yet; start one with `atalaia run demo`.")


def show_tables(made: "Sequence[ReportTable]") -> None:
    """Print tables of a report."""
    from storage.reports import rich_table

    for table in made:
        _print_table(rich_table(table))


def _page() -> Console:
    """Standard output, as wide as the terminal; files and pipes have a width of their own."""
    return Console(width=None if sys.stdout.isatty() else _PAGE_WIDTH, highlight=False)


def _print_table(table: "RenderableType") -> None:
    """Print a table, a line a row where it goes to a file or a pipe, however long the lines."""
    console = _page()
    if not sys.stdout.isatty():
        endless = console.options.update(max_width=_ENDLESS)
        console.width = max(_PAGE_WIDTH, Measurement.get(console, endless, table).maximum)
    console.print(table)


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def show_query(sql: str | None, view: str | None) -> None:
    """Print what a query gives: a table on a terminal, tab-separated values in a pipe."""
    from flows.computed_views import COMPUTED
    from storage.errors import DataError
    from storage.layout import current
    from storage.rounds import query

    if (sql is None) == (view is None):
        raise DataError("Give a query or --view NAME, for example: atalaia query --view rounds")
    result = query(sql or f"SELECT * FROM {view}", current(), COMPUTED)
    if not sys.stdout.isatty():
        sys.stdout.write(result.write_csv(separator="\t"))
        return
    from rich.table import Table

    table = Table(box=None)
    for name in result.columns:
        table.add_column(escape(name), overflow="fold")
    for row in result.iter_rows():
        table.add_row(*[escape(_cell(value)) for value in row])
    _page().print(table)
