"""The figures of a run, each as SVG, PDF and PNG; plain numbers in, paths out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from storage.pictures import ANOMALOUS, MODEL, NORMAL, RULE, SEQUENCE, Picture, log_axis, marker, picture, save

SURPRISE_COLOURS = {
    "rarity": "#117733",
    "max_excess": "#44aa99",
    "max_token": "#cc3311",
    "mean_token": "#ee9944",
    "max_message": "#882255",
    "mean_message": "#cc79a7",
}
THRESHOLD_STYLES = {"label_free": "-", "validated": "--", "oracle": ":"}
SURPRISE_WORDS = {
    "rarity": "rarity",
    "max_excess": "highest excess of a message",
    "max_token": "highest token surprise",
    "mean_token": "mean token surprise",
    "max_message": "highest message surprise",
    "mean_message": "mean message surprise",
}


def partition_sizes(sizes: Sequence[int], path: Path) -> Picture:
    """Training windows of each client."""
    with picture(7, 3) as (figure, (axes,)):
        axes.bar(range(len(sizes)), sizes, color=NORMAL, width=0.8)
        axes.set(xlabel="client", ylabel="training windows", title=_sizes_title(sizes))
        axes.grid(axis="x", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return save(figure, path, "Training windows of each client")


def _sizes_title(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    spread = f"{low:,} each" if low == high else f"{low:,} to {high:,} each"
    clients = "1 client" if len(sizes) == 1 else f"{len(sizes)} clients"
    return f"{sum(sizes):,} training windows over {clients}, {spread}"


def loss_by_round(
    rounds: pl.DataFrame, clients: pl.DataFrame, held_out: Sequence[tuple[int, float]], path: Path
) -> Picture:
    """Training loss by round, its clients as points, and the held-out loss on calibration windows.

    `rounds` and `clients` have columns round and loss; `held_out` holds (round, loss), round 0 the untouched model.
    """
    trained = rounds.filter(pl.col("round") > 0).sort("round")
    with picture(7, 3.6) as (figure, (axes,)):
        mark: Any = {"s": 22, "color": "#88b4dd", "edgecolors": "white", "linewidths": 0.4, "zorder": 3}
        axes.scatter(clients["round"], clients["loss"], label="training, one client", **mark)
        style: Any = {"marker": marker(len(trained)), "markersize": 4}
        axes.plot(trained["round"], trained["loss"], color=NORMAL, label="training, mean of the round", **style)
        if held_out:
            numbers, losses = zip(*sorted(held_out), strict=True)
            axes.plot(numbers, losses, color=ANOMALOUS, label="normal windows not trained on", **style)
        axes.set(xlabel="round (0: untouched model)", ylabel="loss (nats a token)", title="Loss by round")
        # Room above, since a loss that hardly falls would lie on the edge.
        axes.set_ylim(0, axes.dataLim.y1 * 1.08 if len(clients) or held_out else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
        return save(figure, path, "Loss by round")


def f1_by_round(
    metrics: pl.DataFrame, rules: Mapping[str, float], path: Path, chosen: tuple[str, int | None] | None = None
) -> Picture:
    """Test F1 by round for each K and surprise, label-free beside oracle, with the simple rules as lines.

    `metrics` is metrics.parquet; `rules` holds each rule's F1 there; `chosen` is the (score, K) to show bold.
    """
    shown = metrics.filter(
        (pl.col("split") == "test") & (pl.col("population") == "all") & (pl.col("score") != "unaligned")
    )
    with picture(11, 4.6, columns=2) as (figure, panels):
        kinds = {"label_free": "Label-free threshold", "oracle": "Oracle threshold (best on the test labels)"}
        for axes, (kind, title) in zip(panels, kinds.items(), strict=True):
            _f1_lines(axes, shown.filter(pl.col("threshold_kind") == kind), chosen)
            for f1 in rules.values():
                axes.axhline(f1, color=RULE, linewidth=0.9, linestyle="--", zorder=1)
            axes.set(xlabel="round (0: untouched model)", title=title, ylim=(-0.02, 1.03))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("F1, all test windows")
        _name_rules(panels[1], rules)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        return save(figure, path, "F1 by round and score, beside the simple rules")


def _f1_lines(axes: Axes, rows: pl.DataFrame, chosen: tuple[str, int | None] | None) -> None:
    ks = sorted(rows["k"].drop_nulls().unique())
    colours = {k: SEQUENCE[min(i, len(SEQUENCE) - 1)] for i, k in enumerate(ks)}
    for (score, k), group in rows.sort("round").group_by(["score", "k"], maintain_order=True):
        stressed = (score, k) == chosen
        name = f"top-{k} accuracy" if score == "top_k" else SURPRISE_WORDS.get(str(score), str(score))
        axes.plot(
            group["round"],
            group["f1"],
            color=colours[k] if score == "top_k" else SURPRISE_COLOURS.get(str(score), MODEL),
            linewidth=3 if stressed else 1.4,
            zorder=4 if stressed else 3,
            marker=marker(len(group)),
            markersize=5 if stressed else 3.5,
            label=f"{name} (chosen)" if stressed else name,
        )


def _name_rules(axes: Axes, rules: Mapping[str, float], gap: float = 0.05) -> None:
    """The rules' names at the right of their lines, moved apart where they would overlap."""
    height = -1.0
    for name, f1 in sorted(rules.items(), key=lambda item: item[1]):
        height = max(f1, height + gap)
        where: Any = {"xycoords": ("axes fraction", "data"), "textcoords": ("axes fraction", "data")}
        line = {"arrowstyle": "-", "color": RULE, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            f"{name}, {f1:.2f}", (1.0, f1), (1.03, height), va="center", fontsize=8.5, arrowprops=line, **where
        )


def score_histograms(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    thresholds: Mapping[str, float],
    score: str,
    path: Path,
    bins: int = 60,
) -> Picture:
    """How many test windows have which score, normal and anomalous apart, on a logarithmic scale.

    Labels: 1 anomalous, 0 normal, -1 unknown; `thresholds` by kind; `score` in words names the axis.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    # A few windows far out would press all others into one bar. Unlike a logarithm an asinh has room for a score of 0.
    distances = np.abs(values[values != 0])
    middle = float(np.median(distances)) if len(distances) else 0.0
    wide = distances.max(initial=0.0) > 20 * middle
    edges = np.histogram_bin_edges(np.arcsinh(values / middle) if wide else values, bins)
    if wide:
        edges = np.sinh(edges) * middle
        edges[0], edges[-1] = values.min(), values.max()  # as they are, not as rounded
    borders = edges.tolist()
    with picture(8.4, 3.8) as (figure, (axes,)):
        groups = {"normal": (truth == 0, NORMAL), "anomalous": (truth == 1, ANOMALOUS), "no label": (truth < 0, RULE)}
        for name, (chosen, colour) in groups.items():
            if chosen.any():
                label = f"{name} ({chosen.sum():,})"
                axes.hist(
                    values[chosen], borders, color=colour, alpha=0.55, edgecolor=colour, linewidth=0.4, label=label
                )
        for kind, value in thresholds.items():
            name = f"{kind.replace('_', '-')} threshold"
            axes.axvline(value, color="#222222", linestyle=THRESHOLD_STYLES.get(kind, "-"), linewidth=1.2, label=name)
        axes.set_yscale("log")
        if wide:
            axes.set_xscale("asinh", linear_width=middle)
            shown = [edges[0], edges[-1], *filter(math.isfinite, thresholds.values())]
            axes.set_xlim(min(shown), max(shown) + 0.1 * abs(max(shown)))
            axes.set_xticks([tick for tick in axes.get_xticks() if tick == 0 or abs(tick) >= middle])
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.set_ylim(bottom=0.7)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set(xlabel=score, ylabel="test windows", title="Scores of the test windows")
        figure.legend(loc="outside right upper")
        return save(figure, path, "Scores of normal and anomalous test windows")


@dataclass(frozen=True)
class Curve:
    """A precision-recall curve, from the highest threshold to the lowest."""

    recall: Sequence[float]
    precision: Sequence[float]


@dataclass(frozen=True)
class Point:
    """One detector at its threshold, or a simple rule."""

    recall: float
    precision: float


def precision_recall(
    curves: Mapping[str, Curve],
    thresholds: Mapping[str, Point],
    rules: Mapping[str, Point],
    prevalence: float,
    path: Path,
) -> Picture:
    """Precision against recall of the tuned model (first of `curves`) and others, with thresholds and simple rules."""
    with picture(8.4, 5) as (figure, (axes,)):
        for (name, curve), colour in zip(curves.items(), (MODEL, "#9ab8d3", "#c9c9c9"), strict=False):
            recall, precision = [0.0, *curve.recall], [curve.precision[0], *curve.precision]
            axes.step(recall, precision, where="pre", color=colour, label=name)
        for (kind, point), (marker, size) in zip(thresholds.items(), (("o", 7), ("s", 10), ("D", 13)), strict=False):
            name = f"{kind.replace('_', '-')} threshold"
            fill = MODEL if marker == "o" else "none"
            axes.plot(point.recall, point.precision, marker, color=MODEL, mfc=fill, markersize=size, label=name)
        for (name, point), marker in zip(rules.items(), "^v<>", strict=False):
            axes.plot(point.recall, point.precision, marker, color=ANOMALOUS, markersize=7, label=f"rule: {name}")
        axes.axhline(prevalence, color=RULE, linestyle=":", linewidth=1, label=f"chance ({prevalence:.1%})")
        axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.03), ylim=(0, 1.04))
        axes.set_title("Precision and recall, all test windows")
        figure.legend(loc="outside right upper")
        return save(figure, path, "Precision and recall beside the simple rules")


@dataclass(frozen=True)
class Alarm:
    """One detector at its threshold, or a simple rule: what it flags."""

    false_alarm_rate: float
    recall: float


def false_alarms(
    labels: Sequence[int], scores: Sequence[float], model: str, detectors: Mapping[str, Alarm], path: Path
) -> Picture:
    """Recall on all labelled test windows against the false-alarm rate: the model at every threshold, others at theirs.

    `detectors` are the model at its label-free threshold, other models and the simple rules.
    """
    rates, recalls = recall_by_rate(labels, scores)
    left = 100 * rates[0]
    with picture(8.4, 4.6) as (figure, (axes,)):
        axes.step([100 * rate for rate in rates], recalls, where="post", color=MODEL, label=f"{model}, any threshold")
        for (name, alarm), shape in zip(detectors.items(), "os^v<>DPX*phd", strict=False):
            colour = ANOMALOUS if name.startswith("rule") else MODEL if shape in "os" else RULE
            where = max(left, 100 * alarm.false_alarm_rate)
            # Detectors often coincide: hollow marks of the learned baselines let others show.
            fill: Any = {"mfc": "none", "markersize": 10} if colour == RULE else {"markersize": 7}
            axes.plot(where, alarm.recall, shape, color=colour, label=name, **fill)
        log_axis(axes, "{:g} %")
        axes.set(xlabel="normal test windows flagged (leftmost: none)", ylabel="share of anomalies found")
        axes.set(ylim=(-0.02, 1.03), title="Detection against false alarms, all test windows")
        figure.legend(loc="outside right upper")
        return save(figure, path, "Detection at natural prevalence against the false-alarm rate")


def recall_by_rate(labels: Sequence[int], scores: Sequence[float]) -> tuple[list[float], list[float]]:
    """Recall at each false-alarm rate that a threshold can have, from the strictest to 1.

    The lowest rate, no false alarm at all, is drawn at half a window's share, since a logarithmic axis has no zero.
    """
    table = pl.DataFrame({"label": labels, "score": scores})
    normal = int((table["label"] == 0).sum())
    anomalous = len(table) - normal
    steps = table.group_by("score").agg(pl.len(), found=(pl.col("label") == 1).sum()).sort("score", descending=True)
    alarms = (steps["len"] - steps["found"]).cum_sum().to_list()
    found = steps["found"].cum_sum().to_list()
    best: dict[int, int] = {0: 0}
    for wrong, right in zip(alarms, found, strict=True):
        best[wrong] = right
    rates = [(wrong or 0.5) / max(1, normal) for wrong in best]
    return rates, [right / max(1, anomalous) for right in best.values()]
