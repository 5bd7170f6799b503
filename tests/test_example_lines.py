"""Made-up lines: read by the very format they stand for, in one window, with the key that its expression wants."""

import re
from pathlib import Path

import polars as pl
import pytest

from storage.datasets import BGL, HDFS, DatasetConfig, DatasetSpec, resolve
from storage.errors import FormatError
from storage.example_lines import example_lines, example_text
from storage.windows import window_log

SHOP = r"""
name = "shop"
format = "<Day> <Month> <Clock> [<Level>] <Order> - <Content>"
time_format = "%d %b %H:%M:%S,%f"
time_fields = ["Day", "Month", "Clock"]
source = "shop.log"
[window]
kind = "session"
key = 'order-[A-F0-9]{4}'
key_field = "Order"
"""


def _shop(folder: Path) -> DatasetSpec:
    (folder / "shop.toml").write_text(SHOP)
    return resolve(DatasetConfig(name=str(folder / "shop.toml")))


@pytest.mark.parametrize("name", ["hdfs", "bgl", "shop"])
def test_made_up_lines_are_read_by_the_format_and_make_a_window(name: str, tmp_path: Path) -> None:
    spec = {"hdfs": HDFS, "bgl": BGL}.get(name) or _shop(tmp_path)
    lines = example_lines(spec, spec.window)
    raw = tmp_path / spec.raw_name
    raw.write_text("\n".join(lines) + "\n")
    (tmp_path / "window").mkdir()
    counts = window_log(raw, spec.model_copy(update={"label_file": None}), spec.window, None, tmp_path / "window")
    assert (counts["lines"], counts["rejected"], counts["windows"]) == (3, 0, 1)
    windows = pl.read_parquet(tmp_path / "window" / "windows.parquet")
    assert windows["first_time"].null_count() == 0
    assert windows["label"].to_list() in ([None], [0])


@pytest.mark.parametrize(
    "pattern",
    [r"blk_-?\d+", r"order=(\d+)", r"(?:a|b)[^x\d]\w{3,}", r"\bid [0-9a-f]{8}-[0-9a-f]{4}\b", r".+?:\S", r"u\.v*"],
)
def test_an_example_of_an_expression_matches_it(pattern: str) -> None:
    assert re.search(pattern, example_text(pattern))


def test_an_expression_that_no_simple_text_matches_is_refused() -> None:
    with pytest.raises(FormatError, match="simpler"):
        example_text(r"(?<!a)(?=b)")
