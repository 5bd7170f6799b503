"""Whether a log is still like the windows that a detector learned from; above a limit, retraining is recommended.

A share counts as above its limit where even its lower confidence bound is, so that a few windows raise no alarm.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from storage.layout import Layout
from storage.log_stream import StreamCounts, Windows
from storage.normal_windows import NormalWindows, message_hash
from storage.report_tables import percent

CERTAINTY = 0.999
"""Of a lower bound, and of the difference of two samples."""
MORE_UNSEEN, MORE_TRUNCATED, MISREAD = 0.05, 0.05, 0.01
"""Limits: shares of windows beyond those of calibration, and the share of unreadable lines that training allows."""
SPREAD = 0.2
"""Limit of the distance between the score distributions (Kolmogorov-Smirnov's D, from 0 to 1)."""
_DECIMALS = 4
"""Of scores that are compared; finer differences come from computing in another order."""
_SAMPLE = 20_000
"""Scores that are kept to compare with calibration: a uniform sample, however long the log."""


class Measure(BaseModel):
    """One way in which a log can drift away."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """unseen, scores, truncated or misread."""
    value: float | None
    """A share, or the distance of two distributions; null: cannot be told of this detector."""
    of: int
    """How many windows or lines it was measured on."""
    usual: float
    """The same of the detector's calibration windows."""
    limit: float
    """Above it, retraining is recommended."""
    sure: bool
    """Whether the value is above the limit by more than chance."""
    words: str
    """The measure in a sentence."""


class Verdict(BaseModel):
    """What is told of drift, for people and for the flow that trains anew."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    detector: str
    """The detector by name."""
    dataset: str
    """The logs it was trained for."""
    adapter_hash: str
    """What it is, exactly."""
    judged: str
    """When: ISO 8601, UTC."""
    windows: int
    """Windows judged."""
    alerts: int
    """Of these above the threshold."""
    retrain: bool
    """Whether any measure is surely above its limit."""
    measures: list[Measure]
    """All measures."""

    @property
    def reasons(self) -> list[str]:
        """Why retraining is recommended."""
        return [measure.words for measure in self.measures if measure.sure]

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        if not self.windows:
            return "No window was judged."
        return "Retraining is recommended." if self.retrain else "No need to train anew."


class Drift:
    """Gathers what tells of drift, window by window, in bounded memory."""

    def __init__(self, normal: NormalWindows, calibration: np.ndarray) -> None:
        self._normal, self._calibration = normal, calibration
        self._random = np.random.default_rng(0)
        self._scores = np.zeros((0, 2))
        self.windows = self.alerts = self.truncated = self.unseen = 0
        self.new_messages: Counter[str] = Counter()
        """Masked messages that training does not know, with their lines."""

    def add(self, windows: Windows, judged: pl.DataFrame) -> None:
        """Take in judged windows."""
        self.windows += judged.height
        self.alerts += int(judged["anomalous"].sum())
        self.truncated += int(judged["truncated"].sum())
        scores = np.column_stack([self._random.random(judged.height), judged["score"].to_numpy()])
        self._scores = np.concatenate([self._scores, scores])
        if len(self._scores) > _SAMPLE:
            self._scores = self._scores[np.argpartition(self._scores[:, 0], _SAMPLE)[:_SAMPLE]]
        if self._normal.known is not None:
            self._add_messages(windows, self._normal.known)

    def _add_messages(self, windows: Windows, known: frozenset[int]) -> None:
        messages = windows.table.select(pl.int_range(pl.len()).alias("row"), pl.col("messages")).explode("messages")
        numbers = messages["messages"].unique()
        new = [number for number in numbers if message_hash(windows.texts[number]) not in known]
        if not new:
            return
        found = messages.filter(pl.col("messages").is_in(new))
        self.unseen += found["row"].n_unique()
        for number, lines in found.group_by("messages").len().iter_rows():
            self.new_messages[windows.texts[number]] += lines
        if len(self.new_messages) > _SAMPLE:
            self.new_messages = Counter(dict(self.new_messages.most_common(_SAMPLE // 2)))

    def verdict(self, detector: str, facts: Mapping[str, Any], counts: StreamCounts) -> Verdict:
        """What the windows so far tell."""
        measures = [self._unseen(), self._spread(), self._truncated(), _misread(counts)]
        return Verdict(
            detector=detector,
            dataset=facts["dataset"]["name"],
            adapter_hash=facts.get("adapter_hash", ""),
            judged=datetime.now(UTC).isoformat(timespec="seconds"),
            windows=self.windows,
            alerts=self.alerts,
            retrain=any(measure.sure for measure in measures),
            measures=measures,
        )

    def _unseen(self) -> Measure:
        usual = self._normal.unseen
        if self._normal.known is None:
            words = "the detector does not say which messages it was trained on"
            return Measure(name="unseen", value=None, of=0, usual=0.0, limit=MORE_UNSEEN, sure=False, words=words)
        words = "of windows hold a message that training never saw"
        return _share("unseen", self.unseen, self.windows, usual, usual + MORE_UNSEEN, words)

    def _truncated(self) -> Measure:
        usual = self._normal.truncated
        words = "of windows are cut off at the most tokens"
        return _share("truncated", self.truncated, self.windows, usual, usual + MORE_TRUNCATED, words)

    def _spread(self) -> Measure:
        scores = self._scores[:, 1]
        distance, chance = distribution_distance(scores, self._calibration)
        where = (
            f"D {distance:.2f} to those of {len(self._calibration):,} calibration windows" if chance < 1 else "equal"
        )
        return Measure(
            name="scores",
            value=distance if len(self._calibration) else None,
            of=len(scores),
            usual=0.0,
            limit=SPREAD,
            sure=distance > SPREAD and chance < 1 - CERTAINTY,
            words=f"scores are spread otherwise than in calibration ({where})"
            if distance > SPREAD
            else f"scores: {where}",
        )


def _misread(counts: StreamCounts) -> Measure:
    words = "of lines are not of the form that the detector reads"
    return _share("misread", counts.misread, counts.read, 0.0, MISREAD, words)


def _share(name: str, part: int, whole: int, usual: float, limit: float, words: str) -> Measure:
    value = part / whole if whole else 0.0
    told = f"{percent(value)} {words}" + (f" (calibration: {percent(usual)})" if usual else "")
    sure = lower_bound(part, whole) > limit
    return Measure(name=name, value=value, of=whole, usual=usual, limit=limit, sure=sure, words=told)


def lower_bound(part: int, whole: int) -> float:
    """The lower confidence bound of a share, at the certainty above (Clopper and Pearson, 1934)."""
    from scipy.stats import beta

    return float(beta.ppf(1 - CERTAINTY, part, whole - part + 1)) if part else 0.0


def distribution_distance(scores: np.ndarray, others: np.ndarray) -> tuple[float, float]:
    """The greatest difference of two samples' distribution functions, and how likely chance makes one as great.

    Two-sample Kolmogorov-Smirnov; ties, of which equal windows make many, only make it slower to speak up. Rounding
    must not part them, or half of all windows could seem to have moved.
    """
    from scipy.stats import ks_2samp

    if not (len(scores) and len(others)):
        return 0.0, 1.0
    found = ks_2samp(np.round(scores, _DECIMALS), np.round(others, _DECIMALS), method="asymp")
    return float(found.statistic), float(found.pvalue)


def verdict_file(dataset: str, layout: Layout) -> Path:
    """Where the newest verdict on a dataset's logs lies."""
    return layout.home / "drift" / f"{dataset}.json"


def save_verdict(verdict: Verdict, layout: Layout) -> Path:
    """Put the verdict in the place of the one before."""
    path = verdict_file(verdict.dataset, layout)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(verdict.model_dump(mode="json"), indent=1))
    temporary.replace(path)
    return path
