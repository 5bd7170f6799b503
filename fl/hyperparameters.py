"""What is trained and how, as plain values; they are read, checked and hashed where torch is not loaded."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fl.bounds import bounded


@dataclass(frozen=True)
class Tuning:
    """Which weights are trained."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "json_schema_extra": bounded(rank={"at_least": 1}, dropout={"at_least": 0, "below": 1}),
    }

    kind: Literal["lora", "ffa", "rolora", "sb", "full", "none"] = "lora"
    """`lora` (low-rank adapters, arXiv 2106.09685), `full` (all weights, the paper's FFT), `none` (untouched, PT).

    With exact averages and smaller messages: `ffa` (A stays as drawn from the seed, B is trained, arXiv 2403.12313),
    `rolora` (B in odd rounds, A in even ones, arXiv 2502.01755), `sb` (rank x rank matrices between frozen bases, as
    in Fed-SB, arXiv 2502.15436)."""
    rank: int = 8
    """Rank r of the LoRA matrices; the paper takes 2, 8, 32 and 128."""
    bases: Literal["gradient", "weights", "random"] = "gradient"
    """Bases of `sb`: `gradient`, singular vectors of the first update, as LoRA-SB (arXiv 2411.19557) has them, but of
    one client's windows, sent down each round; `weights`, of the layer's own weights as in LoRA-XS (arXiv 2405.17604);
    `random`. The last two follow at each client from model and seed."""
    alpha: int | None = None
    """LoRA scale numerator; none: twice the rank, as in the reference code."""
    dropout: float = 0.1
    """LoRA dropout. Where prefixes are shared, windows with a common prefix share its mask."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the linear layers that get adapters."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank must be at least 1; use kind=none for the untouched model")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout must be in [0, 1)")

    @property
    def scale_numerator(self) -> int:
        """Alpha as used: given, or twice the rank."""
        return self.alpha if self.alpha is not None else 2 * self.rank

    @property
    def takes_gradient(self) -> bool:
        """Whether the frozen bases are taken from a gradient, one client's, and so travel with the adapter."""
        return self.kind == "sb" and self.bases == "gradient"

    @property
    def has_rank(self) -> bool:
        """Whether there are low-rank matrices at all."""
        return self.kind not in {"full", "none"}

    def trains(self, name: str, round_number: int) -> bool:
        """Whether the adapter's array `name` is trained, and so sent up, in a round (counted from 1)."""
        if self.kind == "rolora":
            return ("lora_B" if round_number % 2 else "lora_A") in name
        return self.kind != "sb" or "lora_R" in name


@dataclass(frozen=True)
class LocalTraining:
    """What a client does in one round."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "json_schema_extra": bounded(
            steps={"at_least": 1}, batch_size={"at_least": 1}, learning_rate_min={"at_least": 0}
        ),
    }

    steps: int = 10
    """Optimizer steps a round (the paper's 10 iterations)."""
    batch_size: int = 32
    """Windows a step (paper, section 4.1)."""
    learning_rate_max: float = 1e-3
    """Rate of the first round (paper: cosine from 1e-3 to 1e-5 over the rounds, constant within one)."""
    learning_rate_min: float = 1e-5
    """Rate that the last round approaches."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    """`adamw8bit` keeps its state in 8 bits (bitsandbytes), as the reference code does. Fresh state each round."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm (Hugging Face Trainer's default)."""
    proximal: float = 0.0
    """FedProx: weight mu of 0.5 mu |w - w_round|^2 in the loss (arXiv 1812.06127); 0 for FedAvg."""
    gradient_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping them: less memory, more time."""
    memory_budget_mb: int | None = None
    """MB for tokens in flight; batches are cut into micro-batches (packs) that fit. None: by device."""
    share_prefixes: bool = True
    """Compute each distinct prefix token of a batch once; gradients are equal. With dropout, windows with a common
    prefix share its mask."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise ValueError("steps and batch_size must be at least 1")
        if not 0 <= self.learning_rate_min <= self.learning_rate_max:
            raise ValueError("learning rates must satisfy 0 <= learning_rate_min <= learning_rate_max")


def cosine_rate(round_number: int, rounds: int, maximum: float, minimum: float) -> float:
    """The learning rate of round `round_number` (from 1): min + (max - min)(1 + cos(pi t / T)) / 2 with t from 0."""
    return minimum + 0.5 * (maximum - minimum) * (1 + math.cos(math.pi * (round_number - 1) / rounds))
