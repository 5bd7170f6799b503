"""Any two settings of the data go together, or are refused in words: the stages up to the shares, on real logs."""

# ruff: noqa: F401 (fixtures are imported)
import itertools
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
import pytest
from prefect_session import prefect_api

from flows.settings import ConfigError, run_config
from storage.errors import DataError

pytestmark = [pytest.mark.long, pytest.mark.timeout(600), pytest.mark.usefixtures("prefect_api")]

AXES: dict[str, tuple[str, ...]] = {
    "log": ("hdfs", "bgl"),
    "limit": ("", "dataset.limit=1", "dataset.limit=7", "dataset.limit=300", "dataset.limit=1500"),
    "window": (
        "",
        "window.kind=count window.size=20",
        "window.kind=count window.size=50 window.step=10",
        "window.kind=time window.size=60",
        "window.kind=time window.size=600 window.step=60",
    ),
    "mask": ("", "mask.preset=hdfs", "mask.preset=numbers", "mask.preset=none"),
    "tokens": ("", "tokens.max_tokens=1", "tokens.max_tokens=40"),
    "split": ("split.kind=random", "split.kind=chronological", "split.kind=grouped"),
    "train": ("", "split.train_windows=50", "split.train_windows=50 split.rest=test", "split.contamination=0.02"),
    "partition": ("partition.kind=iid", "partition.kind=dirichlet", "partition.kind=time", "partition.kind=site"),
    "clients": ("clients=1 fraction=1.0", "clients=2", "clients=10"),
    "instability": (
        "",
        "instability.kind=reworded",
        "instability.kind=fields instability.changed=messages",
        "instability.kind=duplicated",
        "instability.kind=shuffled",
    ),
}


def covering(axes: Mapping[str, Sequence[str]], seed: int = 0) -> list[dict[str, str]]:
    """Cases that hold every pair of values of two axes at least once, by greedy choice among random ones."""
    draw = random.Random(seed)
    missing = {
        ((one, a), (other, b)) for one, other in itertools.combinations(axes, 2) for a in axes[one] for b in axes[other]
    }
    cases = []
    while missing:
        forced = dict(draw.choice(sorted(missing)))
        candidates = [{axis: forced.get(axis, draw.choice(values)) for axis, values in axes.items()} for _ in range(60)]
        best = max(
            candidates, key=lambda case: sum(pair in missing for pair in itertools.combinations(case.items(), 2))
        )
        missing -= set(itertools.combinations(best.items(), 2))
        cases.append(best)
    return cases


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all cases, so that they share stages."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("case", covering(AXES), ids=lambda case: " ".join(value for value in case.values() if value))
def test_settings_prepare_data_or_are_refused_in_words(
    case: dict[str, str],
    home: Path,
    tiny_model: Path,
    hdfs_archive: Path,
    bgl_archive: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.prepare import prepare_data

    monkeypatch.setenv("ATALAIA_HOME", str(home))
    log, *rest = case.values()
    source = {"hdfs": hdfs_archive, "bgl": bgl_archive}[log]
    settings = [setting for value in rest for setting in value.split()]
    settings += [f"dataset.name={log}", f"source={source}", f"model.name={tiny_model}"]
    try:
        prepared = prepare_data(run_config("hdfs-2pct", settings))
    except (ConfigError, DataError) as refused:
        assert len(str(refused).splitlines()) == 1
        return
    windows = pl.read_parquet(prepared.tokenized.file("windows.parquet"))
    splits = pl.read_parquet(prepared.split.file("splits.parquet"))
    shares = pl.read_parquet(prepared.partition.file("shares.parquet"))
    limit = next((int(setting.partition("=")[2]) for setting in settings if setting.startswith("dataset.limit")), None)
    assert 0 < windows.height == windows["window_id"].n_unique() <= (limit or windows.height)
    assert windows["n_tokens"].min() > 0  # type: ignore[operator]
    assert sorted(splits["window_id"]) == sorted(windows["window_id"])
    trained = splits.filter(pl.col("split") == "train")
    assert sorted(shares["window_id"]) == sorted(trained["window_id"])
    assert shares["partition"].n_unique() == run_config("hdfs-2pct", settings).federation.clients
