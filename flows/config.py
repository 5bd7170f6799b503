"""A run as one frozen, typed value, composed of its parts' own configurations."""

import copy
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from fl.accounting import privacy_plan
from fl.anomaly_scores import ScoreName
from fl.calibration import ThresholdRule
from fl.event_settings import EventBaselines
from fl.federation import Federation, check_downlink, check_privacy
from fl.hyperparameters import LocalTraining, Tuning
from fl.privacy import NO_PRIVACY, Privacy
from flows.presets import PRESETS
from storage.datasets import DatasetConfig
from storage.instability import Instability
from storage.masks import MaskRules
from storage.partitions import PartitionRule
from storage.splits import SplitRule
from storage.tokens import TokenRule
from storage.windows import WindowRule

SEEDED = ("dataset", "split", "partition", "instability", "federation")
"""Parts that take the run's seed where they are given none of their own."""


class ModelConfig(BaseModel):
    """The base model."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = "smollm2-135m-instruct"
    """The embedded model, a Hugging Face id, or a local directory of safetensors; a causal model of Llama's form, as
    SmolLM, Qwen and Mistral are. One that does more (caps or scales its logits, say) is refused."""
    quantization: Literal["auto", "none", "int8", "nf4"] = "auto"
    """Form of the base weights; auto: nf4 on a GPU (the paper's 4-bit), none on a CPU and where they are trained."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:<n>`."""


class ScoringConfig(BaseModel):
    """Which adapters are scored, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    ks: tuple[int, ...] = (1, 3, 5, 10)
    """Values of K of the top-K accuracy; the paper's."""
    scored_rounds: Literal["all", "last"] | int = "all"
    """Rounds whose adapters are scored: all, the last, or every n-th; the untouched model and the last always are."""
    unaligned: bool = True
    """Whether to compute the reference code's unaligned accuracy too."""


class DetectionConfig(BaseModel):
    """How scores become alarms."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    score: Literal["auto", ScoreName] = "auto"
    """The score that decides; auto: the best on the validation split, rarity where there are too few labels."""
    k: int | None = None
    """K of the top_k and unaligned scores; None: the best on the validation split."""
    false_alarm_rate: float = Field(default=0.002, gt=0, lt=1)
    """Share of normal windows that the label-free threshold may flag."""
    threshold: ThresholdRule = "quantile"
    """The label-free threshold: the matching quantile of the calibration scores, or an exponential tail fitted to the
    highest 2 % of them, which a few rare normal windows move less (Siffer et al., KDD 2017) and which is for the
    surprises: with `rarity` it flags a third of all windows where HDFS changes (docs/results/experiments.md)."""


class RunConfig(BaseModel):
    """One run: what is read, how it is cut, what is trained where, and how it is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    preset: str = Field(default="paper", json_schema_extra={"enum": list(PRESETS)})
    """The named run whose values stand where none are given here."""
    seed: int = Field(default=0, ge=0)
    """Seed of every draw whose own part gives none."""
    dataset: DatasetConfig = DatasetConfig()
    """The log."""
    window: WindowRule | None = None
    """How lines are grouped; None: as the dataset's description says."""
    mask: MaskRules | None = None
    """What is blotted out of messages; None: as the dataset's description says."""
    tokens: TokenRule = TokenRule()
    """How windows become token sequences."""
    split: SplitRule = SplitRule()
    """Which windows are learned from and which are judged by."""
    partition: PartitionRule = PartitionRule()
    """How training windows are dealt to clients."""
    instability: Instability = Instability()
    """What is different in the test windows from all that was learned from."""
    model: ModelConfig = ModelConfig()
    """The base model."""
    tuning: Tuning = Tuning()
    """What is trained and sent."""
    training: LocalTraining = LocalTraining()
    """What a client does in a round."""
    federation: Federation = Federation()
    """Who trains when, and how results are combined. A strategy against hostile sites needs enough replies a round
    (`fraction` of `clients`; demo and hdfs-2pct have 2): to outvote one, `fedmedian` and `geomedian` need 3,
    `fedtrimmedavg` 1 / `beta` (5 as it is), `krum` and `multikrum` 5 and `bulyan` 7, these three with
    `strategy_options.num_malicious_nodes=1`. `min_replies` can be at most the clients drawn."""
    privacy: Privacy = NO_PRIVACY
    """How updates are clipped and hidden, and how much of a site may be learned at most."""
    scoring: ScoringConfig = ScoringConfig()
    """Which adapters are scored, and how."""
    detection: DetectionConfig = DetectionConfig()
    """How scores become alarms."""
    baselines: EventBaselines = EventBaselines()
    """Which small learned models are shown beside the simple rules."""

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, given: Any) -> Any:  # noqa: ANN401
        """Put the preset beneath the values given, and the run's seed and clients into the parts without their own."""
        if not isinstance(given, Mapping):
            return given
        preset = given.get("preset", "paper")
        if preset not in PRESETS:
            raise ValueError(f"there is no preset {preset!r}; presets are {', '.join(PRESETS)}")
        values = _merged(copy.deepcopy(PRESETS[preset]), given)
        for part in SEEDED:
            if isinstance(values.setdefault(part, {}), dict):
                values[part].setdefault("seed", values.get("seed", 0))
        federation, partition = values["federation"], values["partition"]
        if isinstance(federation, dict) and isinstance(partition, dict):
            partition.setdefault("clients", federation.get("clients", Federation().clients))
        return values

    @model_validator(mode="after")
    def _one_number_of_clients(self) -> Self:
        if self.partition.clients != self.federation.clients:
            raise ValueError(
                f"federation.clients is {self.federation.clients} and partition.clients {self.partition.clients}; "
                "give clients only once"
            )
        return self

    @model_validator(mode="after")
    def _parts_that_fit(self) -> Self:
        check_downlink(self.tuning, self.federation)
        check_privacy(self.privacy, self.tuning, self.federation)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler, /) -> dict[str, Any]:
        """The schema of what may be given, with no default but the preset's name.

        A form sends the defaults it shows along with what a person fills in, and so over what the preset says.
        """
        found = handler(core)
        own = handler.resolve_ref_schema(found)
        if handler.mode == "validation":
            _forget_defaults(own["properties"], handler)
            own["properties"]["preset"]["default"] = cls.model_fields["preset"].default
        for name, field in own["properties"].items():
            # Else a form is headed by the names of classes.
            field["title"] = name.capitalize()
        return found

    def derived(self) -> dict[str, str]:
        """Values that follow from others, each with its reason."""
        alpha = {}
        if self.tuning.has_rank and self.tuning.alpha is None:
            alpha["alpha"] = f"{self.tuning.scale_numerator} (twice the rank {self.tuning.rank})"
        return alpha | derived_of(self.federation, self.privacy)


def derived_of(federation: Federation, privacy: Privacy) -> dict[str, str]:
    """What follows from how clients are drawn and combined, each with its reason, and what noise will spend."""
    drawn = federation.clients_per_round
    found = {"clients a round": f"{drawn} (fraction {federation.fraction:g} of {federation.clients})"}
    if (needed := _needed_to_outvote(federation)) is not None:
        found["strategy"] = f"{federation.strategy} cannot be relied on to outvote one of {drawn} replies: {needed}"
    return found | (privacy_plan(privacy, federation) if privacy.is_on else {})


def _needed_to_outvote(federation: Federation) -> str | None:
    """What a strategy against hostile sites lacks to outvote one of a round's replies; None: nothing.

    The bounds are those of the publications that fl/robust.py names, and 4 f + 3 replies for Bulyan (arXiv 1802.07927).
    """
    replies, options = federation.clients_per_round, federation.strategy_options
    told = int(options.get("num_malicious_nodes", 0))
    told_one = "it needs strategy_options.num_malicious_nodes of 1 or more, f, and"
    match federation.strategy:
        case "fedmedian" | "geomedian":
            outvoted, needed = (replies - 1) // 2, "it needs 3 replies or more"
        case "fedtrimmedavg":
            beta = options.get("beta", 0.2)
            outvoted, needed = int(beta * replies), f"it cuts {beta:g} of them at each end, less than one"
        case "krum":
            outvoted, needed = min(told, (replies - 3) // 2), f"{told_one} 2 f + 3 replies"
        case "multikrum":
            outvoted = min(told, (replies - 3) // 2, replies - int(options.get("num_nodes_to_select", 1)))
            needed = f"{told_one} 2 f + 3 replies, of which it selects all but f at most"
        case "bulyan":
            outvoted, needed = min(told, (replies - 3) // 4), f"{told_one} 4 f + 3 replies"
        case _:
            return None
    return needed if outvoted < 1 else None


def _forget_defaults(properties: dict[str, Any], handler: GetJsonSchemaHandler) -> None:
    """Take the defaults out of a model's fields, and of those of the models it is made of.

    Truth values keep theirs: a form's switch has no third place, and would show what is on as off.
    """
    for field in properties.values():
        if field.get("type") != "boolean":
            field.pop("default", None)
        for option in field.get("anyOf", [field]):
            if "$ref" in option:
                _forget_defaults(handler.resolve_ref_schema(option).get("properties", {}), handler)


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, part by part; both are left as they are."""
    result = dict(under)
    for key, value in over.items():
        beneath = result.get(key)
        if isinstance(value, Mapping):
            result[key] = _merged(beneath if isinstance(beneath, Mapping) else {}, value)
        else:
            result[key] = value
    return result
