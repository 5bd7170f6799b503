"""The figures of a sweep, the paper's Figures 3 to 5 among them; cells without results are shown as not run."""

import itertools
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from storage.figures import recall_by_rate
from storage.pictures import ANOMALOUS, RULE, SEQUENCE, Picture, log_axis, marker, picture, save
from storage.sweep_results import CellResult, grouped

NOT_RUN = "not run"
_ONLY_ONE = "Only the last round of a cell was scored"
_RULE = "rule: "
_OTHERS = ("#228833", "#aa3377", "#ccbb44", "#66ccee", "#ee7733", "#555555")
_SHAPES = "osD^vP"
_PANEL = 4.2
"""Inches of a panel's width."""
_LETTERS = 14
"""Of a note, about as many as go into an inch."""
_LETTER = 0.09
"""Inches of a letter beneath the bars, about."""
_LONG = 36
"""Letters up to which the names of what was not run have a place above a panel."""
_BY_LABELS = "\n(round by the test labels)"
_KINDS = {("balanced", "oracle"): "balanced sample, oracle threshold\n(the paper's way)"} | {
    ("all", "label_free"): f"all test windows, label-free threshold{_BY_LABELS}"
}
Groups = Mapping[str, Mapping[str, Sequence[CellResult]]]


def variant_colours(variants: Sequence[str]) -> dict[str, str]:
    """Grey for the untouched model, red for full fine-tuning, blues by rank, other colours for anything else."""
    ranks = [name for name in variants if name.startswith("R=")]
    blues = {name: SEQUENCE[round(i * 3 / max(1, len(ranks) - 1))] for i, name in enumerate(ranks)}
    known = {"PT": RULE, "FFT": ANOMALOUS, **blues}
    rest = [name for name in variants if name not in known]
    return known | {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(rest)}


def _variants(groups: Groups) -> list[str]:
    return list(dict.fromkeys(name for variants in groups.values() for name in variants))


def _done(cells: Sequence[CellResult]) -> list[CellResult]:
    return [cell for cell in cells if cell.summary is not None]


def _panels(
    cells: Sequence[CellResult],
    path: Path,
    caption: str,
    draw: Callable[[Axes, str, Sequence[CellResult], Any], None],
    height: float = 3.6,
    note: str = "",
) -> Picture:
    """A panel for each base model, where `draw` draws each variant in its colour; one legend for all."""
    groups = grouped(cells)
    colours = variant_colours(_variants(groups))
    with picture(max(5.2, _PANEL * len(groups)), height, columns=len(groups)) as (figure, panels):
        for axes, (panel, variants) in zip(panels, groups.items(), strict=True):
            axes.set_title(panel)
            for name, members in variants.items():
                draw(axes, name, members, colours[name])
        _share_heights([axes for axes, variants in zip(panels, groups.values(), strict=True) if _places(variants)])
        for axes, variants in zip(panels, groups.values(), strict=True):
            _tell_missing(axes, variants)
        _legend(figure, panels, note)
        return save(figure, path, caption)


def _share_heights(panels: Sequence[Axes]) -> None:
    """The same range upwards in all panels, so that they can be compared by eye."""
    limits = [axes.get_ylim() for axes in panels]
    for axes in panels:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _tell_missing(axes: Axes, variants: Mapping[str, Sequence[CellResult]]) -> None:
    """Name what has no results above the panel, or in it where nothing has."""
    missing = [name for name, cells in variants.items() if not _done(cells)]
    if missing and len(missing) == len(variants):
        axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center", color=RULE, fontsize=13)
        axes.set(xticks=[], yticks=[])
    elif missing:
        names = ", ".join(missing)
        told = names if len(names) <= _LONG else f"{len(missing)} of {len(variants)}"
        axes.set_title(f"{NOT_RUN}: {told}", loc="right", color=RULE, fontsize=8.5)


def _legend(figure: Figure, panels: Sequence[Axes], note: str = "") -> None:
    """One legend beneath all panels, each name once, the simple rules last; the figure grows by its lines."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found, key=lambda label: label.startswith(_RULE))
    width, height = figure.get_size_inches()
    if labels:
        handles = [found[label] for label in labels]
        for columns in range(min(len(labels), 6), 0, -1):
            legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
            drawn = legend.get_window_extent()
            if drawn.width <= figure.bbox.width or columns == 1:
                break
            legend.remove()
        figure.set_size_inches(width, height + drawn.height / figure.dpi)
    if note:
        lines = textwrap.fill(note, int(_LETTERS * width))
        figure.suptitle(lines, fontsize=9, color=RULE, x=0.01, ha="left")


def _mean_line(axes: Axes, tables: Sequence[pl.DataFrame], column: str, name: str, colour: str) -> None:
    """The mean over seeds by round, with what lies between the lowest and the highest seed shaded."""
    tables = [table for table in tables if len(table)]
    if not tables:
        return
    rows = pl.concat([table.select("round", pl.col(column).cast(pl.Float64)) for table in tables])
    told = rows.group_by("round").agg(mean=pl.mean(column), low=pl.min(column), high=pl.max(column)).sort("round")
    axes.plot(told["round"], told["mean"], color=colour, marker=marker(len(told)), markersize=4, label=name)
    if len(tables) > 1:
        axes.fill_between(told["round"].to_list(), told["low"], told["high"], color=colour, alpha=0.15, linewidth=0)


def losses(cells: Sequence[CellResult], path: Path) -> Picture:
    """Figure 3 of the paper: training loss by round for each model and tuning."""

    def draw(axes: Axes, name: str, members: Sequence[CellResult], colour: str) -> None:
        _mean_line(axes, [cell.losses for cell in members], "loss", name, colour)
        axes.set(xlabel="round", ylabel="training loss (nats a token)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.set_ylim(0, 1.08 * axes.dataLim.y1)

    return _panels(cells, path, "Training loss by round, mean and range over seeds (Figure 3 of the paper)", draw)


def f1_by_round(cells: Sequence[CellResult], path: Path) -> Picture:
    """Label-free F1 of the chosen score by round, natural prevalence, with the best simple rules as lines."""

    def draw(axes: Axes, name: str, members: Sequence[CellResult], colour: str) -> None:
        tables = [
            pl.DataFrame(rows, schema={"round": pl.Int64(), "f1": pl.Float64()}, orient="row")
            for cell in _done(members)
            if cell.summary
            and (rows := [(r["round"], r["label_free_f1"]) for r in cell.summary.findings["rounds"]])
            and rows[-1][0] > 0
        ]
        _mean_line(axes, tables, "f1", name, colour)
        axes.set(xlabel="round (0: untouched model)", ylabel="label-free F1, all test windows", ylim=(-0.02, 1.03))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for place, (rule, f1) in enumerate(_rule_f1(members).items()):
            axes.axhline(f1, color=RULE, linewidth=0.9, linestyle=("-", "--", "-.", ":")[place % 4], label=_RULE + rule)

    return _panels(cells, path, "F1 by round beside the simple rules, mean over seeds", draw)


def _rule_f1(cells: Sequence[CellResult]) -> dict[str, float]:
    """Each rule's F1 on all test windows, its mean over seeds."""
    found: dict[str, list[float]] = {}
    for cell in _done(cells):
        for row in cell.summary.findings["rules"] if cell.summary else []:
            if row["f1"] is not None:
                found.setdefault(row["rule"], []).append(row["f1"])
    return {name: statistics.fmean(values) for name, values in found.items()}


def _no_choice_of_round(cells: Sequence[CellResult]) -> bool:
    """Whether no cell had more than one trained round scored, so that a best round is only a name."""
    return all(len(cell.scored_rounds) < 2 for cell in _done(cells))


def best_f1(cells: Sequence[CellResult], path: Path) -> Picture:
    """Figure 4 of the paper: the best F1 over scored rounds by model, tuning and K; beneath it label-free F1 as well.

    Which round is the best the test labels say in both rows, so neither is what a federation would have got.
    """
    groups = grouped(cells)
    only = _no_choice_of_round(cells)
    with picture(max(5.2, _PANEL * len(groups)), 6.2, columns=len(groups), rows=len(_KINDS)) as (figure, panels):
        for row, ((population, kind), words) in enumerate(_KINDS.items()):
            for place, (panel, variants) in enumerate(groups.items()):
                axes = panels[row * len(groups) + place]
                _best_bars(axes, variants, population, kind)
                axes.set_title(panel if row == 0 else "")
                axes.tick_params(axis="x", labelbottom=row == len(_KINDS) - 1)
                if not _places(variants):
                    axes.set_xticks([])
                if place == 0:
                    best = "F1 of the last round" if only else "best F1 over scored rounds"
                    axes.set_ylabel(f"{best}\n{words.removesuffix(_BY_LABELS) if only else words}", fontsize=8.5)
        _legend(figure, panels, _ONLY_ONE if only else "")
        chosen = "the round is chosen by the test labels, in the lower row too, whose thresholds need none"
        how = _ONLY_ONE.lower() if only else chosen
        return save(figure, path, f"Best F1 over the scored rounds by tuning and K (Figure 4 of the paper); {how}")


def _best_bars(axes: Axes, variants: Mapping[str, Sequence[CellResult]], population: str, kind: str) -> None:
    """Bars by K for each tuning, mean over seeds; whiskers from the lowest to the highest."""
    for place, cells in enumerate(variants.values()):
        values: dict[int, list[float]] = {}
        for cell in _done(cells):
            for k, f1, _ in cell.best_f1(population, kind).rows():
                values.setdefault(k, []).append(f1)
        if not values:
            axes.text(place, 0.03, NOT_RUN, rotation=90, ha="center", va="bottom", color=RULE, fontsize=9)
        for number, (k, found) in enumerate(values.items()):
            mean, where = statistics.fmean(found), place + (number - (len(values) - 1) / 2) * 0.8 / len(values)
            colour = SEQUENCE[min(number, len(SEQUENCE) - 1)]
            whisker = [[mean - min(found)], [max(found) - mean]] if len(found) > 1 else None
            label = f"K = {k}" if place == next(iter(_places(variants)), 0) else None
            axes.bar(where, mean, 0.75 / len(values), yerr=whisker, ecolor="#444444", color=colour, label=label)
    axes.set(ylim=(0, 1.03), xlim=(-0.6, len(variants) - 0.4))
    axes.set_xticks(range(len(variants)), [name.replace(", ", ",\n") for name in variants])
    axes.grid(axis="x", visible=False)
    longest = max(len(line) for name in variants for line in name.split(" "))
    if _LETTER * longest * len(variants) > _PANEL:
        axes.tick_params(axis="x", labelrotation=90, labelsize=8)


def _places(variants: Mapping[str, Sequence[CellResult]]) -> list[int]:
    """Where variants with results stand."""
    return [place for place, cells in enumerate(variants.values()) if _done(cells)]


def communication(cells: Sequence[CellResult], path: Path) -> Picture:
    """Figure 5 of the paper: bytes that all clients sent until the best round, both ways, against the best F1."""

    def draw(axes: Axes, name: str, members: Sequence[CellResult], colour: str) -> None:
        for cell in _done(members):
            if best := cell.soonest_best("balanced", "oracle"):
                f1, number = best
                _point(axes, cell.bytes_until(number) / 1e6, f1, name, colour)
        axes.set(xlabel="sent until the best round (MB, both ways)", ylabel="best F1 (balanced, oracle)")

    title = "Communication until the best round against the best F1 (Figure 5 of the paper)"
    note = "A dashed line: the untouched model, which sends nothing."
    if _no_choice_of_round(cells):
        note = f"{note} {_ONLY_ONE}."
    return _panels(cells, path, title, draw, note=note)


def _point(axes: Axes, cost: float, quality: float, name: str, colour: str) -> None:
    """One cell at its cost, on a logarithmic axis; what costs nothing is a line across."""
    if cost > 0:
        axes.plot(cost, quality, "o", color=colour, markersize=7, markeredgecolor="white", label=name)
        log_axis(axes)
    else:
        axes.axhline(quality, color=colour, linewidth=1, linestyle="--", label=name)


def cost_against_quality(cells: Sequence[CellResult], path: Path) -> Picture:
    """Every cell: label-free F1 with its interval and AUROC, against bytes that a client sends up in a round and
    seconds of training."""
    groups = grouped(cells)
    variants = _variants(groups)
    colours = variant_colours(variants)
    # One shape a base model; where there is only one, shapes tell variants apart whose colours had to be used again.
    shapes = {panel: _SHAPES[i % len(_SHAPES)] for i, panel in enumerate(groups)}
    again = {name: _SHAPES[i // len(_OTHERS) % len(_SHAPES)] for i, name in enumerate(variants)}
    with picture(10.5, 7.2, columns=2, rows=2) as (figure, panels):
        for cell in _done(cells):
            label = f"{cell.panel}, {cell.variant}" if len(groups) > 1 else cell.variant
            shape = shapes[cell.panel] if len(groups) > 1 else again[cell.variant]
            _cost_points(panels, cell, label, colours[cell.variant], shape)
        for place, axes in enumerate(panels):
            if axes.containers:
                log_axis(axes)
            bottom = min(0.9, axes.dataLim.y0 - 0.02) if place > 1 else -0.02
            axes.set_ylim(bottom, 1 + 0.03 * (1 - bottom))
        panels[0].set(ylabel="label-free F1, all test windows")
        panels[2].set(xlabel="a client sends up in a round (MB)", ylabel="AUROC, all test windows")
        panels[3].set(xlabel="training (seconds)")
        missing = [f"{panel}, {name}" for panel, each in groups.items() for name, few in each.items() if not _done(few)]
        told = f"{NOT_RUN}: {'; '.join(missing)}. " if missing else ""
        _legend(figure, panels, told + "Whiskers: 95 % bootstrap. Lines: cells that send or train nothing.")
        return save(figure, path, "Cost against quality, all cells")


def _cost_points(panels: Sequence[Axes], cell: CellResult, label: str, colour: str, shape: str) -> None:
    """A cell's F1 in the upper and its AUROC in the lower panels, by bytes on the left and by seconds on the right."""
    if cell.summary is None:
        return
    found, cost = cell.summary.findings, cell.summary.training
    interval = (found.get("headline") or {}).get("f1", {}).get("label_free")
    amounts = (cost.bytes_up_per_client_round / 1e6, cost.train_seconds if cost.client_rounds else 0.0)
    qualities = (((found.get("label_free") or {}).get("f1"), interval), (found.get("auroc"), None))
    for place, ((quality, within), amount) in enumerate(itertools.product(qualities, amounts)):
        if quality is None:
            continue
        axes = panels[place]
        if amount <= 0:
            axes.axhline(quality, color=colour, linewidth=1, linestyle="--", label=label)
            continue
        whisker = [[max(0.0, quality - within["low"])], [max(0.0, within["high"] - quality)]] if within else None
        style: Any = {"fmt": shape, "color": colour, "markersize": 7, "markeredgecolor": "white", "elinewidth": 0.8}
        axes.errorbar(amount, quality, yerr=whisker, label=label, **style)


def false_alarms(cells: Sequence[CellResult], path: Path) -> Picture:
    """Recall on all test windows against the false-alarm rate that is allowed, at the first seed of each variant."""

    def draw(axes: Axes, name: str, members: Sequence[CellResult], colour: str) -> None:
        if (done := _done(members)) and len(table := done[0].test_scores):
            rates, recalls = recall_by_rate(table["label"].to_list(), table["score"].to_list())
            axes.step([100 * rate for rate in rates], recalls, where="post", color=colour, label=name)
            log_axis(axes, "{:g} %")
        axes.set(xlabel="normal windows flagged", ylabel="share of anomalies found", ylim=(-0.02, 1.03))

    note = "Where a line begins no normal window is flagged."
    return _panels(cells, path, "Detection against false alarms at natural prevalence, first seed", draw, note=note)


DRAWN: Mapping[str, Callable[[Sequence[CellResult], Path], Picture]] = {
    "figure_3_losses": losses,
    "figure_4_best_f1": best_f1,
    "figure_5_communication": communication,
    "f1_by_round": f1_by_round,
    "false_alarms": false_alarms,
    "cost_against_quality": cost_against_quality,
}
"""Every figure of a sweep, by the name of its files."""


def draw_sweep(cells: Sequence[CellResult], folder: Path) -> list[Picture]:
    """All figures of a sweep into a folder."""
    return [draw(cells, folder / name) for name, draw in DRAWN.items()]
