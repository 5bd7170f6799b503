"""Figures exist in both forms, hold the words they should, and are the same twice."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes

from storage import figures
from storage.figures import Alarm, Curve, Point
from storage.pictures import Picture

GENERATOR = np.random.default_rng(0)
SCORES, LABELS = GENERATOR.gamma(2, size=300), (GENERATOR.random(300) < 0.1).astype(int)
ROUNDS = pl.DataFrame({"round": [0, 1, 2], "loss": [None, 0.5, 0.2]})
CLIENTS = pl.DataFrame({"round": [1, 1, 2, 2], "loss": [0.45, 0.55, 0.21, 0.19]})
METRICS = pl.DataFrame(
    [
        {"round": r, "split": "test", "population": "all", "score": s, "k": k, "threshold_kind": kind, "f1": f1}
        for r in range(3)
        for s, k in (("top_k", 1), ("top_k", 5), ("max_token", None), ("unaligned", 1))
        for kind, f1 in (("label_free", 0.1 * r), ("oracle", 0.2 * r))
    ]
)
RULES = {"unseen sequence": 0.40, "unseen event type": 0.41}
THRESHOLDS = {"label_free": 3.0, "validated": 4.0, "oracle": 4.5}

DRAWN: dict[str, Callable[[Path], Picture]] = {
    "sizes": lambda path: figures.partition_sizes([12, 12, 11], path),
    "loss": lambda path: figures.loss_by_round(ROUNDS, CLIENTS, [(0, 2.0), (1, 0.6), (2, 0.3)], path),
    "f1": lambda path: figures.f1_by_round(METRICS, RULES, path, ("top_k", 5)),
    "scores": lambda path: figures.score_histograms(SCORES, LABELS, THRESHOLDS, "surprise (nats)", path),
    "precision": lambda path: figures.precision_recall(
        {"tuned model": Curve([0.5, 1.0], [1.0, 0.3])},
        {"label_free": Point(0.5, 1.0)},
        {"unseen sequence": Point(1.0, 0.2)},
        0.03,
        path,
    ),
    "alarms": lambda path: figures.false_alarms(
        LABELS.tolist(), SCORES.tolist(), "tuned model", {"rule: unseen sequence": Alarm(0.0, 0.2)}, path
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_every_figure_is_a_valid_svg_a_png_and_a_pdf(name: str, tmp_path: Path) -> None:
    picture = DRAWN[name](tmp_path / "deep" / name)
    assert ElementTree.parse(picture.svg).getroot().tag.endswith("svg")
    assert picture.png.read_bytes().startswith(b"\x89PNG")
    assert picture.pdf.read_bytes().startswith(b"%PDF-")
    assert picture.caption


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    first, second = (figures.f1_by_round(METRICS, RULES, tmp_path / n) for n in ("a", "b"))
    assert first.svg.read_bytes() == second.svg.read_bytes()
    assert first.png.read_bytes() == second.png.read_bytes()
    assert first.pdf.read_bytes() == second.pdf.read_bytes()


def test_recall_at_a_false_alarm_rate_is_the_best_of_the_thresholds_that_keep_it() -> None:
    rates, recalls = figures.recall_by_rate(LABELS.tolist(), SCORES.tolist())
    normal, anomalous = SCORES[LABELS == 0], SCORES[LABELS == 1]
    assert rates[0] == 0.5 / len(normal)
    assert recalls[0] == (anomalous > normal.max()).mean()
    for rate, recall in zip(rates[1:], recalls[1:], strict=True):
        kept = [t for t in SCORES if (normal >= t).sum() <= round(rate * len(normal))]
        assert recall == pytest.approx(max((anomalous >= t).mean() for t in kept))
    # Equal scores cannot be told apart by any threshold.
    assert figures.recall_by_rate([1, 0, 0], [2.0, 2.0, 1.0]) == ([0.25, 0.5, 1.0], [0.0, 1.0, 1.0])


def test_no_window_is_left_out_of_a_histogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    plain = Axes.hist

    def counted(self: Axes, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        result = plain(self, *args, **kwargs)
        drawn.append(float(np.sum(result[0])))
        return result

    monkeypatch.setattr(Axes, "hist", counted)
    for lowest, far in itertools.product((0.1, 0.0, -1.0), (1.0, 1000.0, 31234.567)):
        drawn.clear()
        scores = np.append(SCORES, [lowest, SCORES.max() * far])
        figures.score_histograms(scores, np.append(LABELS, [0, 1]), THRESHOLDS, "surprise", tmp_path / "h")
        assert sum(drawn) == len(scores)


@pytest.mark.parametrize("lowest", [0.5, 0.0])
def test_windows_far_out_leave_room_for_the_others_in_a_histogram(tmp_path: Path, lowest: float) -> None:
    scores = np.append(np.linspace(lowest, 2.0, 99), 1e4)
    with patch.object(Axes, "hist", autospec=True, side_effect=Axes.hist) as drawn:
        figures.score_histograms(scores, np.zeros(100), {"label_free": math.inf}, "surprise", tmp_path / "h")
    edges = drawn.call_args.args[2]
    assert np.sum(np.less_equal(edges, 2.0)) >= 5


def test_figures_can_be_drawn_without_labels_rounds_or_rules(tmp_path: Path) -> None:
    unknown = np.full(300, -1)
    assert figures.score_histograms(SCORES, unknown, {"label_free": 3.0}, "surprise", tmp_path / "a").svg.is_file()
    nothing = pl.DataFrame({"round": [0], "loss": [None]}, schema={"round": pl.UInt32, "loss": pl.Float64})
    assert figures.loss_by_round(nothing, CLIENTS.clear(), [(0, 2.0)], tmp_path / "b").svg.is_file()
    untouched = METRICS.filter(pl.col("round") == 0)
    assert figures.f1_by_round(untouched, {}, tmp_path / "c").svg.is_file()
    unlabelled = METRICS.with_columns(f1=pl.lit(None, pl.Float64))
    assert figures.f1_by_round(unlabelled, {}, tmp_path / "d").svg.is_file()
