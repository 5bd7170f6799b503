"""The report of a run as one HTML file that needs nothing beside it."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from storage.continuations import continuation_note, messages_of
from storage.html_page import html_figures, html_page, html_table
from storage.report_contents import tables
from storage.report_tables import Cell, Table
from storage.report_words import alert_title, alerts_note, fact_lines, machine_table, title, token_words
from storage.summaries import Alert, Summary, SurprisingMessage
from storage.verdicts import verdicts

_BEFORE_FIGURES = 4
"""Tables that come first: detection, rules on few windows, learned baselines, thresholds."""


def html_report(summary: Summary, figures: Mapping[str, Path]) -> str:
    """One HTML file: figures inside, tables that sort on a click, and how to get the same again."""
    first, *others = verdicts(summary.findings)
    made = tables(summary)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in summary.findings["notes"])
    parts = [
        f"<h1>{html.escape(title(summary))}</h1>",
        f'<p class="headline">{html.escape(first)}</p>',
        f"<p>{html.escape(' '.join(others))}</p>",
        f"<ul>{notes}</ul>" if notes else "",
        "<dl>" + "".join(f"<dt>{n}</dt><dd>{html.escape(text)}</dd>" for n, text in fact_lines(summary)) + "</dl>",
        *map(html_table, made[:_BEFORE_FIGURES]),
        _html_alerts(summary.alerts),
        _html_continuations(summary),
        html_figures(figures),
        *map(html_table, made[_BEFORE_FIGURES:]),
        f"<h2>The same again</h2><pre>{html.escape(summary.run.command)}</pre>",
        html_table(machine_table(summary)),
        "<details><summary>Configuration</summary><pre>"
        f"{html.escape(json.dumps(summary.run.config, indent=1))}</pre></details>",
    ]
    return html_page(title(summary), parts)


def _html_alerts(alerts: Sequence[Alert]) -> str:
    columns = ["message", "beyond the usual", "surprise (nats)", "usually", "masked text", "most unusual token"]
    shown = [
        html_table(Table(alert_title(alert), columns, [_alert_row(alert, message) for message in alert.messages]), "h3")
        for alert in alerts
    ]
    note = f'<p class="note">{html.escape(alerts_note(alerts))}</p>'
    return "<h2>Most anomalous windows</h2>" + "".join(shown) + note if shown else ""


def _html_continuations(summary: Summary) -> str:
    """Base and tuned model side by side, a message a line."""
    separator = summary.run.config.get("tokens", {}).get("separator", " ;-; ")
    parts = []
    for each in summary.continuations:
        heads = "".join(f"<th>{name}{_nats(nats)}</th>" for name, _, nats in each.sides())
        cells = "".join(f"<td>{_lines(text, separator)}</td>" for _, text, _ in each.sides())
        before = f'<p class="note">after {_lines(each.prefix, separator)}</p>'
        parts.append(f"{before}<table><thead><tr>{heads}</tr></thead><tbody><tr>{cells}</tr></tbody></table>")
    note = f'<p class="note">{html.escape(continuation_note(summary.continuations))}</p>'
    return "<h2>Base and tuned model continue the same log</h2>" + "".join(parts) + note if parts else ""


def _nats(nats: float | None) -> str:
    return "" if nats is None else f" ({nats:.2f} nats)"


def _lines(text: str, separator: str) -> str:
    return "<br>".join(map(html.escape, messages_of(text, separator)))


def _alert_row(alert: Alert, message: SurprisingMessage) -> list[Cell]:
    excess = message.token_excess if alert.by_token else message.excess
    return [message.position, excess, message.surprise, message.usual, message.text, token_words(message)]
