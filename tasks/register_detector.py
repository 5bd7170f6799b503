"""Task: track the run in MLflow, and register its detector."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from fl.hyperparameters import Tuning
from fl.rarity import USUAL_SCORES
from storage.adapters import CommittedRound, committed_rounds
from storage.datasets import DatasetSpec
from storage.judging import USUAL
from storage.layout import current
from storage.normal_windows import write_normal_windows
from storage.registry import CHALLENGER, registered_name
from storage.registry import register_detector as register
from storage.report_words import tuning_words
from storage.stages import NewStage, Stage
from storage.summaries import RunFacts, Summary, TrainingFacts, load_summary, score_name
from storage.tracking import NOTE, log_run
from tasks.run_pages import page_of_run
from tasks.stage_task import stage


@stage("register", unkeyed=("facts", "spec"))
def register_detector(
    new: NewStage,
    data: Mapping[str, Stage],
    trained: Stage,
    evaluated: Stage,
    report: Stage,
    figures: Stage,
    reading: Mapping[str, Any],
    rules: Mapping[str, Any],
    tuning: Tuning,
    quantization: str,
    seed: int,
    store: str,
    facts: RunFacts,
    spec: DatasetSpec,
) -> None:
    """Log parameters, metrics of every round, costs and figures; register the detector as a new challenger.

    `data` are the stages of prepared data with the model; `store` tells one tracking store from another; `rules` holds
    the window, mask and token rules as used, and how windows were scored. MLflow's client tries each request again for
    minutes where the server does not answer; a whole second try would leave a half-written run behind.
    """
    summary = load_summary(report.file("report.json"))
    found = committed_rounds(Path(trained.path))[summary.findings["round"]]
    model = data["model"].counts
    base = {"name": model["name"], "sha256": model["weights_sha256"], "quantization": quantization}
    how = {"dataset": spec.model_dump(mode="json"), **rules, "model": base, "tuning": asdict(tuning), "seed": seed}
    lineage = {"run_id": facts.run_id, "data": _fingerprints(data)}
    folder = _write_detector(new.path / "detector", found, summary.findings, _calibration(evaluated), how | lineage)
    shutil.copyfile(report.file("report.md"), folder / "report.md")
    write_normal_windows(folder, Path(data["tokenized"].path), evaluated.file("window_scores.parquet"))
    if summary.findings["score"] in USUAL_SCORES:
        for name in USUAL:
            shutil.copyfile(evaluated.file(name), folder / name)
    files = [report.file("report.html"), report.file("report.json"), *sorted(Path(figures.path).glob("*.png"))]
    tags = _tags(facts, found, base, data)
    told = _description(summary)
    noted = tags | {NOTE: f"{told}\n\n    {facts.command}"}
    run_id = log_run(facts.run_id, _flat(facts.config), _rounds(trained, summary), _metrics(summary), files, noted)
    version = register(registered_name(spec.name), run_id, folder, tags, told)
    (new.path / "version.json").write_text(json.dumps(asdict(version), indent=1))
    new.work_seconds = 0.0  # it is all tracking
    new.counts |= {"name": version.name, "version": version.version, "alias": CHALLENGER}


def _fingerprints(data: Mapping[str, Stage]) -> dict[str, dict[str, str]]:
    """Where in the stage store the prepared data lie, and what they are."""
    return {name: {"stage": each.name, "key": each.key, "fingerprint": each.fingerprint} for name, each in data.items()}


def _tags(facts: RunFacts, found: CommittedRound, base: Mapping[str, str], data: Mapping[str, Stage]) -> dict[str, str]:
    """The way back from a version: the run, its page, its rounds, and the fingerprint of each stage of its data."""
    return {
        "run_id": facts.run_id,
        **page_of_run(),
        "rounds": str(current().run(facts.run_id) / "rounds"),
        "round": str(found.number),
        "adapter_hash": found.adapter_hash,
        "base_model": base["name"],
        "base_model_sha256": base["sha256"],
        **{f"data_{name}": each.fingerprint for name, each in data.items() if name != "model"},
    }


def _description(summary: Summary) -> str:
    """The detector in one line: model, score, and how well it does without labels."""
    run, findings = summary.run, summary.findings
    tuning = tuning_words(run.tuning, run.rank)
    found = findings["label_free"]
    told = f"label-free F1 {found['f1']:.3f}" if found and found["f1"] is not None else "no labels to judge by"
    return f"{run.model}, {tuning}, round {findings['round']} of {run.run_id}; {score_name(findings)}; {told}"


def _write_detector(
    folder: Path, found: CommittedRound, findings: Mapping[str, Any], calibration: pl.DataFrame, how: Mapping[str, Any]
) -> Path:
    """A detector's folder, as storage/judging.py reads it."""
    from fl.calibration import calibrated_threshold

    folder.mkdir()
    shutil.copyfile(found.adapter, folder / "adapter.safetensors")
    calibration.write_parquet(folder / "calibration_scores.parquet")
    rate, rule = findings["false_alarm_rate"], findings.get("threshold_rule", "quantile")
    described = {
        **how,
        "round": found.number,
        "adapter_hash": found.adapter_hash,
        "score": findings["score"],
        "k": findings["k"],
        "threshold": calibrated_threshold(calibration["score"].to_numpy(), rate, rule),
        "false_alarm_rate": rate,
        "threshold_rule": rule,
    }
    (folder / "detector.json").write_text(json.dumps(described, indent=1))
    return folder


def _calibration(evaluated: Stage) -> pl.DataFrame:
    """The calibration windows' scores: what the label-free threshold came from, and drift is measured against."""
    scores = pl.read_parquet(evaluated.file("window_scores.parquet"), columns=["sequence_hash", "split", "score"])
    return scores.filter(pl.col("split") == "calibration").select("sequence_hash", "score")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _rounds(trained: Stage, summary: Summary) -> list[dict[str, Any]]:
    """What is known of each round, under the names MLflow shows."""
    committed = committed_rounds(Path(trained.path))
    rows = [pl.read_parquet(found.folder / "round.parquet").to_dicts()[0] for found in committed]
    training = _renamed(rows, _ROUND_NAMES)
    return training + _renamed(summary.findings["rounds"], {"loss": "held_out_loss"})


_ROUND_NAMES = {
    "loss": "train_loss",
    **{name: f"rounds/{name}" for name in ("seconds", "clients", "learning_rate", "bytes_up", "bytes_down")},
}
"""MLflow's pages put metrics with a common beginning before a slash together."""


def _renamed(rows: list[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{names.get(key, key): value for key, value in row.items()} for row in rows]


def _metrics(summary: Summary) -> dict[str, float]:
    row = _flat(summary.row())
    numbers = {key.replace(".", "/"): value for key, value in row.items() if isinstance(value, int | float)}
    found = {key: float(value) for key, value in numbers.items() if key not in _NO_METRICS}
    return found | {f"costs/{name}": value for name, value in _costs(summary.training).items()}


_NO_METRICS = {"k", "rank", "seed", "rounds", "bytes_up_per_client_round", "bytes_down_per_client_round"}
"""Parameters, and what is among the costs in MB."""


def _costs(training: TrainingFacts) -> dict[str, float]:
    """The figures of the paper's Tables 2 and 3, in its units."""
    found = {
        "message_up_mb": training.bytes_up_per_client_round / 1e6,
        "message_down_mb": training.bytes_down_per_client_round / 1e6,
        "full_message_mb": training.full_model_bytes / 1e6,
        "sent_mb": training.bytes_sent / 1e6,
        "trained_parameters_m": training.trainable_parameters / 1e6,
        "train_peak_memory_mb": training.peak_memory_mb,
        "latency_ms": training.latency_ms,
        "latency_deviation_ms": training.latency_deviation_ms,
        "latency_median_ms": training.latency_median_ms,
        "latency_p99_ms": training.latency_p99_ms,
        "latency_peak_mb": training.latency_peak_mb,
        "latency_together_ms": training.together_ms,
    }
    return {name: float(value) for name, value in found.items() if value is not None}
