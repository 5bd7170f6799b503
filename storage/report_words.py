"""The words of a report that are not in tables: its title, the facts of the run, and what an alert is."""

import re
from collections.abc import Sequence

from storage.report_tables import Table, megabytes, one_line, seconds
from storage.summaries import END_OF_WINDOW, Alert, Summary, SurprisingMessage


def title(summary: Summary) -> str:
    """The run in one line."""
    run = summary.run
    tuning = tuning_words(run.tuning if summary.findings["round"] > 0 else "none", run.rank)
    return f"{run.dataset}, {run.model}, {tuning}, {run.split} split, seed {run.seed}"


def tuning_words(kind: str, rank: int | None) -> str:
    """What was trained, in words."""
    names = {"lora": "LoRA", "ffa": "FFA-LoRA", "rolora": "RoLoRA", "sb": "square matrices,"}
    if kind in names:
        return f"{names[kind]} rank {rank}"
    return "full fine-tuning" if kind == "full" else "untouched"


def alert_title(alert: Alert) -> str:
    """A window's score and truth in one line."""
    truth = "no label" if alert.label is None else "anomalous" if alert.label else "normal"
    kind = f" ({alert.kind})" if alert.kind else ""
    flagged = "flagged" if alert.flagged else "not flagged"
    alike = f"; {alert.windows - 1:,} more like it" if alert.windows > 1 else ""
    lines = f"{alert.lines} lines{alike}"
    return f"window {alert.window_id}: score {alert.score:.3f}, {flagged}; truth: {truth}{kind}; {lines}"


def excess_words(alert: Alert, message: SurprisingMessage) -> str:
    """Nats beyond the usual, of a message or its most unusual token; in older reports the whole surprise."""
    if not message.token:
        return f"{message.surprise:.1f}"
    return f"{message.token_excess if alert.by_token else message.excess:+.1f}"


def code_span(text: str) -> str:
    """Text as it is in a Markdown code span; line ends become blanks, and an empty text a blank.

    The fence is one backtick longer than any run of them in the text. A blank keeps a backtick at either end apart from
    the fence, and a blank at both ends from being taken for such a one.
    """
    told = one_line(text) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", told)), default=0))
    apart = " " if "`" in (told[0], told[-1]) or (told[0] == told[-1] == " " and told.strip(" ")) else ""
    return f"{fence}{apart}{told}{apart}{fence}"


def token_words(message: SurprisingMessage) -> str:
    """The token that was least expected, with its surprise, and what was expected there; empty in older reports."""
    if not message.token:
        return ""
    usual = f", usually {message.token_usual:.1f}" if message.usual is not None else ", in none of the normal windows"
    found, expected = _quoted(message.token), _quoted(message.expected)
    instead = f", expected {expected}" if message.expected != message.token else ""
    return f"{found} ({message.token_surprise:.1f} nats{usual}){instead}"


def _quoted(token: str) -> str:
    """A token as one would say it; a blank before a word is left out."""
    if token == END_OF_WINDOW:
        return token
    return f'"{token.strip() or token}"'


def alerts_note(alerts: Sequence[Alert]) -> str:
    """How messages are ranked, and what "usual" is."""
    if not any(message.token for alert in alerts for message in alert.messages):
        return "Surprise of whole messages, in nats."
    what = "a message's most unusual token" if alerts[0].by_token else "a whole message"
    return (
        f"Ranked by the surprise of {what} beyond the usual, in nats. Usual: the median of the same message in "
        f"{alerts[0].compared_windows:,} normal calibration windows ({alerts[0].compared_sequences:,} distinct ones), "
        "its first and its later places in a window apart, scored by the same model in the same call; messages that "
        "these do not have count in full."
    )


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
    trained = f"{cost.trainable_parameters:,} trained" if summary.findings["round"] > 0 else "untouched"
    size = f"{cost.full_parameters / 1e6:.1f} M parameters, {trained}"
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
