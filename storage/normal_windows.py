"""What a detector keeps of the windows it was trained and calibrated on, masked: to explain by, and to see drift by."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from storage.surprises import sample_sequences
from storage.tables import write_table

_KNOWN = "known_messages.parquet"
_SAMPLE = "normal_windows.parquet"
_SHARES = "normal_shares.json"
_FREQUENT, _MOST = 16, 64
"""Distinct windows in the sample: the most frequent, and with those for rarer messages."""


def message_hash(text: str) -> int:
    """The name of a masked message: the first 8 bytes of its BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class NormalWindows:
    """What is known of a detector's normal windows."""

    known: frozenset[int] | None
    """Hashes of all masked messages of training and calibration; None: not kept."""
    sample: pl.DataFrame
    """Distinct calibration windows: messages (masked texts in order) and windows (how many each stands for)."""
    unseen: float
    """Share of the calibration windows that hold a message which no training window has."""
    truncated: float
    """Share of the calibration windows that are cut off at the most tokens."""


def write_normal_windows(folder: Path, tokenized: Path, window_scores: Path) -> None:
    """Write a detector's knowledge of normal windows into its folder.

    `tokenized`: the tokenize stage's folder; `window_scores`: the evaluation's table with each window's split.
    """
    split = pl.scan_parquet(window_scores).select("window_id", "split")
    columns = ["window_id", "sequence_id", "message_ids", "truncated"]
    windows = pl.scan_parquet(tokenized / "windows.parquet").select(columns).join(split, on="window_id", how="left")
    texts = pl.read_parquet(tokenized / "messages.parquet", columns=["message_id", "text"])["text"]
    trained, calibration = (windows.filter(pl.col("split") == name) for name in ("train", "calibration"))
    in_training, in_calibration = _messages(trained), _messages(calibration)
    known = [message_hash(texts[message]) for message in pl.concat([in_training, in_calibration]).unique().sort()]
    write_table(pl.DataFrame({"message_hash": pl.Series(known, dtype=pl.UInt64)}), folder / _KNOWN)
    write_table(_sample(calibration, texts), folder / _SAMPLE)
    new = in_calibration.filter(~in_calibration.is_in(in_training.implode()))
    shares = calibration.select(
        unseen=pl.col("message_ids")
        .list.set_intersection(pl.lit(new.to_list(), pl.List(pl.UInt32)))
        .list.len()
        .gt(0)
        .mean(),
        truncated=pl.col("truncated").mean(),
    )
    (folder / _SHARES).write_text(json.dumps(shares.collect().row(0, named=True), indent=1))


def _messages(windows: pl.LazyFrame) -> pl.Series:
    """The distinct messages of windows."""
    ids = windows.select(pl.col("message_ids").explode(empty_as_null=False).unique())
    return ids.collect()["message_ids"]


def _sample(calibration: pl.LazyFrame, texts: pl.Series) -> pl.DataFrame:
    counted = calibration.group_by("sequence_id").agg(
        pl.len().cast(pl.UInt32).alias("windows"), pl.col("message_ids").first()
    )
    distinct = counted.sort(["windows", "sequence_id"], descending=[True, False]).collect()
    sequences = distinct["message_ids"].to_list()
    wanted = sorted({message for sequence in sequences for message in sequence})
    chosen = sample_sequences(sequences, wanted, _FREQUENT, _MOST)
    messages = [texts.gather(sequences[place]).to_list() for place in chosen]
    return pl.DataFrame(
        {"messages": pl.Series(messages, dtype=pl.List(pl.String)), "windows": distinct["windows"][chosen]}
    )


def read_normal_windows(folder: Path) -> NormalWindows:
    """What the detector in a folder keeps; nothing, where it was registered before anything was kept."""
    sample = pl.DataFrame(schema={"messages": pl.List(pl.String), "windows": pl.UInt32})
    if not (folder / _SHARES).is_file():
        return NormalWindows(None, sample, unseen=0.0, truncated=0.0)
    known = pl.read_parquet(folder / _KNOWN)["message_hash"].to_list()
    shares = json.loads((folder / _SHARES).read_text())
    return NormalWindows(frozenset(known), pl.read_parquet(folder / _SAMPLE), **shares)
