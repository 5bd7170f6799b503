"""How an adapter does on a site's own windows, and the detector and alerts that the site keeps for itself."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fl.hyperparameters import Tuning
from fl.rarity import USUAL_SCORES, UsualWindows
from fl.usual_messages import SURPRISES
from storage.datasets import DatasetSpec
from storage.detection import DetectConfig, Outcome
from storage.judging import exceeds
from storage.normal_windows import write_normal_windows
from storage.progress import Progress, silent
from storage.stages import Stage
from storage.tables import list_column
from tasks.detect_anomalies import detect_anomalies
from tasks.site_windows import HELD_OUT, Reading
from tasks.usual_scores import calibration_windows, message_hashes, usual_scores, write_usual

if TYPE_CHECKING:
    from fl.calibration import ThresholdRule
    from fl.model import LoadedModel


@dataclass(frozen=True)
class Judging:
    """What decides: the score, the share of normal windows that may be flagged, and how that gives the threshold."""

    score: str
    k: int | None
    false_alarm_rate: float
    threshold_rule: "ThresholdRule"


@dataclass(frozen=True)
class Judged:
    """A site's windows with their scores by one adapter."""

    scores: pl.DataFrame
    """Calibration and held-out windows: window_id, split, sequence_hash, score, mean_token, loss_sum, loss_tokens."""
    threshold: float
    seconds: float
    usual: UsualWindows | None = None
    """What is usual, for the scores that need to know."""

    def numbers(self, number: int, alerts: int) -> dict[str, float]:
        """What the site tells of them, as fl/declared.py names it."""
        calibration = self.scores.filter(pl.col("split") == "calibration")
        held_out = self.scores.filter(pl.col("split").is_in(HELD_OUT))
        quantiles = np.quantile(calibration["mean_token"].to_numpy(), [0.5, 0.9, 0.99])
        return {
            "partition": number,
            "calibration_windows": calibration.height,
            "loss": float(calibration["loss_sum"].to_numpy().sum() / calibration["loss_tokens"].to_numpy().sum()),
            **{f"surprise_{share}": float(value) for share, value in zip((50, 90, 99), quantiles, strict=True)},
            "threshold": self.threshold,
            "held_out_windows": held_out.height,
            "flagged_windows": int(exceeds(held_out["score"].to_numpy(), self.threshold).sum()),
            "alerts": alerts,
            "seconds": self.seconds,
        }


def judge_windows(
    model: Any,  # noqa: ANN401 (a PEFT model with the adapter in place)
    loaded: "LoadedModel",
    windows: Stage,
    judging: Judging,
    progress: Progress = silent,
) -> Judged:
    """Score each distinct sequence of the calibration and held-out windows once, and take the threshold."""
    from fl.anomaly_scores import anomaly_score
    from fl.calibration import calibrated_threshold
    from fl.scoring import score_sequences

    started = time.monotonic()
    table, sequences = _judged_windows(windows)
    ids = [np.asarray(each, np.int64) for each in sequences["token_ids"].to_list()]
    starts = [np.asarray(each, np.int64) for each in sequences["message_starts"].to_list()]
    by_message, usual = judging.score in USUAL_SCORES, None
    columns = score_sequences(model, loaded, ids, starts, (judging.k or 1,), progress=progress, by_message=by_message)
    if by_message:
        surprises = list_column(columns[SURPRISES].tolist(), pl.Float64()).alias(SURPRISES)
        read = sequences.with_columns(surprises, mean_token=pl.Series(columns["mean_token"]))
        known = calibration_windows(table, sequences["sequence_id"])
        found, usual = usual_scores(read, message_hashes(windows.file("tokenized")), known)
        columns |= found
    scored = sequences.select("sequence_id", "sequence_hash").with_columns(
        score=pl.Series(anomaly_score(columns, judging.score, judging.k)),
        mean_token=pl.Series(columns["mean_token"]),
        loss_sum=pl.Series(columns["loss_sum"]),
        loss_tokens=pl.Series(columns["loss_tokens"]),
    )
    scores = table.join(scored, on="sequence_id", how="left", maintain_order="left").drop("sequence_id")
    calibration = scores.filter(pl.col("split") == "calibration")["score"].to_numpy()
    threshold = calibrated_threshold(calibration, judging.false_alarm_rate, judging.threshold_rule)
    return Judged(scores, threshold, time.monotonic() - started, usual)


def _judged_windows(windows: Stage) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The judged windows with their sequence, and the distinct sequences in a stable order."""
    splits = pl.scan_parquet(windows.file("splits.parquet")).filter(pl.col("split").is_in(["calibration", *HELD_OUT]))
    every = pl.scan_parquet(windows.file("tokenized/windows.parquet")).select("window_id", "sequence_id")
    table = splits.join(every, on="window_id", how="left", maintain_order="left").collect()
    columns = ["sequence_id", "sequence_hash", "token_ids", "message_starts", "message_ids"]
    sequences = pl.scan_parquet(windows.file("tokenized/sequences.parquet")).select(columns)
    wanted = table.lazy().select("sequence_id").unique()
    return table, sequences.join(wanted, on="sequence_id", how="semi").sort("sequence_id").collect()


def write_detector(
    folder: Path,
    adapter: bytes,
    facts: Mapping[str, Any],
    judged: Judged,
    windows: Stage,
    reading: Reading,
    spec: DatasetSpec,
    tuning: Tuning,
    judging: Judging,
) -> Path:
    """The site's detector as storage/judging.py reads it, put in place by one rename.

    `adapter` is a safetensors file; `facts` says where it comes from: run_id, round, adapter_hash, model, seed.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "adapter.safetensors").write_bytes(adapter)
    calibration = judged.scores.filter(pl.col("split") == "calibration").select("sequence_hash", "score")
    calibration.write_parquet(temporary / "calibration_scores.parquet")
    described = {
        **facts,
        "dataset": spec.model_dump(mode="json"),
        "window": reading.window.model_dump(mode="json"),
        "mask": reading.mask.model_dump(mode="json"),
        "tokens": reading.tokens.model_dump(mode="json"),
        "tuning": asdict(tuning),
        **asdict(judging),
        "threshold": judged.threshold,
    }
    (temporary / "detector.json").write_text(json.dumps(described, indent=1))
    if judged.usual is not None:
        write_usual(judged.usual, temporary)
    write_normal_windows(temporary, windows.file("tokenized"), windows.file("splits.parquet"))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def write_alerts(detector: Path, logs: list[str], output: Path, progress: Progress = silent) -> Outcome:
    """Judge the site's logs with its detector; alerts as `atalaia detect` writes them."""
    config = DetectConfig(files=tuple(logs), model=str(detector), output=str(output))
    return detect_anomalies(config, progress=progress)
