"""Recall by kind of failure, as Markdown: `python -m benchmarks.recall_by_kind RESULTS FILE.npz HDFS BGL`.

RESULTS is the folder of benchmarks.gpu_experiments, FILE.npz what that read, HDFS and BGL the archives that it was made
of. BGL's labels name kinds. HDFS's do not: there a window's kind is what sets it apart from the windows that training
and calibration hold. Model and rules judge without labels; nothing is chosen here.
"""

import argparse
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.command_line import model_folder
from benchmarks.experiment_data import AS_IT_IS, Corpus, load_corpora
from benchmarks.experiment_judging import FALSE_ALARM_RATE
from benchmarks.gpu_experiment_windows import CORPORA, read_corpus
from benchmarks.score_research import kept_predictions
from benchmarks.window_scores import kept_surprises, window_scores
from fl.metrics_table import Row, Windows
from fl.misses import misses
from fl.rule_comparison import RuleJudge
from fl.thresholds import Flags, label_free_threshold
from storage.datasets import DatasetConfig
from storage.report_words import code_span

CASES = (("headline", "hdfs"), ("bgl", "bgl"))
"""Experiments whose predictions are kept, and the logs they were trained on."""
_SCORES = {"model, rarity": "rarity", "model, mean surprise": "mean_token"}
_SPLIT = "default"


def detectors(windows: Windows, scores: Mapping[str, np.ndarray]) -> dict[str, Flags]:
    """One flag a window: the model by two scores at the threshold for 0.2 % false alarms, and the simple rules."""
    calibration = windows.split == "calibration"
    flagged: dict[str, Flags] = {}
    for title, name in _SCORES.items():
        values = scores[name][windows.sequence]
        flagged[title] = values > label_free_threshold(values[calibration], FALSE_ALARM_RATE)
    rules = RuleJudge(windows).flags(windows.rows("train"))
    return flagged | {f"rule: {name}": flags for name, flags in rules.items()}


def set_apart(corpus: Corpus, texts: list[str]) -> np.ndarray:
    """In words, for each window of the log, what sets it apart from the normal windows of training and calibration."""
    sequence = corpus.orders[AS_IT_IS]
    learned = np.isin(corpus.split(_SPLIT), ("train", "calibration"))
    known = [corpus.message_ids[number] for number in np.unique(sequence[learned])]
    held = frozenset(np.concatenate(known).tolist())
    shortest = min(map(len, known))
    words = {number: _words(corpus.message_ids[number], held, shortest, texts) for number in np.unique(sequence)}
    return np.array([words[number] for number in sequence], dtype=object)


def _words(window: np.ndarray, held: Set[int], shortest: int, texts: list[str]) -> str:
    unseen = [message for message in window.tolist() if message not in held]
    if unseen:
        return f"{code_span(texts[unseen[0]])}, never seen"
    if len(window) < shortest:
        return f"only known messages, fewer than {shortest}"
    return "only known messages, in other numbers or another order"


def table(kinds: list[Row], names: list[str]) -> list[str]:
    """The recalls as Markdown, the most frequent kind first."""
    lines = [f"| kind | windows | {' | '.join(names)} |", "| --- |" + " ---: |" * (1 + len(names))]
    for row in sorted(kinds, key=lambda each: -each["windows"]):
        recalls = " | ".join(f"{row['recall'][name]:.3f}" for name in names)
        kind = row["kind"].replace("|", r"\|")
        lines.append(f"| {kind} | {row['windows']} | {recalls} |")
    return lines


def report(name: str, corpus: Corpus, scores: Mapping[str, np.ndarray], archive: Path, tokenizer: Path) -> list[str]:
    """A log's recalls as Markdown; `archive` is read again for the kinds and the messages' texts."""
    dataset, rule, _ = CORPORA[name]
    log, texts = read_corpus(DatasetConfig(name=dataset, source=str(archive)), rule, tokenizer)
    named = log["kind"].to_numpy().astype(object) if log["kind"].is_not_null().any() else set_apart(corpus, texts)
    windows = replace(corpus.windows(_SPLIT), kind=named)
    flagged = detectors(windows, scores)
    normal = (windows.split == "test") & (windows.label == 0)
    alarms = [f"{flags[normal].mean():.2%}" for flags in flagged.values()]
    lines = table(misses(windows, flagged)["kinds"], list(flagged))
    return [f"**{name}**", "", *lines, f"| false alarms | {normal.sum()} normal | {' | '.join(alarms)} |", ""]


def main() -> None:
    """Print a table for each log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("windows", type=Path, help="*.npz")
    parser.add_argument("hdfs", type=Path)
    parser.add_argument("bgl", type=Path)
    given = parser.parse_args()
    tokenizer = model_folder(None) / "tokenizer.json"
    kept, corpora = kept_surprises(given.results), load_corpora(given.windows)
    for experiment, name in CASES:
        found = kept_predictions(kept, experiment, name, AS_IT_IS)
        if found is None:
            print(f"{name}: no predictions are kept.\n")
            continue
        scores = window_scores(corpora[name], _SPLIT, AS_IT_IS, found)
        print("\n".join(report(name, corpora[name], scores, getattr(given, name), tokenizer)))


if __name__ == "__main__":
    main()
