"""From the messages of sequences and their surprises to the score `max_excess`, and what a detector keeps for it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from storage.judging import USUAL
from storage.normal_windows import message_hash
from storage.tables import write_table

if TYPE_CHECKING:
    from fl.usual_messages import MessageSurprises, UsualMessages

SURPRISES = "message_surprise"
"""A list for each sequence, as fl/scoring.py has it: the surprise of each message that was read, last of the end."""


def message_hashes(tokenized: Path) -> npt.NDArray[np.uint64]:
    """The hash of each message of a tokenize stage's folder, by message id."""
    messages = pl.read_parquet(tokenized / "messages.parquet", columns=["message_id", "text"])
    ids = messages["message_id"].to_numpy().astype(np.int64)
    hashes = np.zeros(int(ids.max(initial=-1)) + 1, dtype=np.uint64)
    hashes[ids] = [message_hash(text) for text in messages["text"]]
    return hashes


def surprises_of(sequences: pl.DataFrame, hashes: npt.NDArray[np.uint64]) -> "MessageSurprises":
    """The columns message_ids and message_surprise of sequences, with hashes instead of ids."""
    from fl.usual_messages import message_surprises

    messages = [hashes[ids.to_numpy()] for ids in sequences["message_ids"]]
    return message_surprises(messages, [found.to_numpy() for found in sequences[SURPRISES]])


def read_usual(folder: Path) -> "UsualMessages":
    """What a detector's folder keeps."""
    from fl.usual_messages import UsualMessages

    table = pl.read_parquet(folder / USUAL)
    return UsualMessages(*(table[name].to_numpy() for name in ("message_hash", "mean", "deviation")))


def write_usual(usual: "UsualMessages", folder: Path) -> None:
    """Keep what is usual in a folder, by message hash."""
    columns = {"message_hash": usual.messages, "mean": usual.means, "deviation": usual.deviations}
    write_table(pl.DataFrame(columns), folder / USUAL)
