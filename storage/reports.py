"""A run's report: text for the terminal, Markdown for artifacts, and the files of a run."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from storage.report_contents import tables
from storage.report_html import html_report
from storage.report_tables import (
    Table,
    cell_text,
    detection_table,
    kind_table,
    markdown_table,
    markdown_text,
    score_table,
)
from storage.report_words import (
    alert_title,
    alerts_note,
    code_span,
    excess_words,
    fact_lines,
    machine_table,
    title,
    token_words,
)
from storage.summaries import Alert, Summary, SurprisingMessage, save_summary
from storage.verdicts import verdicts

_TEXT_WIDTH = 110


def write_report(summary: Summary, folder: Path, figures: Mapping[str, Path] | None = None) -> dict[str, Path]:
    """Write report.json, report.md and report.html into `folder`; `figures` are SVG files by caption."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"report.{kind}" for kind in ("json", "md", "html")}
    save_summary(summary, paths["json"])
    paths["md"].write_text(markdown_report(summary))
    paths["html"].write_text(html_report(summary, figures or {}))
    return paths


def markdown_report(summary: Summary) -> str:
    """The whole report in Markdown."""
    first, *others = verdicts(summary.findings)
    parts = [f"# {markdown_text(title(summary))}", "", f"**{first}**", "", " ".join(others), ""]
    parts += [f"- {note}" for note in summary.findings["notes"]]
    parts += ["", *(markdown_table(table) for table in tables(summary)), markdown_alerts(summary)]
    parts += ["### The same again", "", f"    {summary.run.command}", "", markdown_table(machine_table(summary))]
    return "\n".join(parts)


def markdown_alerts(summary: Summary) -> str:
    """The most anomalous windows with the messages that gave them away."""
    if not summary.alerts:
        return ""
    lines = ["### Most anomalous windows", ""]
    for number, alert in enumerate(summary.alerts, 1):
        lines.append(f"{number}. {markdown_text(alert_title(alert))}")
        lines += [_markdown_message(alert, message) for message in alert.messages]
    return "\n".join([*lines, "", alerts_note(summary.alerts), ""])


def _markdown_message(alert: Alert, message: SurprisingMessage) -> str:
    token = markdown_text(token_words(message))
    return f"    - {excess_words(alert, message)} nats, message {message.position}: {code_span(message.text)}" + (
        f"; {token}" if token else ""
    )


def terminal_report(summary: Summary) -> RenderableType:
    """The end of `atalaia run`, for rich: what was done, what it cost, how well it detects, what to look at next."""
    first, *others = verdicts(summary.findings)
    parts: list[RenderableType] = [Text(title(summary), style="bold"), Text(), _facts(summary), Text()]
    parts += [rich_table(detection_table(summary)), Text(), Text(first, style="bold"), *map(Text, others)]
    parts += [Text(f"Note: {note}", style="yellow") for note in summary.findings["notes"]]
    for table in (kind_table(summary), score_table(summary)):
        if table.rows:
            parts += [Text(), rich_table(table)]
    if summary.alerts:
        parts += [Text(), Text("The most anomalous test windows, and what gave them away", style="bold")]
        parts += [_rich_alert(number, alert) for number, alert in enumerate(summary.alerts, 1)]
        parts.append(Text(alerts_note(summary.alerts), style="dim"))
    if summary.next_commands:
        parts += [Text(), Text("Next", style="bold"), *(Text(f"  {command}") for command in summary.next_commands)]
    return Group(*parts)


def terminal_text(summary: Summary, width: int = _TEXT_WIDTH) -> str:
    """The same without colours."""
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(terminal_report(summary))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _facts(summary: Summary) -> RichTable:
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()
    for name, text in fact_lines(summary):
        grid.add_row(name, text)
    return grid


def rich_table(table: Table) -> RenderableType:
    """The table with short headings and what they mean; where room is scarce names wrap, and numbers never."""
    made = RichTable(title=table.title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for index, column in enumerate(table.short or table.columns):
        made.add_column(column, justify="left" if index == 0 else "right", no_wrap=index > 0, overflow="fold")
    for row in table.rows:
        made.add_row(*map(cell_text, row))
    return Group(made, *(Text(text, style="dim") for text in (table.legend, table.note) if text))


def _rich_alert(number: int, alert: Alert) -> RenderableType:
    grid = RichTable.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    for message in alert.messages:
        token = token_words(message)
        grid.add_row(excess_words(alert, message), Group(Text(message.text), *([Text(token, "dim")] if token else [])))
    return Group(_indented(Text(f"{number}. {alert_title(alert)}"), 2), _indented(grid, 5))


def _indented(part: RenderableType, columns: int) -> Padding:
    return Padding(part, (0, 0, 0, columns))
