"""Messages in other words: always changed, alike wherever they stand, and with their fields as they should be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.masks import FIELD
from storage.rewording import reworded, with_other_fields

MESSAGES = [
    "Received block blk_<*> of size <*> from /<*>",
    "BLOCK* NameSystem.delete: blk_<*> is added to invalidSet of <*>:<*>",
    "instruction cache parity error corrected",
    "<*> ddr errors(s) detected and corrected on rank <*>, symbol <*>, bit <*>",
    "rts",
    "<*>",
    "",
]


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(st.sampled_from(MESSAGES), st.text(max_size=40)), seed=st.integers(0, 1000))
def test_a_changed_message_is_never_as_it_was_and_always_the_same(text: str, seed: int) -> None:
    for change in (reworded, with_other_fields):
        assert change(text, seed) != text
        assert change(text, seed) == change(text, seed)


@pytest.mark.parametrize("text", MESSAGES)
def test_rewording_keeps_every_field(text: str) -> None:
    for seed in range(50):
        assert reworded(text, seed).count(FIELD) == text.count(FIELD)


def test_other_fields_are_one_more_or_one_less_and_the_rest_of_the_words_stays() -> None:
    text = MESSAGES[0]
    found = {with_other_fields(text, seed) for seed in range(200)}
    assert "Received block of size <*> from /<*>" in found
    assert "Received block blk_<*> of size <*>" in found, "what leads to a field goes with it"
    for changed in found:
        words, before = changed.split(), text.split()
        gained = [word for word in words if word not in before]
        assert len(gained) <= 1 and all(word.endswith(f"={FIELD}") for word in gained)
        remaining = iter(before)
        assert all(word in remaining for word in words if word not in gained), "the order stays"
        assert len(words) - len(gained) >= len(before) - 2


def test_words_give_way_to_synonyms_in_their_own_case() -> None:
    found = " ".join(reworded("Deleting block; DELETING file", seed) for seed in range(50))
    assert "Removing" in found and "REMOVING" in found and "removing" not in found


def test_another_seed_words_otherwise() -> None:
    assert len({reworded(MESSAGES[1], seed) for seed in range(20)}) > 5
