"""From the messages of sequences and their surprises to the score `max_excess`, and what a detector keeps for it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fl.usual_messages import SURPRISES, UsualMessages, message_surprises, usual_messages
from storage.judging import USUAL
from storage.normal_windows import message_hash
from storage.tables import write_table


def message_hashes(tokenized: Path) -> npt.NDArray[np.uint64]:
    """The hash of each message of a tokenize stage's folder, by message id."""
    messages = pl.read_parquet(tokenized / "messages.parquet", columns=["message_id", "text"])
    ids = messages["message_id"].to_numpy().astype(np.int64)
    hashes = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.uint64)
    hashes[ids] = [message_hash(text) for text in messages["text"]]
    return hashes


def calibration_windows(table: pl.DataFrame, sequences: pl.Series) -> pl.Series:
    """How many calibration windows (columns sequence_id, split) each of the sequences stands for."""
    counted = table.filter(pl.col("split") == "calibration").group_by("sequence_id").agg(windows=pl.len())
    placed = sequences.to_frame("sequence_id").join(counted, on="sequence_id", how="left", maintain_order="left")
    return placed["windows"].fill_null(0)


def excess_of(
    sequences: pl.DataFrame, hashes: npt.NDArray[np.uint64], known: UsualMessages | pl.Series
) -> tuple[npt.NDArray[np.float64], UsualMessages]:
    """The score of each of some sequences (columns message_ids, message_surprise), and what it took for usual.

    `known` is that itself, or how many calibration windows each sequence stands for, from which it follows.
    """
    messages = [hashes[ids.to_numpy()] for ids in sequences["message_ids"]]
    found = message_surprises(messages, [surprises.to_numpy() for surprises in sequences[SURPRISES]])
    usual = known if isinstance(known, UsualMessages) else usual_messages(found, known.to_numpy())
    return usual.excess(found), usual


def write_usual(usual: UsualMessages, folder: Path) -> None:
    """Keep what is usual in a folder, by message hash."""
    columns = {"message_hash": usual.messages, "mean": usual.means, "deviation": usual.deviations}
    write_table(pl.DataFrame(columns), folder / USUAL)
