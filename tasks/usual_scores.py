"""From the surprises of messages to the scores `rarity` and `max_excess`, and what a detector keeps for them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from fl.rarity import UsualWindows, usual_windows
from fl.usual_messages import SURPRISES, message_surprises
from storage.judging import MESSAGES_FILE, SCORES_FILE
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


def usual_scores(
    sequences: pl.DataFrame, hashes: npt.NDArray[np.uint64], known: UsualWindows | pl.Series
) -> tuple[dict[str, npt.NDArray[np.float64]], UsualWindows]:
    """`max_excess` and `rarity` of some sequences (columns message_ids, message_surprise, mean_token).

    `known` is what they take for usual, or how many calibration windows each sequence stands for, from which that
    follows; it is returned as well.
    """
    messages = [hashes[ids.to_numpy()] for ids in sequences["message_ids"]]
    found = message_surprises(messages, [surprises.to_numpy() for surprises in sequences[SURPRISES]])
    mean = sequences["mean_token"].to_numpy()
    usual = known if isinstance(known, UsualWindows) else usual_windows(found, mean, known.to_numpy())
    return usual.columns(found, mean), usual


def write_usual(usual: UsualWindows, folder: Path) -> None:
    """Keep what is usual in a folder, as storage/judging.py reads it."""
    messages = usual.messages
    columns = {"message_hash": messages.messages, "mean": messages.means, "deviation": messages.deviations}
    write_table(pl.DataFrame(columns), folder / MESSAGES_FILE)
    write_table(pl.DataFrame(dict(usual.scores)), folder / SCORES_FILE)
