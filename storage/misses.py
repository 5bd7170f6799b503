"""The masked messages by which a missed anomaly can be told from the windows that training saw."""

from collections.abc import Sequence
from typing import Any

import polars as pl

_RAREST = 2


def with_messages(sequences: Sequence[dict[str, Any]], windows: pl.DataFrame, messages: pl.DataFrame) -> list[Any]:
    """The sequences with their number of messages, and the `rarest` ones by how many training windows have them.

    `windows` has split and message_ids, a row for each window in the order of `window`; `messages` has message_id and
    text, masked.
    """
    train = windows.filter(pl.col("split") == "train").select(pl.col("message_ids").list.unique())
    seen = train.explode("message_ids").group_by("message_ids").len()
    found = []
    for one in sequences:
        row = windows["message_ids"][one["window"]]
        counted = row.alias("message_ids").value_counts(name="times").join(seen, on="message_ids", how="left")
        rare = counted.with_columns(pl.col("len").fill_null(0)).sort("len", "times", "message_ids").head(_RAREST)
        named = rare.join(messages, left_on="message_ids", right_on="message_id", how="left", maintain_order="left")
        rarest = [
            {"text": text, "times": times, "train_windows": windows_with}
            for text, times, windows_with in named.select("text", "times", "len").rows()
        ]
        found.append(one | {"messages": len(row), "rarest": rarest})
    return found
