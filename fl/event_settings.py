"""Which learned baselines are trained, and for how long; plain values, read where torch is not loaded."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fl.bounds import bounded

Method = Literal["deeplog", "logbert", "fedlog", "logfit"]


@dataclass(frozen=True)
class EventBaselines:
    """Small models on message ids, trained on the clients' shares and shown beside the simple rules.

    Clients, how many a round has and the seed are the federation's; which ones follows from the seed (`draws=fixed`),
    and replies are combined by the weighted mean (FedAvg, eq. 1), whatever the run's own draws, strategy and codec are.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "json_schema_extra": bounded(
            baseline_rounds={"at_least": 1},
            baseline_steps={"at_least": 1},
            baseline_windows={"at_least": 1},
            baseline_rate={"above": 0},
        ),
    }

    methods: tuple[Method, ...] = ("deeplog", "logbert", "fedlog")
    """`deeplog` (LSTM, CCS 2017, doi 10.1145/3133956.3134015), `logbert` (masked events, arXiv 2103.04475), `fedlog`
    (temporal convolution, doi 10.1109/TNSM.2022.3152620), `logfit` (masked language model, doi
    10.1109/TNSM.2024.3358730; needs masked_model); empty: no learned baselines."""
    masked_model: str = ""
    """The BERT-family model that `logfit` tunes: a Hugging Face id, or a local directory of safetensors."""
    masked_rank: int = 8
    """Rank of its LoRA adapters on queries and values; they alone are trained and sent."""
    baseline_rounds: int = 20
    """Rounds of training."""
    baseline_steps: int = 20
    """Optimizer steps of a client in a round."""
    baseline_windows: int = 32
    """Windows a step."""
    baseline_end: bool = False
    """Whether a window's end is one more event, as the language model's end token is; it is not in the publications."""
    baseline_rate: float = 5e-3
    """Adam's learning rate in the first round; it falls along a cosine to a tenth of it."""

    def __post_init__(self) -> None:
        if min(self.baseline_rounds, self.baseline_steps, self.baseline_windows, self.masked_rank) < 1:
            raise ValueError("baseline_rounds, baseline_steps, baseline_windows and masked_rank must be at least 1")
        if not self.baseline_rate > 0:
            raise ValueError("baseline_rate must be above 0")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods names a baseline twice")
        if "logfit" in self.methods and not self.masked_model:
            raise ValueError("logfit needs a model: give masked_model, a Hugging Face id or a local directory")
