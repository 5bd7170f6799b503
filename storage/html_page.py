"""One HTML file that needs nothing beside it: style, figures and sorting are inside; light or dark as the reader's."""

import base64
import html
from collections.abc import Iterable, Mapping
from pathlib import Path

from storage.report_tables import Cell, Table, cell_text

_SHORT = 24
"""Characters of a cell that is not broken over lines."""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root { --ink: #1c2733; --paper: #fff; --faint: #52606d; --line: #d8dee5; --accent: #1f5f9e; --mild: #eef4fa;
  --code: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dde4ea; --paper: #14191f; --faint: #9fadba; --line: #35404b; --accent: #6fb0ec; --mild: #1c2936;
    --code: #1d242b; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 76rem;
  margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.headline { font-size: 1.1rem; background: var(--mild); border-left: 4px solid var(--accent); padding: .8rem 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; }
dd { margin: 0; }
table { border-collapse: collapse; font-size: .92rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { white-space: nowrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.whole { white-space: nowrap; }
.long { min-width: 11rem; }
.name { display: inline-block; white-space: normal; width: 8rem; }
.note { color: var(--faint); font-size: .88rem; max-width: 60rem; }
pre { background: var(--code); padding: .8rem; overflow-x: auto; }
th.number button { text-align: right; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; max-width: 100%; }
/* Figures are drawn on white. */
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--faint); font-size: .88rem; }
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


def html_page(title: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML already; the title is plain text."""
    return _PAGE.replace("{title}", html.escape(title)).replace("{body}", "\n".join(part for part in parts if part))


def html_table(table: Table, heading: str = "h2") -> str:
    """The table with its title and note; numbers sort as numbers."""
    classes = [' class="number"' if table.right(column) else "" for column in range(len(table.columns))]
    head = "".join(map(_html_heading, table.columns, classes))
    body = "".join(f"<tr>{''.join(map(_html_cell, row, classes))}</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    named = f"<{heading}>{html.escape(table.title)}</{heading}>"
    return f"{named}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def _html_heading(name: str, side: str) -> str:
    # Long names, as those of detectors, may be broken: otherwise they would make the table wider than the page.
    text = html.escape(name) if len(name) <= _SHORT else f'<span class="name">{html.escape(name)}</span>'
    return f'<th scope="col"{side}>{text}</th>'


def _html_cell(cell: Cell, side: str) -> str:
    value = f' data-value="{float(cell)}"' if isinstance(cell, int | float) else ""
    text = cell_text(cell)
    place = side or (' class="whole"' if len(text) <= _SHORT else ' class="long"')
    return f"<td{place}{value}>{html.escape(text)}</td>"


def html_figures(figures: Mapping[str, Path]) -> str:
    """SVG files by caption; nothing where there are none."""
    shown = []
    for caption, path in figures.items():
        # As an image: two inlined SVGs would share the ids of their glyphs.
        data = base64.b64encode(path.read_bytes()).decode()
        text = html.escape(caption)
        image = f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
        shown.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return f'<h2>Figures</h2><div class="figures">{"".join(shown)}</div>' if shown else ""
