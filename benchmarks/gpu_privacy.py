"""On a GPU: what privacy and hostile sites cost the detector, and what an adapter gives away.

`python -m benchmarks.gpu_privacy FOLDER --windows FILE.npz --models FOLDER` trains small federations in one process:

- `quality`: 50 clients, 5 a round, with more and more central noise on clipped updates;
- `poisoned`: 8 clients of which 0, 1 or 2 flip the sign of their update, send it a thousandfold, or train on random
  tokens, for each way to combine;
- `audit`: 8 clients, one of them with canaries; membership inference against the adapter, with and without noise.

FOLDER/privacy.jsonl gets a line as an experiment ends; the same command goes on after the last. `--minutes` begins no
experiment after so many. The most telling experiments come first. `python -m benchmarks.privacy_tables FOLDER` adds the
epsilons, where dp-accounting is installed, and makes tables of it.

`--small` takes fewer clients and steps, for two cores and the windows of `python -m benchmarks.gpu_windows FILE.npz
ARCHIVE --clients 8 --first 1500 --max-tokens 256`.
"""

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.gpu_audit import Audit, attacks, audit_windows, surprises
from benchmarks.gpu_models import given_model, given_options, given_windows, keep, options
from benchmarks.gpu_windows import JUDGED, DealtWindows
from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays
from fl.averaging import weighted_mean
from fl.devices import machine
from fl.errors import LearningError
from fl.federation import Federation, draw_clients
from fl.hyperparameters import LocalTraining, Tuning, cosine_rate
from fl.local_training import train_locally
from fl.metrics_table import metric_rows
from fl.model import LoadedModel
from fl.noise import seed_key
from fl.privacy import NO_PRIVACY, Privacy, PrivateMean
from fl.robust import coordinate_median, geometric_median, multikrum, trimmed_mean
from fl.scoring import score_sequences
from fl.update_norms import shortened, update_norm, update_of

Arrays = dict[str, np.ndarray]
Combination = Literal["fedavg", "norm_bound", "fedmedian", "fedtrimmedavg", "krum", "multikrum", "geomedian"]
Attack = Literal["none", "flip", "thousandfold", "garbage"]
LINES = "privacy.jsonl"
_TOLD = ("score", "threshold_kind", "f1", "precision", "recall", "false_alarm_rate", "auroc", "average_precision")
_SCORES = ("mean_token", "max_token")


_LORA = Tuning()


@dataclass(frozen=True)
class Experiment:
    """One federation, from the untrained adapter to its last round."""

    name: str
    clients: int
    drawn: int
    rounds: int
    training: LocalTraining
    tuning: Tuning = _LORA
    privacy: Privacy = NO_PRIVACY
    combination: Combination = "fedavg"
    attack: Attack = "none"
    hostile: int = 0
    """The first so many clients attack."""
    audited: bool = False

    @property
    def federation(self) -> Federation:
        """Who is drawn when."""
        return Federation(rounds=self.rounds, clients=self.clients, fraction=self.drawn / self.clients)


Size = Literal["whole", "small", "tiny"]
"""For a GPU, for two cores, and to see it work."""


def experiments(size: Size) -> Iterator[Experiment]:
    """All experiments, the most telling first."""
    quality, poisoned, audit = _quality(size), _poisoned(size), _audit(size)
    yield from quality[:4]
    yield from poisoned[:10]
    yield from audit[:2]
    yield from quality[4:]
    yield from audit[2:]
    yield from poisoned[10:]


def _central(multiplier: float) -> Privacy:
    # The notebook's clipping norm; noise by a seed, to be repeated.
    return Privacy("central", multiplier, clipping_norm=0.5, noise_source="seed") if multiplier >= 0 else NO_PRIVACY


def _training(steps: int, batch_size: int, lowest_rate: float) -> LocalTraining:
    return LocalTraining(steps, batch_size, learning_rate_max=5e-3, learning_rate_min=lowest_rate)


_LEAST = LocalTraining(steps=1, batch_size=4)


def _quality(chosen: Size) -> list[Experiment]:
    sizes: dict[Size, dict[str, Any]] = {
        "whole": {"clients": 50, "drawn": 5, "rounds": 20, "training": _training(2, 16, 5e-4)},
        "small": {"clients": 8, "drawn": 4, "rounds": 4, "training": _training(2, 4, 1e-3)},
        "tiny": {"clients": 4, "drawn": 2, "rounds": 2, "training": _LEAST},
    }
    size = sizes[chosen]
    everyone = size | {"drawn": size["clients"], "rounds": size["rounds"] // 2, "tuning": Tuning(kind="ffa", rank=2)}
    multipliers = (-1.0, 0.02, 0.1, 0.5, 0.0, 1.0, 0.05, 0.2)
    return [
        Experiment(f"quality {_noise_name(multiplier)}", privacy=_central(multiplier), **size)
        for multiplier in multipliers
    ] + [
        Experiment(f"quality ffa {_noise_name(multiplier)}", privacy=_central(multiplier), **everyone)
        for multiplier in (-1.0, 1.0, 0.2)
    ]


def _noise_name(multiplier: float) -> str:
    return "plain" if multiplier < 0 else f"z={multiplier:g}"


def _poisoned(chosen: Size) -> list[Experiment]:
    sizes: dict[Size, dict[str, Any]] = {
        "whole": {"clients": 8, "drawn": 8, "rounds": 4, "training": _training(3, 16, 1e-3)},
        "small": {"clients": 8, "drawn": 8, "rounds": 3, "training": _training(2, 4, 1e-3)},
        "tiny": {"clients": 5, "drawn": 5, "rounds": 2, "training": _LEAST},
    }
    combinations: tuple[Combination, ...] = ("fedavg", "norm_bound", "fedmedian", "multikrum", "fedtrimmedavg")
    rest: tuple[Combination, ...] = ("geomedian", "krum")
    cases: list[tuple[Combination, Attack, int]] = [("fedavg", "none", 0)]
    cases += [(combination, "thousandfold", 2) for combination in combinations]
    cases += [(combination, "flip", 2) for combination in combinations]
    cases += [(combination, "none", 0) for combination in combinations[1:]]
    cases += [(combination, "garbage", 2) for combination in combinations]
    cases += [(combination, attack, 2) for combination in rest for attack in _ATTACKS]
    cases += [(combination, "none", 0) for combination in rest]
    cases += [(combination, attack, 1) for attack in _ATTACKS for combination in (*combinations, *rest)]
    return [
        Experiment(f"poisoned {how} {attack} {count}", combination=how, attack=attack, hostile=count, **sizes[chosen])
        for how, attack, count in cases
    ]


_ATTACKS: tuple[Attack, ...] = ("thousandfold", "flip", "garbage")


def _audit(chosen: Size) -> list[Experiment]:
    sizes: dict[Size, dict[str, Any]] = {
        "whole": {"clients": 8, "drawn": 8, "rounds": 8, "training": _training(2, 32, 1e-3)},
        "small": {"clients": 4, "drawn": 4, "rounds": 6, "training": _training(2, 8, 1e-3)},
        "tiny": {"clients": 2, "drawn": 2, "rounds": 2, "training": _LEAST},
    }
    return [
        Experiment(f"audit {_noise_name(multiplier)}", privacy=_central(multiplier), audited=True, **sizes[chosen])
        for multiplier in (-1.0, 0.1, 0.02, 1.0)
    ]


@dataclass
class Trials:
    """The model, the windows, and the lines of the experiments that are done."""

    folder: Path
    dealt: DealtWindows
    loaded: LoadedModel
    size: Size
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)
    _before: dict[str, np.ndarray] = field(default_factory=dict)
    _first: dict[tuple[Any, ...], tuple[float, Arrays]] = field(default_factory=dict)
    """Loss and adapter of each client after the first round, which all experiments of a shape have in common."""

    def __post_init__(self) -> None:
        if (path := self.folder / LINES).is_file():
            for line in path.read_text().splitlines():
                figures = json.loads(line)
                self.lines[figures["experiment"]] = figures

    def run(self, experiment: Experiment) -> dict[str, Any]:
        """Train, judge, and keep an experiment; what came of it. One that is kept is not run again."""
        job = self._job(experiment)
        if (kept := self.lines.get(experiment.name)) is not None:
            if kept["job"] != job:
                raise LearningError(f"{self.folder} holds {experiment.name!r} of other values; name an empty folder.")
            return kept
        started = time.perf_counter()
        model = attach_adapter(self.loaded, experiment.tuning, 0)
        before = self._untouched(model) if experiment.audited else {}
        losses, norms, broken = self._train(model, experiment)
        trained = time.perf_counter()
        figures = {
            "experiment": experiment.name,
            "job": job,
            **asdict(experiment),
            "train_seconds": round(trained - started, 2),
            "losses": losses,
            "update_norms": norms,
            "broken": broken,
            "trained_values": sum(array.size for array in adapter_arrays(model).values()),
            **({} if broken else self._judged(model)),
        }
        if experiment.audited and not figures["broken"]:
            figures["attacks"] = attacks(surprises(model, self.loaded, self.audit), before)
        figures["judge_seconds"] = round(time.perf_counter() - trained, 2)
        with (self.folder / LINES).open("a") as file:
            file.write(json.dumps(figures) + "\n")
        self.lines[experiment.name] = figures
        return figures

    def _job(self, experiment: Experiment) -> str:
        decides = (self.loaded.model_hash, self.dealt.log.log, len(self.dealt.log.order), experiment)
        return hashlib.blake2b(repr(decides).encode(), digest_size=8).hexdigest()

    @cached_property
    def audit(self) -> Audit:
        """The audit's shares and windows."""
        sizes: dict[Size, tuple[int, int, int]] = {"whole": (8, 48, 16), "small": (4, 24, 8), "tiny": (2, 8, 2)}
        return audit_windows(self.dealt, *sizes[self.size], self._vocabulary)

    def _untouched(self, model: Any) -> dict[str, np.ndarray]:  # noqa: ANN401
        """The surprises of the audit's windows before any training: the adapter as attached changes nothing."""
        if not self._before:
            self._before = surprises(model, self.loaded, self.audit)
        return self._before

    @property
    def _vocabulary(self) -> int:
        return int(self.loaded.model.config.vocab_size)

    def _shares(self, experiment: Experiment) -> list[list[np.ndarray]]:
        """The file's shares, several of them together where there are fewer clients; hostile ones may have garbage."""
        if experiment.audited:
            return self.audit.shares
        shares: list[list[np.ndarray]] = [[] for _ in range(experiment.clients)]
        for partition in range(self.dealt.clients):
            shares[partition % experiment.clients] += self.dealt.share(partition)
        if experiment.attack == "garbage":
            draw = np.random.default_rng(1)
            for client in range(experiment.hostile):
                shares[client] = [draw.integers(1, self._vocabulary, len(window)) for window in shares[client][:64]]
        return [share or shares[0] for share in shares]  # the tiny log has fewer windows than poisoned clients

    def _train(self, model: Any, experiment: Experiment) -> tuple[list[float], list[float], str]:  # noqa: ANN401
        """Train all rounds, which leaves the last adapter in the model.

        Loss and median norm of the updates by round, and how the federation broke down, if it did.
        """
        shares, config = self._shares(experiment), experiment.training
        current = adapter_arrays(model)
        losses: list[float] = []
        norms: list[float] = []
        for number in range(1, experiment.rounds + 1):
            rate = cosine_rate(number, experiment.rounds, config.learning_rate_max, config.learning_rate_min)
            drawn, told, replies = draw_clients(experiment.federation, number), [], []
            for client in drawn:
                try:
                    loss, sent = self._reply(model, experiment, (number, client), shares[client], current, rate)
                except LearningError as error:
                    return losses, norms, f"round {number}: {error}"
                told.append(loss)
                replies.append(_attacked(sent, current, experiment.attack) if client < experiment.hostile else sent)
            losses.append(round(float(np.mean(told)), 5))
            norms.append(round(float(np.median([update_norm(update_of(reply, current)) for reply in replies])), 5))
            current = self._combined(experiment, number, current, replies, [len(shares[client]) for client in drawn])
        load_adapter_arrays(model, current)
        return losses, norms, ""

    def _reply(
        self,
        model: Any,  # noqa: ANN401
        experiment: Experiment,
        place: tuple[int, int],
        share: list[np.ndarray],
        current: Arrays,
        rate: float,
    ) -> tuple[float, Arrays]:
        """Loss and adapter of a client (`place`: round, client) before an attack; its first round is trained once."""
        number, client = place
        garbage = experiment.attack == "garbage" and client < experiment.hostile
        same = (experiment.training, experiment.tuning, experiment.clients, experiment.audited, garbage, rate, client)
        if number > 1 or same not in self._first:
            load_adapter_arrays(model, current)
            trained = train_locally(model, self.loaded, share, experiment.training, rate, (0, number, client))
            reply = trained.loss, adapter_arrays(model)
            if number > 1:
                return reply
            self._first[same] = reply
        return self._first[same]

    def _combined(
        self, experiment: Experiment, number: int, current: Arrays, replies: Sequence[Arrays], weights: list[int]
    ) -> Arrays:
        """The next adapter."""
        if experiment.privacy.is_on:
            privacy, mean = experiment.privacy, PrivateMean(current, experiment.privacy.clipping_norm)
            for reply in replies:
                mean.add(reply)
            return mean.mean(privacy.noise_multiplier, experiment.drawn, seed_key(0), number)
        malicious = experiment.hostile or 1
        robust: dict[Combination, Callable[[], Arrays]] = {
            "fedmedian": lambda: coordinate_median(replies),
            "fedtrimmedavg": lambda: trimmed_mean(replies, (malicious + 0.5) / len(replies)),
            "krum": lambda: multikrum(replies, weights, malicious, 1),
            "multikrum": lambda: multikrum(replies, weights, malicious, len(replies) - malicious),
            "geomedian": lambda: geometric_median(replies),
        }
        if experiment.combination in robust:
            return robust[experiment.combination]()
        if experiment.combination == "norm_bound":
            replies = [shortened(reply, current, self._usual_norm)[0] for reply in replies]
        return weighted_mean(replies, weights)

    @property
    def _usual_norm(self) -> float:
        """The norm bound: what updates measure in the run without any attack."""
        if (pilot := self.lines.get("poisoned fedavg none 0")) is None:
            raise LearningError("The norm bound comes from 'poisoned fedavg none 0'; run that experiment first.")
        return float(np.median(pilot["update_norms"]))

    def _judged(self, model: Any) -> dict[str, Any]:  # noqa: ANN401
        """The loss on calibration windows, and how well the test windows are told apart."""
        numbers, log = self.dealt.distinct(*JUDGED), self.dealt.log
        tokens, starts = ([part[number] for number in numbers] for part in (log.token_ids, log.message_starts))
        columns = {}
        for name, values in score_sequences(model, self.loaded, tokens, starts).items():
            columns[name] = np.full(len(log.token_ids), np.nan)
            columns[name][numbers] = values
        if not all(np.isfinite(values[numbers]).all() for values in columns.values()):
            return {"broken": "scores that are not finite"}
        calibration = log.order[self.dealt.split == "calibration"]
        loss = columns["loss_sum"][calibration].sum() / columns["loss_tokens"][calibration].sum()
        rows = [
            {name: row[name] for name in _TOLD}
            for row in metric_rows(self.dealt.judged(), {0: columns}, 0.002, 0)
            if (row["split"], row["population"]) == ("test", "all") and row["score"] in _SCORES
        ]
        return {"calibration_loss": round(float(loss), 5), "test": rows}


def _attacked(sent: Arrays, current: Arrays, attack: Attack) -> Arrays:
    """What a hostile client sends instead."""
    factor = {"flip": -1.0, "thousandfold": 1000.0}.get(attack, 1.0)
    changed = update_of(sent, current)
    return {name: (current[name] + factor * change).astype(np.float32) for name, change in changed.items()}


def told(figures: dict[str, Any]) -> str:
    """One line on an experiment."""
    if figures["broken"]:
        return f"{figures['experiment']}: {figures['train_seconds']:.1f} s, broken in {figures['broken']}"
    default = {row["threshold_kind"]: row for row in figures["test"] if row["score"] == "mean_token"}
    f1 = ", ".join(f"{kind} F1 {row['f1'] or math.nan:.3f}" for kind, row in default.items())
    attacked = figures.get("attacks", {})
    found = "".join(f", {name} AUC {one['auc']:.3f}" for name, one in attacked.items())
    return (
        f"{figures['experiment']}: {figures['train_seconds']:.1f} + {figures['judge_seconds']:.1f} s, loss "
        f"{figures['calibration_loss']:.4f}, AUROC {default['label_free']['auroc'] or math.nan:.3f}, {f1}{found}"
    )


def main() -> int:
    """Run what is left; 0 when all experiments are done, 3 when stopped before."""
    parser = options(__doc__, weights=True)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no experiment after so many minutes")
    parser.add_argument("--only", nargs="+", default=[""], help="only experiments whose names begin so")
    parser.add_argument("--small", action="store_true", help="fewer clients and steps, for two cores")
    given = given_options(parser)
    size: Size = "tiny" if given.tiny else "small" if given.small else "whole"
    started = time.perf_counter()
    try:
        loaded = given_model(given, given.device)
        trials = Trials(given.folder, given_windows(given), loaded, size)
        keep(given.folder, "machine", {**machine(given.device), **loaded.reasons, "dtype": loaded.dtype})
        for experiment in experiments(size):
            if not experiment.name.startswith(tuple(given.only)):
                continue
            if time.perf_counter() - started > 60 * given.minutes:
                print(f"Stopped before {experiment.name}; the same command goes on.", file=sys.stderr)
                return 3
            print(told(trials.run(experiment)), flush=True)
    except LearningError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
