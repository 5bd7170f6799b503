"""Task: say which messages gave the most anomalous windows away."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fl.hyperparameters import Tuning
from storage.adapters import committed_rounds
from storage.composer import load_tokenizer
from storage.stages import NewStage, Stage
from storage.summaries import Alert, SurprisingMessage
from storage.surprises import ScoredWindow, UsualSurprise, sample_sequences, surprising_messages, token_reader
from tasks.prepare_model import model_folder
from tasks.progress import progress_of
from tasks.stage_task import stage

if TYPE_CHECKING:
    from fl.scoring import TokenScores

_FREQUENT, _MOST = 16, 32
"""Distinct calibration windows that say what is usual: the most frequent, and with those for rarer messages."""
_WINDOW_COLUMNS = ("window_id", "sequence_id", "kind", "label", "lines", "message_ids")
_SEQUENCE_COLUMNS = ("sequence_id", "token_ids", "message_starts")


@stage("explain")
def explain_alerts(
    new: NewStage,
    model: Stage,
    tokenized: Stage,
    trained: Stage,
    evaluated: Stage,
    tuning: Tuning,
    seed: int,
    quantization: str,
    device: str,
) -> None:
    """Score the most anomalous windows token by token, beside normal ones, and keep their most unusual messages."""
    from fl.adapter import attach_adapter, load_adapter_arrays
    from fl.model import load_model
    from fl.scoring import score_tokens

    findings = json.loads(evaluated.file("findings.json").read_text())
    windows = _windows(tokenized, [row["window"] for row in findings["most_anomalous"]])
    normal = _normal_windows(tokenized, evaluated, windows["message_ids"].explode().unique().to_list())
    loaded = load_model(model_folder(model), quantization, device)
    adapted = attach_adapter(loaded, tuning, seed)
    load_adapter_arrays(adapted, committed_rounds(Path(trained.path))[findings["round"]].arrays())
    rows = [*windows.to_dicts(), *normal.to_dicts()]
    tokens = [np.asarray(row["token_ids"], np.int64) for row in rows]
    scores = score_tokens(adapted, loaded, tokens, top=1, progress=progress_of("explain"))
    scored = _scored_windows(tokenized, rows, scores)
    usual = UsualSurprise(scored[len(windows) :], normal["windows"].to_list())
    tokenizer = load_tokenizer(model.file("tokenizer.json"))
    alerts = []
    for i, found in enumerate(findings["most_anomalous"]):
        read = token_reader(tokenizer, loaded.end_token_id, tokens[i], scores.predicted[i])
        messages = surprising_messages(scored[i], usual, read, by_token=findings["score"] == "max_token")
        alerts.append(_alert(rows[i], found, findings, normal, messages))
    (new.path / "alerts.json").write_text(json.dumps([alert.model_dump() for alert in alerts], indent=1))
    new.counts["alerts"] = len(alerts)


def _windows(tokenized: Stage, window_ids: list[int]) -> pl.DataFrame:
    """The windows with these ids, in this order."""
    wanted = pl.DataFrame({"window_id": window_ids}, schema={"window_id": pl.UInt32})
    windows = pl.scan_parquet(tokenized.file("windows.parquet")).select(_WINDOW_COLUMNS)
    found = wanted.lazy().join(windows, on="window_id", how="left", maintain_order="left")
    return found.join(_sequences(tokenized), on="sequence_id", how="left", maintain_order="left").collect()


def _sequences(tokenized: Stage) -> pl.LazyFrame:
    return pl.scan_parquet(tokenized.file("sequences.parquet")).select(_SEQUENCE_COLUMNS)


def _normal_windows(tokenized: Stage, evaluated: Stage, message_ids: list[int]) -> pl.DataFrame:
    """A few distinct calibration windows with the number of windows each stands for.

    The most frequent ones, and for each of `message_ids` that none of them has the most frequent one that has it.
    """
    splits = pl.scan_parquet(evaluated.file("window_scores.parquet")).filter(pl.col("split") == "calibration")
    windows = pl.scan_parquet(tokenized.file("windows.parquet")).select("window_id", "sequence_id", "message_ids")
    calibration = windows.join(splits.select("window_id"), on="window_id", how="semi")
    counted = calibration.group_by("sequence_id").agg(pl.len().alias("windows"), pl.col("message_ids").first())
    counted = counted.sort(["windows", "sequence_id"], descending=[True, False])
    distinct = counted.collect()
    chosen = sample_sequences(distinct["message_ids"].to_list(), message_ids, _FREQUENT, _MOST)
    return distinct[chosen].lazy().join(_sequences(tokenized), on="sequence_id", maintain_order="left").collect()


def _scored_windows(tokenized: Stage, rows: list[dict[str, Any]], scores: "TokenScores") -> list[ScoredWindow]:
    texts = dict(pl.read_parquet(tokenized.file("messages.parquet"), columns=["message_id", "text"]).iter_rows())
    return [
        ScoredWindow(
            [texts[message] for message in row["message_ids"]], row["message_starts"], -logs.astype(np.float64)
        )
        for row, logs in zip(rows, scores.log_probabilities, strict=True)
    ]


def _alert(
    row: dict[str, Any],
    found: dict[str, Any],
    findings: dict[str, Any],
    normal: pl.DataFrame,
    messages: list[SurprisingMessage],
) -> Alert:
    free = findings["label_free"]
    return Alert(
        window_id=row["window_id"],
        score=found["score"],
        label=row["label"],
        kind=row["kind"] or None,
        flagged=free is not None and found["score"] > free["threshold"],
        windows=found["windows"],
        lines=row["lines"],
        messages=messages,
        by_token=findings["score"] == "max_token",
        compared_sequences=len(normal),
        compared_windows=int(normal["windows"].sum()),
    )
