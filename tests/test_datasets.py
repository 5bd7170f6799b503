"""Datasets: official ones by name, users' own by a small file, and each mistake in it told in one line."""

from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from storage.archives import fetch
from storage.datasets import HDFS, DatasetConfig, resolve
from storage.errors import FormatError
from storage.masks import mask_log
from storage.windows import window_log

OWN = """
name = "shop"
source = "logs/shop.log"
format = "<Date> <Time> <Level> <Host> <Component>: <Content>"
time_format = "%Y-%m-%d %H:%M:%S,%f"
site = "Host"

[window]
kind = "session"
key = 'order=(\\d+)'

[mask]
preset = "custom"
rules = [{ pattern = '(?<=order=)\\d+' }, { pattern = '\\d+ ms', replacement = "<time>" }]

[labels]
file = "orders.csv"
"""

LINES = """\
2024-05-01 10:00:00,100 INFO web1 cart: order=7 added in 12 ms
2024-05-01 10:00:00,200 INFO web2 cart: order=8 added in 3 ms
2024-05-01 10:00:01,000 WARN web1 pay: order=7 refused
"""


def _write(folder: Path, text: str = OWN) -> DatasetConfig:
    (folder / "logs").mkdir()
    (folder / "logs" / "shop.log").write_text(LINES)
    (folder / "logs" / "orders.csv").write_text("order,state,kind\n7,anomaly,refused\n8,normal,\n")
    (folder / "shop.toml").write_text(text)
    return DatasetConfig(name=str(folder / "shop.toml"))


def test_a_users_own_log_goes_through_with_its_own_rules(tmp_path: Path) -> None:
    config = _write(tmp_path)
    spec = resolve(config)
    stages = [tmp_path / name for name in ("download", "window", "mask")]
    for stage in stages:
        stage.mkdir()
    download, window, mask = stages
    fetch(config, spec, download, tmp_path / "downloads")
    counts = window_log(download / spec.raw_name, spec, spec.window, None, window)
    mask_log(download / spec.raw_name, window, spec, spec.mask, mask)
    windows = pl.read_parquet(window / "windows.parquet")
    assert counts["anomalous"] == 1
    assert windows.select("key", "site", "label", "kind", "lines").rows() == [
        ("7", "web1", 1, "refused", 2),
        ("8", "web2", 0, None, 1),
    ]
    assert pl.read_parquet(mask / "messages.parquet")["text"].to_list() == [
        "order=<*> added in <time>",
        "order=<*> refused",
    ]


def test_a_log_without_labels_and_times_needs_only_format_and_window(tmp_path: Path) -> None:
    text = 'name = "plain"\nsource = "logs/shop.log"\nformat = "<Content>"\n[window]\nkind = "count"\nsize = 2\n'
    config = _write(tmp_path, text)
    spec = resolve(config)
    download, window = tmp_path / "download", tmp_path / "window"
    download.mkdir()
    window.mkdir()
    fetch(config, spec, download, tmp_path)
    counts = window_log(download / spec.raw_name, spec, spec.window, None, window)
    windows = pl.read_parquet(window / "windows.parquet")
    assert spec.label_kind == "none"
    assert counts["anomalous"] is None
    assert windows["label"].to_list() == [None, None]
    assert windows["first_time"].to_list() == [None, None]
    assert windows["lines"].to_list() == [2, 1]


def test_a_source_given_at_the_run_goes_before_the_files_own(tmp_path: Path) -> None:
    config = _write(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "shop.log").write_text(LINES.replace("refused", "lost"))
    (other / "orders.csv").write_text("order,state\n7,1\n")
    download = tmp_path / "download"
    download.mkdir()
    fetch(config.model_copy(update={"source": str(other)}), resolve(config), download, tmp_path)
    assert "lost" in (download / "shop.log").read_text()


def test_times_are_taken_from_the_fields_named_date_and_time(tmp_path: Path) -> None:
    assert resolve(_write(tmp_path)).log_format.time_fields == ("Date", "Time")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('name = "shop"', 'nmae = "shop"', "nmae: unknown key; known here are name, format, source"),
        ("kind = ", "knid = ", "window.knid: unknown key; known here are kind, key, key_field, size, step"),
        ("replacement =", "by =", "mask.rules.1.by: unknown key; known here are pattern, replacement"),
        ('file = "orders.csv"', 'csv = "orders.csv"', "labels.csv: unknown key; known here are file, field, normal"),
        ('kind = "session"', 'kind = "weekly"', "window.kind: Input should be 'session', 'count' or 'time'"),
        ('name = "shop"', "", "name: this key is missing"),
        ("<Content>", "", "it has no <Content> field"),
        ('site = "Host"', 'site = "Rack"', "field Rack is not in the format; its fields are Date, Time"),
        ('site = "Host"', 'encoding = "klingon"', "encoding: unknown encoding 'klingon'"),
        ('site = "Host"', 'encoding = "utf-16"', "encoding: utf-16 does not write a line feed as one byte"),
        ('site = "Host"', 'time_fields = ["Stamp"]', "time field Stamp is not in the format"),
        ("key = ", "# key = ", "session windows need a key"),
        ('name = "shop"', 'name = "shop', "is not a TOML file"),
        ('file = "orders.csv"', "", "give either file or field"),
        ('file = "orders.csv"', 'file = "labels/orders.csv"', "labels.file: 'labels/orders.csv' is not a plain name"),
        ('site = "Host"', 'log = "/var/log/shop.log"', "log: '/var/log/shop.log' is not a plain name"),
        ('name = "shop"', 'name = "../shop"', "name: '../shop' is not a plain name"),
        ('name = "shop"', 'name = ".."', "name: '..' is not a plain name"),
    ],
)
def test_a_mistake_in_the_file_is_told_in_one_line(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    assert old in OWN
    config = _write(tmp_path, OWN.replace(old, new, 1))
    with pytest.raises(FormatError) as told:
        resolve(config)
    assert complaint in str(told.value)
    assert str(tmp_path / "shop.toml") in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(FormatError, match=r"Cannot read the dataset file nowhere\.toml"):
        resolve(DatasetConfig(name="nowhere.toml"))


def test_an_unknown_name_is_told_with_what_is_known() -> None:
    with pytest.raises(ValidationError, match=r"'hdsf' is none of hdfs, bgl, hdfs-sim, nor the path of a \.toml file"):
        DatasetConfig(name="hdsf")


def test_a_checksum_is_sixty_four_hexadecimal_digits() -> None:
    assert DatasetConfig(sha256="AB" * 32).sha256 == "ab" * 32
    with pytest.raises(ValidationError, match="64 hexadecimal digits"):
        DatasetConfig(sha256="ab")


def test_a_description_survives_being_written_down(tmp_path: Path) -> None:
    for spec in (HDFS, resolve(_write(tmp_path))):
        assert type(spec).model_validate_json(spec.model_dump_json()) == spec


def test_the_documented_example_reads_the_documented_log(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "own-logs.md").read_text()
    page = page.partition("## Descriptions of logs, in full")[2]
    example, log = (part.split("```")[0].partition("\n")[2] for part in page.split("```")[1::2])
    (tmp_path / "shop.toml").write_text(example)
    (tmp_path / "shop.log").write_text(log)
    (tmp_path / "orders.csv").write_text("order,label\n7,Anomaly\n")
    spec = resolve(DatasetConfig(name=str(tmp_path / "shop.toml")))
    for stage in ("download", "window", "mask"):
        (tmp_path / stage).mkdir()
    fetch(DatasetConfig(name=str(tmp_path / "shop.toml")), spec, tmp_path / "download", tmp_path)
    raw = tmp_path / "download" / spec.raw_name
    window_log(raw, spec, spec.window, None, tmp_path / "window")
    mask_log(raw, tmp_path / "window", spec, spec.mask, tmp_path / "mask")
    windows = pl.read_parquet(tmp_path / "window" / "windows.parquet")
    assert windows.select("key", "label", "lines").rows() == [("7", 1, 2), ("8", None, 1)]
    assert pl.read_parquet(tmp_path / "mask" / "messages.parquet").height == 2


@pytest.mark.parametrize("path", ["/abs/shop.log", "../shop.log", "logs/shop.log", "..", "."])
def test_no_dataset_can_name_a_file_outside_the_folder_it_is_fetched_to(path: str) -> None:
    for field in ("raw_name", "label_file"):
        with pytest.raises(ValidationError, match="is not a plain name"):
            type(HDFS).model_validate(HDFS.model_dump() | {field: path})
