"""What a served detector answers: each window of the lines it is given, its score, and why it is flagged."""

from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path

from pydantic import BaseModel

from storage.alerts import share_below, unusual_words
from storage.explaining import Explainer
from storage.judging import Judge
from storage.log_inputs import Piece
from storage.log_stream import Windows
from storage.normal_windows import read_normal_windows
from storage.score_store import ScoreStore
from storage.summaries import SurprisingMessage

EXPLAINED = ContextVar("explained", default=20)
"""Distinct flagged windows of one request that are explained, the most anomalous first."""
_REMEMBERED = 100_000
"""Distinct windows whose scores a server keeps; then it starts anew."""


class JudgedWindow(BaseModel):
    """A window of the lines given, and what the detector holds of it."""

    key: str
    """The session key, or the number of the window."""
    lines: int
    score: float
    """Higher is more anomalous."""
    threshold: float
    """Of the detector."""
    anomalous: bool
    """Whether the score is above the threshold."""
    unusual: str
    """The score's place among those of the calibration windows, in words."""
    reasons: list[SurprisingMessage]
    """Of a flagged window: its most unusual messages, masked, the most unusual first."""


class Answerer:
    """Judges the lines of requests; windows seen before are looked up."""

    def __init__(self, folder: Path) -> None:
        self._judge = Judge(folder)
        self._explainer = Explainer(self._judge, read_normal_windows(folder))
        self._reasons: dict[str, list[SurprisingMessage]] = {}

    def load(self) -> None:
        """Have the model in memory; raises DataError where it is not the one the detector was trained on."""
        _ = self._judge.model

    def answer(self, lines: Sequence[str]) -> list[JudgedWindow]:
        """The windows that the lines make, in order of first appearance; raises FormatError where they make none."""
        data = "".join(line.rstrip("\n") + "\n" for line in lines).encode(self._judge.spec.encoding, "replace")
        if len(self._judge.store) > _REMEMBERED:
            self._judge.store = ScoreStore(None)
            self._reasons.clear()
        pieces = iter([Piece("the lines", 0, data)])
        return [window for windows in self._judge.stream().windows(pieces) for window in self._judged(windows)]

    def _judged(self, windows: Windows) -> list[JudgedWindow]:
        table = self._judge.judged(windows)
        flagged = table.filter("anomalous").sort("score", descending=True)["sequence_hash"].unique(maintain_order=True)
        self._explain(windows, table["sequence_hash"].to_list(), flagged.head(EXPLAINED.get()).to_list())
        calibration = self._judge.calibration
        return [
            JudgedWindow(
                key=row["key"],
                lines=row["lines"],
                score=row["score"],
                threshold=self._judge.threshold,
                anomalous=row["anomalous"],
                unusual=unusual_words(share_below(calibration, row["score"]), len(calibration)),
                reasons=self._reasons.get(row["sequence_hash"], []) if row["anomalous"] else [],
            )
            for row in table.iter_rows(named=True)
        ]

    def _explain(self, windows: Windows, hashes: list[str], wanted: list[str]) -> None:
        """Have the reasons of the windows with these hashes."""
        missing = [name for name in wanted if name not in self._reasons]
        if not missing:
            return
        places = [hashes.index(name) for name in missing]
        chosen = Windows(windows.table[places], windows.texts)
        texts = [[windows.texts[number] for number in numbers] for numbers in chosen.table["messages"].to_list()]
        reasons = self._explainer.explain(texts, self._judge.compose(chosen))
        self._reasons |= dict(zip(missing, reasons, strict=True))
