"""The rules of a federation of sites: all that decides what happens to a site's logs, and what comes of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl.accounting import affordable_rounds
from fl.anomaly_scores import DEFAULT_SCORE, ScoreName
from fl.calibration import ThresholdRule
from fl.declared import ADAPTER, JUDGE, TRAIN
from fl.errors import FederationError
from fl.federation import Federation, TrainingJob, draw_clients
from fl.hyperparameters import LocalTraining, Tuning
from fl.privacy import Privacy
from flows.config import RunConfig
from storage.certificates import registered_sites
from storage.consent import rules_hash
from storage.datasets import resolve
from storage.layout import Layout
from storage.masks import MaskRules
from storage.site_numbers import is_judged_after
from storage.splits import SplitRule
from storage.stages import hash_file
from storage.tokens import TokenRule
from storage.windows import WindowRule


class BaseModelRule(BaseModel):
    """The base model that everybody has."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    name: str
    """As the link calls it; a site may have it in a folder of its own."""
    sha256: str
    """Of its weights, as the model's card has it."""
    tokenizer_sha256: str
    """Of its tokenizer.json."""
    quantization: str
    """Form of the weights in memory."""
    port: int | None
    """Where the link gives the model's files, by HTTPS; none: each site has the model itself."""


class SiteRules(BaseModel):
    """What a site agrees to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    preset: str
    """The named run."""
    window: WindowRule
    """How lines are grouped."""
    mask: MaskRules
    """What is blotted out of messages."""
    tokens: TokenRule
    """How windows become token sequences."""
    split: SplitRule
    """Which windows are trained and calibrated on."""
    model: BaseModelRule
    """The base model."""
    tuning: Tuning
    """What is trained and sent."""
    training: LocalTraining
    """What a site does in a round."""
    federation: Federation
    """Rounds, sites, and how what they send is combined."""
    privacy: Privacy
    """How a site's update is clipped and hidden, and by whom."""
    score: ScoreName
    """The score that decides."""
    k: int | None
    """Of the top_k and unaligned scores."""
    false_alarm_rate: float = Field(gt=0, lt=1)
    """Share of normal windows that a site's threshold may flag."""
    threshold_rule: ThresholdRule
    """How a site's threshold follows from its calibration scores."""
    judged_rounds: Literal["all", "last"] | int
    """After which rounds the sites judge the adapter."""

    def text(self) -> str:
        """The rules as they are sent, agreed to and hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """Their name."""
        return rules_hash(self.text())

    @property
    def run_id(self) -> str:
        """The name of the one run that has these rules."""
        return f"{self.preset}-sites-{self.sha256[:8]}"

    def ask(self, kind: str, number: int, rate: float, *, site: int, last: bool) -> bool:
        """Whether a request of this kind to a site belongs to a round, at a learning rate; `last` asks for alerts too.

        A site trains only in rounds that it is drawn for, where the draws are not the server's secret: epsilon of local
        noise counts no others.
        """
        until = affordable_rounds(self.privacy, self.federation)
        if kind == TRAIN:
            lowest, highest = self.training.learning_rate_min, self.training.learning_rate_max
            in_rules = 1 <= number <= until and lowest * 0.999 <= rate <= highest * 1.001
            return in_rules and (self.privacy.hides_draws or site in draw_clients(self.federation, number))
        if kind == JUDGE:
            is_due = is_judged_after(self.judged_rounds, number, until)
            return is_due and 1 <= number <= until and rate == 0 and last == (number == until)
        return kind == ADAPTER and self.tuning.takes_gradient and site == number == 0 and rate == 0

    def job(self, run_id: str, run_folder: Path) -> TrainingJob:
        """The server's job; what belongs to the sites' machines is not in it."""
        return TrainingJob(
            run_id=run_id,
            run_folder=run_folder,
            model_folder=Path(self.model.sha256),
            shares_folder=Path(self.sha256),
            tuning=self.tuning,
            training=self.training,
            federation=self.federation,
            privacy=self.privacy,
            quantization=self.model.quantization,
            threads=1,
        )


def rules_of(config: RunConfig, model: Path, sites: int, model_port: int | None = None) -> SiteRules:
    """The rules of a run with so many registered sites, for the base model in a directory."""
    spec = resolve(config.dataset)
    score = DEFAULT_SCORE if config.detection.score == "auto" else config.detection.score
    # A directory's path on the link's machine is nobody's business, and of no use elsewhere.
    name = Path(config.model.name).name if Path(config.model.name).is_dir() else config.model.name
    quantization = "none" if config.model.quantization == "auto" else config.model.quantization
    return SiteRules(
        preset=config.preset,
        window=config.window or spec.window,
        mask=config.mask or spec.mask,
        tokens=config.tokens,
        split=config.split,
        model=BaseModelRule(
            name=name,
            sha256=json.loads((model / "card.json").read_text())["weights_sha256"],
            tokenizer_sha256=hash_file(model / "tokenizer.json"),
            quantization=quantization,
            port=model_port,
        ),
        tuning=config.tuning,
        training=config.training,
        federation=replace(config.federation, clients=sites),
        privacy=config.privacy,
        score=score,
        k=config.detection.k or (1 if score in {"top_k", "unaligned"} else None),
        false_alarm_rate=config.detection.false_alarm_rate,
        threshold_rule=config.detection.threshold,
        judged_rounds=config.scoring.scored_rounds,
    )


def federation_rules(config: RunConfig, certs: Path, model_port: int | None, layout: Layout) -> tuple[SiteRules, Path]:
    """The rules of a run for the sites registered in a link's folder, and the base model's directory."""
    from fl.model import prepare_model

    sites = len(registered_sites(certs))
    model = prepare_model(config.model.name, layout.models)
    return rules_of(config, model, sites, model_port), model


def read_rules(text: str) -> SiteRules:
    """Rules as they came; raises FederationError where this program does not know them, or reads them otherwise."""
    try:
        rules = SiteRules.model_validate_json(text)
    except (ValidationError, ValueError) as error:
        raise FederationError(
            "The federation's rules are of a kind that this program does not know; install the link's version."
        ) from error
    if rules.text() != text:
        raise FederationError("The federation's rules are not in the form that is hashed; install the link's version.")
    return rules


def differing(config: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names in which a request's configuration is not the expected one; JSON texts count by their values."""
    return sorted(name for name in set(config) | set(expected) if _read(config.get(name)) != _read(expected.get(name)))


def _read(value: object) -> object:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
