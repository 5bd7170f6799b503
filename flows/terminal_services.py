"""What a person sees of the services: how they start, and how they are."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from storage.services import PlatformState

_COLOURS = {"healthy": "green", "done": "green", "given up": "red", "silent": "yellow", "restarting": "yellow"}
_RUN_COLOURS = {"Completed": "green", "Failed": "red", "Crashed": "red", "Running": "cyan"}


@contextmanager
def showing_start() -> Iterator[Callable[[PlatformState], None]]:
    """A function to tell of each state while the block runs: a line on stderr for each service that changed."""
    console = Console(stderr=True, highlight=False)
    seen: dict[str, str] = {}
    noted: set[str] = set()
    begun = time.monotonic()

    def tell(state: PlatformState) -> None:
        for note in state.notes:
            if note not in noted:
                noted.add(note)
                console.print(f"[yellow]{escape(note)}[/yellow]")
        for found in state.services:
            told = f"{found.condition}{f': {found.reason}' if found.reason else ''}"
            if found.condition != "waiting" and seen.get(found.name) != told:
                seen[found.name] = told
                colour = _COLOURS.get(found.condition, "dim")
                seconds = f"{time.monotonic() - begun:6.1f} s"
                console.print(f"[dim]{seconds}[/dim]  {found.name:<14} [{colour}]{escape(told)}[/{colour}]")

    yield tell


def show_status(report: Mapping[str, Any]) -> None:
    """The services and the last runs, on stdout."""
    console = Console(highlight=False)
    if report["phase"] == "down":
        console.print(f"Nothing is up for {report['home']}; `atalaia up` starts it.", soft_wrap=True)
        return
    console.print(f"Prefect   {report['prefect_url']}\nMLflow    {report['mlflow_url']}", soft_wrap=True)
    console.print(f"Tables    {report['database']}\nLogs      {report['home']}/services", soft_wrap=True)
    for note in report["notes"]:
        console.print(f"[yellow]{escape(note)}[/yellow]")
    console.print(_services(report["services"]))
    if report["runs"]:
        console.print(_runs(report["runs"]))
    else:
        console.print("No runs yet.")


def _services(services: list[dict[str, Any]]) -> Table:
    table = Table("service", "is", "for", "pid", "restarts", "why", box=None, pad_edge=False)
    for found in services:
        colour = _COLOURS.get(found["condition"], "dim")
        condition = f"[{colour}]{found['condition']}[/{colour}]"
        pid = str(found["pid"] or "–")
        table.add_row(
            found["name"], condition, _since(found["since"]), pid, str(found["restarts"]), escape(found["reason"])
        )
    return table


def _runs(runs: list[dict[str, Any]]) -> Table:
    table = Table("last runs", "flow", "state", "started", "seconds", box=None, pad_edge=False)
    for run in runs:
        colour = _RUN_COLOURS.get(run["state"], "dim")
        state = f"[{colour}]{escape(run['state'])}[/{colour}]"
        ago = f"{_since(run['started'])} ago"
        table.add_row(escape(run["name"]), run["flow"], state, ago, f"{run['seconds']:.0f}")
    return table


def _since(time_text: str) -> str:
    """How long ago a time was, in its largest unit."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time_text)).total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
