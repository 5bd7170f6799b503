"""The reference's own code (GabrielTalasso/FL-LLM-AD), run from a checkout: nothing of it is kept here.

Only its inputs are adapted: its scripts find the log where they look for it (`../.dataset/hdfs`), and its evaluation
function gets a model and a tokenizer that are loaded already.
"""

import contextlib
import importlib.util
import io
import os
import runpy
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Accuracies = Mapping[str, list[float]]
SCRIPTS = ("session_window.py", "preprocess_dataset.py")
"""Parsing and session windows, then masks."""
_DATA = Path(".dataset") / "hdfs"


def evaluation(checkout: Path) -> Callable[[dict[str, list[str]], Any, Any], Accuracies]:
    """Its `next_token_top_k(data, model, tokenizer)`; the module reads its command line on import."""
    arguments = sys.argv
    sys.argv = ["federated_evaluation.py", "--sim_name", "benchmark"]
    try:
        spec = importlib.util.spec_from_file_location("federated_evaluation", checkout / "federated_evaluation.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"{checkout} holds no federated_evaluation.py")
        module = importlib.util.module_from_spec(spec)
        with warnings.catch_warnings():
            spec.loader.exec_module(module)
    finally:
        sys.argv = arguments
    evaluate: Callable[[dict[str, list[str]], Any, Any], Accuracies] = module.next_token_top_k
    return evaluate


def prepare(checkout: Path, place: Path) -> dict[str, float]:
    """Run its scripts for HDFS on the log in `place`/.dataset/hdfs; seconds of each, its imports not counted.

    Call it in a process of its own: it changes the working directory and the import path.
    """
    import pandas  # noqa: F401 (imported before the clock starts)
    import tqdm  # type: ignore[import-untyped]  # noqa: F401

    scripts = checkout.resolve() / "dataset"
    sys.path.insert(0, str(scripts))
    work = place / "dataset"
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(work)
    seconds = {}
    for name in SCRIPTS:
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            runpy.run_path(str(scripts / name), run_name="__main__")
        seconds[name] = time.perf_counter() - started
    return seconds


def data_folder(place: Path) -> Path:
    """Where its scripts look for the log when they run in `place`."""
    folder = place / _DATA
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepared_texts(place: Path) -> dict[str, str]:
    """The masked text of each block as its scripts left it."""
    import pandas

    tables = [pandas.read_csv(place / _DATA / name) for name in ("train.csv", "test.csv")]
    return dict(pandas.concat(tables)[["BlockId", "Content"]].itertuples(index=False))
