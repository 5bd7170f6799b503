"""What models write: the most probable tokens one by one, the same draws with the same seed, the base model beside."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays
from fl.errors import ModelError
from fl.generation import Sampling, base_model, write_on
from fl.hyperparameters import Tuning
from fl.model import LoadedModel, load_model

PREFIX = list(range(30, 60))
FOLLOWED = [7, 8, 9]


@pytest.fixture
def tiny(tiny_model: Path) -> LoadedModel:
    load_model.cache_clear()
    return load_model(tiny_model)


def _tuned(loaded: LoadedModel, tuning: Tuning) -> tuple[torch.nn.Module, dict[str, np.ndarray], dict[str, np.ndarray]]:
    model = attach_adapter(loaded, tuning, 0)
    before = adapter_arrays(model)
    generator = np.random.default_rng(1)
    after = {n: a + generator.normal(0, 0.2, a.shape).astype(np.float32) for n, a in before.items()}
    load_adapter_arrays(model, after)
    return model, before, after


def test_greedy_is_the_most_probable_token_again_and_again(tiny: LoadedModel) -> None:
    ids = list(PREFIX)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(tiny.model(torch.tensor([ids])).logits[0, -1].argmax()))
    expected = ids[len(PREFIX) :]
    if tiny.end_token_id in expected:
        expected = expected[: expected.index(tiny.end_token_id)]
    assert write_on(tiny.model, tiny, PREFIX, Sampling(tokens=6)).token_ids == expected


def test_draws_follow_the_seed_and_leave_the_process_generator_alone(tiny: LoadedModel) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        write_on(tiny.model, tiny, PREFIX, Sampling(12, temperature=1.5, seed=seed)).token_ids for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_surprise_is_the_cross_entropy_of_what_followed_with_the_end(tiny: LoadedModel) -> None:
    found = write_on(tiny.model, tiny, PREFIX, Sampling(tokens=1), FOLLOWED).nats
    targets = torch.tensor([*FOLLOWED, tiny.end_token_id])
    with torch.no_grad():
        logits = tiny.model(torch.tensor([[*PREFIX, *FOLLOWED]])).logits[0, len(PREFIX) - 1 :].double()
    assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)), rel=1e-4)


@pytest.mark.parametrize("tuning", [Tuning(rank=2), Tuning(kind="full")], ids=["lora", "full"])
def test_the_base_model_stands_beside_the_tuned_one(tiny: LoadedModel, tuning: Tuning) -> None:
    untouched = write_on(tiny.model, tiny, PREFIX, Sampling(tokens=8), FOLLOWED)
    model, before, after = _tuned(tiny, tuning)
    tuned = write_on(model, tiny, PREFIX, Sampling(tokens=8), FOLLOWED)
    with base_model(model, tuning, before, after) as base:
        assert write_on(base, tiny, PREFIX, Sampling(tokens=8), FOLLOWED) == untouched
    assert write_on(model, tiny, PREFIX, Sampling(tokens=8), FOLLOWED) == tuned != untouched


def test_nothing_to_go_on_from_is_an_error(tiny: LoadedModel) -> None:
    with pytest.raises(ModelError, match="prefix"):
        write_on(tiny.model, tiny, [], Sampling())
