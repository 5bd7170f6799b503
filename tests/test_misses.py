"""Which anomalies are missed: counted by plain loops over the windows."""

import numpy as np
import polars as pl

from fl.metrics_table import Windows
from fl.misses import misses
from storage.misses import with_messages

DRAWS = np.random.default_rng(0)
SEQUENCE = DRAWS.integers(0, 40, 300)
SPLIT = np.where(np.arange(300) % 3 == 0, "train", "test")
LABEL = np.where(SEQUENCE < 12, 1, 0).astype(np.int8)
LABEL[SEQUENCE == 39] = -1
KINDS = np.array(["slow" if one % 2 else "lost" for one in SEQUENCE], dtype=object)
FLAGS = {"tuned model": SEQUENCE % 3 == 0, "rule": SEQUENCE < 5, "nothing": SEQUENCE < 0}


def _windows(kinds: np.ndarray | None = KINDS) -> Windows:
    return Windows(SEQUENCE, SPLIT, LABEL, SEQUENCE.astype(np.uint32), np.ones(300, np.int64), kinds)


def test_every_missed_window_and_sequence_is_counted_for_each_detector() -> None:
    for told in misses(_windows(), FLAGS)["detectors"]:
        flags = FLAGS[told["detector"]]
        missed = [SEQUENCE[i] for i in range(300) if SPLIT[i] == "test" and LABEL[i] == 1 and not flags[i]]
        assert told["missed"] == len(missed)
        assert told["missed_sequences"] == len(set(missed))
        assert told["anomalies"] == ((SPLIT == "test") & (LABEL == 1)).sum()


def test_sequences_that_most_detectors_miss_come_first_and_those_all_find_are_left_out() -> None:
    found = misses(_windows(), FLAGS | {"nothing": SEQUENCE < 1}, shown=8)["sequences"]
    times = [len(one["missed_by"]) for one in found]
    assert times == sorted(times, reverse=True)
    assert len(found) == 8
    assert 0 not in {one["sequence"] for one in found}
    for one in found:
        assert SEQUENCE[one["window"]] == one["sequence"]
        assert one["windows"] == ((one["sequence"] == SEQUENCE) & (SPLIT == "test")).sum()
        assert ("rule" in one["missed_by"]) == (one["sequence"] >= 5)


def test_recall_by_kind_is_a_share_of_its_windows() -> None:
    for told in misses(_windows(), FLAGS)["kinds"]:
        chosen = (told["kind"] == KINDS) & (SPLIT == "test") & (LABEL == 1)
        assert told["windows"] == chosen.sum()
        assert told["recall"] == {name: flags[chosen].mean() for name, flags in FLAGS.items()}
    assert misses(_windows(None), FLAGS)["kinds"] == []


def test_without_anomalies_nothing_is_missed() -> None:
    nothing = Windows(SEQUENCE, SPLIT, np.zeros(300, np.int8), SEQUENCE.astype(np.uint32), np.ones(300, np.int64))
    assert misses(nothing, FLAGS) == {"detectors": [], "sequences": [], "kinds": []}


def test_a_missed_sequence_is_told_by_the_messages_that_training_has_least() -> None:
    windows = pl.DataFrame(
        {"split": ["train", "train", "train", "test"], "message_ids": [[1, 1, 2], [1], [1, 2], [1, 2, 9, 9, 2, 3]]}
    )
    messages = pl.DataFrame({"message_id": [1, 2, 3, 9], "text": ["one", "two", "three", "nine"]})
    [found] = with_messages([{"window": 3}], windows, messages)
    assert found["messages"] == 6
    assert found["rarest"] == [
        {"text": "three", "times": 1, "train_windows": 0},
        {"text": "nine", "times": 2, "train_windows": 0},
    ]
