"""One share of the training windows for each client."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.errors import DataError
from storage.progress import Progress, silent

_Ints = npt.NDArray[np.int64]


class PartitionRule(BaseModel):
    """How training windows are dealt to clients."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["iid", "dirichlet", "time", "site"] = "iid"
    """`iid`: every client's share is a random sample of the same windows (the paper's); `dirichlet`: clients differ in
    the kinds of their windows (those made of the same messages), each kind dealt by shares drawn from a Dirichlet
    distribution (arXiv 1905.12022, section 4); `time`: successive stretches of the log; `site`: whole sites, each
    window with the site of its first line."""
    clients: int = Field(default=50, ge=1)
    """Number of clients; each has one partition, numbered from 0."""
    concentration: float = Field(default=0.5, gt=0)
    """`dirichlet` only: alpha of the distribution; the smaller, the more clients differ."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw of `iid` and `dirichlet`."""
    only: int | None = Field(default=None, ge=0)
    """Local training alone: the one client (`clients=1 fraction=1`) has this share of `of`, and the others' windows are
    not trained on. The simple rules still see them, and never-seen windows are those that no share has."""
    of: int | None = Field(default=None, ge=2)
    """With `only`: how many shares are dealt."""

    @model_validator(mode="after")
    def _one_share_has_one_client(self) -> "PartitionRule":
        if (self.only is None) != (self.of is None):
            raise ValueError("only and of go together: the share to train on, and how many are dealt")
        if self.only is not None and self.of is not None:
            if self.only >= self.of:
                raise ValueError(f"share {self.only} is not among {self.of}, which are numbered from 0")
            if self.clients != 1:
                raise ValueError(f"one share has one client, not {self.clients}: give clients=1 fraction=1")
        return self


def partition_windows(windows: pl.DataFrame, rule: PartitionRule) -> pl.DataFrame:
    """The partition of each window: window_id, partition; sorted by window. No partition is empty.

    Needs window_id; `dirichlet` also message_ids, `time` first_time, `site` site. Sizes of `iid` and `time` differ by
    at most one. With `only` the windows of that share alone. Raises DataError where there are more clients (or shares)
    than windows, or than sites.
    """
    if rule.only is not None and rule.of is not None:
        dealt = _dealt(windows, rule.model_copy(update={"clients": rule.of}), "partition.of")
        mine = dealt.filter(pl.col("partition") == rule.only)
        return mine.with_columns(partition=pl.lit(0, pl.UInt32))
    return _dealt(windows, rule, "clients")


def _dealt(windows: pl.DataFrame, rule: PartitionRule, setting: str) -> pl.DataFrame:
    """All windows, dealt to the clients; `setting` is what says how many these are."""
    count = len(windows)
    if rule.clients > count:
        raise DataError(_too_many(rule.clients, count, "training windows", setting))
    ordered = windows.sort("window_id")
    if rule.kind == "dirichlet":
        partition = _by_kind(ordered, rule)
    elif rule.kind == "time":
        partition = _in_turn(_time_order(ordered), rule.clients)
    elif rule.kind == "site":
        partition = _by_site(ordered, rule, setting)
    else:
        partition = np.empty(count, dtype=np.int64)
        partition[np.random.default_rng(rule.seed).permutation(count)] = np.arange(count) % rule.clients
    return pl.DataFrame({"window_id": ordered["window_id"], "partition": partition.astype(np.uint32)})


def _time_order(windows: pl.DataFrame) -> _Ints:
    """Positions by the time of the first line; by number where a window has no time."""
    by = ["window_id"] if windows["first_time"].has_nulls() else ["first_time", "window_id"]
    return windows.with_row_index("position").sort(by)["position"].to_numpy().astype(np.int64)


def _in_turn(order: _Ints, clients: int) -> _Ints:
    """Successive stretches of `order`, sizes differing by at most one."""
    partition = np.empty(len(order), dtype=np.int64)
    partition[order] = np.arange(len(order)) * clients // len(order)
    return partition


def _by_kind(windows: pl.DataFrame, rule: PartitionRule) -> _Ints:
    """Each kind of window, the most frequent first, is cut by shares of its own."""
    random = np.random.default_rng(rule.seed)
    kinds = windows["message_ids"].list.unique().list.sort().cast(pl.List(pl.String)).list.join(",")
    numbered = pl.DataFrame({"position": np.arange(len(windows)), "kind": kinds})
    groups = numbered.group_by("kind").agg("position").with_columns(size=pl.col("position").list.len())
    partition = np.empty(len(windows), dtype=np.int64)
    for members in groups.sort("size", "kind", descending=[True, False])["position"].to_list():
        shares = random.dirichlet(np.full(rule.clients, rule.concentration))
        bounds = np.rint(np.cumsum(shares) * len(members)).astype(int)
        owners = np.searchsorted(bounds[:-1], np.arange(len(members)), side="right")
        partition[random.permutation(sorted(members))] = owners
    return _none_empty(partition, rule.clients)


def _none_empty(partition: _Ints, clients: int) -> _Ints:
    """Clients without windows get one each, always the last one of the client that then has most."""
    sizes = np.bincount(partition, minlength=clients)
    for client in np.flatnonzero(sizes == 0):
        giver = int(np.argmax(sizes))
        partition[np.flatnonzero(partition == giver)[-1]] = client
        sizes[giver] -= 1
        sizes[client] = 1
    return partition


def _too_many(clients: int, count: int, shared: str, setting: str) -> str:
    return f"{clients} clients cannot share {count} {shared}; set {setting} to {count} at most."


def _by_site(windows: pl.DataFrame, rule: PartitionRule, setting: str) -> _Ints:
    """Each site goes to the client with the fewest windows so far, the largest site first."""
    if (windows["site"].fill_null("") == "").all():
        raise DataError("partition.kind=site needs a site for each window, and this log names none; use another kind.")
    sites = windows.group_by("site").len().sort("len", "site", descending=[True, False])
    if len(sites) < rule.clients:
        raise DataError(_too_many(rule.clients, len(sites), "sites", setting))
    owner = dict(zip(sites["site"], _evenly(sites["len"].to_list(), rule.clients), strict=True))
    return np.array([owner[site] for site in windows["site"]], dtype=np.int64)


def _evenly(sizes: Sequence[int], clients: int) -> list[int]:
    """For each size, in the order given, the client that has least so far."""
    held = np.zeros(clients, dtype=np.int64)
    owners = []
    for size in sizes:
        owners.append(int(np.argmin(held)))
        held[owners[-1]] += size
    return owners


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
    train = pl.scan_parquet(splits / "splits.parquet").filter(pl.col("split") == "train").select("window_id")
    needed = {"dirichlet": ["message_ids"], "time": ["first_time"], "site": ["site"]}.get(rule.kind, [])
    windows = pl.scan_parquet(tokens / "windows.parquet").select("window_id", "sequence_id", *needed)
    trained = windows.join(train, on="window_id", how="semi").collect()
    shares = partition_windows(trained, rule)
    shares.write_parquet(into / "shares.parquet")
    dealt = shares.join(trained.select("window_id", "sequence_id"), on="window_id")
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
