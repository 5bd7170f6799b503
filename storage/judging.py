"""A detector at rest, judging raw log lines: their windows, each with its score and whether that is an alert.

A detector's folder holds `adapter.safetensors`, `detector.json` (everything that decides: base model by name and hash,
tuning, score, K, threshold, log format, window rule, masks, token rule), `calibration_scores.parquet`, for the score
`rarity` or `max_excess` what is usual (`USUAL`), and what storage/normal_windows.py adds of normal windows. One whose
weights are merged holds the model instead of the adapter.
"""

import json
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from tokenizers import Tokenizer

from storage.composer import Composer, TokenRule, Tokens, load_tokenizer, sequence_hash
from storage.datasets import DatasetSpec
from storage.errors import DataError, SourceError
from storage.layout import current
from storage.log_stream import LogStream, Windows
from storage.masks import MaskRules
from storage.normal_windows import message_hash
from storage.progress import Progress, silent
from storage.score_store import ScoreStore
from storage.windows import WindowRule

FACTS = "detector.json"
ADAPTER = "adapter.safetensors"
CALIBRATION = "calibration_scores.parquet"
MESSAGES_FILE = "usual_messages.parquet"
SCORES_FILE = "usual_scores.parquet"
USUAL = (MESSAGES_FILE, SCORES_FILE)
"""Of each message message_hash, mean and deviation of its surprise, nats, as fl/usual_messages.py has them usual; of
calibration windows the scores that `rarity` is made of, each column in rising order."""
IN_FOLDER = "."
"""The name of a base model that lies in the detector's own folder."""
ROUNDING = 1e-5
"""Relative difference of scores that computing in another order makes; a window so near the threshold is at it."""


def read_facts(folder: Path) -> dict[str, Any]:
    """Everything that decides; raises SourceError where the folder holds no detector."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
    except (OSError, ValueError) as error:
        raise SourceError(f"{folder} holds no detector (no readable {FACTS}).") from error
    return facts


def read_usual(folder: Path, score: str) -> Any:  # noqa: ANN401 (fl.rarity.UsualWindows)
    """What a detector takes for usual, as far as its score needs it; raises SourceError where its folder lacks it."""
    rarity = learning("rarity")
    messages = _read(folder, MESSAGES_FILE, ("message_hash", "mean", "deviation"))
    # Detectors that were registered before `rarity` have no scores, and need none.
    scores = _read(folder, SCORES_FILE, rarity.PARTS) if score == rarity.RARITY else {}
    return rarity.UsualWindows(learning("usual_messages").UsualMessages(*messages.values()), scores)


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        table = pl.read_parquet(folder / name, columns=list(columns))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SourceError(f"The detector in {folder} has no readable {name}; register it again.") from error
    return {column: table[column].to_numpy() for column in columns}


def exceeds(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Which scores are above a threshold by more than rounding."""
    return scores > threshold + ROUNDING * max(1.0, abs(threshold))


class Judge:
    """Judges windows with the detector in a folder; the model is loaded when the first window needs it."""

    def __init__(self, folder: Path, store: ScoreStore | None = None) -> None:
        """`store` keeps the scores of windows seen; without one they are kept as long as the judge."""
        self.folder = folder
        self.facts = read_facts(folder)
        self.computed = 0
        """Distinct windows that the model had to score; all others were looked up."""
        facts = self.facts
        self.threshold = float(facts["threshold"])
        self.spec = DatasetSpec.model_validate(facts["dataset"])
        self._rule, self._masks = WindowRule.model_validate(facts["window"]), MaskRules.model_validate(facts["mask"])
        self.tokens = TokenRule.model_validate(facts["tokens"])
        self.store = store if store is not None else ScoreStore(None)
        self.store.add(self._calibrated())

    @cached_property
    def calibration(self) -> np.ndarray:
        """The scores of the calibration windows in rising order; empty where the detector has none."""
        return np.sort(self._calibration()["score"].to_numpy())

    def _calibration(self) -> pl.DataFrame:
        path = self.folder / CALIBRATION
        return pl.read_parquet(path) if path.is_file() else pl.DataFrame(schema={"score": pl.Float64})

    def _calibrated(self) -> dict[str, float]:
        """Scores by sequence: the very ones that the threshold came from."""
        table = self._calibration()
        return dict(table.select("sequence_hash", "score").iter_rows()) if "sequence_hash" in table.columns else {}

    def stream(self, **how: Any) -> LogStream:  # noqa: ANN401 (the keywords of LogStream)
        """A reader of logs as training read its own."""
        return LogStream(self.spec, self._rule, self._masks, **how)

    def judged(self, windows: Windows, progress: Progress = silent) -> pl.DataFrame:
        """The windows with sequence_hash, n_tokens, truncated, score and anomalous."""
        composed = self.compose(windows)
        hashes = [sequence_hash(tokens.ids) for tokens in composed]
        self._score(windows, composed, hashes, progress)
        scores = np.array([self.store[name] for name in hashes], dtype=np.float64)
        return windows.table.with_columns(
            sequence_hash=pl.Series(hashes, dtype=pl.String),
            n_tokens=pl.Series([len(tokens.ids) for tokens in composed], dtype=pl.UInt32),
            truncated=pl.Series([tokens.truncated for tokens in composed], dtype=pl.Boolean),
            score=pl.Series(scores),
            anomalous=pl.Series(self.exceeds(scores)),
        )

    def exceeds(self, scores: np.ndarray) -> np.ndarray:
        """Which scores are above the threshold by more than rounding."""
        return exceeds(scores, self.threshold)

    def compose(self, windows: Windows) -> list[Tokens]:
        """The tokens of each window; equal windows share theirs."""
        # A message has a token of its own or that of the separator, so that no more than these can be read.
        most = self.tokens.max_tokens + 2 if self.tokens.separator.strip() else None
        table = windows.table["messages"] if most is None else windows.table["messages"].list.head(most)
        sequences, places = _distinct(table)
        used = np.unique(np.concatenate(sequences)) if sequences else np.zeros(0, np.uint32)
        composer = Composer(self.tokenizer, self.tokens, [windows.texts[number] for number in used.tolist()])
        numbered = [np.searchsorted(used, sequence).astype(np.uint32) for sequence in sequences]
        tokens, _ = composer.tokens_of(numbered)
        return [tokens[place] for place in places]

    def _score(self, windows: Windows, composed: list[Tokens], hashes: list[str], progress: Progress) -> None:
        """Have a score of each window's sequence in the store."""
        missing = {name: row for row, name in enumerate(hashes) if name not in self.store}
        if not missing:
            return
        model, loaded = self.model
        usual_messages = learning("usual_messages")
        k, by_message = self.facts["k"], self.usual is not None
        ids, starts = ([getattr(composed[row], part) for row in missing.values()] for part in ("ids", "starts"))
        score_sequences = learning("scoring").score_sequences
        columns = score_sequences(model, loaded, ids, starts, (k or 1,), progress=progress, by_message=by_message)
        if by_message:
            messages = _hashes(windows, list(missing.values()))
            found = usual_messages.message_surprises(messages, columns[usual_messages.SURPRISES].tolist())
            columns |= self.usual.columns(found, columns["mean_token"])
        scores = learning("anomaly_scores").anomaly_score(columns, self.facts["score"], k)
        self.store.add(dict(zip(missing, scores.tolist(), strict=True)))
        self.computed += len(missing)

    @cached_property
    def usual(self) -> Any:  # noqa: ANN401 (fl.rarity.UsualWindows)
        """What the detector takes for usual; None where its score does not ask. Read once, as the threshold is."""
        score = self.facts["score"]
        return read_usual(self.folder, score) if score in learning("rarity").USUAL_SCORES else None

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """The base model with the detector's adapter, and the base model as it was loaded."""
        _ = self.usual  # with the model, so that whoever has loaded it needs nothing more of the folder
        facts, adapter = self.facts, learning("adapter")
        loaded = learning("model").load_model(self.model_folder, facts["model"]["quantization"])
        tuning = learning("federation").tuning_from(facts["tuning"], adapter.Tuning)
        model = adapter.attach_adapter(loaded, tuning, facts["seed"])
        if tuning.kind != "none":
            adapter.load_adapter_arrays(model, adapter.read_adapter(self.folder / ADAPTER))
        return model, loaded

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base model's."""
        return load_tokenizer(self.model_folder / "tokenizer.json")

    @cached_property
    def model_folder(self) -> Path:
        """The base model's directory; raises DataError where it is not the one the adapter was trained on."""
        wanted = self.facts["model"]
        own = wanted["name"] == IN_FOLDER
        folder: Path = self.folder if own else learning("model").prepare_model(wanted["name"], current().models)
        found = json.loads((folder / "card.json").read_text())["weights_sha256"]
        if found != wanted["sha256"]:
            raise DataError(f"The base model {wanted['name']} has other weights than the detector was trained with.")
        return folder


def _hashes(windows: Windows, rows: list[int]) -> list[np.ndarray]:
    """The hash of each message of some windows."""
    numbers = [each.to_numpy() for each in windows.table["messages"].gather(rows)]
    used = np.unique(np.concatenate(numbers))
    hashes = np.array([message_hash(windows.texts[number]) for number in used.tolist()], np.uint64)
    return [hashes[np.searchsorted(used, each)] for each in numbers]


def _distinct(messages: pl.Series) -> tuple[list[np.ndarray], list[int]]:
    """The distinct lists of message numbers, and each list's place among them."""
    known: dict[bytes, int] = {}
    places = [known.setdefault(numbers, len(known)) for numbers in _as_bytes(messages)]
    return [np.frombuffer(numbers, dtype=np.uint32) for numbers in known], places


def _as_bytes(messages: pl.Series) -> Iterator[bytes]:
    flat = messages.explode(empty_as_null=False).to_numpy().astype(np.uint32).tobytes()
    ends = (4 * messages.list.len().to_numpy().astype(np.int64)).cumsum()
    start = 0
    for end in ends.tolist():
        yield flat[start:end]
        start = end


def learning(module: str) -> Any:  # noqa: ANN401
    """A module of the learning, loaded by name when a detector runs: storage itself does not depend on it."""
    return import_module(f"fl.{module}")
