"""Task: score the windows with the adapters of the rounds; nothing is scored twice, whichever run asks."""

import fcntl
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fl.hyperparameters import Tuning
from fl.usual_messages import SURPRISES
from storage.adapters import CommittedRound, committed_rounds
from storage.layout import current
from storage.progress import Progress
from storage.stages import NewStage, Stage
from storage.tables import list_column
from tasks.caching import source_hash
from tasks.prepare_model import model_folder
from tasks.progress import progress_of
from tasks.stage_task import stage

if TYPE_CHECKING:
    from fl.model import LoadedModel

JUDGED = ("calibration", "validation", "test")
_PORTION_TOKENS = 1 << 18
"""Tokens of sequences that are scored before their scores are kept: five minutes of two cores on HDFS."""
Score = Callable[[pl.DataFrame, Progress], tuple[pl.DataFrame, int]]
"""Scores of some sequences, and how many had to be computed."""


@stage("score")
def score_windows(
    new: NewStage,
    model: Stage,
    tokenized: Stage,
    split: Stage,
    trained: Stage,
    tuning: Tuning,
    seed: int,
    rounds: Sequence[int],
    ks: Sequence[int],
    quantization: str,
    device: str,
) -> None:
    """Score each distinct sequence of calibration, validation and test once per adapter."""
    sequences = _judged_sequences(tokenized, split)
    chosen = [found for found in committed_rounds(Path(trained.path)) if found.number in set(rounds)]
    scorer = Scorer(model, tuning, seed, tuple(ks), quantization, device)
    computed, seconds, told = 0, 0.0, progress_of("score")
    for position, found in enumerate(chosen):
        what = f"round {found.number}" if found.number else "untouched model"
        tell = _part(told, position, len(chosen), f"{what}, adapter {position + 1} of {len(chosen)}")
        table, fresh = scorer.scores(found, sequences, tell)
        table.write_parquet(new.path / f"round-{found.number:04d}.parquet")
        computed += fresh
        seconds += float(table["seconds"].sum())
    new.counts |= {
        "rounds": [found.number for found in chosen],
        "adapter_hashes": [found.adapter_hash for found in chosen],
        "sequences": len(sequences),
        "scored": computed,
        "seconds": round(seconds, 3),
        "reasons": scorer.reasons,
    }


def _judged_sequences(tokenized: Stage, split: Stage) -> pl.DataFrame:
    """The distinct sequences of all windows that are judged or calibrated with, in a stable order."""
    judged = pl.scan_parquet(split.file("splits.parquet")).filter(pl.col("split").is_in(JUDGED)).select("window_id")
    windows = pl.scan_parquet(tokenized.file("windows.parquet")).select("window_id", "sequence_id")
    wanted = windows.join(judged, on="window_id", how="semi").select("sequence_id").unique()
    sequences = pl.scan_parquet(tokenized.file("sequences.parquet"))
    columns = ["sequence_id", "sequence_hash", "token_ids", "message_starts"]
    return sequences.select(columns).join(wanted, on="sequence_id", how="semi").sort("sequence_id").collect()


def _part(progress: Progress, position: int, parts: int, words: str = "") -> Progress:
    """Progress of one of several parts; `words` say which, in the place of the part's own."""

    def tell(done: float, total: float | None, note: str = "") -> None:
        progress(position + (done / total if total else 0.0), float(parts), words or note)

    return tell


class Scorer:
    """Scores by adapter; the model is loaded when the first sequence has none yet."""

    def __init__(
        self, model: Stage, tuning: Tuning, seed: int, ks: tuple[int, ...], quantization: str, device: str
    ) -> None:
        self._model, self._tuning, self._seed, self._ks = model, tuning, seed, ks
        self._quantization, self._device = quantization, device
        self._loaded: LoadedModel | None = None
        self._adapted: Any = None
        self._untrained = ""
        self.reasons: dict[str, str] = {}

    def scores(self, found: CommittedRound, sequences: pl.DataFrame, progress: Progress) -> tuple[pl.DataFrame, int]:
        """The score columns of each sequence, and how many sequences had to be computed."""
        # Sequences that differ only beyond the truncation are the same tokens, and have one hash.
        distinct = sequences.unique("sequence_hash", keep="first", maintain_order=True)
        path = self._file(self._tuning, found.adapter_hash)
        score = partial(self._score, found)
        known, computed = _completed(path, distinct, score, progress)
        keys = sequences.select("sequence_id", "sequence_hash")
        return keys.join(known, on="sequence_hash", how="left", maintain_order="left"), computed

    def _score(self, found: CommittedRound, missing: pl.DataFrame, progress: Progress) -> tuple[pl.DataFrame, int]:
        """Scores of an adapter's new sequences; of one that is as it was before training, the untouched model's own.

        So the cells of a sweep score the untouched model once, whatever they train.
        """
        progress(0, 1)
        self._load()

        compute = partial(self._compute, found)
        if self._tuning.kind == "none" or found.adapter_hash != self._untrained:
            return compute(missing, progress)
        from fl.adapter import adapter_hash

        known, computed = _completed(self._file(Tuning(kind="none"), adapter_hash({})), missing, compute, progress)
        wanted = missing.select("sequence_hash")
        return wanted.join(known, on="sequence_hash", how="left", maintain_order="left"), computed

    def _load(self) -> "LoadedModel":
        from fl.adapter import adapter_arrays, adapter_hash, attach_adapter
        from fl.model import load_model

        if self._loaded is None:
            self._loaded = load_model(model_folder(self._model), self._quantization, self._device)
            self._adapted = attach_adapter(self._loaded, self._tuning, self._seed)
            self._untrained = adapter_hash(adapter_arrays(self._adapted))
            self.reasons = self._loaded.reasons
        return self._loaded

    def _compute(self, found: CommittedRound, missing: pl.DataFrame, progress: Progress) -> tuple[pl.DataFrame, int]:
        from fl.adapter import load_adapter_arrays
        from fl.scoring import score_sequences

        loaded = self._load()
        load_adapter_arrays(self._adapted, found.arrays())
        columns = score_sequences(
            self._adapted,
            loaded,
            [row.to_numpy() for row in missing["token_ids"]],
            [row.to_numpy() for row in missing["message_starts"]],
            self._ks,
            progress=progress,
            by_message=True,
        )
        lists = list_column(columns.pop(SURPRISES).tolist(), pl.Float32())
        table = pl.DataFrame({"sequence_hash": missing["sequence_hash"], **columns, SURPRISES: lists})
        return table, len(missing)

    def _file(self, tuning: Tuning, adapter: str) -> Path:
        """Where the scores of an adapter lie: apart for every model, way of loading it, K and scoring source."""
        # Not which GPU it is: a sweep's cells run on all of them, and share what they score.
        kind, _, _ = self._device.partition(":")
        facts: list[object] = [self._model.fingerprint, self._quantization, kind, tuning.kind, self._ks]
        facts += [tuning.scale_numerator / tuning.rank, source_hash(["fl.scoring", "fl.adapter"])]
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        return current().scores / name / f"{adapter}.parquet"


def _completed(path: Path, wanted: pl.DataFrame, score: Score, progress: Progress) -> tuple[pl.DataFrame, int]:
    """The scores kept at `path` with those that are wanted and missing there, and how many were computed.

    They are kept portion by portion, so that whoever is stopped in hours of scoring loses minutes.
    """
    known = _kept(path)
    missing = wanted if known is None else wanted.join(known, on="sequence_hash", how="anti", maintain_order="left")
    portions, computed = _portions(missing), 0
    for number, portion in enumerate(portions):
        fresh, count = score(portion, _part(progress, number, len(portions)))
        known = _keep(path, [table for table in (known, fresh) if table is not None])
        computed += count
    if known is None:
        raise ValueError("There is nothing to score.")
    return known, computed


def _portions(sequences: pl.DataFrame) -> list[pl.DataFrame]:
    """The sequences in portions of about `_PORTION_TOKENS` tokens; where they are several, sorted to share prefixes."""
    tokens = [row.to_numpy() for row in sequences["token_ids"]]
    total = sum(map(len, tokens))
    count = -(-total // _PORTION_TOKENS)
    if count < 2:
        return [sequences] if tokens else []
    order = np.array(sorted(range(len(tokens)), key=lambda row: tokens[row].astype(">u4").tobytes()))
    passed = np.cumsum([len(tokens[row]) for row in order])
    return [sequences[rows] for rows in np.split(order, np.searchsorted(passed, np.arange(1, count) * total / count))]


def _kept(path: Path) -> pl.DataFrame | None:
    """The scores kept at `path`; None where there are none that can be read."""
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        return None


def _keep(path: Path, tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Write the tables' scores to `path`, with what other runs kept there meanwhile; all of them together.

    Where another run scored the same sequence at the same time, its score stands, so that all later ones have the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        meanwhile = _kept(path)
        every = tables if meanwhile is None else [meanwhile, *tables]
        scores = pl.concat(every).unique("sequence_hash", keep="first", maintain_order=True)
        temporary = path.with_suffix(".part")
        scores.write_parquet(temporary)
        temporary.replace(path)
    return scores
