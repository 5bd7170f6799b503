"""What the benchmarks count and compare is what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.equality import PlainScores, Proof, compare, score_plainly
from benchmarks.flops import pass_cost, tree_amounts
from benchmarks.repeated_log import repeat_log
from benchmarks.scoring import stratified
from benchmarks.token_counts import counts
from benchmarks.training import Steps, padded
from benchmarks.turns import compared, in_turns
from benchmarks.windows import read_windows
from fl.adapter import attach_adapter
from fl.hyperparameters import Tuning
from fl.model import LoadedModel, load_model
from fl.prefix_tree import build_tree
from storage.composer import encode, load_tokenizer


@pytest.fixture
def tiny(tiny_model: Path) -> LoadedModel:
    load_model.cache_clear()
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def windows() -> list[np.ndarray]:
    """Windows that share prefixes."""
    generator = np.random.default_rng(7)
    texts = generator.integers(1, 512, (3, 60))
    return [texts[index % 3][: generator.integers(2, 60)] for index in range(9)]


@pytest.mark.parametrize("backward", [False, True])
def test_operations_counted_are_those_that_torch_counts(tiny: LoadedModel, backward: bool) -> None:
    model = attach_adapter(tiny, Tuning(dropout=0.0), 0)
    model.enable_input_require_grads()  # type: ignore[operator] # else the first layer passes no gradients on
    tiny.model.set_attn_implementation("eager")
    length = 40
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.arange(1, length + 1)[None]).logits
        if backward:
            logits.sum().backward()
    cost = pass_cost(model)
    # The model's own attention multiplies every query with every key, masked or not.
    amounts = (length, length * length, length)
    assert counter.get_total_flops() == (cost.step if backward else cost.forward)(*amounts)


def test_a_tree_needs_each_distinct_prefix_once_with_its_own_path() -> None:
    tree = build_tree([np.array([5, 6, 7]), np.array([5, 6, 8]), np.array([5, 6, 8])], 0)
    assert tree_amounts(tree) == (4, 1 + 2 + 3 + 3, 4)


def test_tokens_are_counted_as_they_are_called() -> None:
    found = counts([np.array([5, 6, 7]), np.array([5, 6, 8, 9]), np.array([5, 6, 7])], 0, 100, carry=False)
    assert found == {
        "given": 10,
        "padded_to_1024": 3072,
        "padded_to_longest": 12,
        "of_distinct_windows": 7,
        "of_distinct_prefixes": 5,
        "in_packs": 5,
    }


def test_a_sample_stands_for_all_windows_and_their_tokens() -> None:
    lengths = np.random.default_rng(1).integers(10, 1000, 400).tolist()
    sample = stratified(np.arange(400), lengths, 25)
    assert sample.counts.sum() == 400
    assert len(sample.numbers) == 25
    by_sample = sum(count * lengths[n] for n, count in zip(sample.numbers, sample.counts, strict=True))
    assert by_sample == pytest.approx(sum(lengths), rel=0.02)


def test_a_sample_as_large_as_the_windows_is_the_windows() -> None:
    numbers = np.array([3, 1, 1, 0])
    sample = stratified(numbers, [10, 20, 30, 40], 10)
    assert sorted(sample.numbers) == [0, 1, 1, 3]
    assert sample.counts.tolist() == [1, 1, 1, 1]


def test_ways_take_turns_in_both_orders() -> None:
    order: list[str] = []

    def way(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    times = in_turns({"atalaia": lambda n: way("a", n + 1.0), "other": lambda n: way("b", 10.0 * (n + 1))}, 3)
    assert "".join(order) == "abbaab"
    assert compared(times)["times_longer"] == {"other": 10.0}


def test_rows_are_padded_with_their_labels_masked() -> None:
    rows = padded([{"window": np.array([4, 5])}, {"window": np.array([6, 7, 8, 9])}], 4, 1)
    assert rows["input_ids"].tolist() == [[4, 5, 1, 1], [6, 7, 8, 9]]
    assert rows["labels"].tolist() == [[4, 5, 1, -100], [6, 7, 8, 9]]
    assert rows["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize("rows", [4, 9])
def test_trainer_steps_by_the_same_loss_and_gradients(
    tiny: LoadedModel, windows: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(Steps, "rows", lambda *_: rows)  # the memory of a real model allows few rows at a time
    steps = Steps(tiny, [windows])
    steps.atalaia(0)
    steps.trainer("trainer", lambda _: 80)(0)
    assert all(difference < 1e-4 for difference in steps.equality("trainer").values())


def test_the_proof_goes_on_where_it_stopped(tiny: LoadedModel, windows: list[np.ndarray], tmp_path: Path) -> None:
    first = Proof(tmp_path, tiny, windows, windows_at_once=2)
    found = compare(first.plain(), *first.tree())
    assert found["equal"]
    assert found["tokens"] == sum(map(len, windows))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    lost = tmp_path / "plain-000004.npz"
    lost.unlink()
    again = Proof(tmp_path, tiny, windows, windows_at_once=2)
    assert compare(again.plain(), *again.tree()) == found
    assert {path for path in kept if path.stat().st_mtime_ns != kept[path]} == {lost}
    with pytest.raises(SystemExit, match="name another folder"):
        Proof(tmp_path, tiny, windows[1:], windows_at_once=2)


def test_the_proof_fails_where_scores_are_not_equal(tiny: LoadedModel, windows: list[np.ndarray]) -> None:
    plain = score_plainly(tiny, windows[0])
    assert compare(plain, plain.log_probability, plain.rank)["equal"]
    assert not compare(plain, plain.log_probability + 2e-4, plain.rank)["equal"]
    swapped = plain.rank.copy()
    swapped[3] += 1
    assert not compare(plain, plain.log_probability, swapped)["equal"]
    tied = PlainScores(plain.log_probability, plain.rank, plain.lowest_rank, np.maximum(plain.highest_rank, swapped))
    told = compare(tied, plain.log_probability, swapped)
    assert told["equal"]
    assert told["ranks_that_differ"] == 1


@pytest.mark.real_logs
def test_text_and_tokens_of_a_window_are_the_same_window(hdfs_archive: Path, tiny_model: Path) -> None:
    log = read_windows(hdfs_archive, tiny_model / "tokenizer.json")
    assert (len(log.order), int(log.normal.sum())) == (11_501, 11_151)
    some = log.drawn(40).tolist()
    whole = encode(load_tokenizer(tiny_model / "tokenizer.json"), [log.texts[number] for number in some])
    for number, ids in zip(some, whole, strict=True):
        assert log.token_ids[number].tolist() == ids[:1024].tolist()


def test_a_repeated_log_has_new_blocks_and_later_days(tmp_path: Path) -> None:
    log, labels, into = tmp_path / "HDFS.log", tmp_path / "anomaly_label.csv", tmp_path / "into"
    log.write_text("081109 203518 1 INFO a: got blk_1 and blk_-2\n081110 000000 1 INFO a: got blk_1\n")
    labels.write_text("BlockId,Label\nblk_1,Normal\nblk_-2,Anomaly\n")
    into.mkdir()
    repeat_log(log, labels, into, copies=2)
    lines = (into / log.name).read_text().splitlines()
    assert [line[:13] for line in lines] == ["081109 203518", "081110 000000", "081111 203518", "081112 000000"]
    blocks = [word for line in lines for word in line.split() if word.startswith("blk_")]
    assert blocks[0] == blocks[2] != blocks[3] == blocks[5]
    named = dict(line.split(",") for line in (into / labels.name).read_text().splitlines()[1:])
    assert [named[block] for block in blocks] == ["Normal", "Anomaly", "Normal"] * 2
