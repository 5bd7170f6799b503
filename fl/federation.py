"""What a federated training job is: rounds, clients, strategy, and everything a child process needs to run it."""

import hashlib
import json
import os
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fl.bounds import bounded
from fl.codecs import Codec, CodecName, DenseName
from fl.errors import FederationError
from fl.hyperparameters import LocalTraining, Tuning
from fl.privacy import NO_PRIVACY, Privacy

JOB = "job.json"

StrategyName = Literal[
    "fedavg",
    "fedprox",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
    "geomedian",
    "qfedavg",
]
MEANS: frozenset[StrategyName] = frozenset({"fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"})
"""Strategies that need nothing but the mean of a round's replies: the server adds each as it comes, and forgets it."""

DownlinkName = Literal["none", "float32", "float16", "int8", "int4"]
"""Codecs that lose little at once: what a download leaves out is never made good."""

STRATEGY_OPTIONS: dict[str, frozenset[str]] = {
    "fedavg": frozenset(),
    "fedprox": frozenset({"proximal_mu"}),
    "fedavgm": frozenset({"server_learning_rate", "server_momentum"}),
    "fedadam": frozenset({"eta", "beta_1", "beta_2", "tau"}),
    "fedyogi": frozenset({"eta", "beta_1", "beta_2", "tau"}),
    "fedadagrad": frozenset({"eta", "tau"}),
    "fedmedian": frozenset(),
    "fedtrimmedavg": frozenset({"beta"}),
    "krum": frozenset({"num_malicious_nodes"}),
    "multikrum": frozenset({"num_malicious_nodes", "num_nodes_to_select"}),
    "bulyan": frozenset({"num_malicious_nodes"}),
    "geomedian": frozenset(),
    "qfedavg": frozenset({"q", "client_learning_rate"}),
}
"""The options each strategy takes, under Flower's names for them."""


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Federation:
    """Who trains when, and how their results are combined."""

    __pydantic_config__ = {  # noqa: RUF012
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "json_schema_extra": bounded(
            rounds={"at_least": 0},
            clients={"at_least": 1},
            fraction={"above": 0, "at_most": 1},
            min_replies={"at_least": 1},
            seed={"at_least": 0},
            topk_share={"above": 0, "at_most": 1},
            codec_block={"at_least": 1, "at_most": 65535},
            max_examples={"at_least": 1},
            norm_bound={"above": 0},
        ),
    }

    rounds: int = 50
    """Rounds of training; the paper has 50."""
    clients: int = 50
    """Sites that hold a share of the training windows; the paper has 50."""
    fraction: float = 0.1
    """Share of the clients drawn in each round, at least one; the paper has 10 %."""
    min_replies: int | None = None
    """Replies without which a round is an error; None: every client drawn must reply. A Poisson round with fewer
    clients than usual bears as many absent ones."""
    strategy: StrategyName = "fedavg"
    """How replies are combined; `fedavg` is the paper's equation 1. Where some sites may be hostile: `fedmedian`,
    `fedtrimmedavg`, `krum`, `multikrum`, `bulyan`, `geomedian` (the geometric median, arXiv 1912.13445)."""
    strategy_options: dict[str, float] = field(default_factory=dict)
    """Options of the strategy under Flower's names, such as `proximal_mu` or `eta`."""
    round_timeout: float | None = None
    """Seconds to wait for the replies of a round; None: as long as it takes."""
    seed: int = 0
    """Seed of the client draws, of the first adapter, and with round and partition of each local training."""
    codec: CodecName = "none"
    """How clients send what they trained: `none`, the arrays as they are; else what training changed, in one packed
    array of `float32`, `float16`, `int8`, `int4`, `sign` (1 bit a value) or `topk` (only the largest)."""
    topk_share: float = 0.01
    """Share of the values that codec `topk` sends."""
    topk_values: DenseName = "int8"
    """Form of the values that codec `topk` sends."""
    codec_block: int = 64
    """Values with a scale of 2 bytes in common, in the codecs `int8`, `int4` and `sign`."""
    error_feedback: bool = True
    """Whether clients keep what coding lost and add it to their next update (arXiv 1901.09847, 2211.14292); without,
    `int8` and `int4` round by chance, exact in the mean (arXiv 1610.02132)."""
    downlink_codec: DownlinkName = "none"
    """How the server sends the adapter: `none`, the arrays as they are; else its difference to the first adapter."""
    draws: Literal["fixed", "poisson"] = "fixed"
    """`fixed`: as many clients in every round; `poisson`: each client by itself with probability `fraction`, which
    central noise needs a good deal less epsilon for. Some rounds then have none."""
    max_examples: int | None = None
    """Windows that a client counts for at most, however many it says it has; None: no limit; 1: all weigh the same."""
    norm_bound: float | None = None
    """L2 norm over all its trained arrays to which the server shortens a client's update, its own noise included; None:
    no bound."""
    bad_replies: Literal["stop", "drop"] = "stop"
    """What a reply that does not fit does: end the run, or count as a lost client (see min_replies)."""

    def __post_init__(self) -> None:
        """Raise FederationError where the values cannot work together."""
        for fault, is_so in (
            (f"rounds is {self.rounds}; give 0 or more", self.rounds < 0),
            (f"clients is {self.clients}; give at least 1", self.clients < 1),
            (f"fraction is {self.fraction}; give a value above 0 and up to 1", not 0 < self.fraction <= 1),
            (f"seed is {self.seed}; give 0 or more", self.seed < 0),
            (
                f"strategy is {self.strategy!r}; give one of {_listed(STRATEGY_OPTIONS)}",
                self.strategy not in STRATEGY_OPTIONS,
            ),
            (
                f"topk_share is {self.topk_share}; give a value above 0 and up to 1",
                not 0 < self.topk_share <= 1,
            ),
            (f"codec_block is {self.codec_block}; give a value from 1 to 65535", not 1 <= self.codec_block <= 65535),
            (
                f"max_examples is {self.max_examples}; give 1 or more",
                self.max_examples is not None and self.max_examples < 1,
            ),
            (
                f"norm_bound is {self.norm_bound}; give a value above 0",
                self.norm_bound is not None and not self.norm_bound > 0,
            ),
        ):
            if is_so:
                raise FederationError(f"federation: {fault}.")
        unknown = set(self.strategy_options) - STRATEGY_OPTIONS[self.strategy]
        if unknown:
            raise FederationError(
                f"federation: strategy {self.strategy} has no option {_listed(unknown)}; "
                f"it takes {_listed(STRATEGY_OPTIONS[self.strategy]) or 'none'}."
            )
        if self.strategy == "fedprox" and not self.strategy_options.get("proximal_mu", 0.0) > 0:
            raise FederationError(
                "federation: strategy fedprox needs strategy_options.proximal_mu above 0, such as 0.01."
            )
        if self.min_replies is not None and not 1 <= self.min_replies <= self.clients_per_round:
            raise FederationError(
                f"federation: min_replies is {self.min_replies}; give a value from 1 to {self.clients_per_round}, "
                "the clients drawn in a round."
            )

    @property
    def clients_per_round(self) -> int:
        """How many clients are drawn in each round."""
        return max(1, round(self.fraction * self.clients))

    @property
    def most_drawn(self) -> int:
        """How many clients a round may draw."""
        return self.clients if self.draws == "poisson" else self.clients_per_round

    def replies_needed(self, drawn: int) -> int:
        """How many replies a round with so many clients needs.

        As many may be absent as `min_replies` bears in a round of `clients_per_round`: a round that is tried again
        draws the same clients, so that a Poisson round of an absent client alone would wait for it for ever.
        """
        if self.min_replies is None:
            return drawn
        absent = self.clients_per_round - self.min_replies
        return max(0, min(self.min_replies, drawn - absent))

    def weight(self, examples: int) -> int:
        """What a client with so many windows counts for: n_i of equation 1, up to the limit."""
        return examples if self.max_examples is None else min(examples, self.max_examples)

    @property
    def uplink(self) -> Codec:
        """How replies are coded."""
        return Codec(self.codec, self.codec_block, self.topk_share, self.topk_values)

    @property
    def downlink(self) -> Codec:
        """How the adapter is coded on its way to the clients."""
        return Codec(self.downlink_codec, self.codec_block)

    @property
    def keeps_residuals(self) -> bool:
        """Whether clients keep what coding lost from round to round."""
        return self.error_feedback and self.codec not in {"none", "float32"}

    @property
    def client_options(self) -> dict[str, Any]:
        """What the strategy changes in the clients' training, under LocalTraining's names."""
        return {"proximal": self.strategy_options["proximal_mu"]} if self.strategy == "fedprox" else {}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def check_downlink(tuning: Tuning, federation: Federation) -> None:
    """Raise FederationError where the download is to be coded but clients cannot make the first adapter themselves."""
    if federation.downlink_codec != "none" and tuning.takes_gradient:
        raise FederationError(
            "federation: downlink_codec needs a first adapter that each client can make, and tuning.bases=gradient "
            "comes from one client's windows; use downlink_codec=none, or bases=weights."
        )


def check_privacy(privacy: Privacy, tuning: Tuning, federation: Federation) -> None:
    """Raise FederationError where noise would not protect what it is said to protect."""
    drawn, tenth = federation.clients_per_round, f"{0.1 / federation.clients:.1g}"
    for fault, is_so in (
        (
            "federation.draws=poisson is for central noise; use draws=fixed, or privacy.noise=central",
            federation.draws == "poisson" and privacy.noise != "central",
        ),
        (
            f"privacy: noise is for low-rank adapters and not for tuning.kind={tuning.kind}; use lora or ffa",
            privacy.is_on and not tuning.has_rank,
        ),
        (
            "privacy: tuning.bases=gradient sends one client's gradient to all; use bases=weights or random",
            privacy.is_on and tuning.takes_gradient,
        ),
        (
            f"privacy: strategy {federation.strategy} is no mean of clipped updates; use one of {_listed(MEANS)}",
            privacy.is_on and federation.strategy not in MEANS,
        ),
        (
            "privacy: the server clips already, before its noise; leave federation.norm_bound out",
            privacy.noise == "central" and federation.norm_bound is not None,
        ),
        (
            f"privacy: delta {privacy.delta:g} is not below 1 / clients; give {tenth} or less",
            privacy.is_on and privacy.delta >= 1 / federation.clients,
        ),
    ):
        if is_so:
            raise FederationError(f"{fault}.")
    if privacy.is_on:
        privacy.update_multiplier(drawn)


def draw_clients(federation: Federation, round_number: int, key: bytes = b"") -> list[int]:
    """The partition ids that train in a round (counted from 1), in ascending order.

    They depend on the round and the federation's seed, or a secret key in its place.
    """
    generator = random.Random(f"{key.hex() or federation.seed}/{round_number}")
    if federation.draws == "poisson":
        return [client for client in range(federation.clients) if generator.random() < federation.fraction]
    return sorted(generator.sample(range(federation.clients), federation.clients_per_round))


@dataclass(frozen=True)
class TrainingJob:
    """Everything the training job needs to know; kept as `job.json` in the run's folder."""

    run_id: str
    run_folder: Path
    """Where rounds, progress and errors are written."""
    model_folder: Path
    """The base model: a local directory of safetensors."""
    shares_folder: Path
    """One Parquet file a client, `share-<partition, 5 digits>.parquet`: the token ids of its windows, one row each."""
    tuning: Tuning
    training: LocalTraining
    federation: Federation
    privacy: Privacy = NO_PRIVACY
    quantization: str = "none"
    device: str = "auto"
    threads: int = field(default_factory=available_cores)
    """Threads of each client's computation; results are equal byte for byte only for equal numbers."""
    concurrent_clients: int = 1
    """Clients that train at the same time on this machine, each in a process with its own base model."""

    def __post_init__(self) -> None:
        """Raise FederationError where tuning and federation cannot work together."""
        check_downlink(self.tuning, self.federation)
        check_privacy(self.privacy, self.tuning, self.federation)

    def fingerprint(self) -> str:
        """A hash of all that decides the result: everything but the run's name and folder, and the speed."""
        facts = _as_json(self)
        for name in ("run_id", "run_folder", "concurrent_clients"):
            del facts[name]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _as_json(job: TrainingJob) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(json.dumps(asdict(job), default=str))
    return facts


def save_job(job: TrainingJob) -> Path:
    """Write `job.json` into the run's folder, which is made where it is missing, and return its path."""
    job.run_folder.mkdir(parents=True, exist_ok=True)
    path = job.run_folder / JOB
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(_as_json(job), indent=1))
    temporary.replace(path)
    return path


def load_job(run_folder: Path) -> TrainingJob:
    """The job of a run's folder, wherever that folder lies now; raises FederationError where there is none."""
    path = run_folder / JOB
    try:
        facts = json.loads(path.read_text())
        facts["tuning"] = tuning_from(facts["tuning"], Tuning)
        facts["training"] = LocalTraining(**facts["training"])
        facts["federation"] = Federation(**facts["federation"])
        facts["privacy"] = Privacy(**facts.get("privacy", {}))
        for name in ("model_folder", "shares_folder"):
            facts[name] = Path(facts[name])
        return TrainingJob(**{**facts, "run_folder": run_folder.resolve()})
    except FileNotFoundError as error:
        raise FederationError(f"There is no training job at {path}; start one with `atalaia train`.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FederationError(f"The training job at {path} cannot be read ({error}); start a new run.") from error


def tuning_from(facts: dict[str, Any], kind: type[Tuning]) -> Tuning:
    """The tuning that JSON facts describe (JSON has no tuples)."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
    return kind(**values)
