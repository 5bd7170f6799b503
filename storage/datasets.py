"""Datasets: the official ones by name, the simulated one, and a user's own described in a small TOML file."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from storage.descriptions import PlainName, read_description, told_as_format_error
from storage.log_formats import LogFormat
from storage.masks import MaskRules
from storage.windows import WindowRule

ZENODO = "https://zenodo.org/records/8196385/files"
"""Loghub's record of its archives (Zhu et al., Loghub, ISSRE 2023)."""

NAMES = ("hdfs", "bgl", "hdfs-sim")


class DatasetConfig(BaseModel):
    """Which logs a run reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = "hdfs"
    """hdfs, bgl, hdfs-sim (embedded, simulated), or the path of a .toml file that describes your own logs."""
    source: str | None = None
    """A local archive, folder or log file, or an http(s) address of the same layout; null: the official address."""
    sha256: str | None = None
    """The source's expected SHA-256 in hex; null: only the official address is checked, by its MD5."""
    limit: int | None = Field(default=None, gt=0)
    """Only the first windows, for a quick look; null: all."""
    blocks: int = Field(default=2000, gt=0)
    """hdfs-sim only: blocks to simulate."""
    seed: int = 0
    """hdfs-sim only: seed of the simulation."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in NAMES and not name.endswith(".toml"):
            raise ValueError(f"{name!r} is none of {', '.join(NAMES)}, nor the path of a .toml file")
        return name

    @field_validator("sha256")
    @classmethod
    def _is_a_hash(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if len(value) != 64 or not set(value.lower()) <= set("0123456789abcdef"):
            raise ValueError("a SHA-256 is 64 hexadecimal digits")
        return value.lower()


class DatasetSpec(BaseModel):
    """Everything about a dataset that reading it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: PlainName
    """Short name, without a path."""
    raw_name: PlainName
    """The raw log's file name, in its archive and in the download stage."""
    label_file: PlainName | None = None
    """The label file's name (session key, label, optionally Kind); null: none."""
    url: str | None = None
    """The official address; null: none."""
    md5: str | None = None
    """The official archive's MD5 as its record gives it."""
    log_format: LogFormat
    """How a line is put together."""
    encoding: str = "utf-8"
    """The raw log's character encoding; one in which a line feed is the byte 10."""
    label_field: str | None = None
    """The field of a line that holds its label; null: none."""
    normal_word: str = "-"
    """What label_field says of a normal line; anything else is the kind of anomaly."""
    site_field: str | None = None
    """The field that names the site or host of a line; null: not known."""
    window: WindowRule
    """The windows used unless a run says otherwise."""
    mask: MaskRules
    """The masks used unless a run says otherwise."""
    source: str | None = None
    """The source that the description itself names; a run's own goes before it."""

    @field_validator("encoding")
    @classmethod
    def _keeps_line_feeds(cls, encoding: str) -> str:
        try:
            kept = "\n".encode(encoding) == b"\n"
        except LookupError as error:
            raise ValueError(f"unknown encoding {encoding!r}") from error
        if not kept:
            raise ValueError(f"{encoding} does not write a line feed as one byte; convert the log to UTF-8")
        return "utf-8" if encoding.lower() in {"utf-8", "utf8", "ascii", "utf-8-sig"} else encoding

    @model_validator(mode="after")
    def _names_its_fields(self) -> "DatasetSpec":
        for field in filter(None, [self.label_field, self.site_field]):
            if field not in self.log_format.fields:
                fields = ", ".join(self.log_format.fields)
                raise ValueError(f"field {field} is not in the format; its fields are {fields}")
        return self

    @property
    def label_kind(self) -> Literal["file", "field", "none"]:
        """Where labels come from."""
        return "file" if self.label_file else "field" if self.label_field else "none"


HDFS = DatasetSpec(
    name="hdfs",
    raw_name="HDFS.log",
    label_file="anomaly_label.csv",
    url=f"{ZENODO}/HDFS_v1.zip?download=1",
    md5="76a24b4d9a6164d543fb275f89773260",
    log_format=LogFormat(
        notation="<Date> <Time> <Pid> <Level> <Component>: <Content>",
        time_format="%y%m%d %H%M%S",
        time_fields=("Date", "Time"),
    ),
    window=WindowRule(kind="session", key=r"blk_-?\d+"),
    mask=MaskRules(preset="hdfs"),
)

BGL = DatasetSpec(
    name="bgl",
    raw_name="BGL.log",
    url=f"{ZENODO}/BGL.zip?download=1",
    md5="4452953c470f2d95fcb32d5f6e733f7a",
    log_format=LogFormat(
        notation="<Label> <Timestamp> <Date> <Node> <Time> <NodeRepeat> <Type> <Component> <Level> <Content>",
        time_format="%Y-%m-%d-%H.%M.%S.%f",
        time_fields=("Time",),
    ),
    label_field="Label",
    site_field="Node",
    window=WindowRule(kind="count", size=100),
    mask=MaskRules(preset="numbers"),
)

HDFS_SIM = HDFS.model_copy(update={"name": "hdfs-sim", "url": None, "md5": None})


def resolve(config: DatasetConfig) -> DatasetSpec:
    """The full description of the named dataset.

    Raises FormatError, in one line, where a user's file cannot be read or says something unknown.
    """
    official = {"hdfs": HDFS, "bgl": BGL, "hdfs-sim": HDFS_SIM}
    if config.name in official:
        return official[config.name]
    path = Path(config.name).expanduser()
    description = read_description(path)
    with told_as_format_error(path, DatasetSpec):
        return DatasetSpec.model_validate(description.spec_fields(path))
