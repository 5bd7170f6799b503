"""What the experiments read, in one small file: logs as token ids, with splits, deals and changes of their windows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fl.metrics_table import Windows

SPLITS = ("train", "calibration", "validation", "test", "unused")
AS_IT_IS = "as it is"
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Corpus:
    """A log's distinct windows, and which of them each window of the log is."""

    token_ids: list[np.ndarray]
    message_starts: list[np.ndarray]
    message_ids: list[np.ndarray]
    normal: np.ndarray
    """Whether each window of the log is labelled normal."""
    orders: Arrays
    """By what is changed in the test windows (`AS_IT_IS`: nothing): the distinct window of each window of the log."""
    splits: Arrays
    """By name: the place in SPLITS of each window."""
    partitions: Arrays = field(default_factory=dict)
    """By `<split>/<partition>`: the client of each window, -1 for none."""

    def split(self, name: str) -> np.ndarray:
        """The split of each window, as words."""
        return np.array(SPLITS)[self.splits[name]]

    def shares(self, split: str, partition: str) -> list[list[np.ndarray]]:
        """The token ids of each client's windows."""
        owner, order = self.partitions[f"{split}/{partition}"], self.orders[AS_IT_IS]
        return [[self.token_ids[place] for place in order[owner == client]] for client in range(int(owner.max()) + 1)]

    def message_shares(self, split: str, partition: str) -> list[list[np.ndarray]]:
        """The message ids of each client's windows."""
        owner, order = self.partitions[f"{split}/{partition}"], self.orders[AS_IT_IS]
        return [[self.message_ids[place] for place in order[owner == client]] for client in range(int(owner.max()) + 1)]

    def judged(self, split: str, order: str = AS_IT_IS) -> np.ndarray:
        """The distinct windows that calibration, validation and test hold."""
        return np.unique(self.orders[order][np.isin(self.splits[split], (1, 2, 3))])

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(window) for window in self.message_ids])

    def windows(self, split: str, order: str = AS_IT_IS) -> Windows:
        """The windows as judging takes them."""
        sequence = self.orders[order]
        return Windows(
            sequence=sequence,
            split=self.split(split),
            label=(~self.normal).astype(np.int8),
            message_ids=np.concatenate([self.message_ids[place] for place in sequence]),
            lengths=self._lengths[sequence],
        )


def write_corpora(corpora: Mapping[str, Corpus], path: Path) -> None:
    """Write the logs as compressed arrays."""
    arrays: Arrays = {"corpora": np.array(list(corpora))}
    for name, corpus in corpora.items():
        for part in ("token_ids", "message_starts", "message_ids"):
            ragged = getattr(corpus, part)
            arrays[f"{name}.{part}"] = np.concatenate(ragged).astype(np.uint16)
            arrays[f"{name}.{part}.lengths"] = np.array([len(row) for row in ragged], np.uint16)
        arrays[f"{name}.normal"] = corpus.normal
        for part, kind in (("orders", np.uint16), ("splits", np.uint8), ("partitions", np.int16)):
            named: Arrays = getattr(corpus, part)
            arrays[f"{name}.{part}"] = np.array(list(named))
            arrays[f"{name}.{part}.values"] = np.array(list(named.values()), kind)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_corpora(path: Path) -> dict[str, Corpus]:
    """The logs that `write_corpora` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {str(name): _corpus(file, str(name)) for name in file["corpora"]}


def _corpus(file: Any, name: str) -> Corpus:  # noqa: ANN401 (an open npz)
    ragged = [
        np.split(
            file[f"{name}.{part}"].astype(np.int64), np.cumsum(file[f"{name}.{part}.lengths"], dtype=np.int64)[:-1]
        )
        for part in ("token_ids", "message_starts", "message_ids")
    ]
    tables = []
    for part in ("orders", "splits", "partitions"):
        values = file[f"{name}.{part}.values"].astype(np.int64)
        tables.append({str(key): row for key, row in zip(file[f"{name}.{part}"], values, strict=True)})
    return Corpus(*ragged, file[f"{name}.normal"], *tables)


def random_corpus(orders: Iterable[str], splits: Iterable[str], partitions: Iterable[str], seed: int = 0) -> Corpus:
    """Some hundred windows of made-up messages, with every split, deal and change that is asked for, to see it work."""
    drawn = np.random.default_rng(seed)
    texts = [drawn.integers(1, 500, drawn.integers(3, 9)) for _ in range(12)]
    usual = [drawn.integers(0, 8, drawn.integers(3, 7)) for _ in range(6)]
    messages = [usual[number % 6] if number % 5 else drawn.integers(0, 12, 6) for number in range(60)]
    tokens = [np.concatenate([texts[message] for message in window]) for window in messages]
    starts = [np.cumsum([0, *(len(texts[message]) for message in window[:-1])]) for window in messages]
    plain = np.arange(320) % 60
    normal = plain % 5 > 0
    codes = np.where(normal, drawn.permutation(320) % 4, 2 + drawn.permutation(320) % 2)
    order = {name: np.where((codes == 3) & (name != AS_IT_IS), drawn.permutation(320) % 60, plain) for name in orders}
    trained = np.flatnonzero(codes == 0)
    dealt = {}
    for name in partitions:
        dealt[name] = np.full(320, -1)
        dealt[name][trained] = np.arange(len(trained)) % int(name.split()[-1])
    return Corpus(tokens, starts, messages, normal, order, dict.fromkeys(splits, codes), dealt)
