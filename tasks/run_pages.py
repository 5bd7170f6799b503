"""The page of the flow run that is going on: where it is, and the results that it shows."""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

from storage.report_tables import Cell, Table, cell_text, detection_table, markdown_table
from storage.report_words import fact_lines
from storage.reports import markdown_alerts, markdown_report
from storage.stages import Stage
from storage.summaries import Summary, load_summary

TEMPORARY = "ATALAIA_TEMPORARY_SERVER"
"""Set in the environment while the Prefect server ends with this process, and its addresses with it."""


def page_of_run() -> dict[str, str]:
    """The id of the flow run, and its page where the server lasts; empty outside of a run."""
    from prefect.runtime import flow_run

    page = None if os.environ.get(TEMPORARY) else flow_run.ui_url
    return {name: value for name, value in {"flow_run_id": flow_run.id, "flow_run_url": page}.items() if value}


def show_on_run_page(report: Stage, figures: Stage) -> None:
    """Make the run's page worth opening: report, figures, tables and alerts as artifacts.

    A run that is started again brings those of its first time up to date, instead of showing everything twice.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.runtime import flow_run

    with get_client(sync_client=True) as client:
        mine = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id]))
        known = {artifact.key: artifact.id for artifact in client.read_artifacts(artifact_filter=mine)}
        for key, kind, description, data in _artifacts(load_summary(report.file("report.json")), figures):
            if key in known:
                client.update_artifact(known[key], ArtifactUpdate(data=data, description=description))
            else:
                made = ArtifactCreate(key=key, type=kind, description=description, data=data, flow_run_id=flow_run.id)
                client.create_artifact(made)


def _artifacts(summary: Summary, figures: Stage) -> Iterator[tuple[str, str, str, str]]:
    """Key, type, description and data of each."""
    yield "report", "markdown", "The whole report, with all its tables", markdown_report(summary)
    yield "figures", "markdown", "Losses, F1 by round, scores and thresholds", _pictures(figures)
    detection = detection_table(summary)
    yield "detection", "table", f"{detection.title}. {detection.legend}", json.dumps(_records(detection))
    facts: list[list[Cell]] = [["Run", summary.run.run_id], ["Command", summary.run.command]]
    run = Table(summary.run.run_id, ["what", "value"], facts + [list(line) for line in fact_lines(summary)])
    yield "run", "markdown", "What was read, trained and sent", markdown_table(run)
    if alerts := markdown_alerts(summary):
        yield "alerts", "markdown", "The most anomalous windows, and what gave them away", alerts


def _records(table: Table) -> list[dict[str, Any]]:
    names = table.short or table.columns
    return [dict(zip(names, map(cell_text, row), strict=True)) for row in table.rows]


def _pictures(figures: Stage) -> str:
    """All figures in one text: an artifact of the type image shows its whole address, which here is the picture."""
    parts = []
    for name, caption in json.loads(figures.file("captions.json").read_text()).items():
        picture = base64.b64encode(figures.file(f"{name}.png").read_bytes()).decode()
        parts.append(f"### {caption}\n\n![{caption}](data:image/png;base64,{picture})\n")
    return "\n".join(parts)
