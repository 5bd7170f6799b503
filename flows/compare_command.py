"""The command compare: how the base and the tuned model of a run go on from the same beginning of a log."""

from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from storage.continuations import Continuation


def compare(
    run: Annotated[Optional[str], typer.Argument(help="A run; the newest if left out.")] = None,  # noqa: UP045
    prefix: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Go on from these masked messages, joined by ' ;-; ', instead of the run's own."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="At most so many tokens.")] = 40,
    temperature: Annotated[
        float, typer.Option(min=0, help="0: always the most probable token; above: drawn with the seed.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Have the base and the tuned model of a run go on from the same beginning of a log, side by side."""
    from flows.server import quiet_environment
    from storage.layout import current
    from storage.runs import newest_finished, summary_of

    quiet_environment(current())
    from fl.generation import Sampling

    chosen = run or newest_finished()
    summary = summary_of(chosen)
    sampling = Sampling(tokens, temperature, seed)
    found = summary.continuations
    if prefix is not None or sampling != Sampling() or not found:
        from tasks.compare_models import compare_run

        found = compare_run(chosen, sampling, prefix)
    _show(found, summary.run.config.get("tokens", {}).get("separator", " ;-; "))


def _show(found: "list[Continuation]", separator: str) -> None:
    import sys

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from storage.continuations import continuation_note, messages_of

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for each in found:
        console.print("[bold]After[/bold]")
        for message in messages_of(each.prefix, separator):
            console.print(f"  {escape(message)}")
        table = Table(box=None, padding=(0, 2, 1, 0), show_edge=False)
        for name, _, nats in each.sides():
            table.add_column(name if nats is None else f"{name} ({nats:.2f} nats)", ratio=1, overflow="fold")
        table.add_row(*[escape("\n".join(messages_of(text, separator))) for _, text, _ in each.sides()])
        console.print(table)
    console.print(f"[dim]{continuation_note(found)}[/dim]")
