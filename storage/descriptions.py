"""Descriptions: the small TOML file in which a user says what their own logs look like."""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from storage.errors import FormatError
from storage.masks import MaskRule, MaskRules
from storage.windows import WindowRule


def _without_folders(name: str) -> str:
    if name in {"", ".", ".."} or name != Path(name).name or "\0" in name:
        raise ValueError(f"{name!r} is not a plain name; leave folders out: files are found wherever in the source")
    return name


PlainName = Annotated[str, AfterValidator(_without_folders)]
"""A name without folders: what is fetched is written under it, and a path could lead to the user's own log."""


class Labels(BaseModel):
    """[labels]: a file of session keys with labels, or a field of each line."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    file: PlainName | None = None
    """A CSV file beside the log or in its archive: key, label, optionally Kind."""
    field: str | None = None
    """A field of the format."""
    normal: str = "-"
    """What the field says of a normal line."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "Labels":
        if (self.file is None) == (self.field is None):
            raise ValueError("give either file or field")
        return self


class Description(BaseModel):
    """The file a user writes to describe a dataset of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: PlainName
    """A short name for tables and reports."""
    format: str
    """The lines' format in loghub's notation."""
    source: str | None = None
    """A log file, folder or archive (relative to this file), or an http(s) address; may be given at the run instead."""
    log: PlainName | None = None
    """The log's file name within a folder or archive; not needed where the source is the log itself."""
    time_format: str | None = None
    """strftime notation of the time, or `epoch`."""
    time_fields: tuple[str, ...] = ()
    """The fields of the time; where left out: those of Date, Time, Timestamp that the format has."""
    encoding: str = "utf-8"
    """Character encoding of the log."""
    site: str | None = None
    """The field that names the site or host."""
    window: WindowRule
    """Session, count or time windows."""
    mask: MaskRules = MaskRules(preset="numbers")
    """A preset or own rules."""
    labels: Labels | None = None
    """Where labels come from; leave out where there are none."""

    def spec_fields(self, path: Path) -> dict[str, Any]:
        """The fields of the dataset that this file (at `path`) describes."""
        labels = self.labels or Labels.model_construct()
        return {
            "name": self.name,
            "raw_name": self._raw_name(),
            "label_file": labels.file,
            "label_field": labels.field,
            "normal_word": labels.normal,
            "log_format": {
                "notation": self.format,
                "time_format": self.time_format,
                "time_fields": self._time_fields(),
            },
            "encoding": self.encoding,
            "site_field": self.site,
            "window": self.window,
            "mask": self.mask,
            "source": self._source(path),
        }

    def _time_fields(self) -> tuple[str, ...]:
        if self.time_fields or self.time_format is None:
            return self.time_fields
        present = [field for field in ("Date", "Time", "Timestamp") if f"<{field}>" in self.format]
        return tuple(present[:2] if present[:1] == ["Date"] else present[:1])

    def _source(self, path: Path) -> str | None:
        if self.source is None or "://" in self.source:
            return self.source
        return str((path.parent / Path(self.source).expanduser()).resolve())

    def _raw_name(self) -> str:
        given = Path((self.source or "").split("?")[0]).name
        for ending in (".gz", ".zst", ".bz2", ".xz"):
            given = given.removesuffix(ending)
        return self.log or given or f"{self.name}.log"


def read_description(path: Path) -> Description:
    """A user's dataset file; raises FormatError in one line."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"Cannot read the dataset file {path}: {error.strerror}; check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not a TOML file: {str(error).splitlines()[0]}.") from error
    with told_as_format_error(path, Description):
        return Description.model_validate(table)


@contextmanager
def told_as_format_error(path: Path, model: type[BaseModel]) -> Iterator[None]:
    """Turn a validation error into one line: which key of the file, what is wrong, and what is allowed there."""
    try:
        yield
    except ValidationError as error:
        # A misspelt key also leaves its right name missing; the misspelling is the news.
        first: Any = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            what = f"unknown key; known here are {', '.join(_known_keys(model, first['loc'][:-1]))}"
        elif first["type"] == "missing":
            what = "this key is missing"
        raise FormatError(f"{path}: {where}{': ' if where else ''}{what}.") from error


def _known_keys(model: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    parts: dict[Any, type[BaseModel]] = {"window": WindowRule, "mask": MaskRules, "labels": Labels}
    for name in place:
        model = MaskRule if isinstance(name, int) else parts.get(name, model)
    return list(model.model_fields)
