"""Partitions: shares are fair, whole and repeatable."""

from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

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


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "time"])
def test_a_share_alone_is_the_one_that_a_client_of_many_has(kind: str) -> None:
    windows = ids(60).with_columns(
        message_ids=pl.Series([[number % 4] for number in range(60)]),
        first_time=pl.Series([datetime(2024, 1, 1) + timedelta(seconds=number) for number in range(60)]),
    )
    all_shares = partition_windows(windows, PartitionRule(kind=kind, clients=6, seed=2))
    alone = [
        partition_windows(windows, PartitionRule(kind=kind, clients=1, seed=2, only=share, of=6)) for share in range(6)
    ]
    for share, found in enumerate(alone):
        expected = all_shares.filter(pl.col("partition") == share)["window_id"].to_list()
        assert found["window_id"].to_list() == expected
        assert found.schema == all_shares.schema
        assert set(found["partition"]) == {0}
    assert sum(map(len, alone)) == 60


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"only": 3, "of": 3}, "share 3 is not among 3"),
        ({"only": 0}, "go together"),
        ({"of": 3}, "go together"),
        ({"only": 0, "of": 3, "clients": 3}, "one client, not 3"),
    ],
)
def test_a_share_alone_that_cannot_be_is_refused(given: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        PartitionRule.model_validate({"clients": 1} | given)


def test_more_shares_than_windows_is_one_clear_line() -> None:
    with pytest.raises(DataError, match=r"^4 clients cannot share 3 training windows; set partition\.of to 3 "):
        partition_windows(ids(3), PartitionRule(clients=1, only=0, of=4))


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


def windows_of_kinds(count: int) -> pl.DataFrame:
    """Windows of four kinds (by their messages), of twenty sites, whose times run backwards."""
    kinds = [[0, 1], [0, 1, 2], [3], [0, 3, 4]]
    return pl.DataFrame(
        {
            "window_id": pl.Series(range(count), dtype=pl.UInt32),
            # The same messages in another order and number are the same kind.
            "message_ids": pl.Series(
                [kinds[index % 4][:: -1 if index % 8 > 3 else 1] * (1 + index % 2) for index in range(count)],
                dtype=pl.List(pl.UInt32),
            ),
            "first_time": [datetime(2008, 11, 9) - timedelta(minutes=index) for index in range(count)],
            "site": [f"node-{(index * index) % 20}" for index in range(count)],
        }
    )


def skew(windows: pl.DataFrame, shares: pl.DataFrame) -> float:
    """How far clients' shares of each kind are from equal ones: mean total variation distance over the clients."""
    kinds = windows["window_id"].to_numpy() % 4
    table = np.zeros((int(shares["partition"].max()) + 1, 4))  # type: ignore[arg-type]
    np.add.at(table, (shares["partition"].to_numpy(), kinds), 1)
    return float(np.abs(table / table.sum(1, keepdims=True) - table.sum(0) / table.sum()).sum(1).mean() / 2)


@settings(max_examples=30, deadline=None)
@given(clients=st.integers(1, 40), concentration=st.floats(0.01, 10), seed=st.integers(0, 1000))
def test_dirichlet_gives_every_window_away_and_leaves_no_client_without(
    clients: int, concentration: float, seed: int
) -> None:
    windows = windows_of_kinds(80)
    rule = PartitionRule(kind="dirichlet", clients=clients, concentration=concentration, seed=seed)
    shares = partition_windows(windows, rule)
    assert shares["window_id"].to_list() == list(range(80))
    assert set(shares["partition"]) == set(range(clients))
    assert shares.equals(partition_windows(windows.reverse(), rule))


def test_clients_differ_the_more_the_smaller_the_concentration() -> None:
    windows = windows_of_kinds(4000)
    found = [
        np.mean(
            [
                skew(
                    windows,
                    partition_windows(
                        windows, PartitionRule(kind="dirichlet", clients=8, concentration=alpha, seed=seed)
                    ),
                )
                for seed in range(5)
            ]
        )
        for alpha in (0.1, 1.0, 1000.0)
    ]
    assert found[0] > found[1] + 0.1 > found[2] + 0.2
    assert found[2] < 0.05


def test_by_time_each_client_has_a_stretch_of_the_log() -> None:
    windows = windows_of_kinds(103)
    shares = partition_windows(windows, PartitionRule(kind="time", clients=10)).join(windows, on="window_id")
    spans = [shares.filter(pl.col("partition") == client)["first_time"] for client in range(10)]
    assert all(before.max() < after.min() for before, after in pairwise(spans))  # type: ignore[operator]
    assert {len(span) for span in spans} == {10, 11}


def test_by_site_no_site_is_at_two_clients_and_shares_are_as_even_as_sites_allow() -> None:
    windows = windows_of_kinds(200)
    shares = partition_windows(windows, PartitionRule(kind="site", clients=3)).join(windows, on="window_id")
    assert shares.select("site", "partition").unique()["site"].is_unique().all()
    sizes = shares.group_by("partition").len()["len"]
    largest_site = windows.group_by("site").len()["len"].max()
    assert sizes.max() - sizes.min() <= largest_site  # type: ignore[operator]


def test_sites_that_are_unknown_or_too_few_are_refused_in_one_line() -> None:
    windows = windows_of_kinds(40)
    with pytest.raises(DataError, match="names none"):
        partition_windows(windows.with_columns(site=pl.lit("")), PartitionRule(kind="site", clients=2))
    with pytest.raises(DataError, match="set clients to 6 at most"):
        partition_windows(windows, PartitionRule(kind="site", clients=7))
    with pytest.raises(DataError, match=r"; set partition\.of to \d+ at most\.$"):
        partition_windows(windows, PartitionRule(kind="site", clients=1, only=0, of=7))


@pytest.mark.parametrize("kind", ["dirichlet", "time", "site"])
def test_every_kind_of_partition_is_written(kind: str, stages: tuple[Path, Path, Path]) -> None:
    tokens, splits, into = stages
    windows = pl.read_parquet(tokens / "windows.parquet")
    more = windows_of_kinds(len(windows)).drop("window_id")
    pl.concat([windows, more], how="horizontal").write_parquet(tokens / "windows.parquet")
    rule = PartitionRule.model_validate({"kind": kind, "clients": 3})
    counts = write_shares(tokens, splits, rule, into)
    assert counts["windows"] == sum(len(pl.read_parquet(share_file(into, client))) for client in range(3)) == 14
