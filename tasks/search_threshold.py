"""Task: turn scores into a detector, and say how well it detects."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fl.calibration import ThresholdRule
from fl.rarity import USUAL_SCORES, UsualWindows
from fl.usual_messages import SURPRISES
from storage.adapters import committed_rounds
from storage.misses import with_messages
from storage.stages import NewStage, Stage
from tasks.stage_task import stage
from tasks.usual_scores import calibration_windows, message_hashes, usual_scores, write_usual

if TYPE_CHECKING:
    from fl.metrics_table import Windows

_KEYS = {"sequence_id", "sequence_hash"}


@stage("evaluate")
def search_threshold(
    new: NewStage,
    tokenized: Stage,
    split: Stage,
    scored: Stage,
    score: str,
    k: int | None,
    false_alarm_rate: float,
    seed: int,
    trained: Stage | None = None,
    batch_size: int = 0,
    baselines: Stage | None = None,
    threshold: ThresholdRule = "quantile",
) -> None:
    """Find the three thresholds, and judge every scored round and the simple rules by the labels there are.

    With `trained` and the windows of a training step, `batch_size`, the rules are also fitted on as few windows as the
    model has seen. With `baselines`, the learned baselines are judged in the same way.
    """
    from fl.evaluation import evaluate
    from fl.metrics_table import METRIC_TYPES
    from fl.misses import misses
    from fl.rule_comparison import RULE_TYPES

    table = windows_table(tokenized, split)
    messages = _Messages(tokenized, table)
    rounds = {number: _columns(scored, number, table, messages) for number in scored.counts["rounds"]}
    seen = trained_windows(Path(trained.path), batch_size) if trained else None
    windows = windows_of(table)
    found = evaluate(windows, rounds, score, k, false_alarm_rate, trained_windows=seen, seed=seed, rule=threshold)
    pl.DataFrame(found.metrics, schema=METRIC_TYPES).write_parquet(new.path / "metrics.parquet")
    pl.DataFrame(found.rules, schema=RULE_TYPES).write_parquet(new.path / "rules.parquet")
    kept = ["window_id", "sequence_hash", "split", "label", "kind"]
    scores = pl.Series("score", found.window_scores, nan_to_null=True)
    table.select(kept).with_columns(scores).write_parquet(new.path / "window_scores.parquet")
    if found.findings["score"] in USUAL_SCORES:
        write_usual(messages.usual[found.findings["round"]], new.path)
    how = (false_alarm_rate, seed, threshold)
    judged = _judge_baselines(new.path, baselines, windows, *how) if baselines else ([], {})
    learned, flagged = judged
    missed = misses(windows, found.flagged | flagged)
    missed["sequences"] = with_messages(missed["sequences"], table, pl.read_parquet(tokenized.file("messages.parquet")))
    told = found.findings | {"baselines": learned, "missed": missed}
    (new.path / "findings.json").write_text(json.dumps(told, indent=1))
    new.counts |= _counts(found.findings)


def _judge_baselines(
    folder: Path, baselines: Stage, windows: "Windows", false_alarm_rate: float, seed: int, threshold: ThresholdRule
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Judge the learned baselines by the labels there are: `baselines.parquet`, and what the report tells of them.

    Also what each flags with its label-free threshold.
    """
    from fl.baseline_comparison import BASELINE_TYPES, baseline_findings, baseline_rows

    trained = json.loads(baselines.file("baselines.json").read_text())
    table = pl.read_parquet(baselines.file("window_scores.parquet")).sort("window_id").drop("window_id")
    columns = {name: table[name].to_numpy() for name in table.columns}
    rows = baseline_rows(windows, columns, false_alarm_rate, seed, threshold)
    pl.DataFrame(rows, schema=BASELINE_TYPES).write_parquet(folder / "baselines.parquet")
    findings = baseline_findings(rows, trained)
    thresholds = {
        (one["title"], f"{one['method']}.{one['score']}"): one["populations"]["all"]["label_free"]
        for one in findings
        if one["main"]
    }
    flagged = {title: table[name].to_numpy() > free["threshold"] for (title, name), free in thresholds.items() if free}
    return findings, flagged


def trained_windows(run_folder: Path, batch_size: int) -> int:
    """How many windows the model can have seen: each client's batches, but no more than its share holds."""
    clients = pl.concat([pl.read_parquet(found.folder / "clients.parquet") for found in committed_rounds(run_folder)])
    drawn = clients.group_by("partition").agg(pl.col("steps").sum() * batch_size, pl.col("examples").max())
    return int(drawn.select(pl.min_horizontal("steps", "examples").sum()).item())


def windows_table(tokenized: Stage, split: Stage) -> pl.DataFrame:
    """Every window with its split, its label and its messages, by window_id."""
    splits = pl.scan_parquet(split.file("splits.parquet"))
    columns = ["window_id", "sequence_id", "sequence_hash", "label", "kind", "message_ids"]
    windows = pl.scan_parquet(tokenized.file("windows.parquet")).select(columns)
    return windows.join(splits, on="window_id", how="left", maintain_order="left").sort("window_id").collect()


def windows_of(table: pl.DataFrame) -> "Windows":
    """The windows of such a table as judging takes them."""
    from fl.metrics_table import UNKNOWN, Windows

    messages = table["message_ids"]
    return Windows(
        sequence=table["sequence_id"].to_numpy().astype(np.int64),
        split=table["split"].to_numpy().astype(np.str_),
        label=table["label"].fill_null(UNKNOWN).to_numpy().astype(np.int8),
        message_ids=messages.explode(empty_as_null=False).to_numpy().astype(np.uint32),
        lengths=messages.list.len().to_numpy().astype(np.int64),
        kind=table["kind"].to_numpy() if table["kind"].null_count() < len(table) else None,
    )


class _Messages:
    """The messages of sequences, and what is usual by each round's model."""

    def __init__(self, tokenized: Stage, table: pl.DataFrame) -> None:
        self._hashes = message_hashes(Path(tokenized.path))
        sequences = pl.read_parquet(tokenized.file("sequences.parquet"), columns=["sequence_id", "message_ids"])
        self._sequences = sequences.with_columns(windows=calibration_windows(table, sequences["sequence_id"]))
        self.usual: dict[int, UsualWindows] = {}
        """By round."""

    def scores(self, number: int, scores: pl.DataFrame) -> pl.DataFrame:
        """The scores of a round's model with `max_excess` and `rarity`, instead of the surprises they come from."""
        scored = scores.join(self._sequences, on="sequence_id", how="left", maintain_order="left")
        columns, self.usual[number] = usual_scores(scored, self._hashes, scored["windows"])
        return scores.drop(SURPRISES).with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def _columns(scored: Stage, number: int, table: pl.DataFrame, messages: _Messages) -> dict[str, np.ndarray]:
    """Score columns by sequence id; NaN for sequences that were not scored."""
    scores = messages.scores(number, pl.read_parquet(scored.file(f"round-{number:04d}.parquet")))
    sequences = pl.DataFrame({"sequence_id": range(int(table["sequence_id"].max() or 0) + 1)})  # type: ignore[arg-type]
    ids = sequences.with_columns(pl.col("sequence_id").cast(scores.schema["sequence_id"]))
    full = ids.join(scores, on="sequence_id", how="left", maintain_order="left")
    return {
        name: full[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for name in full.columns
        if name not in _KEYS
    }


def _counts(findings: dict[str, Any]) -> dict[str, Any]:
    names = ("round", "score", "k", "windows", "anomalies", "auroc", "average_precision")
    return {name: findings.get(name) for name in names}
