"""The report as one HTML file that needs nothing beside it: style, figures and sorting are inside."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from storage.continuations import continuation_note, messages_of
from storage.report_tables import Cell, Table, cell_text, tables
from storage.report_words import alert_title, alerts_note, fact_lines, machine_table, title, token_words
from storage.summaries import Alert, Summary, SurprisingMessage
from storage.verdicts import verdicts

_BEFORE_FIGURES = 3
"""Tables that come first: detection, rules on few windows, thresholds."""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2733; background: #fff; max-width: 68rem; margin: 0 auto;
  padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.headline { font-size: 1.1rem; background: #eef4fa; border-left: 4px solid #1f5f9e; padding: .8rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; }
table { border-collapse: collapse; font-size: .92rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d8dee5; text-align: left; vertical-align: top; }
th { white-space: nowrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { color: #52606d; font-size: .88rem; max-width: 60rem; }
pre { background: #f4f6f8; padding: .8rem; overflow-x: auto; }
th.number button { text-align: right; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #52606d; font-size: .88rem; }
</style>
</head>
<body>
{body}
<script>
function value(row, index) {
  const cell = row.cells[index];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}
function compare(a, b, sign) {
  // What is missing stays last, whichever way one sorts.
  const missing = Number(a === "–") - Number(b === "–");
  if (missing) return missing;
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", {numeric: true});
}
for (const table of document.querySelectorAll("table")) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => compare(value(a, head.cellIndex), value(b, head.cellIndex), down ? -1 : 1));
      table.tBodies[0].append(...rows);
    });
  }
}
</script>
</body>
</html>
"""


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
        _html_figures(figures),
        *map(html_table, made[_BEFORE_FIGURES:]),
        f"<h2>The same again</h2><pre>{html.escape(summary.run.command)}</pre>",
        html_table(machine_table(summary)),
        "<details><summary>Configuration</summary><pre>"
        f"{html.escape(json.dumps(summary.run.config, indent=1))}</pre></details>",
    ]
    return _PAGE.replace("{title}", html.escape(title(summary))).replace("{body}", "\n".join(parts))


def html_table(table: Table, heading: str = "h2") -> str:
    """The table with its title and note; numbers sort as numbers."""
    classes = [' class="number"' if table.right(column) else "" for column in range(len(table.columns))]
    head = "".join(
        f'<th scope="col"{side}>{html.escape(name)}</th>' for name, side in zip(table.columns, classes, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_html_cell, row, classes))}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{html.escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"
    )


def _html_cell(cell: Cell, side: str) -> str:
    value = f' data-value="{float(cell)}"' if isinstance(cell, int | float) else ""
    return f"<td{side}{value}>{html.escape(cell_text(cell))}</td>"


def _html_figures(figures: Mapping[str, Path]) -> str:
    shown = []
    for caption, path in figures.items():
        # As an image: two inlined SVGs would share the ids of their glyphs.
        data = base64.b64encode(path.read_bytes()).decode()
        text = html.escape(caption)
        image = f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
        shown.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return f'<h2>Figures</h2><div class="figures">{"".join(shown)}</div>' if shown else ""


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
