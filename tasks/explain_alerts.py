"""Task: say which messages gave the most anomalous windows away."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fl.adapter import Tuning, attach_adapter, load_adapter_arrays
from fl.model import load_model
from fl.scoring import message_surprise, score_tokens
from storage.adapters import committed_rounds
from storage.stages import NewStage, Stage
from tasks.prepare_model import model_folder
from tasks.stage_task import stage

_SHOWN = 4
"""Messages shown of each window."""


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
    """Score the most anomalous windows once more, token by token, and keep their most surprising messages."""
    findings = json.loads(evaluated.file("findings.json").read_text())
    windows = _windows(tokenized, [row["window"] for row in findings["most_anomalous"]])
    loaded = load_model(model_folder(model), quantization, device)
    adapted = attach_adapter(loaded, tuning, seed)
    load_adapter_arrays(adapted, committed_rounds(Path(trained.path))[findings["round"]].arrays())
    scores = score_tokens(adapted, loaded, [row.to_numpy() for row in windows["token_ids"]])
    texts = dict(pl.read_parquet(tokenized.file("messages.parquet"), columns=["message_id", "text"]).iter_rows())
    alerts = []
    for row, found, logs in zip(windows.to_dicts(), findings["most_anomalous"], scores.log_probabilities, strict=True):
        surprise = message_surprise(-logs.astype(np.float64), np.asarray(row["message_starts"]))
        alerts.append(_alert(row, found, findings, _surprising(row["message_ids"], surprise, texts)))
    (new.path / "alerts.json").write_text(json.dumps(alerts, indent=1))
    new.counts["alerts"] = len(alerts)


def _windows(tokenized: Stage, window_ids: list[int]) -> pl.DataFrame:
    """The windows with these ids, in this order."""
    wanted = pl.DataFrame({"window_id": window_ids}, schema={"window_id": pl.UInt32})
    columns = ["window_id", "sequence_id", "kind", "label", "lines", "message_ids"]
    windows = pl.scan_parquet(tokenized.file("windows.parquet")).select(columns)
    sequences = pl.scan_parquet(tokenized.file("sequences.parquet"))
    sequences = sequences.select("sequence_id", "token_ids", "message_starts")
    return (
        wanted.lazy()
        .join(windows, on="window_id", how="left", maintain_order="left")
        .join(sequences, on="sequence_id", how="left", maintain_order="left")
        .collect()
    )


def _surprising(message_ids: list[int], surprise: np.ndarray, texts: dict[int, str]) -> list[dict[str, Any]]:
    """The most surprising messages; the last value of `surprise` is that of the window's end."""
    shown = []
    for position in np.argsort(-surprise, kind="stable")[:_SHOWN]:
        at_end = position == len(surprise) - 1
        text = "(the window ends here)" if at_end else texts[message_ids[position]]
        shown.append({"text": text, "surprise": float(surprise[position]), "position": int(position) + 1})
    return shown


def _alert(
    row: dict[str, Any], found: dict[str, Any], findings: dict[str, Any], messages: list[dict[str, Any]]
) -> dict[str, Any]:
    free = findings["label_free"]
    return {
        "window_id": row["window_id"],
        "score": found["score"],
        "label": row["label"],
        "kind": row["kind"] or None,
        "flagged": free is not None and found["score"] > free["threshold"],
        "windows": found["windows"],
        "lines": row["lines"],
        "messages": messages,
    }
