"""Partitions: shares are fair, whole and repeatable."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import DataError
from storage.partitions import PartitionRule, partition_windows, share_file, write_shares


def ids(count: int) -> pl.DataFrame:
    """Windows whose numbers have holes, as those of the train split do."""
    return pl.DataFrame({"window_id": pl.Series(range(3, 3 + 2 * count, 2), dtype=pl.UInt32)})


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 300), clients=st.integers(1, 60), seed=st.integers(0, 1000))
def test_each_window_has_one_partition_and_sizes_differ_by_at_most_one(count: int, clients: int, seed: int) -> None:
    if clients > count:
        return
    shares = partition_windows(ids(count), PartitionRule(clients=clients, seed=seed))
    assert shares["window_id"].to_list() == ids(count)["window_id"].to_list()
    sizes = [shares.filter(pl.col("partition") == partition).height for partition in range(clients)]
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def test_a_partition_does_not_depend_on_the_order_of_the_windows_given() -> None:
    rule = PartitionRule(clients=7, seed=1)
    assert partition_windows(ids(100), rule).equals(partition_windows(ids(100).reverse(), rule))


def test_another_seed_deals_otherwise() -> None:
    first, second = (partition_windows(ids(100), PartitionRule(clients=5, seed=seed)) for seed in (0, 1))
    assert not first.equals(second)


def test_a_share_is_not_a_stretch_of_the_log() -> None:
    shares = partition_windows(ids(1000), PartitionRule(clients=10))
    share = shares.filter(pl.col("partition") == 0)["window_id"]
    assert share.min() < 200
    assert share.max() > 1800


def test_more_clients_than_windows_is_one_clear_line() -> None:
    with pytest.raises(DataError, match="set clients to 3 at most") as told:
        partition_windows(ids(3), PartitionRule(clients=4))
    assert "\n" not in str(told.value)


@pytest.fixture
def stages(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A tokenize stage of 20 windows over 3 sequences, a split stage with 14 train windows, and an empty folder."""
    tokens, splits, into = (tmp_path / name for name in ("tokenize", "split", "partition"))
    for folder in (tokens, splits, into):
        folder.mkdir()
    window = pl.Series(range(20), dtype=pl.UInt32)
    pl.DataFrame({"window_id": window, "sequence_id": (window % 3).cast(pl.UInt32)}).write_parquet(
        tokens / "windows.parquet"
    )
    pl.DataFrame(
        {"sequence_id": [0, 1, 2], "token_ids": [[5], [6, 7], [8, 9, 10]], "n_tokens": [1, 2, 3]},
        schema={"sequence_id": pl.UInt32, "token_ids": pl.List(pl.UInt32), "n_tokens": pl.UInt32},
    ).write_parquet(tokens / "sequences.parquet")
    names = ["train" if index < 14 else "test" for index in range(20)]
    pl.DataFrame({"window_id": window, "split": names}).write_parquet(splits / "splits.parquet")
    return tokens, splits, into


def test_the_shares_hold_the_train_windows_tokens_in_window_order(stages: tuple[Path, Path, Path]) -> None:
    tokens, splits, into = stages
    counts = write_shares(tokens, splits, PartitionRule(clients=4), into)
    shares = pl.read_parquet(into / "shares.parquet")
    assert shares["window_id"].to_list() == list(range(14))
    texts = {0: [5], 1: [6, 7], 2: [8, 9, 10]}
    for partition in range(4):
        windows = shares.filter(pl.col("partition") == partition)["window_id"].to_list()
        share = pl.read_parquet(share_file(into, partition))
        assert share["sequence_id"].to_list() == [window % 3 for window in windows]
        assert share["token_ids"].to_list() == [texts[window % 3] for window in windows]
    expected = sum(len(texts[window % 3]) for window in range(14))
    assert counts == {"clients": 4, "windows": 14, "smallest": 3, "largest": 4, "tokens": expected}
