"""What a person sees of registered detectors."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from storage.registry import Version

_PAGE_WIDTH = 120


def show_detectors(found: Sequence[Version]) -> None:
    """Print the registered detectors: which is used, what each came from, and how it got its place."""
    console = Console(width=None if sys.stdout.isatty() else _PAGE_WIDTH, highlight=False)
    if not found:
        console.print("No detector is registered yet; start with `atalaia run demo`.")
    for version in found:
        titles = f"  [bold green]{', '.join(version.aliases)}[/bold green]" if version.aliases else ""
        console.print(f"[bold]{escape(version.called)}[/bold]{titles}  [dim]{version.registered}[/dim]")
        for word, text in _facts(version).items():
            if text:
                console.print(f"  [dim]{word:<11}[/dim]{escape(text)}", soft_wrap=True)


def _facts(version: Version) -> dict[str, str]:
    tags = version.tags
    data = {key.removeprefix("data_"): value for key, value in tags.items() if key.startswith("data_")}
    return {
        "what": version.description,
        "comparison": tags.get("comparison", ""),
        "run": tags.get("run_id", ""),
        "page": tags.get("flow_run_url") or tags.get("flow_run_id", ""),
        "rounds": tags.get("rounds", ""),
        "data": ", ".join(f"{name} {value[:8]}" for name, value in data.items()),
    }
