"""Alerts: the windows of a log that a detector flags, with how unusual they are, their raw lines and reasons."""

from datetime import datetime
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from storage.raw_blocks import RawLine
from storage.summaries import SurprisingMessage

Identity = tuple[str, str, str, int]
_MOST_SHOWN = 50


class FoundAlert(BaseModel):
    """A flagged window."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    window: str
    """The session key, the number of the window, or the start of its time span."""
    score: float
    """Higher is more anomalous."""
    threshold: float
    """Of the detector."""
    higher_than: float | None
    """Share of the calibration windows whose score is lower; null: the detector keeps none."""
    calibration_windows: int
    """How many calibration windows the detector keeps the scores of."""
    site: str | None
    """What the log names as the line's site or host."""
    first_time: datetime | None
    """As the log says it; of its lines the earliest."""
    last_time: datetime | None
    """Of its lines the latest."""
    lines: int
    """All lines of the window."""
    truncated: bool
    """Whether the window was cut off at the detector's most tokens; what comes after was not judged."""
    reasons: list[SurprisingMessage] | None
    """The most unusual messages, masked, the most unusual first; null: beyond the number to explain."""
    by_token: bool
    """Whether messages rank by their most unusual token: where the highest surprise of a token decides."""
    raw: list[RawLine]
    """The window's first lines as they stand in the log."""
    sequence_hash: str
    """Windows with the same masked messages have the same."""
    detector: str
    """The detector by name."""

    @property
    def identity(self) -> Identity:
        """What tells one alert from another: numbers of windows and keys come again in other logs, at other times."""
        began = self.first_time.isoformat() if self.first_time else ""
        return self.window, began, self.sequence_hash, self.lines

    @property
    def unusual(self) -> str:
        """How unusual the score is among those of calibration, in words."""
        return unusual_words(self.higher_than, self.calibration_windows)

    def row(self) -> dict[str, Any]:
        """The alert as plain values."""
        return {"unusual": self.unusual, **self.model_dump(mode="json")}


def share_below(calibration: np.ndarray, score: float) -> float | None:
    """The share of calibration scores (in rising order) below a score; None without any."""
    return float(np.searchsorted(calibration, score, side="left") / len(calibration)) if len(calibration) else None


def unusual_words(share: float | None, windows: int) -> str:
    """A score's place among those of calibration; the highest of few is said to be no more than that."""
    if share is None or not windows:
        return "no calibration windows to compare with"
    if share >= 1:
        return f"higher than all {windows:,} calibration windows"
    return f"higher than {np.floor(share * 10_000) / 100:.2f} % of {windows:,} calibration windows"


class AlertKinds:
    """The most anomalous alerts, one of each kind of window, and how many there were of each."""

    def __init__(self) -> None:
        self._first: dict[str, FoundAlert] = {}
        self._count: dict[str, int] = {}

    def add(self, alert: FoundAlert) -> None:
        """Take in an alert."""
        name = alert.sequence_hash
        self._first.setdefault(name, alert)
        self._count[name] = self._count.get(name, 0) + 1
        if len(self._first) > 2 * _MOST_SHOWN:
            self._first = {each.sequence_hash: each for each in self.shown}
            self._count = self.alike

    @property
    def shown(self) -> list[FoundAlert]:
        """The most anomalous first."""
        return sorted(self._first.values(), key=lambda alert: -alert.score)[:_MOST_SHOWN]

    @property
    def alike(self) -> dict[str, int]:
        """The number of alerts of each kind that is shown."""
        return {alert.sequence_hash: self._count[alert.sequence_hash] for alert in self.shown}
