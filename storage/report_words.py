"""The words of a report that are not in tables: its title, the facts of the run, and what an alert is."""

from storage.report_tables import Table, megabytes, seconds
from storage.summaries import Alert, Summary


def title(summary: Summary) -> str:
    """The run in one line."""
    run = summary.run
    tuning = (
        f"LoRA rank {run.rank}" if run.tuning == "lora" else {"full": "full fine-tuning"}.get(run.tuning, "untouched")
    )
    return f"{run.dataset}, {run.model}, {tuning}, {run.split} split, seed {run.seed}"


def alert_title(alert: Alert) -> str:
    """A window's score and truth in one line."""
    truth = "no label" if alert.label is None else "anomalous" if alert.label else "normal"
    kind = f" ({alert.kind})" if alert.kind else ""
    flagged = "flagged" if alert.flagged else "not flagged"
    alike = f"; {alert.windows - 1:,} more like it" if alert.windows > 1 else ""
    lines = f"{alert.lines} lines{alike}"
    return f"window {alert.window_id}: score {alert.score:.3f}, {flagged}; truth: {truth}{kind}; {lines}"


def machine_table(summary: Summary) -> Table:
    """Where the run ran, with what, and what was derived from it."""
    run = summary.run
    facts = {"run": run.run_id, "started": run.started, **run.hardware, **run.versions, **run.reasons}
    return Table("Machine, versions, and what was derived", ["what", "value"], [[k, v] for k, v in facts.items()])


def fact_lines(summary: Summary) -> list[tuple[str, str]]:
    """Data, model, training, bytes and scoring, each in one sentence."""
    run, data, cost = summary.run, summary.data, summary.training
    known = "no labels" if data.anomalies is None else f"{data.anomalies:,} of them anomalous"
    contents = f"{data.messages:,} distinct masked messages, {data.distinct_windows:,} distinct windows"
    size = f"{cost.full_parameters / 1e6:.1f} M parameters, {cost.trainable_parameters:,} trained"
    return [
        ("Data", f"{data.lines:,} log lines in {data.windows:,} windows ({known}); {contents}"),
        ("Model", f"{run.model}, {size}"),
        *(_training_lines(summary) if cost.client_rounds else []),
        ("Scoring", seconds(cost.score_seconds)),
    ]


def _training_lines(summary: Summary) -> list[tuple[str, str]]:
    run, cost = summary.run, summary.training
    who = f"{run.clients_per_round} of {run.clients} clients a round, {run.rounds} rounds"
    what = f"{cost.examples:,} windows in {seconds(cost.train_seconds)}"
    shared = f"{cost.computed_tokens:,} of {cost.tokens:,} tokens computed, the others are shared prefixes"
    sent = f"{megabytes(cost.bytes_up_per_client_round)} a message, {megabytes(cost.bytes_sent)} in all"
    full = f"{megabytes(cost.full_model_bytes)} and {megabytes(cost.bytes_sent_by_full)}"
    times = cost.bytes_sent_by_full / max(1, cost.bytes_sent)
    return [
        ("Training", f"{who}: {what}; {shared}"),
        ("Sent", f"{sent}; full fine-tuning would send {full}, {times:,.0f} times as much"),
    ]
