"""Scores of windows from how each token was predicted, and from what messages windows hold; higher is more anomalous.

What is usual is learned from training windows (which messages come together) and calibration windows (how surprising
each message is); no score uses a label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np

from benchmarks.experiment_data import AS_IT_IS, Corpus
from fl.rarity import RARITY, rarity, usual_windows
from fl.scoring import message_surprise
from fl.usual_messages import EXCESS, MessageSurprises, message_surprises

Scores = dict[str, np.ndarray]
END = -1
"""Stands for the window's end among messages."""
_PARTS = ("mean_token", "max_excess", "top3_excess", "end_excess", "count_distance")
"""What is combined: one of each sort."""


@dataclass(frozen=True)
class Predicted:
    """How each token of some distinct windows was predicted, by the window's number."""

    surprise: Mapping[int, np.ndarray]
    ranks: Mapping[int, np.ndarray] | None


def kept_surprises(results: Path) -> dict[str, np.ndarray]:
    """The arrays that benchmarks.gpu_experiments kept in `results`, for `predicted`."""
    with np.load(results / "surprises.npz", allow_pickle=False) as file:
        return dict(file)


def predicted(file: Mapping[str, np.ndarray], name: str) -> Predicted:
    """What is kept under the name of an experiment and a log."""
    rows = file[f"{name}.rows"].tolist()
    bounds = np.cumsum(file[f"{name}.lengths"], dtype=np.int64)[:-1]
    logs = np.split(-file[f"{name}.log_probabilities"].astype(np.float64), bounds)
    ranks = np.split(file[f"{name}.ranks"], bounds) if f"{name}.ranks" in file else None
    return Predicted(dict(zip(rows, logs, strict=True)), dict(zip(rows, ranks, strict=True)) if ranks else None)


def window_scores(
    corpus: Corpus, split: str, order: str, found: Predicted, untouched: Predicted | None = None
) -> Scores:
    """Every score as a column over the log's distinct windows, NaN where a window was not scored."""
    table = {number: _row(corpus, number, found) for number in found.surprise}
    calibration = _windows(corpus, split, "calibration", order)
    usual = _usual(corpus, calibration, found)
    for number, row in table.items():
        row |= _excesses(corpus, number, found, usual)
        if untouched is not None and number in untouched.surprise:
            row["gain"] = row["mean_token"] - float(untouched.surprise[number].mean())
    columns = _columns(table, len(corpus.token_ids))
    columns |= _shipped(corpus, found, columns["mean_token"], calibration)
    columns |= _novelty(corpus, _windows(corpus, split, "train", order), list(table))
    return columns | _combined({name: columns[name] for name in _PARTS}, calibration)


def _windows(corpus: Corpus, split: str, part: str, order: str) -> np.ndarray:
    """The distinct windows of a split's part, each as often as it is there."""
    return corpus.orders[order if part == "test" else AS_IT_IS][corpus.split(split) == part]


def _columns(table: Mapping[int, Mapping[str, float]], size: int) -> Scores:
    names = {name: None for row in table.values() for name in row}
    found = {name: np.full(size, np.nan) for name in names}
    for number, row in table.items():
        for name, value in row.items():
            found[name][number] = value
    return found


def _row(corpus: Corpus, number: int, found: Predicted) -> dict[str, float]:
    surprise = found.surprise[number]
    messages = message_surprise(surprise, corpus.message_starts[number])
    largest = np.sort(messages)[::-1]
    row = {
        "mean_token": surprise.mean(),
        "max_token": surprise.max(),
        "q99_token": np.quantile(surprise, 0.99),
        "mean_message": messages.mean(),
        "max_message": messages.max(),
        "top3_message": largest[:3].mean(),
        "sum": surprise.sum(),
        "end": surprise[-1],
    }
    if found.ranks is not None:
        row |= {f"top_{k}": 1 - float((found.ranks[number] < k).mean()) for k in (1, 3, 5, 10)}
    return {name: float(value) for name, value in row.items()}


def _by_message(corpus: Corpus, number: int, found: Predicted) -> list[tuple[int, float]]:
    """Each message of a window with its surprise, and the window's end; windows may be cut off."""
    starts = corpus.message_starts[number]
    surprise = message_surprise(found.surprise[number], starts)
    return list(zip([*corpus.message_ids[number][: len(starts)].tolist(), END], surprise.tolist(), strict=True))


def _usual(corpus: Corpus, calibration: np.ndarray, found: Predicted) -> dict[int, tuple[float, float]]:
    """Mean and standard deviation of each message's surprise in the calibration windows."""
    values: dict[int, list[np.ndarray]] = {}
    for number, times in zip(*np.unique(calibration, return_counts=True), strict=True):
        for message, surprise in _by_message(corpus, int(number), found):
            values.setdefault(message, []).append(np.array([surprise, times]))
    usual = {}
    for message, rows in values.items():
        surprise, times = np.array(rows).T
        mean = float(np.average(surprise, weights=times))
        usual[message] = mean, float(np.sqrt(np.average((surprise - mean) ** 2, weights=times)))
    return usual


def _excesses(
    corpus: Corpus, number: int, found: Predicted, usual: Mapping[int, tuple[float, float]]
) -> dict[str, float]:
    """How far messages are above what is usual of them; of one never calibrated with, all of its surprise."""
    told = _by_message(corpus, number, found)
    over = np.array([surprise - usual.get(message, (0.0, 0.0))[0] for message, surprise in told])
    spread = np.array([usual.get(message, (0.0, 0.0))[1] for message, _ in told])
    largest = np.sort(over)[::-1]
    return {
        "max_excess": float(largest[0]),
        "top3_excess": float(largest[:3].mean()),
        "mean_excess": float(over.mean()),
        "max_z": float((over / (1.0 + spread)).max()),
        "end_excess": float(over[-1]),
    }


def packed_messages(corpus: Corpus, numbers: Sequence[int], found: Predicted) -> MessageSurprises:
    """The messages of some distinct windows as the product takes them; any number but its end's stands for a text."""
    told = [message_surprise(found.surprise[number], corpus.message_starts[number]) for number in numbers]
    texts = [corpus.message_ids[number].astype(np.uint64) + np.uint64(1) for number in numbers]
    return message_surprises(texts, told)


def _shipped(corpus: Corpus, found: Predicted, mean_token: np.ndarray, calibration: np.ndarray) -> Scores:
    """The two scores of the product that need to know what is usual."""
    numbers = sorted(found.surprise)
    packed, times = packed_messages(corpus, numbers, found), np.bincount(calibration, minlength=len(corpus.token_ids))
    shipped = usual_windows(packed, mean_token[numbers], times[numbers]).columns(packed, mean_token[numbers])
    columns = {name: np.full(len(corpus.token_ids), np.nan) for name in shipped}
    for name, values in shipped.items():
        columns[name][numbers] = values
    return {"rarity": columns[RARITY], "max_excess as shipped": columns[EXCESS]}


def _novelty(corpus: Corpus, train: np.ndarray, numbers: Sequence[int]) -> Scores:
    """How far a window's message counts are from the nearest training window's, and how many pairs are new."""
    size = 1 + max(int(window.max()) for window in corpus.message_ids)
    known = np.unique(train)
    vectors = np.unique(np.stack([_counts(corpus, number, size) for number in known]), axis=0)
    pairs = {pair for number in known for pair in pairwise(corpus.message_ids[number].tolist())}
    found = {name: np.full(len(corpus.token_ids), np.nan) for name in ("count_distance", "count_share", "new_pairs")}
    for number in numbers:
        counts = _counts(corpus, number, size)
        distance = float(np.abs(vectors - counts).sum(axis=1).min())
        mine = list(pairwise(corpus.message_ids[number].tolist()))
        found["count_distance"][number] = distance
        found["count_share"][number] = distance / counts.sum()
        found["new_pairs"][number] = sum(pair not in pairs for pair in mine)
    return found


def _counts(corpus: Corpus, number: int, size: int) -> np.ndarray:
    return np.bincount(corpus.message_ids[number], minlength=size)


def _combined(parts: Scores, calibration: np.ndarray) -> Scores:
    """Pairs and triples: Fisher's sum of -log p, and the smallest p, with p by the calibration windows."""
    rare = {name: rarity(values, np.sort(values[calibration])) for name, values in parts.items()}
    found = {}
    for size in (2, 3):
        for names in combinations(rare, size):
            stacked = np.stack([rare[name] for name in names])
            found[f"fisher {'+'.join(names)}"] = stacked.sum(axis=0)
            found[f"rarest {'|'.join(names)}"] = stacked.max(axis=0)
    return found
