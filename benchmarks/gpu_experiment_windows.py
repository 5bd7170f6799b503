"""The windows of benchmarks.gpu_experiments: `python -m benchmarks.gpu_experiment_windows FILE.npz HDFS BGL`.

HDFS and BGL are archives of these logs. BGL is cut into windows of 20 lines (no window of 100 fits 1,024 tokens), and
into windows of 10 seconds; both split by time. The file holds token ids: it belongs beside the logs.
"""

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.command_line import model_folder
from benchmarks.experiment_data import AS_IT_IS, SPLITS, Arrays, Corpus, write_corpora
from benchmarks.experiment_plan import CHANGES, CONTAMINATIONS, FEW, plan
from storage.archives import fetch
from storage.composer import Composer, TokenRule, load_tokenizer
from storage.datasets import DatasetConfig, resolve
from storage.instability import Instability, unstable_windows
from storage.masks import mask_log
from storage.partitions import PartitionRule, partition_windows
from storage.splits import SplitRule, split_windows
from storage.tokens import tokenize_windows
from storage.windows import WindowRule, window_log

HDFS_SPLITS = {
    "default": SplitRule(),
    "large": SplitRule(train=0.5, calibration=0.2, validation=0, test=0.3, rest="test").model_copy(
        update={"train_windows": 5000, "calibration_windows": 2000}
    ),
    **{f"few-{count}": SplitRule(train_windows=count) for count in FEW},
    **{f"contaminated-{share}": SplitRule(contamination=share) for share in CONTAMINATIONS},
    "chronological": SplitRule(kind="chronological"),
    "grouped": SplitRule(kind="grouped"),
}
"""`large`: 5,000 windows to learn from, 2,000 to calibrate with, all others reported on."""
BGL_SPLITS = {"default": SplitRule(kind="chronological", train=0.4, calibration=0.15, validation=0.2, test=0.25)}
CORPORA: dict[str, tuple[str, WindowRule | None, Mapping[str, SplitRule]]] = {
    "hdfs": ("hdfs", None, HDFS_SPLITS),
    "bgl": ("bgl", WindowRule(kind="count", size=20), BGL_SPLITS),
    "bgl-10s": ("bgl", WindowRule(kind="time", size=10), BGL_SPLITS),
}
"""Logs by name: dataset, windows (None: the dataset's own), splits."""


def read_corpus(config: DatasetConfig, rule: WindowRule | None, tokenizer: Path) -> tuple[pl.DataFrame, list[str]]:
    """The log's windows (with sequence_id, message_ids) and its messages' texts."""
    spec = resolve(config)
    with tempfile.TemporaryDirectory() as place:
        raw, windows, masks, tokens = (Path(place) / name for name in ("raw", "windows", "masks", "tokens"))
        for folder in (raw, windows, masks, tokens):
            folder.mkdir()
        fetch(config, spec, raw, Path(place))
        window_log(raw / spec.raw_name, spec, rule or spec.window, None, windows)
        mask_log(raw / spec.raw_name, windows, spec, spec.mask, masks)
        tokenize_windows(windows, masks, tokenizer, TokenRule(), tokens)
        table = pl.read_parquet(tokens / "windows.parquet").sort("window_id")
        return table, pl.read_parquet(tokens / "messages.parquet").sort("message_id")["text"].to_list()


def make_corpus(
    windows: pl.DataFrame,
    texts: list[str],
    rules: Mapping[str, SplitRule],
    dealt: Iterable[tuple[str, str]],
    changes: Iterable[str],
    tokenizer: Path,
) -> Corpus:
    """A log with its splits, the partitions `dealt` (split, partition), and the changes of its default test windows."""
    splits = {name: split_windows(windows, rule)["split"] for name, rule in rules.items()}
    orders, sequences, texts = _orders(windows, texts, splits["default"], changes)
    composer = Composer(load_tokenizer(tokenizer), TokenRule(), texts)
    arrays = [np.array(sequence, np.uint32) for sequence in sequences]
    tokens, _ = composer.tokens_of(arrays)
    return Corpus(
        [each.ids.astype(np.int64) for each in tokens],
        [each.starts.astype(np.int64) for each in tokens],
        arrays,
        (windows["label"] == 0).fill_null(False).to_numpy(),
        orders,
        {name: np.array([SPLITS.index(word) for word in split]) for name, split in splits.items()},
        {
            f"{split}/{name}": _dealt(windows.filter(splits[split] == "train"), name, len(windows))
            for split, name in dealt
        },
    )


def _orders(
    windows: pl.DataFrame, texts: list[str], split: pl.Series, changes: Iterable[str]
) -> tuple[Arrays, list[tuple[int, ...]], list[str]]:
    """The distinct window of each window, as it is and under each change; the distinct windows; all messages."""
    plain = [tuple(window) for window in windows["message_ids"].to_list()]
    numbers: dict[tuple[int, ...], int] = {}
    known = {text: number for number, text in enumerate(texts)}
    orders = {AS_IT_IS: np.array([numbers.setdefault(window, len(numbers)) for window in plain])}
    test = np.flatnonzero((split == "test").to_numpy())
    for change in changes:
        kind, changed, share = change.split()
        rule = Instability.model_validate({"kind": kind, "changed": changed, "share": float(share)})
        found, changed_texts = unstable_windows([plain[place] for place in test], texts, rule)
        renumbered = [known.setdefault(text, len(known)) for text in changed_texts]
        order = orders[AS_IT_IS].copy()
        for place, window in zip(test, found, strict=True):
            order[place] = numbers.setdefault(tuple(renumbered[message] for message in window), len(numbers))
        orders[change] = order
    return orders, list(numbers), list(known)


def _dealt(train: pl.DataFrame, name: str, count: int) -> np.ndarray:
    """The client of each window by a partition's name, such as `dirichlet-0.1 10`; -1 for none."""
    kind, clients = name.split()
    kind, _, alpha = kind.partition("-")
    rule = PartitionRule.model_validate({"kind": kind, "clients": int(clients), "concentration": float(alpha or 1)})
    shares = partition_windows(train, rule)
    owner = np.full(count, -1)
    owner[shares["window_id"].to_numpy()] = shares["partition"].to_numpy()
    return owner


def main() -> None:
    """Prepare the logs and write what the experiments need of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write, *.npz")
    parser.add_argument("hdfs", type=Path, help="HDFS_1.tar.gz, whole or sampled")
    parser.add_argument("bgl", type=Path, help="BGL.tar.gz, whole or its beginning")
    given = parser.parse_args()
    tokenizer = model_folder(None) / "tokenizer.json"
    experiments = plan()
    corpora = {}
    for name, (dataset, rule, splits) in CORPORA.items():
        config = DatasetConfig(name=dataset, source=str(getattr(given, dataset)))
        windows, texts = read_corpus(config, rule, tokenizer)
        dealt = dict.fromkeys((each.split, each.partition) for each in experiments if each.corpus == name)
        asked = {test.order for each in experiments for test in each.judged if test.corpus == name}
        changes = [change for change in CHANGES if change in asked]
        corpora[name] = make_corpus(windows, texts, splits, dealt, changes, tokenizer)
        print(f"{name}: {len(windows)} windows, {len(corpora[name].token_ids)} distinct ones, changed ones included")
    write_corpora(corpora, given.file)
    print(f"{given.file}: {given.file.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
