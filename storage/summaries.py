"""What a run was, held, cost and found, as plain values: `report.json`, the row of `atalaia runs`, and the headline.

Masked text at most: a window is named by its number, never by its key or its raw lines.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.continuations import Continuation
from storage.errors import FormatError

THRESHOLDS = ("label_free", "validated", "oracle")
END_OF_WINDOW = "the end of the window"
"""The end token in words."""
_RATES = ("f1", "precision", "recall", "false_alarm_rate", "threshold")


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class RunFacts(_Facts):
    """What was asked for, and where it ran."""

    run_id: str
    preset: str
    dataset: str
    split: str
    """random, chronological or grouped."""
    model: str
    tuning: str
    """lora, full or none."""
    rank: int | None
    """LoRA rank; none for other kinds of tuning."""
    seed: int
    rounds: int
    """Rounds asked for."""
    clients: int
    clients_per_round: int
    status: str
    """running, finished or failed."""
    started: str
    """ISO 8601, UTC."""
    command: str
    """The command that repeats the run."""
    config: dict[str, Any] = {}
    """The whole configuration as JSON."""
    versions: dict[str, str] = {}
    """Python and the libraries that decide the numbers."""
    hardware: dict[str, str] = {}
    """Processor, cores, memory, accelerator, system."""
    reasons: dict[str, str] = {}
    """What was derived from the device or the data, and why."""


class DataFacts(_Facts):
    """What the prepared data hold."""

    lines: int
    windows: int
    distinct_windows: int
    messages: int
    """Distinct masked messages."""
    anomalies: int | None
    """Windows labelled anomalous; none without labels."""
    rejected: int = 0
    """Lines that did not parse, kept in rejects.parquet."""
    tokens: int
    """Tokens of all windows after truncation."""
    truncated_windows: int = 0
    cut_at: int = 1024
    """Tokens at which a window is cut."""
    shares: list[int] = []
    """Training windows of each client."""


class PrivacyFacts(_Facts):
    """What a site's data are protected by, as the last round has it."""

    noise: str
    epsilon: float | None
    """Spent by all rounds; none: without bound."""
    delta: float
    holds_for: str
    """Which federations epsilon compares."""
    clipping_norm: float
    next_clipping_norm: float
    known_epsilon: float | None = None
    """As epsilon, for those who know who was drawn when; none: without bound, or with local noise the same."""


class TrainingFacts(_Facts):
    """What training and scoring cost."""

    trainable_parameters: int
    full_parameters: int
    bytes_down_per_client_round: int
    """As serialized; the mean over all messages."""
    bytes_up_per_client_round: int
    full_model_bytes: int
    """What one message of full fine-tuning would be: all weights in float32."""
    client_rounds: int
    """Messages answered: clients of all rounds."""
    examples: int
    """Windows trained on, each as often as it was."""
    tokens: int
    """Tokens of these windows."""
    computed_tokens: int
    """Of which the model had to compute, once common prefixes are shared."""
    train_seconds: float
    score_seconds: float
    peak_memory_mb: float | None = None
    latency_ms: float | None = None
    """Mean time of scoring one window by itself, as in the paper's Table 3."""
    latency_deviation_ms: float | None = None
    """Standard deviation over the windows timed."""
    latency_median_ms: float | None = None
    latency_p99_ms: float | None = None
    """99th percentile; of few windows it is little more than the slowest."""
    latency_peak_mb: float | None = None
    """Peak memory of the process (of the device on CUDA) while windows are scored."""
    latency_windows: int = 0
    """How many were timed."""
    privacy: PrivacyFacts | None = None
    together_ms: float | None = None
    """Time of scoring a distinct window together with all others, by their prefix tree: its share of the whole."""
    together_windows: int = 0
    """How many distinct windows these were."""

    @property
    def bytes_sent(self) -> int:
        """Bytes of all rounds, both ways."""
        return self.client_rounds * (self.bytes_down_per_client_round + self.bytes_up_per_client_round)

    @property
    def bytes_sent_by_full(self) -> int:
        """Bytes that the same rounds would send with full fine-tuning."""
        return 2 * self.client_rounds * self.full_model_bytes


class SurprisingMessage(_Facts):
    """A masked message, how little the model expected it, and how little it usually does."""

    text: str
    surprise: float
    """Nats, summed over the message's tokens."""
    position: int
    """Place in the window, from 1."""
    usual: float | None = None
    """Nats of the same message in normal windows; none where the sample of them does not have it."""
    token: str = ""
    """The message's most unusual token."""
    token_surprise: float = 0.0
    """Nats."""
    token_usual: float = 0.0
    """Nats of the same token in normal windows; 0 where the sample does not have it."""
    expected: str = ""
    """What the model held for most probable in the token's place."""

    @property
    def excess(self) -> float:
        """Nats beyond the usual."""
        return self.surprise - (self.usual or 0.0)

    @property
    def token_excess(self) -> float:
        """Nats of the most unusual token beyond its usual."""
        return self.token_surprise - self.token_usual


class Alert(_Facts):
    """One of the most anomalous windows, and what gave it away."""

    window_id: int
    score: float
    label: int | None
    """1 anomalous, 0 normal, none unknown."""
    kind: str | None = None
    """Kind of failure where the dataset names it."""
    flagged: bool
    """Above the label-free threshold."""
    windows: int
    """Test windows with the same messages."""
    lines: int
    messages: list[SurprisingMessage]
    """The most unusual messages first; the window's end counts as one."""
    by_token: bool = False
    """Whether a message ranks by its most unusual token, as where the highest surprise of a token decides."""
    compared_sequences: int = 0
    """Distinct normal calibration windows that say what is usual."""
    compared_windows: int = 0
    """Calibration windows that these stand for."""


class Summary(_Facts):
    """Everything a report tells."""

    run: RunFacts
    data: DataFacts
    training: TrainingFacts
    findings: dict[str, Any]
    """As fl.evaluation.evaluate gives them."""
    alerts: list[Alert] = []
    continuations: list[Continuation] = []
    """How base and tuned model go on from the same beginnings."""
    next_commands: list[str] = []

    def row(self) -> dict[str, Any]:
        """The run as `atalaia runs --json` lists it."""
        return run_row(self.run, self.training, self.findings)


def run_row(run: RunFacts, training: TrainingFacts | None, findings: dict[str, Any] | None) -> dict[str, Any]:
    """The row of `atalaia runs --json`; null for whatever the run has not come to."""
    found = findings or {}
    names = ("run_id", "preset", "dataset", "split", "model", "tuning", "rank", "seed", "rounds", "status")
    costs = ("bytes_up_per_client_round", "bytes_down_per_client_round", "train_seconds", "score_seconds")
    rates = {kind: {name: found[kind][name] for name in _RATES} if found.get(kind) else None for kind in THRESHOLDS}
    return {
        **{name: getattr(run, name) for name in names},
        **{name: found.get(name) for name in ("score", "k", "prevalence")},
        **rates,
        **{name: found.get(name) for name in ("auroc", "average_precision", "best_rule")},
        **{name: getattr(training, name, None) for name in costs},
    }


def save_summary(summary: Summary, path: Path) -> None:
    """Write `report.json`."""
    path.write_text(summary.model_dump_json(indent=1))


def load_summary(path: Path) -> Summary:
    """Read `report.json`; FormatError where it is missing or of another form."""
    try:
        return Summary.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise FormatError(f"There is no {path}: the run has not finished; run it again to resume it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise FormatError(f"{path} cannot be read ({place}: {first['msg']}): run `atalaia report` again.") from None


def score_name(findings: dict[str, Any]) -> str:
    """The score in words."""
    words = {
        "top_k": f"tokens outside the top {findings['k']}",
        "unaligned": f"tokens outside all top-{findings['k']} predictions of the window (reference code)",
        "rarity": "rarity among normal windows",
        "max_excess": "highest excess of a message over its usual surprise",
        "mean_token": "mean surprise of a token",
        "max_token": "highest surprise of a token",
        "mean_message": "mean surprise of a message",
        "max_message": "highest surprise of a message",
    }
    return words[findings["score"]]
