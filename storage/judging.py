"""A detector at rest, judging raw log lines: their windows, each with its score and whether that is an alert.

A detector's folder holds `adapter.safetensors`, `detector.json` (everything that decides: base model by name and hash,
tuning, score, K, threshold, log format, window rule, masks, token rule) and `calibration_scores.parquet`.
"""

import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from storage.datasets import DatasetSpec
from storage.errors import DataError
from storage.layout import current
from storage.masks import MaskRules, mask_log
from storage.tokens import TokenRule, tokenize_windows
from storage.windows import WindowRule, window_log

FACTS = "detector.json"
ADAPTER = "adapter.safetensors"
CALIBRATION = "calibration_scores.parquet"
_MOST_REJECTED = 1.0
"""Lines that do not parse never stop detection: they are nobody's window."""


class Judge:
    """Judges the windows of raw log lines with the detector in a folder; the model is loaded with the first lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / FACTS).read_text())
        self._loaded: tuple[Any, Any] | None = None

    def judge(self, lines: list[str]) -> pl.DataFrame:
        """The windows that raw lines make (key, lines, score, threshold, anomalous); DataError where they make none."""
        if not lines:
            raise DataError("There are no lines to judge; give at least one.")
        with tempfile.TemporaryDirectory() as folder:
            windows, sequences = self._prepare(lines, Path(folder))
        scores = self._scores(sequences)
        threshold = float(self.facts["threshold"])
        scored = sequences.select("sequence_id", pl.Series("score", scores))
        judged = windows.join(scored, on="sequence_id", how="left", maintain_order="left")
        anomalous = (pl.col("score") > threshold).alias("anomalous")
        return judged.select("key", "lines", "score", pl.lit(threshold).alias("threshold"), anomalous)

    def _prepare(self, lines: list[str], folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Window, mask and tokenize lines as training did."""
        facts = self.facts
        spec = DatasetSpec.model_validate(facts["dataset"]).model_copy(update={"label_file": None})
        raw = folder / spec.raw_name
        raw.write_text("\n".join(line.rstrip("\n") for line in lines) + "\n", encoding=spec.encoding)
        for name in ("window", "mask", "tokenize"):
            (folder / name).mkdir()
        rule, masks = WindowRule.model_validate(facts["window"]), MaskRules.model_validate(facts["mask"])
        window_log(raw, spec, rule, None, folder / "window", max_rejected=_MOST_REJECTED)
        mask_log(raw, folder / "window", spec, masks, folder / "mask")
        tokens = TokenRule.model_validate(facts["tokens"])
        tokenizer = self._model_folder() / "tokenizer.json"
        tokenize_windows(folder / "window", folder / "mask", tokenizer, tokens, folder / "tokenize")
        windows = pl.read_parquet(folder / "tokenize" / "windows.parquet")
        return windows, pl.read_parquet(folder / "tokenize" / "sequences.parquet")

    def _scores(self, sequences: pl.DataFrame) -> np.ndarray:
        model, loaded = self._model()
        scoring = _learning("scoring")
        ids = [row.to_numpy() for row in sequences["token_ids"]]
        starts = [row.to_numpy() for row in sequences["message_starts"]]
        k = self.facts["k"]
        columns = scoring.score_sequences(model, loaded, ids, starts, (k or 1,))
        scores: np.ndarray = scoring.anomaly_score(columns, self.facts["score"], k)
        return scores

    def _model(self) -> tuple[Any, Any]:
        """The base model with the detector's adapter, loaded once."""
        if self._loaded is None:
            facts, adapter = self.facts, _learning("adapter")
            loaded = _learning("model").load_model(self._model_folder(), facts["model"]["quantization"])
            tuning = _learning("federation").tuning_from(facts["tuning"], adapter.Tuning)
            model = adapter.attach_adapter(loaded, tuning, facts["seed"])
            adapter.load_adapter_arrays(model, adapter.read_adapter(self.folder / ADAPTER))
            self._loaded = model, loaded
        return self._loaded

    def _model_folder(self) -> Path:
        """The base model's directory; raises DataError where it is not the one the adapter was trained on."""
        wanted = self.facts["model"]
        folder: Path = _learning("model").prepare_model(wanted["name"], current().models)
        found = json.loads((folder / "card.json").read_text())["weights_sha256"]
        if found != wanted["sha256"]:
            raise DataError(f"The base model {wanted['name']} has other weights than the detector was trained with.")
        return folder


def _learning(module: str) -> Any:  # noqa: ANN401
    """A module of the learning, loaded by name when a detector runs: storage itself does not depend on it."""
    return import_module(f"fl.{module}")
