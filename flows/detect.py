"""Flow: judge raw logs with a detector; what the deployment `detect-hourly` runs."""

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from storage.alerts import FoundAlert
from storage.detection import DetectConfig, Outcome
from storage.report_tables import markdown_text
from storage.report_words import code_span, token_words
from tasks.detect_anomalies import detect_anomalies
from tasks.progress import progress_of

_SHOWN = 10
"""Alerts on the run's page."""


@flow(name="detect", persist_result=False)
def detect(config: DetectConfig) -> dict[str, Any]:
    """Judge logs; the verdict on drift, with `retrain` for the flow that trains anew, and what was found in numbers."""
    judge = task(name="detect", cache_policy=NO_CACHE, persist_result=False)(detect_anomalies)
    outcome = judge(config, progress=progress_of("detect"))
    create_markdown_artifact(page_text(outcome), key="detection", description=f"Detection by {outcome.detector}")
    return outcome.verdict.model_dump(mode="json") | {
        "lines": outcome.lines,
        "added": outcome.added,
        "output": outcome.output,
        "verdict_file": outcome.verdict_file,
    }


def page_text(outcome: Outcome) -> str:
    """What the run's page shows: numbers and masked messages, never a key or a raw line."""
    verdict = outcome.verdict
    told = verdict.advice
    if outcome.left_open:
        told += f" {outcome.left_open:,} windows may still grow and were left for the next time."
    lines = [
        f"# {verdict.alerts:,} alerts in {verdict.windows:,} windows",
        "",
        f"By {outcome.detector} ({outcome.why}). {told}",
        "",
        "| drift | limit | |",
        "| --- | ---: | --- |",
        *(f"| {m.name} | {m.limit:.2f} | {'**above:** ' if m.sure else ''}{m.words} |" for m in verdict.measures),
        "",
    ]
    if outcome.new_messages:
        lines += ["### Messages that training never saw", ""]
        lines += [f"- {code_span(text)} ({count:,} lines)" for text, count in outcome.new_messages.items()] + [""]
    if outcome.shown:
        lines += ["### The most anomalous windows", ""]
    for number, alert in enumerate(outcome.shown[:_SHOWN], 1):
        lines += _alert_lines(number, alert, outcome.alike[alert.sequence_hash])
    return "\n".join(lines)


def _alert_lines(number: int, alert: FoundAlert, alike: int) -> list[str]:
    more = f"; {alike - 1:,} more like it" if alike > 1 else ""
    lines = [f"{number}. score {alert.score:.3f}, {alert.unusual}; {alert.lines:,} lines{more}"]
    return lines + [
        f"    - {code_span(message.text)}; {markdown_text(token_words(message))}" for message in alert.reasons or []
    ]
