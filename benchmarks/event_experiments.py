"""Learned baselines where logs change, are few or are contaminated: `python -m benchmarks.event_experiments FILE.npz`.

FILE.npz is that of benchmarks.gpu_experiment_windows; the windows, shares and changes are those of the language model.
Clients, draws and rounds are the preset's (8 clients, 2 a round, 20 rounds of 20 steps). One JSON line a training.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.experiment_data import AS_IT_IS, Corpus, load_corpora
from benchmarks.experiment_judging import FALSE_ALARM_RATE, rounded
from benchmarks.experiment_plan import CHANGES, CONTAMINATIONS, FEW
from fl.baseline_comparison import baseline_rows
from fl.event_federation import Window, train_baseline
from fl.event_settings import EventBaselines, Method
from fl.federation import Federation
from tasks.train_event_models import END_OF_WINDOW

FEDERATION = Federation(clients=8, fraction=0.25)
SPLITS = ("default", *(f"few-{count}" for count in FEW), *(f"contaminated-{share}" for share in CONTAMINATIONS))
_FIELDS = ("auroc", "average_precision", "f1", "precision", "recall", "false_alarm_rate")


def trained_and_judged(corpus: Corpus, split: str, method: Method, baselines: EventBaselines) -> dict[str, Any]:
    """Train a method on a split's shares, and judge it on its test windows, changed ones too for the default split."""
    started = time.process_time()
    shares = [[_events(window, baselines) for window in share] for share in corpus.message_shares(split, "iid 8")]
    trained = train_baseline(method, shares, baselines, FEDERATION)
    seconds = time.process_time() - started
    orders = (AS_IT_IS, *CHANGES) if split == "default" else (AS_IT_IS,)
    needed = np.unique(np.concatenate([corpus.judged(split, order) for order in orders]))
    found = trained.scores([_events(corpus.message_ids[number], baselines) for number in needed], FEDERATION.seed)
    columns = {name: np.full(len(corpus.token_ids), np.nan) for name in found}
    for name, values in found.items():
        columns[name][needed] = values
    return {
        "method": method,
        "split": split,
        "end": baselines.baseline_end,
        "train_cpu_seconds": round(seconds, 1),
        "trained_windows": trained.windows,
        "tests": {order: dict(_judged(corpus, split, order, method, columns)) for order in orders},
    }


def _events(window: np.ndarray, baselines: EventBaselines) -> Window:
    end = [END_OF_WINDOW] if baselines.baseline_end else []
    return np.array([*window.tolist(), *end], dtype=np.uint32)


def _judged(
    corpus: Corpus, split: str, order: str, method: Method, columns: dict[str, np.ndarray]
) -> Iterator[tuple[str, Any]]:
    """Each score's figures at each threshold, over all test windows."""
    windows = corpus.windows(split, order)
    # Windows that only training holds are not scored: they take part in no figure, and any number will do.
    values = {f"{method}.{name}": np.nan_to_num(column[windows.sequence]) for name, column in columns.items()}
    rows = baseline_rows(windows, values, FALSE_ALARM_RATE, FEDERATION.seed)
    for name in columns:
        mine = [row for row in rows if row["score"] == name and row["population"] == "all"]
        yield name, {row["threshold_kind"]: {field: rounded(row[field]) for field in _FIELDS} for row in mine}


def main() -> None:
    """Train what is asked for, one after the other; lines go to standard output as they come."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("windows", type=Path, help="file of benchmarks.gpu_experiment_windows")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--methods", nargs="+", choices=get_args(Method), default=get_args(Method))
    parser.add_argument("--end", action="store_true", help="let a window's end be one more event")
    given = parser.parse_args()
    corpus = load_corpora(given.windows)["hdfs"]
    for split in given.splits:
        for method in given.methods:
            baselines = EventBaselines((method,), baseline_end=given.end)
            print(json.dumps(trained_and_judged(corpus, split, method, baselines)), flush=True)


if __name__ == "__main__":
    main()
