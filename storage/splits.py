"""Which windows are learned from, calibrated on, chosen by and reported on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.errors import DataError

SPLITS = ("train", "calibration", "validation", "test")
UNUSED = "unused"


class SplitRule(BaseModel):
    """How windows are divided; shares that sum to less than 1 leave the rest unused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["random", "chronological", "grouped"] = "random"
    """`random`: the paper's; `chronological`: earlier windows train, the latest test; `grouped`: a sequence is on
    one side only of train and calibration, validation, and test."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws of `random` and `grouped`, and of the caps."""
    train: float = Field(default=0.55, gt=0, le=1)
    """Share of all windows that clients learn from; anomalous ones drawn here stay unused."""
    calibration: float = Field(default=0.1, ge=0, lt=1)
    """Share of all windows that the label-free threshold comes from; anomalous ones drawn here stay unused."""
    validation: float = Field(default=0.15, ge=0, lt=1)
    """Share of all windows on which rounds, scores and promotion are chosen."""
    test: float = Field(default=0.2, ge=0, lt=1)
    """Share of all windows that are reported and never chosen on."""
    train_windows: int | None = Field(default=None, ge=1)
    """At most so many training windows, drawn by seed; the others stay unused. None: all."""
    calibration_windows: int | None = Field(default=None, ge=1)
    """At most so many calibration windows, drawn by seed; the others stay unused. None: all."""
    rest: Literal["unused", "test"] = "unused"
    """What becomes of the windows left over: those beyond the caps or shares, and anomalous ones drawn to train or
    calibration. `test`: all are reported on, so that anomalies are more frequent there than in the log."""
    contamination: float = Field(default=0, ge=0, lt=1)
    """Share of anomalous windows among those of train, and of calibration: logs that nobody has labelled. The anomalous
    windows drawn there take part, as many as make up the share; the normal ones stay as they are."""

    @model_validator(mode="after")
    def _shares_fit(self) -> "SplitRule":
        total = sum(self.shares.values())
        if total > 1 + 1e-9:
            raise ValueError(
                f"train + calibration + validation + test is {total:g}; lower one of them so that it is at most 1"
            )
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The share of each split, in the order of time of a chronological split."""
        return {"train": self.train, "calibration": self.calibration, "validation": self.validation, "test": self.test}


def split_windows(windows: pl.DataFrame, rule: SplitRule) -> pl.DataFrame:
    """The split of each window: window_id, split; in the order given.

    Needs window_id and label, `grouped` also sequence_hash; a missing label is presumed normal. Raises DataError where
    nothing is left to train on.
    """
    random = np.random.default_rng(rule.seed)
    split = _drawn(windows, rule, random)
    anomalous = np.isin(split, ["train", "calibration"]) & (windows["label"].fill_null(0) == 1).to_numpy()
    spoilt = {name: np.flatnonzero(anomalous & (split == name)) for name in ("train", "calibration")}
    split[anomalous] = UNUSED
    for name, cap in (("train", rule.train_windows), ("calibration", rule.calibration_windows)):
        members = np.flatnonzero(split == name)
        if cap is not None and len(members) > cap:
            split[random.permutation(members)[cap:]] = UNUSED
    if not (split == "train").any():
        raise DataError(
            f"No normal window is left to train on among {len(windows)}; give more windows or a larger train share."
        )
    for name, members in spoilt.items():
        split[_contaminating(name, members, int((split == name).sum()), rule)] = name
    split[split == UNUSED] = rule.rest
    return pl.DataFrame({"window_id": windows["window_id"], "split": pl.Series(split.tolist(), dtype=pl.String)})


def _contaminating(name: str, anomalous: np.ndarray, normal: int, rule: SplitRule) -> np.ndarray:
    """Of a split's anomalous windows, those that make up the rule's share beside so many normal ones."""
    count = round(rule.contamination * normal / (1 - rule.contamination))
    if count > len(anomalous):
        most = len(anomalous) / (len(anomalous) + normal)
        raise DataError(
            f"contamination = {rule.contamination:g} needs {count} anomalous {name} windows, but {len(anomalous)} were "
            f"drawn; give at most {most:.3f}, or fewer {name}_windows."
        )
    return np.random.default_rng((rule.seed, 1)).permutation(anomalous)[:count]


def _drawn(windows: pl.DataFrame, rule: SplitRule, random: np.random.Generator) -> np.ndarray:
    if rule.kind == "random":
        return _cut(random.permutation(len(windows)), rule.shares)
    if rule.kind == "chronological":
        return _cut(_time_order(windows), rule.shares)
    return _grouped(windows, rule, random)


def _cut(order: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """The split of each position when `order` is cut into consecutive pieces of the given shares."""
    bounds = np.rint(np.cumsum(list(shares.values())) * len(order)).astype(int)
    split = np.full(len(order), UNUSED, dtype=object)
    for name, start, end in zip(shares, [0, *bounds[:-1]], bounds, strict=True):
        split[order[start:end]] = name
    return split


def _time_order(windows: pl.DataFrame) -> np.ndarray:
    """Positions by the time of the first line; by first appearance in the log where a window has no time."""
    by = ["window_id"] if windows["first_time"].has_nulls() else ["first_time", "window_id"]
    return windows.with_row_index("position").sort(by)["position"].to_numpy()


def _grouped(windows: pl.DataFrame, rule: SplitRule, random: np.random.Generator) -> np.ndarray:
    """Whole sequences go to one of three sides; train and calibration then part the windows of theirs by a draw."""
    sides = {"fit": rule.train + rule.calibration, "validation": rule.validation, "test": rule.test}
    sides[UNUSED] = max(0.0, 1 - sum(sides.values()))
    side = _sides(windows, sides, random)
    split = side.copy()
    fit = np.flatnonzero(side == "fit")
    split[fit] = _cut(
        random.permutation(len(fit)),
        {"train": rule.train / sides["fit"], "calibration": rule.calibration / sides["fit"]},
    )
    split[fit[split[fit] == UNUSED]] = "train"  # a position lost to rounding
    return split


def _sides(windows: pl.DataFrame, sides: Mapping[str, float], random: np.random.Generator) -> np.ndarray:
    """The side of each window, drawn once a sequence with the odds of the room left, the most frequent sequences first.

    Sequences with and without anomalous windows are drawn apart, so that anomalies keep about their share on each side.
    """
    groups = (
        windows.group_by("sequence_hash")
        .agg(size=pl.len(), anomalous=(pl.col("label").fill_null(0) == 1).any())
        .sort("size", "sequence_hash", descending=[True, False])
    )
    chosen: dict[str, str] = {}
    for stratum in (groups.filter("anomalous"), groups.filter(~pl.col("anomalous"))):
        room = np.array(list(sides.values())) * stratum["size"].sum()
        for sequence, size in stratum.select("sequence_hash", "size").iter_rows():
            place = _place(room, size, random)
            room[place] -= size
            chosen[sequence] = list(sides)[place]
    return np.array([chosen[sequence] for sequence in windows["sequence_hash"]], dtype=object)


def _place(room: np.ndarray, size: int, random: np.random.Generator) -> int:
    odds = np.where(room >= size, room, 0)
    return int(random.choice(len(room), p=odds / odds.sum())) if odds.any() else int(np.argmax(room))


def split_counts(windows: pl.DataFrame, splits: pl.DataFrame) -> dict[str, int]:
    """Windows of each split, and `<split>_anomalous` for those known to be so."""
    labelled = windows.select("window_id", anomalous=pl.col("label").fill_null(0) == 1).join(splits, on="window_id")
    counts = {}
    for name in (*SPLITS, UNUSED):
        members = labelled.filter(pl.col("split") == name)
        counts[name] = len(members)
        counts[f"{name}_anomalous"] = int(members["anomalous"].sum())
    return counts


def write_splits(windows_file: Path, rule: SplitRule, into: Path) -> dict[str, int]:
    """Split the windows of a tokenize stage into `splits.parquet`; the counts of each split.

    Raises DataError where nothing is left to train on, or to calibrate on: without the latter, hours of training would
    end without a threshold.
    """
    columns = ["window_id", "first_time", "label", "sequence_hash"]
    windows = pl.read_parquet(windows_file, columns=columns)
    splits = split_windows(windows, rule)
    counts = split_counts(windows, splits)
    if not counts["calibration"]:
        raise DataError(
            f"No normal window is left to calibrate on among {len(windows)}; "
            "give more windows or a larger calibration share."
        )
    splits.write_parquet(into / "splits.parquet")
    return counts
