"""Unstable test windows: how many are changed and how, what stays, and what a run reuses."""

from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError
from staged_data import prepared_stages

from storage.composer import TokenRule
from storage.instability import Instability, change_windows, unstable_windows
from storage.layout import Layout

TEXTS = ["Receiving block <*>", "Received block <*> of size <*>", "Deleting block <*>", "Served block <*> to <*>"]
WINDOWS = [tuple((number * place) % 4 for place in range(3 + number % 5)) for number in range(200)]
KINDS = ("reworded", "fields", "duplicated", "shuffled")


def changed(rule: Instability) -> list[int]:
    found, _ = unstable_windows(WINDOWS, TEXTS, rule)
    return [number for number, (before, after) in enumerate(zip(WINDOWS, found, strict=True)) if before != after]


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_windows_is_changed_and_a_larger_share_changes_the_same_and_more(kind: str) -> None:
    rules = [Instability.model_validate({"kind": kind, "share": share}) for share in (0.05, 0.2)]
    few, many = (set(changed(rule)) for rule in rules)
    # A shuffle leaves a window of equal lines as it is.
    able = [number for number, window in enumerate(WINDOWS) if kind != "shuffled" or len(set(window)) > 1]
    assert few <= many
    assert len(many) <= 40 and (len(many) == 40 or len(able) < 200)
    told = []
    for found, texts in (unstable_windows(WINDOWS, TEXTS, rule) for rule in rules):
        told.append([[texts[message] for message in found[number]] for number in sorted(few)])
    assert told[0] == told[1]


def test_reworded_windows_have_as_many_lines_and_one_message_changed_in_all_of_its_lines() -> None:
    found, texts = unstable_windows(WINDOWS, TEXTS, Instability(kind="reworded", share=1.0))
    assert texts[:4] == TEXTS
    for before, after in zip(WINDOWS, found, strict=True):
        replaced = {(one, other) for one, other in zip(before, after, strict=True) if one != other}
        assert len(replaced) == 1
        [(one, other)] = replaced
        assert other >= 4 and Counter(before)[one] == Counter(after)[other]


def test_duplicates_add_up_to_three_equal_lines_in_place() -> None:
    found, texts = unstable_windows(WINDOWS, TEXTS, Instability(kind="duplicated", share=1.0))
    assert texts == TEXTS
    for before, after in zip(WINDOWS, found, strict=True):
        gained = Counter(after) - Counter(before)
        assert len(gained) == 1 and 1 <= gained.total() <= 3
        assert not Counter(before) - Counter(after)
        [line] = gained
        assert [m for m in after if m != line] == [m for m in before if m != line]


def test_a_shuffle_keeps_every_line_and_moves_four_at_most() -> None:
    found, _ = unstable_windows(WINDOWS, TEXTS, Instability(kind="shuffled", share=1.0))
    for before, after in zip(WINDOWS, found, strict=True):
        assert Counter(before) == Counter(after)
        moved = [place for place, (one, other) in enumerate(zip(before, after, strict=True)) if one != other]
        assert bool(moved) == (len(set(before)) > 1)
        assert not moved or moved[-1] - moved[0] < 4


def test_a_share_of_the_messages_changes_all_of_their_lines() -> None:
    found, texts = unstable_windows(WINDOWS, TEXTS, Instability(kind="fields", share=0.5, changed="messages"))
    gone = set(range(4)) - {message for window in found for message in window}
    assert len(gone) == 2 and len(texts) == 6


def test_lines_are_changed_in_windows_only() -> None:
    with pytest.raises(ValidationError, match="changes lines of windows"):
        Instability(kind="shuffled", changed="messages")


@pytest.mark.parametrize("kind", KINDS)
def test_the_changed_stage_differs_in_test_windows_only(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    tokens = TokenRule()
    stages = prepared_stages(Layout(tmp_path / "home"), tiny_model, 120, tokens)
    before = Path(stages["tokenized"].path)
    splits = pl.read_parquet(stages["split"].file("splits.parquet"))
    splits = splits.with_columns(pl.col("split").replace({"validation": "test"}))
    (tmp_path / "split").mkdir()
    splits.write_parquet(tmp_path / "split" / "splits.parquet")
    into = tmp_path / "changed"
    into.mkdir()
    rule = Instability.model_validate({"kind": kind, "share": 0.5})
    counts = change_windows(before, tmp_path / "split", tiny_model / "tokenizer.json", tokens, rule, into)
    old, new = (pl.read_parquet(folder / "windows.parquet").sort("window_id") for folder in (before, into))
    assert new.schema == old.schema
    kept = [name for name in old.columns if name in {"window_id", "key", "site", "first_time", "label", "lines"}]
    assert new.select(kept).equals(old.select(kept))
    differs = new["message_ids"].to_list(), old["message_ids"].to_list(), splits["split"].to_list()
    places = [place for place, (one, other, _) in enumerate(zip(*differs, strict=True)) if one != other]
    assert places and {splits["split"][place] for place in places} == {"test"}
    assert counts["changed_windows"] == len(places) and counts["test_windows"] == 60
    texts = pl.read_parquet(into / "messages.parquet").sort("message_id")["text"]
    sequences = pl.read_parquet(into / "sequences.parquet").sort("sequence_id")
    was = pl.read_parquet(before / "sequences.parquet").sort("sequence_id").drop("windows")
    assert sequences.drop("windows").head(len(was)).equals(was)
    assert sequences["windows"].to_list() == [
        (new["sequence_id"] == number).sum() for number in sequences["sequence_id"]
    ]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    for place in places[:5]:
        row = sequences.row(int(new["sequence_id"][place]), named=True)
        assert row["message_ids"] == new["message_ids"][place].to_list()
        joined = tokens.separator.join(texts[message] for message in row["message_ids"])
        assert row["token_ids"] == tokenizer.encode(joined, add_special_tokens=False).ids[: tokens.max_tokens]
