"""What all figures share: their style, and the files that each is written to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

NORMAL, ANOMALOUS, MODEL, RULE = "#4477aa", "#cc3311", "#1f5f9e", "#777777"
SEQUENCE = ("#b5d4ea", "#6aaed6", "#2e7ebc", "#08468b")
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#e4e8ec",
    "legend.frameon": False,
    "legend.fontsize": 9,
    # The same numbers give the same file.
    "svg.hashsalt": "atalaia",
    # Text in a PDF stays text that journals accept: TrueType instead of Type 3.
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Picture:
    """One figure on disk."""

    caption: str
    svg: Path
    png: Path
    pdf: Path


@contextmanager
def picture(width: float, height: float, columns: int = 1, rows: int = 1) -> Iterator[tuple[Figure, list[Axes]]]:
    """An empty figure of so many inches with its panels, row by row."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]


def save(figure: Figure, path: Path, caption: str) -> Picture:
    """Write a figure as SVG for reports, PDF for papers and PNG for everything else; `path` is without suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix: a name may hold a point, as in 1.7B.
    saved = Picture(caption, *(path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png", "pdf")))
    figure.savefig(saved.svg, metadata={"Date": None, "Creator": None})
    figure.savefig(saved.png, dpi=144, metadata={"Software": None})
    figure.savefig(saved.pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return saved


def marker(points: int) -> str:
    """Markers where there are few points, a bare line where they would touch."""
    return "o" if points <= 25 else ""


def log_axis(axes: Axes, words: str = "{:,g}") -> None:
    """A logarithmic axis along the bottom with plain numbers, some within a decade too."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    if high < 2 * low:  # a single amount, or nearly: no tick would fall between
        low, high = low / 2, high * 2
        axes.set_xlim(low, high)
    few = high / low < 300
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: words.format(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
