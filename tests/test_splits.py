"""Splits: who learns from what, held against counts and sets computed here."""

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from storage.errors import DataError
from storage.splits import SplitRule, split_counts, split_windows, write_splits

FIT = {"train", "calibration"}


def make_windows(count: int, anomalous_every: int = 30, sequences: int = 40, labelled: bool = True) -> pl.DataFrame:
    """Windows whose times run backwards, unlike their numbers; anomalies have their own sequences."""
    anomalous = [index % anomalous_every == 0 for index in range(count)]
    names = [f"{'bad' if bad else 'good'}-{(index * index) % sequences}" for index, bad in enumerate(anomalous)]
    return pl.DataFrame(
        {
            "window_id": pl.Series(range(count), dtype=pl.UInt32),
            "first_time": [datetime(2008, 11, 9) - timedelta(minutes=index) for index in range(count)],
            "label": pl.Series([int(bad) if labelled else None for bad in anomalous], dtype=pl.Int8),
            "sequence_hash": names,
        }
    )


def members(windows: pl.DataFrame, rule: SplitRule) -> dict[str, set[int]]:
    split = split_windows(windows, rule)
    return {name: set(rows["window_id"]) for (name,), rows in split.group_by("split")}


def test_every_window_is_in_exactly_one_split_of_the_stated_size() -> None:
    windows = make_windows(1000)
    parts = members(windows, SplitRule())
    assert sorted(window for part in parts.values() for window in part) == list(range(1000))
    anomalous = set(windows.filter(pl.col("label") == 1)["window_id"])
    drawn_to_fit = 650
    assert len(parts["validation"]) == 150
    assert len(parts["test"]) == 200
    assert len(parts["train"]) + len(parts["calibration"]) + len(parts["unused"]) == drawn_to_fit
    assert parts["unused"] <= anomalous


@pytest.mark.parametrize("kind", ["random", "chronological", "grouped"])
def test_nothing_known_to_be_anomalous_is_learned_or_calibrated_on(kind: str) -> None:
    windows = make_windows(900)
    split = split_windows(windows, SplitRule(kind=kind)).join(windows, on="window_id")
    assert split.filter(pl.col("split").is_in(FIT))["label"].sum() == 0
    assert split.filter(pl.col("split") == "test")["label"].sum() > 0
    assert split.filter(pl.col("split") == "unused").height > 0


@pytest.mark.parametrize("kind", ["random", "chronological", "grouped"])
def test_without_labels_all_windows_are_presumed_normal(kind: str) -> None:
    parts = members(make_windows(400, labelled=False), SplitRule(kind=kind))
    assert "unused" not in parts


def test_a_seed_gives_the_same_split_and_another_seed_another() -> None:
    windows = make_windows(500)
    first = split_windows(windows, SplitRule(seed=3))
    assert first.equals(split_windows(windows, SplitRule(seed=3)))
    assert not first.equals(split_windows(windows, SplitRule(seed=4)))


def test_chronological_never_trains_on_what_is_later_than_the_test() -> None:
    windows = make_windows(300)
    times = split_windows(windows, SplitRule(kind="chronological")).join(windows, on="window_id")
    spans = {name: (rows["first_time"].min(), rows["first_time"].max()) for (name,), rows in times.group_by("split")}
    order = ["train", "calibration", "validation", "test"]
    assert all(spans[early][1] < spans[late][0] for early, late in pairwise(order))


def test_chronological_without_times_follows_the_order_of_the_log() -> None:
    windows = make_windows(100, labelled=False).with_columns(first_time=pl.lit(None, dtype=pl.Datetime))
    assert members(windows, SplitRule(kind="chronological"))["test"] == set(range(80, 100))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), sequences=st.integers(5, 120), count=st.integers(60, 400))
def test_grouped_never_has_a_sequence_on_two_sides(seed: int, sequences: int, count: int) -> None:
    windows = make_windows(count, sequences=sequences)
    split = split_windows(windows, SplitRule(kind="grouped", seed=seed)).join(windows, on="window_id")
    side = pl.when(pl.col("split").is_in(FIT)).then(pl.lit("fit")).otherwise("split")
    sides = split.filter(pl.col("split") != "unused").select("sequence_hash", side=side).unique()
    assert sides["sequence_hash"].is_unique().all()


def test_grouped_keeps_the_shares_and_the_anomalies_of_many_small_sequences() -> None:
    windows = make_windows(4000, anomalous_every=10, sequences=1500)
    counts = split_counts(windows, split_windows(windows, SplitRule(kind="grouped")))
    assert abs(counts["test"] - 800) < 40
    assert abs(counts["validation"] - 600) < 40
    assert abs(counts["test_anomalous"] - 80) < 10


def test_a_cap_keeps_that_many_and_the_rest_stays_unused() -> None:
    windows = make_windows(1000, labelled=False)
    rule = SplitRule(train_windows=100, calibration_windows=20)
    counts = split_counts(windows, split_windows(windows, rule))
    assert (counts["train"], counts["calibration"], counts["unused"]) == (100, 20, 530)
    uncapped = split_windows(windows, SplitRule())
    kept = set(split_windows(windows, rule).filter(pl.col("split") == "train")["window_id"])
    assert kept < set(uncapped.filter(pl.col("split") == "train")["window_id"])


def test_shares_below_one_leave_the_rest_unused() -> None:
    windows = make_windows(1000, labelled=False)
    for kind in ("random", "chronological", "grouped"):
        rule = SplitRule(kind=kind, train=0.2, calibration=0.1, validation=0.1, test=0.1)
        counts = split_counts(windows, split_windows(windows, rule))
        assert abs(counts["unused"] - 500) <= 30
        assert abs(counts["test"] - 100) <= 30


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most 1"):
        SplitRule(train=0.9)


def test_windows_without_any_normal_one_are_refused_in_one_line() -> None:
    windows = make_windows(50, anomalous_every=1)
    with pytest.raises(DataError, match="No normal window") as told:
        split_windows(windows, SplitRule())
    assert "\n" not in str(told.value)


def test_the_written_stage_holds_every_window_and_counts_what_it_holds(tmp_path: Path) -> None:
    windows = make_windows(300)
    windows.write_parquet(tmp_path / "windows.parquet")
    (tmp_path / "split").mkdir()
    counts = write_splits(tmp_path / "windows.parquet", SplitRule(kind="grouped"), tmp_path / "split")
    written = pl.read_parquet(tmp_path / "split" / "splits.parquet")
    assert written.schema == {"window_id": pl.UInt32, "split": pl.String}
    assert written["window_id"].to_list() == list(range(300))
    for name in ("train", "calibration", "validation", "test", "unused"):
        assert counts[name] == written.filter(pl.col("split") == name).height
    assert sum(counts[f"{name}_anomalous"] for name in ("validation", "test", "unused")) == 10


def test_contaminated_logs_have_the_share_of_anomalies_and_the_same_normal_and_judged_windows() -> None:
    windows = make_windows(3000, anomalous_every=10)
    clean, dirty = (members(windows, SplitRule(contamination=share)) for share in (0.0, 0.05))
    anomalous = set(windows.filter(pl.col("label") == 1)["window_id"])
    for name in ("train", "calibration"):
        assert dirty[name] - anomalous == clean[name]
        spoilt = len(dirty[name] & anomalous)
        assert abs(spoilt / len(dirty[name]) - 0.05) < 1 / len(dirty[name])
    assert (dirty["validation"], dirty["test"]) == (clean["validation"], clean["test"])


def test_more_contamination_takes_the_same_anomalies_and_more() -> None:
    windows = make_windows(3000, anomalous_every=10)
    few, many = (members(windows, SplitRule(contamination=share))["train"] for share in (0.01, 0.05))
    assert few < many


def test_more_contamination_than_there_are_anomalies_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"give at most 0\.0") as told:
        split_windows(make_windows(1000, anomalous_every=100), SplitRule(contamination=0.3))
    assert "\n" not in str(told.value)


def test_the_rest_may_be_reported_on() -> None:
    windows = make_windows(1000)
    rule = SplitRule(train=0.5, calibration=0.2, validation=0, test=0.3, train_windows=300, rest="test")
    parts = members(windows, rule)
    assert "unused" not in parts
    assert parts["test"] >= set(windows.filter(pl.col("label") == 1)["window_id"])
    assert len(parts["test"]) == 1000 - 300 - len(parts["calibration"])
