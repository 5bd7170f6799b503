"""The simple rules on the experiments' windows: `python -m benchmarks.rule_experiments FILE.npz OUT.csv`.

FILE.npz is that of benchmarks.gpu_experiment_windows. Each rule is fitted on the training windows, and again on these
and the calibration windows, which a model without labels needs for its threshold and a rule could learn from. Judged
are the test windows of every split, and those of the default split under every change, with how many of them a change
alters: some changes find next to nothing to change in a log.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.experiment_data import AS_IT_IS, Corpus, load_corpora
from benchmarks.experiment_judging import rules

FITTED_ON = {"train": ("train",), "train and calibration": ("train", "calibration")}
SEED = 0


def judged_rules(name: str, corpus: Corpus) -> Iterator[dict[str, Any]]:
    """A row for each split, change, set of windows to fit on and rule of a log."""
    for split in corpus.splits:
        for order in corpus.orders if split == "default" else (AS_IT_IS,):
            windows = corpus.windows(split, order)
            altered = corpus.orders[order] != corpus.orders[AS_IT_IS]
            place = {"log": name, "split": split, "change": order}
            place |= {"test_windows": int((windows.split == "test").sum())}
            place |= {"altered_windows": int(altered[windows.split == "test"].sum())}
            for told, parts in FITTED_ON.items():
                fitted = {"fitted_on": told, "windows": int(np.isin(windows.split, parts).sum())}
                for rule, rates in rules(windows, SEED, parts).items():
                    yield {**place, **fitted, "rule": rule, **rates}


def main() -> None:
    """Judge the rules on every log of the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("windows", type=Path, help="file of benchmarks.gpu_experiment_windows")
    parser.add_argument("out", type=Path, help="CSV file to write")
    given = parser.parse_args()
    rows = [row for name, corpus in load_corpora(given.windows).items() for row in judged_rules(name, corpus)]
    pl.DataFrame(rows, infer_schema_length=None).write_csv(given.out)


if __name__ == "__main__":
    main()
