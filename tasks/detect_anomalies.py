"""Task: judge raw logs with a detector; alerts go to a file, a verdict on drift to the home folder."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from storage.alert_files import AlertFile
from storage.alerts import AlertKinds, FoundAlert, share_below
from storage.detection import DetectConfig, Outcome
from storage.detectors import chosen_detector
from storage.drift import Drift, Verdict, save_verdict
from storage.errors import SourceError
from storage.explaining import Explainer
from storage.judging import USUAL, Judge, read_facts
from storage.layout import Layout, current
from storage.log_inputs import Piece, find_logs, follow_file, follow_standard_input, read_logs
from storage.log_order import in_time_order
from storage.log_stream import LogStream, Windows
from storage.normal_windows import read_normal_windows
from storage.progress import Progress, silent
from storage.raw_blocks import RawLine
from storage.score_store import ScoreStore
from storage.stages import hash_file
from storage.summaries import SurprisingMessage
from tasks.caching import source_hash

_AT_ONCE = 500
"""Alerts that are in memory with their raw lines."""
_SAVE_SECONDS = 60.0
"""Between two times that a growing log's scores and verdict are saved."""
_MOST_MESSAGES = 10


def detect_anomalies(
    config: DetectConfig, tell: Callable[[FoundAlert], None] | None = None, progress: Progress = silent
) -> Outcome:
    """Judge logs; `tell` is called with each alert as it is found. Ends a followed log at the user's interrupt.

    Raises DataError where a log, the detector or the output cannot be used.
    """
    layout, started = current(), time.monotonic()
    logs = find_logs(config.files)
    if config.follow and (len(logs) != 1 or Path(config.files[0]).is_dir()):
        raise SourceError("Only one log can be followed; start a command for each.")
    with chosen_detector(config.model, config.run, layout) as chosen, AlertFile(config.output, config.append) as file:
        run = _Detection(config, chosen.folder, chosen.name, layout, progress)
        added = run.judge(logs, file, tell)
        verdict = run.verdict()
        return Outcome(
            detector=chosen.name,
            why=chosen.why,
            lines=run.stream.counts.lines,
            misread=run.stream.counts.misread,
            outside=run.stream.counts.outside,
            windows=verdict.windows,
            alerts=verdict.alerts,
            added=added,
            closed_early=run.stream.counts.closed_early,
            left_open=run.stream.left_open,
            computed=run.computed,
            seconds=time.monotonic() - started,
            output=config.output,
            verdict=verdict,
            verdict_file=str(save_verdict(verdict, layout)),
            new_messages=dict(run.drift.new_messages.most_common(_MOST_MESSAGES)),
            shown=run.kinds.shown,
            alike=run.kinds.alike,
            compared=run.explainer.compared,
            false_alarm_rate=run.expected_false_alarms,
        )


class _Detection:
    """One run over logs with one detector."""

    def __init__(self, config: DetectConfig, folder: Path, name: str, layout: Layout, progress: Progress) -> None:
        self._config, self._name, self._layout, self._progress = config, name, layout, progress
        self.store = ScoreStore(score_file(folder, layout))
        self._judge = Judge(folder, self.store)
        normal = read_normal_windows(folder)
        self.explainer = Explainer(self._judge, normal)
        self.drift = Drift(normal, self._judge.calibration)
        self.kinds = AlertKinds()
        self.stream: LogStream = self._judge.stream(
            closing=config.closing,
            memory_bytes=config.memory_mb << 20,
            most_misread=config.most_misread,
        )
        self._saved = time.monotonic()

    def judge(self, logs: Sequence[Path | str], file: AlertFile, tell: Callable[[FoundAlert], None] | None) -> int:
        """Judge all windows of the logs; how many alerts were added to the file."""
        added = 0
        try:
            for windows in self.stream.windows(self._pieces(logs)):
                judged = self._judge.judged(windows, self._progress)
                self.drift.add(windows, judged)
                for alerts in self._alerts(windows, judged):
                    fresh = file.add(alerts)
                    added += len(fresh)
                    for alert in fresh:
                        self.kinds.add(alert)
                        if tell:
                            tell(alert)
        except KeyboardInterrupt:
            if not self._config.follow:
                raise
        finally:
            self.store.save()
        return added

    @property
    def expected_false_alarms(self) -> float | None:
        """Share of normal windows to be flagged; None where the detector does not say."""
        from fl.rarity import ways_to_be_rarest
        from fl.thresholds import expected_false_alarms

        rate = self.facts.get("false_alarm_rate")
        ways = ways_to_be_rarest(self.facts["score"])
        return rate and expected_false_alarms(len(self._judge.calibration), rate, ways)

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the detector says of itself."""
        return self._judge.facts

    @property
    def computed(self) -> int:
        """Distinct windows that the model had to score."""
        return self._judge.computed

    def verdict(self) -> Verdict:
        """What is told of drift so far."""
        return self.drift.verdict(self._name, self.facts, self.stream.counts)

    def _pieces(self, logs: Sequence[Path | str]) -> Iterator[Piece]:
        pieces = self._followed(logs[0]) if self._config.follow else read_logs(in_time_order(logs, self._judge.spec))
        for piece in pieces:
            yield piece
            if piece.data:
                self._progress(0, None, f"{self.stream.counts.lines:,} lines read")
            elif time.monotonic() - self._saved > _SAVE_SECONDS:
                self._save()

    def _followed(self, log: Path | str) -> Iterator[Piece]:
        return follow_standard_input() if isinstance(log, str) else follow_file(log)

    def _save(self) -> None:
        self.store.save()
        save_verdict(self.verdict(), self._layout)
        self._saved = time.monotonic()

    def _alerts(self, windows: Windows, judged: pl.DataFrame) -> Iterator[list[FoundAlert]]:
        """The batch's alerts in the windows' order, some at a time."""
        flagged = judged.with_row_index("row").filter("anomalous")
        reasons = self._reasons(windows, flagged)
        for part in flagged.iter_slices(_AT_ONCE):
            heads = part["line_numbers"].list.head(self._config.raw_lines).to_list()
            raw = self.stream.blocks.read(number for head in heads for number in head)
            yield [
                self._alert(row, reasons.get(row["sequence_hash"]), [raw[number] for number in head])
                for row, head in zip(part.drop("messages", "line_numbers").iter_rows(named=True), heads, strict=True)
            ]

    def _alert(self, row: dict[str, object], reasons: list[SurprisingMessage] | None, raw: list[RawLine]) -> FoundAlert:
        names = ("site", "first_time", "last_time", "lines", "truncated", "score", "sequence_hash")
        facts = {name: row[name] for name in names}
        calibration = self._judge.calibration
        return FoundAlert.model_validate(
            {
                "window": row["key"],
                **facts,
                "site": row["site"] or None,
                "threshold": self._judge.threshold,
                "higher_than": share_below(calibration, float(str(row["score"]))),
                "calibration_windows": len(calibration),
                "reasons": reasons,
                "by_token": self.explainer.by_token,
                "raw": raw,
                "detector": self._name,
            }
        )

    def _reasons(self, windows: Windows, flagged: pl.DataFrame) -> dict[str, list[SurprisingMessage]]:
        """Why the most anomalous of the flagged windows are, by the hash of their sequence."""
        kinds = flagged.sort("score", descending=True).unique("sequence_hash", keep="first", maintain_order=True)
        chosen = kinds.head(self._config.explain)
        if chosen.is_empty():
            return {}
        self._progress(0, None, f"explaining {chosen.height} windows")
        part = Windows(windows.table[chosen["row"]], windows.texts)
        texts = [[windows.texts[number] for number in numbers] for numbers in part.table["messages"].to_list()]
        found = self.explainer.explain(texts, self._judge.compose(part))
        return dict(zip(chosen["sequence_hash"], found, strict=True))


def score_file(folder: Path, layout: Layout) -> Path:
    """Where a detector's scores of windows lie: apart for every model, adapter, score and scoring source."""
    facts, usual = read_facts(folder), [folder / name for name in USUAL]
    code = source_hash(["fl.scoring", "fl.anomaly_scores", "fl.adapter"])
    how = [facts["model"], facts["tuning"], facts["score"], facts["k"], code]
    how += [hash_file(path) for path in usual if path.is_file()]
    name = hashlib.sha256(repr(how).encode()).hexdigest()[:16]
    adapter = facts.get("adapter_hash") or "untouched"
    return layout.scores / f"detect-{name}" / f"{adapter}.parquet"
