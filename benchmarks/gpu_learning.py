"""On a GPU, the learning core of the preset `paper`: federated LoRA of SmolLM2-135M, scored round by round.

`python -m benchmarks.gpu_learning FOLDER --windows FILE.npz --models FOLDER` trains as the preset does (50 clients, 5 a
round, 50 rounds, 10 steps of 32 windows, the paper's cosine of rates) on the shares of the windows' file, without the
processes of Flower, Ray and Prefect around it, and scores calibration, validation and test windows after each round.

FOLDER/rounds.jsonl has a line a round: time, loss, tokens, and how well the test windows are told apart.
FOLDER/adapter.safetensors is the last round's adapter. The same command goes on after it; `--minutes` ends one in time.
"""

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from benchmarks.gpu_models import given_model, given_options, given_windows, keep, options, timed
from benchmarks.gpu_windows import JUDGED, DealtWindows
from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays
from fl.adapter_files import read_adapter, save_adapter
from fl.averaging import weighted_mean
from fl.devices import machine
from fl.errors import LearningError
from fl.federation import Federation, draw_clients
from fl.hyperparameters import LocalTraining, Tuning, cosine_rate
from fl.local_training import train_locally
from fl.metrics_table import metric_rows
from fl.model import LoadedModel
from fl.scoring import score_sequences

_FALSE_ALARM_RATE = 0.002
_TOLD = ("score", "k", "threshold_kind", "threshold", "f1", "precision", "recall", "false_alarm_rate", "auroc")


class Core:
    """A federation in one process: the model, the shares, and the rounds kept in a folder."""

    def __init__(self, given: argparse.Namespace, dealt: DealtWindows, loaded: LoadedModel) -> None:
        self.folder, self.dealt, self.loaded = given.folder, dealt, loaded
        self.training = LocalTraining(steps=2, batch_size=4) if given.tiny else LocalTraining()
        rounds = given.rounds or (3 if given.tiny else Federation().rounds)
        self.federation = Federation(rounds=rounds, clients=dealt.clients, fraction=0.5 if given.tiny else 0.1)
        self.model: Any = attach_adapter(loaded, Tuning(), self.federation.seed)
        decides = (loaded.model_hash, dealt.log.log, len(dealt.log.order), self.training, self.federation)
        self.job = hashlib.blake2b(repr(decides).encode(), digest_size=8).hexdigest()
        self.lines = self._continued()

    @property
    def done(self) -> int:
        """The last round that is kept; -1 before the untouched model is scored."""
        return len(self.lines) - 1

    def _continued(self) -> list[str]:
        """The kept rounds' lines, up to that of the kept adapter, which is put into the model."""
        if not (path := self._adapter).is_file():
            return []
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata()
        if facts["job"] != self.job:
            raise LearningError(
                f"{self.folder} holds rounds of another model, log or federation; name an empty folder."
            )
        last = int(facts["round"])
        load_adapter_arrays(self.model, read_adapter(path))
        return self._rounds.read_text().splitlines()[: last + 1]

    @property
    def _adapter(self) -> Path:
        return self.folder / "adapter.safetensors"

    @property
    def _rounds(self) -> Path:
        return self.folder / "rounds.jsonl"

    def round(self, number: int) -> dict[str, Any]:
        """Train and score round `number` (0: score only), keep both, and tell what came of it."""
        trained = self._train(number) if number else {}
        columns, scored = timed(self.loaded.device, self._scores)
        figures = {
            "round": number,
            **trained,
            "score_seconds": round(scored["seconds"], 3),
            "peak_memory_mb": scored.get("peak_memory_mb"),
            "test": self._judged(columns),
        }
        self.lines.append(json.dumps(figures))
        facts = {"round": str(number), "job": self.job}
        # The lines first: what is beyond the adapter's round is left out when the job goes on.
        for path, write in (
            (self._rounds, lambda part: part.write_text("\n".join(self.lines) + "\n")),
            (self._adapter, lambda part: save_adapter(part, adapter_arrays(self.model), facts)),
        ):
            part = path.with_suffix(".part")
            write(part)
            part.replace(path)
        return figures

    def _train(self, number: int) -> dict[str, Any]:
        """One round of FedAvg; afterwards the model holds the mean."""
        start = adapter_arrays(self.model)
        config, federation = self.training, self.federation
        rate = cosine_rate(number, federation.rounds, config.learning_rate_max, config.learning_rate_min)
        updates, results = [], []
        started = time.perf_counter()
        for partition in draw_clients(federation, number):
            load_adapter_arrays(self.model, start)
            seed = (federation.seed, number, partition)
            share = self.dealt.share(partition)
            results.append(train_locally(self.model, self.loaded, share, config, rate, seed))
            updates.append(adapter_arrays(self.model))
        examples = [result.examples for result in results]
        load_adapter_arrays(self.model, weighted_mean(updates, examples))
        return {
            "train_seconds": round(time.perf_counter() - started, 3),
            "learning_rate": rate,
            "loss": float(np.average([result.loss for result in results], weights=examples)),
            "tokens": sum(result.tokens for result in results),
            "computed_tokens": sum(result.computed_tokens for result in results),
            "train_peak_memory_mb": max(result.peak_memory_mb for result in results),
        }

    def _scores(self) -> dict[str, np.ndarray]:
        """Every score of the distinct windows that are judged; NaN for the others."""
        numbers, log = self.dealt.distinct(*JUDGED), self.dealt.log
        tokens, starts = ([part[number] for number in numbers] for part in (log.token_ids, log.message_starts))
        columns = {}
        for name, values in score_sequences(self.model, self.loaded, tokens, starts).items():
            columns[name] = np.full(len(log.token_ids), np.nan)
            columns[name][numbers] = values
        return columns

    def _judged(self, columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """How well each score and threshold does on all test windows."""
        rows = metric_rows(self.dealt.judged(), {0: columns}, _FALSE_ALARM_RATE, self.federation.seed)
        return [
            {name: row[name] for name in _TOLD}
            for row in rows
            if (row["split"], row["population"]) == ("test", "all") and row["score"] != "unaligned"
        ]


def told(figures: dict[str, Any]) -> str:
    """One line on a round: the loss, the best F1 there could be, and what the default score reaches."""
    best = max(figures["test"], key=lambda row: row["f1"] or 0.0)
    default = {row["threshold_kind"]: row for row in figures["test"] if row["score"] == "max_token"}
    return (
        f"round {figures['round']}: loss {figures.get('loss', math.nan):.4f}, "
        f"train {figures.get('train_seconds', 0):.1f} s, score {figures['score_seconds']:.1f} s, best F1 "
        f"{best['f1'] or math.nan:.3f} ({best['score']} {best['k'] or ''} {best['threshold_kind']}), max_token AUROC "
        f"{default['label_free']['auroc'] or math.nan:.3f}, label-free F1 {default['label_free']['f1'] or 0.0:.3f}"
    )


def main() -> int:
    """Train and score what is left; 0 when all rounds are done, 3 when stopped before."""
    parser = options(__doc__, weights=True)
    parser.add_argument("--rounds", type=int, help="rounds in all; default the preset's 50")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no round after so many minutes")
    parser.add_argument("--stop-after", type=int, default=sys.maxsize, help="begin no round after this one")
    given = given_options(parser)
    started = time.perf_counter()
    try:
        core = Core(given, given_windows(given), given_model(given, given.device))
    except LearningError as error:
        print(error, file=sys.stderr)
        return 2
    keep(
        given.folder, "learning", {"machine": machine(given.device), **core.loaded.reasons, "dtype": core.loaded.dtype}
    )
    while core.done < core.federation.rounds:
        if core.done >= given.stop_after or time.perf_counter() - started > 60 * given.minutes:
            print(f"Stopped after round {core.done}; the same command goes on.", file=sys.stderr)
            return 3
        print(told(core.round(core.done + 1)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
