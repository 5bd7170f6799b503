"""A log that has moved away is told, one that is short or the same is not."""

from math import comb
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage.drift import SPREAD, Drift, Verdict, distribution_distance, lower_bound, save_verdict, verdict_file
from storage.layout import Layout
from storage.log_stream import StreamCounts, Windows
from storage.normal_windows import NormalWindows, message_hash

KNOWN = ["start", "stop"]
FACTS = {"dataset": {"name": "shop"}, "adapter_hash": "a1"}


def normal(unseen: float = 0.0) -> NormalWindows:
    return NormalWindows(frozenset(map(message_hash, KNOWN)), pl.DataFrame(), unseen, truncated=0.0)


def verdict(
    windows: list[list[str]],
    scores: np.ndarray,
    calibration: np.ndarray,
    known: NormalWindows | None = None,
    misread: int = 0,
    truncated: int = 0,
) -> Verdict:
    texts = sorted({text for window in windows for text in window})
    numbers = [[texts.index(text) for text in window] for window in windows]
    table = pl.DataFrame({"messages": pl.Series(numbers, dtype=pl.List(pl.UInt32))})
    cut = [place < truncated for place in range(len(windows))]
    judged = table.with_columns(score=pl.Series(scores), truncated=pl.Series(cut), anomalous=pl.Series(scores > 9))
    drift = Drift(known or normal(), np.sort(calibration))
    drift.add(Windows(table, texts), judged)
    counts = StreamCounts(lines=sum(map(len, windows)) + misread)
    counts.rejected["form"] = misread
    return drift.verdict("shop version 1", FACTS, counts)


def like_before(count: int, seed: int = 1) -> tuple[list[list[str]], np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return [KNOWN] * count, generator.normal(5, 1, count), generator.normal(5, 1, 500)


def sure(found: Verdict) -> set[str]:
    assert found.retrain == any(measure.sure for measure in found.measures)
    return {measure.name for measure in found.measures if measure.sure}


@pytest.mark.parametrize("count", [1, 5, 50, 2000])
def test_a_log_like_before_asks_for_nothing_however_short(count: int) -> None:
    assert sure(verdict(*like_before(count))) == set()


def test_equal_scores_in_another_rounding_are_no_difference() -> None:
    calibration = np.full(300, 6.76719)
    assert sure(verdict([KNOWN] * 300, calibration + 2e-6, calibration)) == set()


def test_other_scores_are_told_once_there_are_enough_of_them() -> None:
    windows, scores, calibration = like_before(400)
    found = verdict(windows, scores + 2, calibration)
    assert sure(found) == {"scores"}
    assert "spread otherwise" in found.reasons[0]
    assert sure(verdict(windows[:4], scores[:4] + 2, calibration)) == set()


def test_windows_with_new_messages_are_told_beyond_what_calibration_had() -> None:
    windows, scores, calibration = like_before(400)
    windows = [[*KNOWN, "panic", "panic"]] * 60 + windows[60:]
    found = verdict(windows, scores, calibration)
    assert sure(found) == {"unseen"}
    assert found.measures[0].value == 60 / 400
    assert sure(verdict(windows, scores, calibration, normal(unseen=0.14))) == set()
    # One window of four is more than the limit, and no evidence.
    assert sure(verdict([*windows[:1], *[KNOWN] * 3], scores[:4], calibration)) == set()
    unknown = NormalWindows(None, pl.DataFrame(), 0.0, 0.0)
    assert verdict(windows, scores, calibration, unknown).measures[0].value is None


def test_truncated_windows_and_unreadable_lines_are_told() -> None:
    windows, scores, calibration = like_before(400)
    assert sure(verdict(windows, scores, calibration, truncated=80)) == {"truncated"}
    assert sure(verdict(windows, scores, calibration, misread=40)) == {"misread"}


def test_a_long_log_is_compared_by_a_sample_of_its_windows() -> None:
    drift = Drift(normal(), np.sort(np.random.default_rng(5).normal(5, 1, 800)))
    table = pl.DataFrame({"messages": pl.Series([[0]] * 30_000, dtype=pl.List(pl.UInt32))})
    for batch in range(3):
        scores = np.random.default_rng(batch).normal(5 + batch, 1, 30_000)
        judged = table.with_columns(score=pl.Series(scores), truncated=pl.lit(False), anomalous=pl.lit(False))
        drift.add(Windows(table, ["start"]), judged)
    spread = drift.verdict("shop", FACTS, StreamCounts(lines=90_000)).measures[1]
    # The sample is uniform over all three batches, so D is that of their even mixture, about 0.36.
    assert spread.of == 20_000
    assert spread.value == pytest.approx(0.36, abs=0.05)


def test_the_distance_is_the_greatest_difference_of_the_distribution_functions() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = generator.integers(0, 6, 70).astype(float), generator.integers(1, 7, 90).astype(float)
    steps = np.unique(np.concatenate([ours, theirs]))
    expected = max(abs((ours <= step).mean() - (theirs <= step).mean()) for step in steps)
    assert distribution_distance(ours, theirs)[0] == pytest.approx(expected)
    assert distribution_distance(ours[:0], theirs) == (0.0, 1.0)
    assert 0 < SPREAD < 1


@pytest.mark.parametrize(("part", "whole"), [(1, 4), (7, 40), (40, 40), (3, 200)])
def test_the_lower_bound_is_the_share_at_which_so_many_would_be_a_rarity(part: int, whole: int) -> None:
    bound = lower_bound(part, whole)
    tail = sum(comb(whole, k) * bound**k * (1 - bound) ** (whole - k) for k in range(part, whole + 1))
    assert tail == pytest.approx(0.001, rel=1e-6)
    assert lower_bound(0, whole) == 0.0


def test_the_newest_verdict_lies_where_the_nightly_flow_reads_it(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for count in (5, 50):
        found = verdict(*like_before(count))
        assert save_verdict(found, layout) == verdict_file("shop", layout)
    assert Verdict.model_validate_json(verdict_file("shop", layout).read_text()) == found
    assert found.windows == 50
