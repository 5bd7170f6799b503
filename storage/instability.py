"""Unstable logs: test windows as they look after programs or the collection of their logs have changed.

A window keeps its label: a normal one that is changed is still normal. After the unstable log events and sequences of
LogRobust (Zhang et al., ESEC/FSE 2019, doi 10.1145/3338906.3338931). Messages are changed in their masked form, so
that any log can be; whatever is learned from stays as it was.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from storage.composer import Composer, TokenRule, load_tokenizer
from storage.rewording import reworded, with_other_fields
from storage.tables import write_table
from storage.tokens import count_sequences, sequence_table, write_messages, write_windows

Window = tuple[int, ...]
_REWORDINGS: dict[str, Callable[[str, int], str]] = {"reworded": reworded, "fields": with_other_fields}
_MOST_REPEATS = 3
_STRETCH = 4
"""Lines that a shuffle reorders."""


class Instability(BaseModel):
    """What is different in the test windows from all that was learned from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["none", "reworded", "fields", "duplicated", "shuffled"] = "none"
    """`reworded`: messages in other words; `fields`: messages with a field more or less; `duplicated`: a line comes up
    to three times more; `shuffled`: four lines that follow each other come in another order."""
    share: float = Field(default=0.1, gt=0, le=1)
    """Share that is changed; a larger one changes the same and more."""
    changed: Literal["windows", "messages"] = "windows"
    """What the share is of: `windows`, test windows, in each of which one message (with all its lines) or one place is
    changed; `messages`, distinct messages of the test windows, changed in all their lines, as by a new version of the
    program (`reworded` and `fields` only)."""
    seed: int = Field(default=0, ge=0)
    """Seed of what is changed, and how."""

    @model_validator(mode="after")
    def _lines_are_of_windows(self) -> "Instability":
        if self.changed == "messages" and self.kind in {"duplicated", "shuffled"}:
            raise ValueError(f"changed=messages does not go with kind={self.kind}, which changes lines of windows")
        return self


def unstable_windows(
    windows: Sequence[Sequence[int]], texts: Sequence[str], rule: Instability
) -> tuple[list[Window], list[str]]:
    """The windows (message ids) with the changes of `rule`, and the messages' texts, with new ones at the end."""
    changer = _Changer(windows, texts, rule)
    return [changer.window(number) for number in range(len(windows))], changer.texts


class _Changer:
    """Changes windows; a new message gets a number when it is first needed."""

    def __init__(self, windows: Sequence[Sequence[int]], texts: Sequence[str], rule: Instability) -> None:
        self._windows, self._rule = [tuple(window) for window in windows], rule
        self.texts = list(texts)
        self._known = {text: number for number, text in enumerate(self.texts)}
        random = np.random.default_rng(rule.seed)
        drawn = sorted({message for window in self._windows for message in window})
        count = len(drawn) if rule.changed == "messages" else len(self._windows)
        order = random.permutation(count)[: 0 if rule.kind == "none" else max(1, round(rule.share * count))]
        self._chosen = {drawn[place] for place in order} if rule.changed == "messages" else set(order.tolist())

    def window(self, number: int) -> Window:
        """A window by its number, changed where it is among the chosen."""
        window, rule = self._windows[number], self._rule
        if rule.changed == "messages":
            return self._with_messages(window, self._chosen)
        if number not in self._chosen or not window:
            return window
        random = np.random.default_rng((rule.seed, 1, number))
        if rule.kind == "duplicated":
            return _duplicated(window, random)
        if rule.kind == "shuffled":
            return _shuffled(window, random)
        return self._with_messages(window, {int(random.choice(sorted(set(window))))})

    def _with_messages(self, window: Window, changed: set[int]) -> Window:
        return tuple(self._other(message) if message in changed else message for message in window)

    def _other(self, message: int) -> int:
        """The number of a message's changed form."""
        text = _REWORDINGS[self._rule.kind](self.texts[message], self._rule.seed)
        number = self._known.setdefault(text, len(self.texts))
        if number == len(self.texts):
            self.texts.append(text)
        return number


def _duplicated(window: Window, random: np.random.Generator) -> Window:
    place, times = int(random.integers(len(window))), int(random.integers(1, _MOST_REPEATS + 1))
    return window[:place] + (window[place],) * times + window[place:]


def _shuffled(window: Window, random: np.random.Generator) -> Window:
    """Reorders lines around a place where successive messages differ; a window of equal messages stays as it is."""
    places = [place for place in range(len(window) - 1) if window[place] != window[place + 1]]
    if not places:
        return window
    start = max(0, int(random.choice(places)) - int(random.integers(_STRETCH - 1)))
    stretch = window[start : start + _STRETCH]
    other = stretch
    while other == stretch:
        other = tuple(stretch[place] for place in random.permutation(len(stretch)))
    return window[:start] + other + window[start + _STRETCH :]


def change_windows(
    tokenized: Path, splits: Path, tokenizer_file: Path, tokens: TokenRule, rule: Instability, into: Path
) -> dict[str, Any]:
    """Write a tokenize stage anew with its test windows changed; returns its counts.

    `tokenized` and `splits` are the folders of the tokenize and split stages. Messages and sequences keep their numbers
    and new ones are added, so that what refers to the old stage's training windows holds for the new one.
    """
    facts = pl.read_parquet(tokenized / "windows.parquet").sort("window_id")
    split = facts.select("window_id").join(pl.read_parquet(splits / "splits.parquet"), on="window_id", how="left")
    test = np.flatnonzero((split.sort("window_id")["split"] == "test").to_numpy())
    before = [tuple(window) for window in facts["message_ids"].gather(test).to_list()]
    texts = pl.read_parquet(tokenized / "messages.parquet").sort("message_id")["text"].to_list()
    after, texts = unstable_windows(before, texts, rule)
    old = pl.read_parquet(tokenized / "sequences.parquet").sort("sequence_id")
    known = {tuple(sequence): number for number, sequence in enumerate(old["message_ids"].to_list())}
    sequence_ids = facts["sequence_id"].to_numpy().copy()
    sequence_ids[test] = [known.setdefault(window, len(known)) for window in after]
    composer = Composer(load_tokenizer(tokenizer_file), tokens, texts)
    sequences = [np.array(sequence, dtype=np.uint32) for sequence in known]
    table = sequence_table(sequences, composer.tokens_of(sequences)[0], sequence_ids)
    messages = pl.DataFrame({"message_id": pl.Series(range(len(texts)), dtype=pl.UInt32), "text": texts})
    write_messages(messages, composer, into)
    write_table(table, into / "sequences.parquet")
    write_windows(
        facts.drop("sequence_id", *(c for c in table.columns if c in facts.columns)), table, sequence_ids, into
    )
    changed = sum(one != other for one, other in zip(before, after, strict=True))
    held = count_sequences(table.filter(pl.col("windows") > 0))
    return held | {"messages": len(texts), "test_windows": len(test), "changed_windows": changed}
