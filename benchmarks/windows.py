"""The windows that the benchmarks measure on: those of an archive of HDFS logs, or of a simulated log."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from storage.datasets import DatasetConfig, DatasetSpec

SIMULATED_BLOCKS = 11_501
"""As many windows as the 2 % sample of HDFS has."""


@dataclass(frozen=True)
class LogWindows:
    """Distinct windows as tokens, messages' starts and text, and which of them each window of the log is."""

    log: str
    token_ids: list[np.ndarray]
    message_starts: list[np.ndarray]
    texts: list[str]
    """Masked messages joined by the separator: what the reference's code reads."""
    order: np.ndarray
    """For each window of the log, in order of appearance, the number of its distinct window."""
    normal: np.ndarray
    """Whether each window of the log is labelled normal."""

    def drawn(self, count: int, seed: int = 0) -> np.ndarray:
        """The distinct windows' numbers of `count` windows of the log drawn without repetition (all, if fewer)."""
        return np.random.default_rng(seed).permutation(self.order)[:count]

    def batch(self, size: int, seed: int) -> list[np.ndarray]:
        """The tokens of `size` normal windows drawn for a training step, as often in it as in the draw."""
        normal = self.order[self.normal]
        draw = np.random.default_rng(seed)
        return [self.token_ids[index] for index in draw.choice(normal, size, replace=size > len(normal))]

    def tokens(self, numbers: np.ndarray) -> int:
        """How many tokens these windows have together, end tokens not counted."""
        return sum(len(self.token_ids[number]) for number in numbers)


def log_source(archive: Path | None) -> "DatasetConfig":
    """The archive's log; without one, a simulated log of the size of the 2 % sample."""
    from storage.datasets import DatasetConfig

    if archive is None:
        return DatasetConfig(name="hdfs-sim", blocks=SIMULATED_BLOCKS)
    return DatasetConfig(name="hdfs", source=str(archive))


def fetch_log(archive: Path | None, into: Path, downloads: Path) -> "DatasetSpec":
    """Put the raw log and its labels into a folder."""
    from storage.archives import fetch
    from storage.datasets import resolve

    config = log_source(archive)
    spec = resolve(config)
    fetch(config, spec, into, downloads)
    return spec


def read_windows(archive: Path | None, tokenizer: Path, first: int | None = None, max_tokens: int = 1024) -> LogWindows:
    """All windows of the archive's or the simulated log (or the `first` so many), by the rules for HDFS."""
    # Here, as measurements of windows made elsewhere do without what reads logs.
    import polars as pl

    from storage.composer import TokenRule
    from storage.masks import mask_log
    from storage.tokens import tokenize_windows
    from storage.windows import window_log

    with tempfile.TemporaryDirectory() as place:
        raw, windows, masks, tokens = (Path(place) / name for name in ("raw", "windows", "masks", "tokens"))
        for folder in (raw, windows, masks, tokens):
            folder.mkdir()
        spec = fetch_log(archive, raw, Path(place))
        window_log(raw / spec.raw_name, spec, spec.window, first, windows)
        mask_log(raw / spec.raw_name, windows, spec, spec.mask, masks)
        rule = TokenRule(max_tokens=max_tokens)
        tokenize_windows(windows, masks, tokenizer, rule, tokens)
        sequences = pl.read_parquet(tokens / "sequences.parquet").sort("sequence_id")
        facts = pl.read_parquet(tokens / "windows.parquet", columns=["sequence_id", "label"])
        messages = pl.read_parquet(tokens / "messages.parquet").sort("message_id")["text"]
    return LogWindows(
        log=archive.name if archive else f"simulated, {SIMULATED_BLOCKS:,} blocks",
        token_ids=[np.array(ids, np.int64) for ids in sequences["token_ids"].to_list()],
        message_starts=[np.array(starts, np.int64) for starts in sequences["message_starts"].to_list()],
        texts=[rule.separator.join(messages.gather(ids)) for ids in sequences["message_ids"].to_list()],
        order=facts["sequence_id"].to_numpy().astype(np.int64),
        normal=(facts["label"] == 0).fill_null(False).to_numpy(),
    )
