"""Task: tell what a run did, cost and found, in files."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storage.continuations import Continuation
from storage.layout import current
from storage.reports import write_report
from storage.stages import NewStage, Stage
from storage.summaries import Alert, DataFacts, RunFacts, Summary, TrainingFacts
from tasks.draw_figures import share_sizes
from tasks.stage_task import stage

PICTURES = {".svg", ".pdf", ".png"}
"""What the figures of a run are kept as."""


@stage("report", unkeyed=("facts",))
def report_results(
    new: NewStage,
    data: Mapping[str, Stage],
    evaluated: Stage,
    explained: Stage,
    compared: Stage,
    costs: Stage,
    figures: Stage,
    config: Mapping[str, Any],
    facts: RunFacts,
) -> None:
    """Write the report as JSON, Markdown and one HTML file, with its figures inside."""
    summary = Summary(
        run=facts,
        data=_data_facts(data, config),
        training=TrainingFacts.model_validate_json(costs.file("costs.json").read_text()),
        findings=json.loads(evaluated.file("findings.json").read_text()),
        alerts=[Alert.model_validate(alert) for alert in json.loads(explained.file("alerts.json").read_text())],
        continuations=[
            Continuation.model_validate(each) for each in json.loads(compared.file("continuations.json").read_text())
        ],
        next_commands=_next_commands(facts),
    )
    captions = json.loads(figures.file("captions.json").read_text())
    write_report(summary, new.path, {caption: figures.file(f"{name}.svg") for name, caption in captions.items()})


def _data_facts(data: Mapping[str, Stage], config: Mapping[str, Any]) -> DataFacts:
    window, tokenized = data["window"].counts, data["tokenized"].counts
    return DataFacts(
        lines=window["lines"],
        windows=window["windows"],
        distinct_windows=tokenized["distinct_sequences"],
        messages=data["mask"].counts["messages"],
        anomalies=window["anomalous"],
        rejected=window["rejected"],
        tokens=tokenized["tokens"],
        truncated_windows=tokenized["truncated_windows"],
        cut_at=config["tokens"]["max_tokens"],
        shares=share_sizes(data["partition"]),
    )


def _next_commands(facts: RunFacts) -> list[str]:
    return [
        f"atalaia report {facts.run_id}",
        "atalaia query --view rounds",
        f"{facts.command} seed={facts.seed + 1}",
        "atalaia run hdfs-2pct source=HDFS_1.tar.gz",
    ]


def fill_run_folder(
    run_id: str, trained: Stage, scored: Stage, evaluated: Stage, figures: Stage, report: Stage
) -> Path:
    """Put a run's results together in its folder, as second names of the stages' files; the folder."""
    folder = current().run(run_id)
    wanted = {folder / "scores" / f"{name}.parquet": path for name, path in _score_files(scored).items()}
    for produced in (evaluated, report):
        wanted |= {folder / path.name: path for path in Path(produced.path).iterdir() if path.name != "card.json"}
    wanted |= {
        folder / "figures" / path.name: path for path in Path(figures.path).glob("*.*") if path.suffix in PICTURES
    }
    rounds = Path(trained.path) / "rounds"
    wanted |= {folder / path.relative_to(trained.path): path for path in rounds.rglob("*") if path.is_file()}
    for target, source in wanted.items():
        _link(source, target)
    return folder


def _score_files(scored: Stage) -> dict[str, Path]:
    """The scores of each adapter; a later round with the same adapter has the same."""
    numbers, hashes = scored.counts["rounds"], scored.counts["adapter_hashes"]
    return {name: scored.file(f"round-{number:04d}.parquet") for number, name in zip(numbers, hashes, strict=True)}


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copy2(source, temporary)
    temporary.replace(target)
