"""A site's own logs as windows of tokens, by the federation's rules; they stay in the site's home folder."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from storage.archives import fetch, source_fingerprint
from storage.datasets import DatasetConfig, DatasetSpec, resolve
from storage.errors import FormatError
from storage.layout import Layout
from storage.masks import MaskRules, mask_log
from storage.partitions import share_file
from storage.progress import Progress, silent
from storage.splits import SplitRule, write_splits
from storage.stages import NewStage, Stage, load_stage, new_stage
from storage.tokens import TokenRule, tokenize_windows
from storage.windows import WindowRule, window_log
from tasks.caching import stage_key

_MODULES = (__name__,)
HELD_OUT = ("validation", "test")
"""Splits whose windows a site neither trains nor calibrates on."""


@dataclass(frozen=True)
class Reading:
    """How a site's windows come about."""

    logs: str
    """A log file, plain or compressed."""
    dataset: str
    """hdfs, bgl, or a .toml file that describes the lines."""
    window: WindowRule
    mask: MaskRules
    tokens: TokenRule
    split: SplitRule


def site_spec(reading: Reading) -> DatasetSpec:
    """The description of the site's lines; labels are not read, they would not be there."""
    return resolve(DatasetConfig(name=reading.dataset)).model_copy(update={"label_file": None, "label_field": None})


def site_windows(reading: Reading, number: int, tokenizer: Path, layout: Layout, progress: Progress = silent) -> Stage:
    """The site's windows, tokens, splits and share, computed where none of the same logs and rules lie at rest.

    Raises DataError where the logs cannot be read by the rules, or too few windows come of them.
    """
    config = DatasetConfig(name=reading.dataset, source=reading.logs)
    spec = site_spec(reading)
    rules = (reading.window, reading.mask, reading.tokens, reading.split)
    facts = {"logs": source_fingerprint(config), "number": number, "spec": spec, "tokenizer": tokenizer.read_text()}
    key = stage_key("site", _MODULES, {**facts, "rules": list(rules)})
    found = load_stage(layout.stages, "site", key)
    if found is not None:
        return found
    with new_stage(layout.stages, "site", key) as new:
        _prepare(new, config, spec, reading, number, tokenizer, layout, progress)
    return new.done


def _prepare(
    new: NewStage,
    config: DatasetConfig,
    spec: DatasetSpec,
    reading: Reading,
    number: int,
    tokenizer: Path,
    layout: Layout,
    progress: Progress,
) -> None:
    parts = {name: new.path / name for name in ("raw", "window", "mask", "tokenized")}
    for folder in parts.values():
        folder.mkdir()
    fetch(config, spec, parts["raw"], layout.downloads, progress)
    raw = parts["raw"] / spec.raw_name
    with _rejects_kept(new.path / "rejects", layout.stages / "site" / "rejects"):
        counts = window_log(raw, spec, reading.window, None, parts["window"], progress=progress)
    mask_log(raw, parts["window"], spec, reading.mask, parts["mask"], progress)
    tokenize_windows(parts["window"], parts["mask"], tokenizer, reading.tokens, parts["tokenized"], progress)
    raw.unlink()  # the log itself is where it was
    splits = write_splits(parts["tokenized"] / "windows.parquet", reading.split, new.path)
    _write_share(parts["tokenized"], new.path, number)
    new.counts |= {
        "lines": counts.get("lines", 0),
        "windows": counts["windows"],
        "examples": splits["train"],
        "calibration_windows": splits["calibration"],
        "held_out_windows": sum(splits[name] for name in HELD_OUT),
    }


@contextmanager
def _rejects_kept(made: Path, kept: Path) -> Iterator[None]:
    """Where lines do not fit, bring them out of the stage that will not be kept, and say so."""
    try:
        yield
    except FormatError as error:
        if not made.is_dir():
            raise
        shutil.copytree(made, kept, dirs_exist_ok=True)
        raise FormatError(str(error).replace(str(made), str(kept))) from error


def _write_share(tokenized: Path, into: Path, number: int) -> None:
    """The training windows as the simulation's shares have them, under the site's number."""
    train = pl.read_parquet(into / "splits.parquet").filter(pl.col("split") == "train").select("window_id")
    windows = pl.read_parquet(tokenized / "windows.parquet", columns=["window_id", "sequence_id"])
    sequences = pl.read_parquet(tokenized / "sequences.parquet", columns=["sequence_id", "token_ids", "n_tokens"])
    mine = train.join(windows, on="window_id").sort("window_id").select("sequence_id")
    (into / "shares").mkdir()
    mine.join(sequences, on="sequence_id", how="left", maintain_order="left").write_parquet(share_file(into, number))
