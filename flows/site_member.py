"""A site as a member of a federation: what its operator agreed to, its windows, how it judges adapters, its alerts."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl.errors import FederationError, LearningError
from flows.site_rules import SiteRules, differing, read_rules
from storage.answered_rounds import answered_rounds, is_answered_as_another, keep_answered_rounds
from storage.certificates import CA
from storage.consent import Consent, changes, read_consent, rules_hash, write_consent
from storage.errors import DataError
from storage.layout import Layout
from storage.ledger import Ledger
from storage.model_files import fetch_model
from storage.stages import Stage, hash_file
from tasks.site_judging import Judging, judge_windows, write_alerts, write_detector
from tasks.site_windows import Reading, site_spec, site_windows

if TYPE_CHECKING:
    from fl.exchange import Arrays

Tell = Callable[[str], None]
Agree = Callable[[SiteRules, str, list[str], int], bool]
"""Asks the operator: the rules, their hash, what differs from those agreed to before, and the site's number."""


@dataclass(frozen=True)
class SiteSettings:
    """What a site's operator gives."""

    name: str
    """What the site is called on its own machine; its folder in the home."""
    logs: str
    dataset: str
    link: str
    """HOST:PORT."""
    certs: Path
    model: str | None = None
    """A local directory with the base model; None: by the name in the rules."""
    watch: tuple[str, ...] = ()
    """Logs to write alerts on; empty: the site's own logs."""
    output: Path | None = None
    """The alerts; None: alerts.jsonl in the site's folder."""
    audit: bool = True
    device: str = "auto"
    threads: int | None = None
    wait: float = 300.0
    """Seconds to wait for a link that was never reached, or does not know the site's key."""


@dataclass
class SiteOutcome:
    """How it ended."""

    rounds: int = 0
    alerts: int = 0
    output: Path | None = None
    bytes_sent: int = 0
    ledger: Path | None = None


class NotConsented(FederationError):
    """The operator has not agreed to the rules that the link sent."""


@dataclass
class _Membership:
    """What follows from rules that were agreed to."""

    rules: SiteRules
    number: int
    windows: Stage
    model_folder: Path
    expected: dict[str, Any]
    adapter: "Arrays"
    """Zeros in the shapes of the adapter's arrays."""


class SiteMember:
    """The site as fl/site_app.py sees it."""

    def __init__(self, settings: SiteSettings, layout: Layout, agree: Agree, ledger: Ledger, tell: Tell) -> None:
        self._settings, self._layout, self._agree, self._ledger, self._tell = settings, layout, agree, ledger, tell
        self.folder = site_folder(settings.name, layout)
        self.outcome = SiteOutcome()
        self.finished = False
        """Whether the link has said that it is over."""
        self.refusal: Exception | None = None
        self._membership: _Membership | None = None

    @property
    def _member(self) -> _Membership:
        from fl.site_app import NotAgreed

        if self._membership is None:
            raise NotAgreed("The link asks for work before it has sent its rules.")
        return self._membership

    def admit(self, rules: str, number: int) -> Mapping[str, float]:
        """Take part by these rules: ask the operator where they are new, have the model, prepare the windows."""
        try:
            return self._admit(rules, number)
        except (LearningError, DataError) as error:
            self.refusal = error
            raise

    def _admit(self, text: str, number: int) -> Mapping[str, float]:
        rules = read_rules(text)
        self._consented(rules, number)
        folder = self._model_folder(rules)
        self._tell("preparing the windows of the site's logs")
        windows = site_windows(self._reading(rules), number, folder / "tokenizer.json", self._layout)
        self._membership = _Membership(rules, number, windows, folder, _expected(rules), _empty_adapter(folder, rules))
        counts = windows.counts
        self._tell(
            f"takes part as number {number}: {counts['examples']:,} windows to train on, "
            f"{counts['calibration_windows']:,} to calibrate on, {counts['held_out_windows']:,} held out"
        )
        names = ("examples", "calibration_windows", "held_out_windows")
        return {"partition": number, **{name: counts[name] for name in names}}

    def _consented(self, rules: SiteRules, number: int) -> Consent:
        """The consent to these rules; raises NotConsented where the operator gives none."""
        from fl.site_app import NotAgreed

        known = read_consent(self.folder)
        text, link = rules.text(), self._settings.link
        changed: list[str] = []
        if known is not None:
            asked, agreed = (rules_hash(text), number, link), (known.sha256, known.number, known.link)
            if asked == agreed:
                return known
            if known.number != number:
                changed.append(f"the site's number: {known.number} -> {number}")
            if known.link != link:
                changed.append(f"the link: {known.link} -> {link}")
            changed += changes(known.rules, text)
        if not self._agree(rules, rules_hash(text), changed, number):
            self.refusal = NotConsented(
                f"The rules of {self._settings.link} are not agreed to; to agree, start again with "
                f"--accept {rules_hash(text)[:16]}"
            )
            raise NotAgreed(str(self.refusal))
        self._ledger.consent(rules_hash(text), number)
        return write_consent(self.folder, text, number, self._settings.link)

    def _model_folder(self, rules: SiteRules) -> Path:
        """The base model's directory; raises FederationError where it is another model than the rules name."""
        from fl.model import EMBEDDED, prepare_model

        name = self._model_name(rules)
        if name != EMBEDDED and not Path(name).is_dir():
            self._ledger.fetch(f"https://huggingface.co/{name}")
        folder = prepare_model(name, self._layout.models)
        weights = json.loads((folder / "card.json").read_text())["weights_sha256"]
        for what, found, named in (
            ("weights", weights, rules.model.sha256),
            ("a tokenizer", hash_file(folder / "tokenizer.json"), rules.model.tokenizer_sha256),
        ):
            if found != named:
                if self._is_given(rules):  # so that another start fetches it anew
                    shutil.rmtree(folder)
                    shutil.rmtree(name)
                raise FederationError(
                    f"{name} has {what} with the SHA-256 {found[:16]}..., the federation's have {named[:16]}...; give "
                    "the right directory with --model."
                )
        return folder

    def _is_given(self, rules: SiteRules) -> bool:
        """Whether the link gives the base model."""
        return self._settings.model is None and rules.model.port is not None

    def _model_name(self, rules: SiteRules) -> str:
        """What `prepare_model` makes the model of: what the operator gave, what the link gives, or a known name."""
        if not self._is_given(rules):
            return self._settings.model or rules.model.name
        folder = self._layout.models / f"link--{rules.model.sha256[:16]}"
        if not (folder / "complete").is_file():
            self._tell(f"fetching the base model {rules.model.name} from the link, once")
            address = f"{self._settings.link.rpartition(':')[0]}:{rules.model.port}"
            self._ledger.fetch(f"https://{address}")
            fetch_model(address, self._settings.certs / CA, folder)
            (folder / "complete").touch()
        return str(folder)

    def _reading(self, rules: SiteRules) -> Reading:
        settings = self._settings
        return Reading(settings.logs, settings.dataset, rules.window, rules.mask, rules.tokens, rules.split)

    def expect(self, kind: str, config: Mapping[str, Any], *, last: bool = False) -> None:
        """Raise NotAgreed where a request of this kind is not what the rules have at this point."""
        from fl.site_app import NotAgreed

        member = self._member
        given = {name: value for name, value in config.items() if name not in _FREE}
        if wrong := differing(given, member.expected):
            raise NotAgreed(f"The link asks for other {', '.join(wrong)} than the rules say; nothing was done.")
        rate, number = float(config.get("learning-rate", 0.0)), int(config.get("round", 0))
        if not member.rules.ask(kind, number, rate, site=member.number, last=last):
            raise NotAgreed(
                f"The link asks number {member.number} for {kind} in round {number} at a rate of {rate:g}"
                f"{' as the last' if last else ''}, which is not in the rules; nothing was done."
            )
        if not member.rules.privacy.allows(config.get("clipping-norm")):
            raise NotAgreed("The link asks for another clipping norm than the rules say; nothing was done.")

    def training_on(self, config: Mapping[str, Any], received: "Arrays") -> None:
        """Note that a round is trained; raise NotAgreed where the site's own noise would be averaged away by it."""
        from fl.adapter_files import adapter_hash
        from fl.site_app import NotAgreed
        from storage.noise_keys import noise_key
        from storage.residuals import residual_folder

        member, number = self._member, int(config["round"])
        privacy = member.rules.privacy
        if privacy.noise != "local" or privacy.noise_source == "seed":
            return
        folder = residual_folder(self._residuals, member.rules.run_id, member.number)
        if is_answered_as_another(folder):
            raise NotAgreed(
                f"The site answered this run under another number than {member.number}: other draws and other noise "
                "would tell more than was accounted for; nothing was done."
            )
        answered = answered_rounds(folder)
        asked = f"{json.dumps(dict(config), sort_keys=True)} {adapter_hash(received)}"
        request = hashlib.sha256(asked.encode()).hexdigest()
        if answered.get(number, request) != request:
            raise NotAgreed(
                f"The link asks for round {number} again, but not for the same: two answers with noise of their own "
                "tell more than one; nothing was done."
            )
        noise_key(folder, is_begun=bool(answered))
        keep_answered_rounds(folder, answered | {number: request})

    def sends(self, kind: str, number: int) -> "Arrays":
        """Arrays of the names, shapes and types that a reply of this kind holds in a round."""
        from fl.codecs import Codec
        from fl.declared import ADAPTER, TRAIN
        from fl.exchange import Exchange

        if kind not in {ADAPTER, TRAIN}:
            return {}
        rules, adapter = self._member.rules, self._member.adapter
        if kind == ADAPTER:
            return adapter
        trained = frozenset(name for name in adapter if rules.tuning.trains(name, number))
        return Exchange(adapter, {}, trained, rules.federation.uplink, Codec("none")).expected

    @property
    def _residuals(self) -> Path:
        return self.folder / "residuals"

    def node_config(self) -> dict[str, str | int]:
        """The client's settings."""
        if self._membership is None:
            return {}
        member, settings = self._membership, self._settings
        found: dict[str, str | int] = {
            "partition-id": member.number,
            "shares-folder": str(member.windows.file("shares")),
            "model-folder": str(member.model_folder),
            "state-folder": str(self._residuals),
            "device": settings.device,
        }
        return found if settings.threads is None else {**found, "threads": settings.threads}

    def judge(self, config: Mapping[str, Any], adapter: "Arrays", *, last: bool) -> Mapping[str, float]:
        """Judge an adapter on the site's windows; with the last one write the detector and the alerts."""
        from fl.client_app import forget_model, model_with, site_from

        member, number = self._member, int(config["round"])
        loaded, model = model_with(site_from(self.node_config()), dict(config), adapter)
        rules = member.rules
        judging = Judging(rules.score, rules.k, rules.false_alarm_rate, rules.threshold_rule)
        judged = judge_windows(model, loaded, member.windows, judging)
        self.outcome.rounds = number
        alerts = -1
        if last:
            forget_model()
            alerts = self._alerts(adapter, number, judged_by=judging, judged=judged)
        return judged.numbers(member.number, alerts)

    def finish(self) -> None:
        """The federation is over: the link has what it wants."""
        self.finished = True

    def _alerts(self, adapter: "Arrays", number: int, judged_by: Judging, judged: Any) -> int:  # noqa: ANN401
        from safetensors.numpy import save

        from fl.adapter_files import adapter_hash

        member, settings = self._member, self._settings
        rules, reading = member.rules, self._reading(member.rules)
        facts = {
            "run_id": f"{rules.preset} at {settings.link}",
            "round": number,
            "adapter_hash": adapter_hash(adapter),
            "model": {
                "name": self._model_name(rules),
                "sha256": rules.model.sha256,
                "quantization": rules.model.quantization,
            },
            "seed": rules.federation.seed,
        }
        spec = site_spec(reading)
        detector = write_detector(
            self.folder / "detector",
            save({name: adapter[name] for name in sorted(adapter)}),
            facts,
            judged,
            member.windows,
            reading,
            spec,
            rules.tuning,
            judged_by,
        )
        output = settings.output or self.folder / "alerts.jsonl"
        found = write_alerts(detector, list(settings.watch) or [settings.logs], output)
        self.outcome.alerts, self.outcome.output = found.alerts, output
        return found.alerts


_FREE = ("round", "learning-rate", "residual-of", "clipping-norm")
"""What a request may choose within the rules."""


def _expected(rules: SiteRules) -> dict[str, Any]:
    """What every request of these rules has, as the server itself puts it."""
    from fl.server_app import round_config

    record = round_config(rules.job(rules.run_id, Path()), 1, 0.0)
    return {name: value for name, value in record.items() if name not in _FREE}


def _empty_adapter(model_folder: Path, rules: SiteRules) -> "Arrays":
    """An adapter of these rules without values; raises ModelError for a folder without a usable config.json."""
    import numpy as np

    from fl.costs import adapter_shapes, model_config

    shapes = adapter_shapes(model_config(model_folder), rules.tuning)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def site_folder(name: str, layout: Layout) -> Path:
    """Where a site keeps its consent, ledger, residuals, detector and alerts."""
    return layout.home / "sites" / name
