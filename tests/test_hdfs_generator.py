"""The simulated HDFS log: repeatable, in the real log's form, and about as hard; held against readers written here."""

import csv
import re
import tarfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from storage.errors import DataError
from storage.hdfs_generator import LABELS, LOG, generate

BLOCKS = 3000
LINE = re.compile(r"(\d{6} \d{6}) (\d+) (INFO|WARN) (dfs\.[A-Za-z$]+): (.*)")
BLOCK = re.compile(r"blk_-?\d+")
# The reference code's four masks, in its order.
MASKS = (
    r"(?<=blk_)[-\d]+",
    r"\d+\.\d+\.\d+\.\d+",
    r"(/[-\w]+)+",
    r"(?<=[^A-Za-z0-9])(\-?\+?\d+)(?=[^A-Za-z0-9])|[0-9]+$",
)
# Counts of Xu et al., SOSP 2009, and a text that only windows of the kind hold.
KINDS = {
    "Namenode not updated after deleting block": (4297, "BlockInfo not found in volumeMap"),
    "Write exception client give up": (3225, "Could not read from stream"),
    "Write failed at beginning": (2950, "Receiving block"),
    "Replica immediately deleted": (2809, "to replicate"),
    "Received block that does not belong to any file": (1240, "does not belong to any file"),
    "Redundant addStoredBlock request received": (953, "Redundant addStoredBlock"),
    "Delete a block that no longer exists on data node": (724, "BlockInfo not found in volumeMap"),
    "Empty packet for block": (476, "Receiving empty packet"),
    "Receive block exception": (89, "Exception in receiveBlock"),
    "Replication monitor timed out": (45, "PendingReplicationMonitor timed out"),
    "Other": (108, "Starting thread to transfer"),
}
RULES = {
    "type": lambda window: set(window),
    "pair": lambda window: set(pairwise(window)),
    "counts": lambda window: {tuple(sorted(window))},
    "sequence": lambda window: {window},
}

Windows = dict[str, tuple[str, ...]]


def mask(text: str) -> str:
    for pattern in MASKS:
        text = re.sub(pattern, "<*>", text)
    return text


def read(log: str, labels: str) -> tuple[Windows, dict[str, str]]:
    """Masked messages of each block, and its kind (`Anomaly` where the labels name none; empty: normal)."""
    lines: dict[str, list[str]] = {}
    masked: dict[str, str] = {}
    for line in log.splitlines():
        content = line.split(": ", 1)[1]
        shape = re.sub(r"\d+", "0", content)  # the masks do not tell one number from another
        if shape not in masked:
            masked[shape] = mask(shape)
        for block in set(BLOCK.findall(content)):
            lines.setdefault(block, []).append(masked[shape])
    rows = csv.DictReader(labels.splitlines())
    kinds = {row["BlockId"]: row.get("Kind") or row["Label"].replace("Normal", "") for row in rows}
    return {block: tuple(messages) for block, messages in lines.items()}, kinds


def f1_of_rules(windows: Windows, kinds: dict[str, str]) -> dict[str, float]:
    """F1 of the four simple rules, averaged over ten splits of 55 % training and 20 % test windows."""
    blocks = sorted(windows)
    scores: dict[str, list[float]] = {name: [] for name in RULES}
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(len(blocks))
        train = [blocks[place] for place in order[: int(0.55 * len(blocks))] if not kinds[blocks[place]]]
        test = [blocks[place] for place in order[int(0.8 * len(blocks)) :]]
        for name, parts in RULES.items():
            seen = set().union(*(parts(window) for window in {windows[block] for block in train}))
            told = [(not parts(windows[block]) <= seen, bool(kinds[block])) for block in test]
            hits = told.count((True, True))
            scores[name].append(2 * hits / (2 * hits + told.count((True, False)) + told.count((False, True))))
    return {name: float(np.mean(values)) for name, values in scores.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    generate(folder, BLOCKS, seed=5)
    return folder


@pytest.fixture(scope="module")
def log(folder: Path) -> str:
    return (folder / LOG).read_text()


@pytest.fixture(scope="module")
def simulated(folder: Path, log: str) -> tuple[Windows, dict[str, str]]:
    return read(log, (folder / LABELS).read_text())


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        generate(tmp_path / name, 200, seed)
    for file in (LOG, LABELS):
        first, again, other = ((tmp_path / name / file).read_bytes() for name in ("first", "again", "other"))
        assert first == again
        assert first != other


def test_every_line_has_the_form_of_the_real_log_and_lines_are_in_order_of_time(log: str) -> None:
    lines = [LINE.fullmatch(line) for line in log.splitlines()]
    assert all(lines)
    times = [line[1] for line in lines if line]
    assert times == sorted(times)
    assert all(BLOCK.search(line[5]) for line in lines if line)


def test_labels_and_log_name_the_same_blocks_and_the_counts_are_true(
    folder: Path, log: str, simulated: tuple[Windows, dict[str, str]], tmp_path: Path
) -> None:
    windows, kinds = simulated
    assert windows.keys() == kinds.keys()
    assert generate(tmp_path, BLOCKS, seed=5) == {
        "lines": log.count("\n"),
        "blocks": BLOCKS,
        "anomalous": sum(bool(kind) for kind in kinds.values()),
    }
    rows = list(csv.DictReader((folder / LABELS).open()))
    assert all((row["Label"] == "Anomaly") == bool(row["Kind"]) for row in rows)


def test_a_smaller_log_holds_the_same_blocks_with_the_same_windows(
    simulated: tuple[Windows, dict[str, str]], tmp_path: Path
) -> None:
    generate(tmp_path, 300, seed=5)
    windows, kinds = read((tmp_path / LOG).read_text(), (tmp_path / LABELS).read_text())
    assert len(windows) == 300
    assert all(simulated[0][block] == window for block, window in windows.items())
    assert all(simulated[1][block] == kind for block, kind in kinds.items())


def test_failure_kinds_have_the_published_shares(simulated: tuple[Windows, dict[str, str]]) -> None:
    found = Counter(kind for kind in simulated[1].values() if kind)
    assert set(found) <= set(KINDS)
    assert 0.028 < sum(found.values()) / BLOCKS < 0.032
    total = sum(count for count, _ in KINDS.values())
    for kind, (count, _) in KINDS.items():
        # A few deletions that were repeated pass for normal, as in the real labels.
        assert abs(found[kind] - 0.031 * BLOCKS * count / total) <= (5 if "Namenode" in kind else 2), kind


def test_windows_of_a_kind_show_what_the_kind_is_named_after(tmp_path: Path) -> None:
    generate(tmp_path, 20_000, seed=6)
    rows = list(csv.DictReader((tmp_path / LABELS).open()))
    texts = {row["BlockId"]: "" for row in rows if row["Kind"]}
    for line in (tmp_path / LOG).open():
        for block in set(BLOCK.findall(line)) & texts.keys():
            texts[block] += line
    kinds = {row["BlockId"]: row["Kind"] for row in rows if row["Kind"]}
    assert set(kinds.values()) == set(KINDS)
    for block, kind in kinds.items():
        assert KINDS[kind][1] in texts[block], (kind, texts[block])


def test_a_failed_write_ends_where_it_failed(simulated: tuple[Windows, dict[str, str]]) -> None:
    windows, kinds = simulated
    lengths = {kind: {len(windows[block]) for block in kinds if kinds[block] == kind} for kind in set(kinds.values())}
    assert lengths["Write failed at beginning"] == {2}
    assert lengths["Write exception client give up"] == {4}


def test_a_normal_block_is_allocated_once_written_thrice_and_deleted_everywhere_or_nowhere(
    simulated: tuple[Windows, dict[str, str]],
) -> None:
    windows, kinds = simulated
    for block, kind in kinds.items():
        count = Counter(" ".join(message.split()[:2]) for message in windows[block])
        if kind or any("to replicate" in message for message in windows[block]):
            continue
        allocated = sum("allocateBlock" in message for message in windows[block])
        assert allocated == 1
        assert count["Receiving block"] == count["Received block"] == count["PacketResponder <*>"] == 3
        marked = sum("invalidSet" in message for message in windows[block])
        assert marked == count["Deleting block"]
        assert marked in {0, 3}


def test_lives_of_blocks_interleave(log: str) -> None:
    blocks = [BLOCK.search(line)[0] for line in log.splitlines()]  # type: ignore[index]
    spans: dict[str, list[int]] = {}
    for place, block in enumerate(blocks):
        spans.setdefault(block, [place, place])[1] = place
    open_at_once = [
        sum(first <= place <= last for first, last in spans.values()) for place in range(0, len(blocks), 5000)
    ]
    assert max(open_at_once) > 200


def test_no_blocks_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="set blocks to 1") as told:
        generate(tmp_path, 0, seed=0)
    assert "\n" not in str(told.value)


@pytest.mark.real_logs
def test_it_is_as_hard_as_the_real_log(hdfs_archive: Path, tmp_path: Path) -> None:
    with tarfile.open(hdfs_archive) as archive:
        texts = {
            Path(member.name).name: file.read().decode(errors="replace")
            for member in archive
            if (file := archive.extractfile(member))
        }
    real, real_kinds = read(texts[LOG], texts[LABELS])
    generate(tmp_path, len(real), seed=0)
    made, made_kinds = read((tmp_path / LOG).read_text(), (tmp_path / LABELS).read_text())

    distinct_real, distinct_made = (len(set(windows.values())) for windows in (real, made))
    assert abs(distinct_made / distinct_real - 1) < 0.1
    lengths = [np.quantile([len(window) for window in w.values()], (0.05, 0.25, 0.5, 0.75, 0.95)) for w in (real, made)]
    assert np.abs(lengths[0] - lengths[1]).max() <= 1
    messages_real, messages_made = ({m for window in w.values() for m in window} for w in (real, made))
    assert abs(len(messages_real) - len(messages_made)) <= 4
    assert len(messages_made - messages_real) <= 2
    hardness_real, hardness_made = f1_of_rules(real, real_kinds), f1_of_rules(made, made_kinds)
    for rule in RULES:
        assert abs(hardness_real[rule] - hardness_made[rule]) < 0.06, rule
