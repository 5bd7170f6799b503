"""One share of the training windows for each client."""

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from storage.errors import DataError
from storage.progress import Progress, silent


class PartitionRule(BaseModel):
    """How training windows are dealt to clients."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["iid"] = "iid"
    """`iid`: every client's share is a random sample of the same windows (the paper's)."""
    clients: int = Field(default=50, ge=1)
    """Number of clients; each has one partition, numbered from 0."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""


def partition_windows(window_ids: pl.Series, rule: PartitionRule) -> pl.DataFrame:
    """The partition of each window: window_id, partition; sorted by window, sizes differing by at most one.

    Raises DataError where there are more clients than windows.
    """
    count = len(window_ids)
    if rule.clients > count:
        raise DataError(
            f"{rule.clients} clients cannot share {count} training windows; set clients to {count} at most."
        )
    partition = np.empty(count, dtype=np.uint32)
    partition[np.random.default_rng(rule.seed).permutation(count)] = np.arange(count) % rule.clients
    return pl.DataFrame({"window_id": window_ids.sort(), "partition": partition})


def share_file(folder: Path, partition: int) -> Path:
    """Where the share of one client lies in a partition stage."""
    return folder / "shares" / f"share-{partition:05d}.parquet"


def write_shares(
    tokens: Path, splits: Path, rule: PartitionRule, into: Path, progress: Progress = silent
) -> dict[str, int]:
    """Deal the train windows of a split stage into `shares.parquet` and one file a client; count windows and tokens.

    `tokens` and `splits` are the folders of the tokenize and split stages. A share has one row a window, repeated
    sequences included: sequence_id, token_ids, n_tokens.
    """
    train = pl.scan_parquet(splits / "splits.parquet").filter(pl.col("split") == "train").collect()["window_id"]
    shares = partition_windows(train, rule)
    shares.write_parquet(into / "shares.parquet")
    dealt = shares.join(
        pl.read_parquet(tokens / "windows.parquet", columns=["window_id", "sequence_id"]), on="window_id"
    )
    sequences = pl.read_parquet(tokens / "sequences.parquet", columns=["sequence_id", "token_ids", "n_tokens"])
    (into / "shares").mkdir()
    for partition in range(rule.clients):
        mine = dealt.filter(pl.col("partition") == partition).sort("window_id").select("sequence_id")
        mine.join(sequences, on="sequence_id", how="left", maintain_order="left").write_parquet(
            share_file(into, partition)
        )
        progress(partition + 1, rule.clients, "shares")
    sizes = dealt.group_by("partition").len()["len"]
    windows_tokens = dealt.join(sequences.select("sequence_id", "n_tokens"), on="sequence_id")["n_tokens"]
    return {
        "clients": rule.clients,
        "windows": len(shares),
        "smallest": int(sizes.to_numpy().min()),
        "largest": int(sizes.to_numpy().max()),
        "tokens": int(windows_tokens.cast(pl.UInt64).sum()),
    }
