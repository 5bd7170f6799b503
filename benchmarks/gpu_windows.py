"""Windows for a machine with a GPU, on which nothing reads logs: tokens, labels, splits and shares in one small file.

`python -m benchmarks.gpu_windows FILE.npz ARCHIVE` prepares the archive's log (without one, a simulated log) by the
rules for HDFS, and splits and deals its windows as the preset `paper` does. The file holds token ids, so it belongs
beside the logs and not into the repository.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.windows import LogWindows, read_windows
from fl.metrics_table import Windows

SPLITS = ("train", "calibration", "validation", "test", "unused")
JUDGED = ("calibration", "validation", "test")


@dataclass(frozen=True)
class DealtWindows:
    """A log's windows with the split and the client (-1 for none) of each."""

    log: LogWindows
    split: np.ndarray
    partition: np.ndarray

    @property
    def clients(self) -> int:
        """How many clients have a share."""
        return int(self.partition.max()) + 1

    def share(self, partition: int) -> list[np.ndarray]:
        """The token ids of each window of a client, in the order of the log."""
        return [self.log.token_ids[number] for number in self.log.order[self.partition == partition]]

    def distinct(self, *splits: str) -> np.ndarray:
        """The numbers of the distinct windows of some splits."""
        return np.unique(self.log.order[np.isin(self.split, splits)])

    def judged(self) -> Windows:
        """What the metrics need to know of the windows; events for the simple rules are left out."""
        return Windows(
            sequence=self.log.order,
            split=self.split,
            label=(~self.log.normal).astype(np.int8),
            message_ids=np.empty(0, np.uint32),
            lengths=np.zeros(len(self.split), np.int64),
        )


def deal_windows(log: LogWindows, clients: int) -> DealtWindows:
    """Split and deal a log's windows with the preset's rules and seeds."""
    import polars as pl

    from storage.partitions import PartitionRule, partition_windows
    from storage.splits import SplitRule, split_windows

    windows = pl.DataFrame({"window_id": np.arange(len(log.order)), "label": (~log.normal).astype(np.int8)})
    split = split_windows(windows, SplitRule())["split"].to_numpy()
    train = windows.select("window_id").filter(split == "train")
    shares = partition_windows(train, PartitionRule(clients=clients))
    partition = np.full(len(split), -1, np.int32)
    partition[shares["window_id"].to_numpy()] = shares["partition"].to_numpy()
    return DealtWindows(log, split.astype(str), partition)


def random_windows(vocabulary: int, clients: int, seed: int = 0) -> DealtWindows:
    """A few dozen windows of random tokens that share prefixes, to see a measurement work."""
    drawn = np.random.default_rng(seed)
    texts = drawn.integers(1, vocabulary, (4, 60))
    tokens = [texts[index % 4][: drawn.integers(2, 60)].copy() for index in range(40)]
    for window in tokens[::5]:
        window[len(window) // 2 :] = drawn.integers(1, vocabulary, len(window) - len(window) // 2)
    normal = np.arange(len(tokens)) % 5 > 0
    starts = [np.array([0, *range(7, len(window), 11)]) for window in tokens]
    log = LogWindows("random", tokens, starts, [], np.arange(len(tokens)), normal)
    split = np.array(SPLITS[:4], dtype=object)[drawn.integers(0, 4, len(tokens))].astype(str)
    split[~normal & np.isin(split, ["train", "calibration"])] = "unused"
    split[:4], split[normal.nonzero()[0][-clients:]] = ("test", "test", "validation", "calibration"), "train"
    partition = np.full(len(tokens), -1, np.int32)
    trained = np.flatnonzero(split == "train")
    partition[trained] = np.arange(len(trained)) % clients
    return DealtWindows(log, split, partition)


def _flat(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {"values": np.concatenate(arrays).astype(np.uint32), "lengths": np.array([len(part) for part in arrays])}


def write_windows(dealt: DealtWindows, path: Path) -> None:
    """Write the windows as compressed arrays."""
    parts = {"tokens": _flat(dealt.log.token_ids), "starts": _flat(dealt.log.message_starts)}
    arrays: dict[str, Any] = {f"{name}_{part}": array for name, flat in parts.items() for part, array in flat.items()}
    arrays |= {"log": dealt.log.log, "order": dealt.log.order, "normal": dealt.log.normal}
    np.savez_compressed(path, **arrays, split=dealt.split, partition=dealt.partition)


def load_windows(path: Path) -> DealtWindows:
    """The windows that `write_windows` wrote."""
    with np.load(path, allow_pickle=False) as file:
        tokens, starts = (
            np.split(file[f"{name}_values"].astype(np.int64), np.cumsum(file[f"{name}_lengths"])[:-1])
            for name in ("tokens", "starts")
        )
        log = LogWindows(str(file["log"]), tokens, starts, [], file["order"], file["normal"])
        return DealtWindows(log, file["split"], file["partition"])


def main() -> None:
    """Prepare a log and write its windows."""
    from fl.model import EMBEDDED, prepare_model
    from storage.layout import current

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="where to write, *.npz")
    parser.add_argument("archive", type=Path, nargs="?", help="HDFS_1.tar.gz, whole or sampled")
    parser.add_argument("--clients", type=int, default=50, help="clients that share the training windows")
    parser.add_argument("--first", type=int, help="only so many windows, the first of the log")
    parser.add_argument("--max-tokens", type=int, default=1024, help="tokens at which a window is cut")
    given = parser.parse_args()
    tokenizer = prepare_model(EMBEDDED, current().models) / "tokenizer.json"
    log = read_windows(given.archive, tokenizer, given.first, given.max_tokens)
    dealt = deal_windows(log, given.clients)
    write_windows(dealt, given.file)
    counts = {split: int((dealt.split == split).sum()) for split in SPLITS}
    print(
        f"{given.file}: {given.file.stat().st_size / 1e6:.1f} MB, {len(dealt.log.token_ids)} distinct windows, {counts}"
    )


if __name__ == "__main__":
    main()
