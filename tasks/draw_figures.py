"""Task: draw what a run shows best in pictures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fl.thresholds import rank
from storage.adapters import committed_rounds
from storage.stages import NewStage, Stage
from storage.summaries import THRESHOLDS, score_name
from tasks.stage_task import stage

if TYPE_CHECKING:
    from storage.figures import Alarm, Point
    from storage.pictures import Picture


@stage("figures")
def draw_figures(new: NewStage, partition: Stage, trained: Stage, evaluated: Stage) -> None:
    """Partition sizes, loss and F1 by round, score histograms, precision and recall; those that the data allow."""
    from storage.figures import partition_sizes

    findings = json.loads(evaluated.file("findings.json").read_text())
    pictures = [partition_sizes(share_sizes(partition), new.path / "partition_sizes")]
    pictures += _of_rounds(new.path, trained, evaluated, findings)
    pictures += _of_scores(new.path, evaluated, findings)
    captions = {picture.svg.stem: picture.caption for picture in pictures}
    (new.path / "captions.json").write_text(json.dumps(captions, indent=1))
    new.counts["figures"] = len(pictures)


def share_sizes(partition: Stage) -> list[int]:
    """Training windows of each client."""
    shares = pl.read_parquet(partition.file("shares.parquet"))
    return shares.group_by("partition").len().sort("partition")["len"].to_list()


def _of_rounds(folder: Path, trained: Stage, evaluated: Stage, findings: dict[str, Any]) -> list["Picture"]:
    from storage.figures import f1_by_round, loss_by_round

    committed = committed_rounds(Path(trained.path))
    if len(committed) < 2:
        return []
    rounds = pl.concat([pl.read_parquet(found.folder / "round.parquet") for found in committed])
    clients = pl.concat([pl.read_parquet(found.folder / "clients.parquet") for found in committed])
    held_out = [(row["round"], row["loss"]) for row in findings["rounds"] if row["loss"] is not None]
    pictures = [loss_by_round(rounds, clients, held_out, folder / "loss_by_round")]
    if findings["headline"]:
        metrics = pl.read_parquet(evaluated.file("metrics.parquet"))
        rules = {row["rule"]: row["f1"] for row in findings["rules"]}
        pictures.append(f1_by_round(metrics, rules, folder / "f1_by_round", (findings["score"], findings["k"])))
    return pictures


def _of_scores(folder: Path, evaluated: Stage, findings: dict[str, Any]) -> list["Picture"]:
    from storage.figures import Curve, false_alarms, precision_recall, score_histograms

    test = pl.read_parquet(evaluated.file("window_scores.parquet")).filter(pl.col("split") == "test")
    scores, labels = test["score"].to_numpy(), test["label"].fill_null(-1).to_numpy()
    if not len(test):
        return []
    thresholds = {kind: findings[kind]["threshold"] for kind in THRESHOLDS if findings[kind]}
    pictures = [score_histograms(scores, labels, thresholds, score_name(findings), folder / "score_histograms")]
    if not findings["headline"]:
        return pictures
    known = labels >= 0
    precision, recall = rank(scores[known], labels[known]).precision_recall
    points = {kind: _point(findings[kind]) for kind in thresholds}
    rules = {row["rule"]: _point(row) for row in findings["rules"]}
    model = "tuned model" if findings["round"] > 0 else "untouched model"
    curves = {model: Curve(recall.tolist(), precision.tolist())}
    path = folder / "precision_recall"
    pictures.append(precision_recall(curves, points, rules, findings["prevalence"], path))
    alarms, known_scores = _alarms(model, findings), scores[known].tolist()
    return [*pictures, false_alarms(labels[known].tolist(), known_scores, model, alarms, folder / "false_alarms")]


def _alarms(model: str, findings: dict[str, Any]) -> dict[str, "Alarm"]:
    """Every detector without labels; those that cannot be told are left out."""
    from storage.figures import Alarm

    found = {f"{model}, label-free": findings["label_free"]}
    if findings["round"] > 0:
        untouched = next((row["label_free"] for row in findings["rounds"] if row["round"] == 0), None)
        found["untouched model, label-free"] = untouched
    found |= {f"rule: {row['rule']}": row for row in findings["rules"]}
    found |= {one["title"]: one["populations"]["all"]["label_free"] for one in findings["baselines"] if one["main"]}
    told = ("false_alarm_rate", "recall")
    return {
        name: Alarm(row["false_alarm_rate"], row["recall"])
        for name, row in found.items()
        if row and all(row[rate] is not None for rate in told)
    }


def _point(row: dict[str, Any]) -> "Point":
    from storage.figures import Point

    return Point(row["recall"], row["precision"])
