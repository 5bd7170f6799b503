"""On a GPU, a long list of experiments with the learning core: `python -m benchmarks.gpu_experiments FOLDER ...`.

`--windows FILE.npz` is made by benchmarks.gpu_experiment_windows, `--models FOLDER` holds prepared models. Experiments
(benchmarks/experiment_plan.py) run in order of value; each result is written when it is there, and the same command
goes on after those that FOLDER holds. No new one starts after `--minutes`.

FOLDER/experiments.jsonl: a line an experiment. FOLDER/scores.npz: for each experiment and log judged the distinct
windows' numbers and all their scores. FOLDER/surprises.npz and FOLDER/<experiment>.safetensors, for experiments that
keep them: each token's log-probability and rank in the distinct windows, and the adapter.
"""

import argparse
import json
import math
import shutil
import sys
import time
import warnings
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core_federation import CoreFederation
from benchmarks.experiment_data import Corpus, load_corpora, random_corpus
from benchmarks.experiment_judging import judge, rounded, spread
from benchmarks.experiment_plan import Experiment, Test, plan
from benchmarks.gpu_models import given_model, given_options, keep, options, timed
from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays, read_adapter, save_adapter
from fl.devices import machine
from fl.model import LoadedModel
from fl.scoring import KS, TokenScores, score_columns, score_tokens


class Results:
    """What is known so far, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "experiments.jsonl"
        known = self._lines.read_text().splitlines() if self._lines.is_file() else []
        self.done = {row["name"] for row in map(json.loads, known) if "failed" not in row}

    def adapter(self, name: str) -> Path:
        """Where a kept adapter lies."""
        return self.folder / f"{name.replace(' ', '-')}.safetensors"

    def add(self, figures: dict[str, Any]) -> None:
        """Write an experiment's line."""
        with self._lines.open("a") as file:
            file.write(json.dumps(figures) + "\n")

    def add_scores(self, name: str, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Keep the scores of some distinct windows."""
        values = np.stack(list(columns.values()), axis=1).astype(np.float32)
        arrays = {"rows": rows.astype(np.uint16), "values": values, "columns": np.array(list(columns))}
        _append(self.folder / "scores.npz", {f"{name}.{key}": array for key, array in arrays.items()})

    def add_surprises(self, name: str, rows: np.ndarray, tokens: TokenScores, *, ranks: bool) -> None:
        """Keep how each token was predicted."""
        arrays = {
            "rows": rows.astype(np.uint16),
            "lengths": np.array([len(window) for window in tokens.ranks], np.uint16),
            "log_probabilities": np.concatenate(tokens.log_probabilities).astype(np.float16),
        }
        if ranks:
            arrays["ranks"] = np.minimum(np.concatenate(tokens.ranks), 65535).astype(np.uint16)
        _append(self.folder / "surprises.npz", {f"{name}.{key}": array for key, array in arrays.items()})


def _append(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Put arrays into an npz file, beside those that are there; an array of a known name takes the place of that."""
    part = path.with_suffix(".part")
    if path.is_file():
        shutil.copyfile(path, part)
    with warnings.catch_warnings(), zipfile.ZipFile(part, "a", zipfile.ZIP_DEFLATED) as archive:
        warnings.filterwarnings("ignore", "Duplicate name")
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    part.replace(path)


class Laboratory:
    """Carries out experiments with one base model."""

    def __init__(self, loaded: LoadedModel, corpora: dict[str, Corpus], results: Results) -> None:
        self._loaded, self._corpora, self._results = loaded, corpora, results

    def carry_out(self, experiment: Experiment) -> dict[str, Any]:
        """Train, score and judge; tells what came of it."""
        model, facts = self._model(experiment)
        tests: dict[str, Any] = {}
        seconds = 0.0
        for corpus in dict.fromkeys(test.corpus for test in experiment.judged):
            mine = [test for test in experiment.judged if test.corpus == corpus]
            columns, scored = timed(self._loaded.device, lambda: self._scores(model, experiment, mine))  # noqa: B023
            seconds += scored["seconds"]
            for test in mine:
                tests[test.name] = judge(self._corpora[corpus], test, columns, experiment.federation.seed)
        return facts | {"score_seconds": round(seconds, 2), "tests": tests}

    def _model(self, experiment: Experiment) -> tuple[Any, dict[str, Any]]:
        """The experiment's model, and what training it told; its adapter is kept where that is asked for."""
        loaded, seed = self._loaded, experiment.federation.seed
        if experiment.adapter_of is not None:
            model = attach_adapter(loaded, experiment.tuning, seed)
            load_adapter_arrays(model, read_adapter(self._results.adapter(experiment.adapter_of)))
            return model, {}
        if experiment.federation.rounds == 0:
            return attach_adapter(loaded, experiment.tuning, seed), {}
        shares = self._corpora[experiment.corpus].shares(experiment.split, experiment.partition)
        if experiment.only is not None:
            shares = [shares[experiment.only]]
        core = CoreFederation(loaded, shares, experiment.tuning, experiment.training, experiment.federation)
        trained = core.train()
        if experiment.keep:
            save_adapter(self._results.adapter(experiment.name), adapter_arrays(core.model), {})
        facts = {
            "losses": [rounded(loss) for loss in trained.losses],
            "bytes_up": round(trained.bytes_up),
            "bytes_down": round(trained.bytes_down),
            "shares": sorted(len(share) for share in shares),
            **{name: getattr(trained, name) for name in ("steps", "windows", "tokens", "computed_tokens")},
            "train_seconds": round(trained.seconds, 2),
        }
        return core.model, facts

    def _scores(self, model: Any, experiment: Experiment, tests: list[Test]) -> dict[str, np.ndarray]:  # noqa: ANN401
        """The scores of all distinct windows that the tests judge, as columns over the log's distinct windows."""
        corpus = self._corpora[tests[0].corpus]
        if experiment.keep:
            rows = np.unique(np.concatenate([corpus.orders[test.order] for test in tests]))
        else:
            rows = np.unique(np.concatenate([corpus.judged(test.split, test.order) for test in tests]))
        token_ids, starts = ([part[row] for row in rows] for part in (corpus.token_ids, corpus.message_starts))
        tokens = score_tokens(model, self._loaded, token_ids, max(KS))
        columns = score_columns(token_ids, starts, tokens, KS, unaligned=experiment.keep)
        name = f"{experiment.name}, {tests[0].corpus}"
        self._results.add_scores(name, rows, columns)
        if experiment.keep or experiment.tests:
            self._results.add_surprises(name, rows, tokens, ranks=experiment.keep)
        return spread(corpus, rows, columns)


def told(figures: dict[str, Any]) -> str:
    """One line on an experiment."""
    if "failed" in figures:
        return f"{figures['name']}: failed, {figures['failed']}"
    first = next(iter(figures["tests"].values()))
    score = first["scores"]["all"]["mean_token"]
    best = max(first["rules"].items(), key=lambda rule: rule[1]["f1"] or 0.0)
    return (
        f"{figures['name']}: {figures['seconds']:.1f} s, loss {(figures.get('losses') or [math.nan])[-1]:.4f}, "
        f"up {figures.get('bytes_up', 0):,} bytes; mean_token AUROC {score['auroc'] or math.nan:.4f}, label-free F1 "
        f"{score['label_free']['f1'] or 0:.3f}; {best[0]} {best[1]['f1'] or 0:.3f}"
    )


def tiny_corpora(experiments: list[Experiment]) -> dict[str, Corpus]:
    """Random windows with all that the experiments ask for."""
    found = {}
    for name in sorted({test.corpus for each in experiments for test in each.judged} | {"hdfs", "bgl"}):
        tests = [test for each in experiments for test in each.judged if test.corpus == name]
        dealt = {f"{each.split}/{each.partition}" for each in experiments if each.corpus == name}
        orders = dict.fromkeys(["as it is", *(test.order for test in tests)])
        found[name] = random_corpus(orders, sorted({"default", *(test.split for test in tests)}), sorted(dealt))
    return found


def in_small(experiment: Experiment) -> Experiment:
    """The same in two short rounds, to see it work."""
    federation = replace(experiment.federation, rounds=min(2, experiment.federation.rounds))
    return replace(experiment, federation=federation, training=replace(experiment.training, steps=1, batch_size=3))


def main() -> int:
    """Carry out what is left; 0 when all is done, 3 when stopped before or when something failed."""
    parser = options(__doc__, weights=True)
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no experiment after so many minutes")
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of the names of experiments; default all")
    parser.add_argument("--list", action="store_true", help="only tell the names of the experiments")
    given = given_options(parser)
    chosen = [each for each in plan() if not given.only or each.name.startswith(tuple(given.only))]
    if given.list:
        print("\n".join(each.name for each in chosen))
        return 0
    return _carry_out_all(given, chosen)


def _carry_out_all(given: argparse.Namespace, chosen: list[Experiment]) -> int:
    began = time.perf_counter()
    results = Results(given.folder)
    if given.tiny:
        chosen = [in_small(each) for each in chosen]
    corpora = tiny_corpora(chosen) if given.tiny else load_corpora(given.windows)
    loaded = given_model(given, given.device)
    keep(given.folder, "machine", {**machine(given.device), **loaded.reasons, "dtype": loaded.dtype})
    print(f"ready after {time.perf_counter() - began:.1f} s", flush=True)
    laboratory = Laboratory(loaded, corpora, results)
    left = [each for each in chosen if each.name not in results.done]
    failed = 0
    for number, experiment in enumerate(left):
        if time.perf_counter() - began > 60 * given.minutes:
            print(f"Stopped with {len(left) - number} experiments left; the same command goes on.", file=sys.stderr)
            return 3
        started = time.perf_counter()
        figures: dict[str, Any] = {"name": experiment.name}
        try:
            figures |= laboratory.carry_out(experiment)
        except Exception as error:  # whatever one experiment raises, the others go on
            figures["failed"] = f"{type(error).__name__}: {str(error)[:300]}"
            failed += 1
        figures |= {"seconds": round(time.perf_counter() - started, 2), "settings": asdict(experiment)}
        results.add(figures)
        print(told(figures), flush=True)
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
