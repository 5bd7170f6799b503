"""What an analyst sees of a detection: alerts with reasons and raw lines, and what is told of drift."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from storage.alerts import FoundAlert
from storage.detection import Outcome
from storage.progress import Progress
from storage.raw_blocks import RawLine
from storage.report_tables import percent
from storage.report_words import token_words
from storage.summaries import SurprisingMessage

_RAW_LINES = 6
"""Raw lines shown of an alert; its file has more."""


def alert_view(alert: FoundAlert, title: str) -> RenderableType:
    """An alert with what surprised most, and its first lines."""
    parts: list[RenderableType] = [Text(_printable(title), style="bold"), Padding(Text(_about(alert)), (0, 0, 0, 2))]
    if alert.reasons:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(justify="right", no_wrap=True)
        grid.add_column(overflow="fold")
        for message in alert.reasons:
            grid.add_row(
                f"{_excess(alert, message):+.1f}", Group(Text(message.text), Text(token_words(message), "dim"))
            )
        parts.append(Padding(grid, (0, 0, 0, 2)))
    lines = Table.grid(padding=(0, 1))
    lines.add_column(style="cyan", no_wrap=True)
    lines.add_column(overflow="fold")
    for line in _telling(alert):
        lines.add_row(Text(f"{line.file}:{line.line}"), Text(_printable(line.text)))
    parts.append(Padding(lines, (0, 0, 0, 2)))
    if (left := alert.lines - min(len(alert.raw), _RAW_LINES)) > 0:
        parts.append(Padding(Text(f"... and {left:,} more lines", "dim"), (0, 0, 0, 2)))
    return Group(*parts, Text())


def _telling(alert: FoundAlert) -> list[RawLine]:
    """The lines of the unusual messages, and as many of the first as there is room for, in order."""
    unusual = [message.position - 1 for message in alert.reasons or []]
    places = dict.fromkeys([place for place in unusual if place < len(alert.raw)] + list(range(len(alert.raw))))
    return [alert.raw[place] for place in sorted(list(places)[:_RAW_LINES])]


def alert_title(alert: FoundAlert) -> str:
    """An alert by its window."""
    times = [time for time in (alert.first_time, alert.last_time) if time is not None]
    when = f", {times[0]:%Y-%m-%d %H:%M:%S} to {times[1]:%Y-%m-%d %H:%M:%S}" if len(times) == 2 else ""
    return f"{alert.window}{f' ({alert.site})' if alert.site else ''}{when}"


def _about(alert: FoundAlert) -> str:
    cut = "; cut off at the detector's most tokens" if alert.truncated else ""
    return f"score {alert.score:.3f}, threshold {alert.threshold:.3f}; {alert.unusual}; {alert.lines:,} lines{cut}"


def _excess(alert: FoundAlert, message: SurprisingMessage) -> float:
    return message.token_excess if alert.by_token else message.excess


def _printable(text: str) -> str:
    """A raw line without what would steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in text)


def outcome_view(outcome: Outcome, show: int) -> RenderableType:
    """The whole detection."""
    parts: list[RenderableType] = []
    for number, alert in enumerate(outcome.shown[:show], 1):
        alike = outcome.alike[alert.sequence_hash] - 1
        title = f"{number}. {alert_title(alert)}{f'; {alike:,} more like it' if alike else ''}"
        parts.append(alert_view(alert, title))
    if show and outcome.shown:
        parts.append(Text(_reasons_note(outcome), style="dim"))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, text in _facts(outcome):
        facts.add_row(name, text)
    return Group(*parts, facts)


def _reasons_note(outcome: Outcome) -> str:
    what = "a message's most unusual token" if outcome.shown[0].by_token else "a whole message"
    distinct, windows = outcome.compared
    if not distinct:
        return f"Ranked by the surprise of {what}, in nats; the detector does not say what is usual.\n"
    return (
        f"Ranked by the surprise of {what} beyond the usual, in nats; usual: the median of the same message in "
        f"{windows:,} normal calibration windows ({distinct:,} distinct ones).\n"
    )


def _facts(outcome: Outcome) -> Iterator[tuple[str, str]]:
    verdict = outcome.verdict
    yield "Detector", f"{outcome.detector} ({outcome.why})"
    yield "Read", _read_words(outcome)
    share = f" ({percent(verdict.alerts / verdict.windows)})" if verdict.alerts else ""
    normal = f"; of normal ones {percent(outcome.false_alarm_rate)} are expected" if outcome.false_alarm_rate else ""
    yield "Alerts", f"{verdict.alerts:,} of {verdict.windows:,} windows{share}{normal}"
    if outcome.output not in {None, "-"}:
        there = verdict.alerts - outcome.added
        yield "Written", f"{outcome.added:,} to {outcome.output}" + (f", which had {there:,} already" if there else "")
    for measure in verdict.measures:
        yield (
            "Drift" if measure is verdict.measures[0] else "",
            ("above the limit: " if measure.sure else "") + measure.words,
        )
    if outcome.new_messages and verdict.retrain:
        text, count = next(iter(outcome.new_messages.items()))
        yield "", f"the most frequent new message, {count:,} times: {text}"
    yield "", verdict.advice


def _read_words(outcome: Outcome) -> str:
    looked_up = "all windows looked up" if not outcome.computed else f"{outcome.computed:,} distinct windows scored"
    words = f"{outcome.lines:,} lines, {outcome.outside:,} in no window; {looked_up} in {outcome.seconds:.1f} s"
    if outcome.closed_early:
        words += f"; {outcome.closed_early:,} windows judged before their end to keep within memory (--memory)"
    if outcome.left_open:
        words += f"; {outcome.left_open:,} windows may still grow and were not judged"
    return words


@contextmanager
def showing_work(console: Console) -> Iterator[Progress]:
    """A moving line about what is done, where the terminal can redraw one."""
    with console.status("reading", spinner="dots") as status:

        def tell(done: float, total: float | None, note: str = "") -> None:
            status.update(f"{note}, {100 * done / total:.0f} %" if total else note)

        yield tell
