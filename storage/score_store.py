"""Scores of windows seen, by their sequence's hash: in memory, and kept on disk from run to run."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl

_MOST = 500_000
"""Scores kept; beyond, the oldest are forgotten."""
_SCHEMA = {"sequence_hash": pl.String, "score": pl.Float64}


class ScoreStore:
    """One detector's scores; a file that cannot be read or written costs time, never the run."""

    def __init__(self, file: Path | None) -> None:
        """`file`: where they lie between runs; None: nowhere."""
        self._file = file
        self._scores: dict[str, float] = {}
        self._fresh = 0
        with contextlib.suppress(OSError, pl.exceptions.PolarsError):
            if file is not None:
                self._scores = dict(pl.read_parquet(file).select(list(_SCHEMA)).iter_rows())

    def __contains__(self, sequence: str) -> bool:
        return sequence in self._scores

    def __getitem__(self, sequence: str) -> float:
        return self._scores[sequence]

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, scores: Mapping[str, float]) -> None:
        """Remember scores."""
        before = len(self._scores)
        self._scores.update(scores)
        self._fresh += len(self._scores) - before

    def save(self) -> None:
        """Write what came in since the last time."""
        if self._file is None or not self._fresh:
            return
        kept = dict(list(self._scores.items())[-_MOST:])
        table = pl.DataFrame({"sequence_hash": list(kept), "score": list(kept.values())}, schema=_SCHEMA)
        with contextlib.suppress(OSError, pl.exceptions.PolarsError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_suffix(f".{os.getpid()}")
            table.write_parquet(temporary)
            temporary.replace(self._file)
            self._scores, self._fresh = kept, 0
