"""What a run of detection is asked, and what it found."""

from pydantic import BaseModel, ConfigDict, Field

from storage.alerts import FoundAlert
from storage.drift import Verdict
from storage.open_windows import Closing

_GAP = 300.0


class DetectConfig(BaseModel):
    """What is judged, by which detector, and where alerts go."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    files: tuple[str, ...]
    """Logs, plain or compressed (gzip, zstd, bzip2, xz), folders of logs, or `-` for standard input; they are read as
    one log, in the order of their first lines' times."""
    model: str | None = None
    """`models:/NAME@champion`, `models:/NAME/VERSION`, NAME, or a detector's folder; null: the newest registered."""
    run: str | None = None
    """A run of this home whose detector is used, instead of a registered one."""
    output: str | None = None
    """Where alerts go: a file that ends in .jsonl, .csv or .parquet, or `-`: JSON Lines on standard output."""
    append: bool = False
    """Whether the file is kept, and only alerts that it lacks are added."""
    follow: bool = False
    """Whether a growing log is read on as it grows, through rotation, until interrupted."""
    gap: float | None = Field(default=None, gt=0)
    """Seconds without a line after which a session or time window is complete, by the log's times (and the clock, while
    a growing log is waited for); null: at the end of the input, or 300 with `follow` or `leave_open`."""
    leave_open: bool = False
    """Whether windows that may still grow at the end of the input (by `gap`) are left for the next time instead of
    judged."""
    explain: int = Field(default=20, ge=0)
    """Distinct flagged windows that are explained in each batch, the most anomalous first."""
    raw_lines: int = Field(default=100, ge=0)
    """Raw lines that an alert shows of its window, the first ones."""
    most_misread: float = Field(default=0.5, ge=0, le=1)
    """Share of lines not of the detector's form above which the log is not one for it."""
    memory_mb: int = Field(default=1024, gt=0)
    """Memory that open windows may take; above it, those that waited longest for a line are judged as they are."""

    @property
    def closing(self) -> Closing:
        """When a window is complete."""
        leave_open = self.leave_open or self.follow
        # Without a gap all would be left open for ever, and nothing be judged.
        return Closing(self.gap or (_GAP if leave_open else None), leave_open)


class Outcome(BaseModel):
    """What a run of detection found."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    detector: str
    """The detector by name."""
    why: str
    """How it came to be chosen."""
    lines: int
    """Lines read."""
    misread: int
    """Lines that are not of the detector's form, blank ones aside."""
    outside: int
    """Lines that are in no window."""
    windows: int
    """Windows judged."""
    alerts: int
    """Windows above the threshold."""
    added: int
    """Alerts written, those aside that the file held before."""
    closed_early: int
    """Windows judged before their end to keep within memory."""
    left_open: int
    """Windows that may still grow and were not judged."""
    computed: int
    """Distinct windows that the model had to score; all others were looked up."""
    seconds: float
    """Duration."""
    output: str | None
    """Where the alerts are."""
    verdict: Verdict
    """What is told of drift."""
    verdict_file: str
    """Where the verdict lies for the flow that trains anew."""
    new_messages: dict[str, int]
    """The most frequent masked messages that training never saw, with their lines."""
    shown: list[FoundAlert]
    """The most anomalous alerts, one of each kind of window; they hold raw lines."""
    compared: tuple[int, int]
    """Distinct normal windows that say what is usual, and the calibration windows that these stand for."""
    false_alarm_rate: float | None
    """Share of normal windows that the threshold is expected to flag."""
    alike: dict[str, int]
    """How many alerts there were of each kind shown, by its sequence's hash."""
