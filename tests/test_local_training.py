"""A batch's gradients by its prefix tree equal the plain ones, and a client's round depends only on its arguments."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from fl.adapter import Tuning, adapter_arrays, attach_adapter, load_adapter_arrays
from fl.errors import LearningError
from fl.hyperparameters import LocalTraining, cosine_rate
from fl.local_training import accumulate_gradients, draw_batches, train_locally
from fl.model import LoadedModel, load_model


@pytest.fixture
def tiny(tiny_model: Path) -> LoadedModel:
    load_model.cache_clear()
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def batch() -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    texts = generator.integers(1, 512, (2, 50))
    return [texts[index % 2][: generator.integers(5, 50)] for index in range(12)]


def _gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    gradients = {n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def _plain(model: torch.nn.Module, loaded: LoadedModel, batch: list[np.ndarray]) -> float:
    """The mean token loss over a batch padded to its longest, with the padding's labels masked."""
    closed = [torch.tensor(np.append(window, loaded.end_token_id)) for window in batch]
    rows = torch.nn.utils.rnn.pad_sequence(closed, batch_first=True)
    seen = torch.nn.utils.rnn.pad_sequence([torch.ones_like(w) for w in closed], batch_first=True)
    logits = model(input_ids=rows, attention_mask=seen).logits[:, :-1].double()
    labels = rows[:, 1:].masked_fill(seen[:, 1:] == 0, -100)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    loss.backward()
    return float(loss)


@pytest.mark.parametrize("budget", [60, 150, 10_000])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("share", [True, False])
def test_gradients_equal_those_of_a_padded_batch(
    tiny: LoadedModel, batch: list[np.ndarray], kind: str, budget: int, share: bool
) -> None:
    model = attach_adapter(tiny, Tuning(kind=kind), seed=1)  # type: ignore[arg-type]
    if kind == "lora":  # away from B = 0, where half of the gradients vanish
        drawn = np.random.default_rng(2)
        arrays = adapter_arrays(model)
        load_adapter_arrays(model, {n: drawn.normal(0, 0.05, a.shape).astype(np.float32) for n, a in arrays.items()})
    loss, predicted, computed = accumulate_gradients(model, tiny, batch, budget, share=share)
    by_tree = _gradients(model)
    expected = _plain(model, tiny, batch)
    plain = _gradients(model)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert predicted == sum(map(len, batch))
    assert computed < predicted if share and budget > 100 else computed >= predicted * (not share)
    assert by_tree.keys() == plain.keys()
    for name, gradient in plain.items():
        assert (by_tree[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_gradient_checkpointing_changes_nothing(tiny: LoadedModel, batch: list[np.ndarray]) -> None:
    outcomes = []
    for checkpointing in (False, True):
        model = attach_adapter(tiny, Tuning(dropout=0.0), seed=1)
        config = LocalTraining(steps=2, batch_size=4, gradient_checkpointing=checkpointing)
        train_locally(model, tiny, batch, config, 1e-2, (0, 1, 0))
        outcomes.append(adapter_arrays(model))
    for name, array in outcomes[0].items():
        np.testing.assert_allclose(outcomes[1][name], array, atol=1e-6)


def test_a_round_of_a_client_is_the_same_bytes_again(tiny: LoadedModel, batch: list[np.ndarray]) -> None:
    outcomes = []
    for seed in ((0, 1, 0), (0, 1, 0), (0, 2, 0)):
        model = attach_adapter(tiny, Tuning(), seed=1)
        train_locally(model, tiny, batch, LocalTraining(steps=3, batch_size=4), 1e-2, seed)
        outcomes.append({name: array.tobytes() for name, array in adapter_arrays(model).items()})
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_training_lowers_the_loss(tiny: LoadedModel, batch: list[np.ndarray], optimizer: str) -> None:
    model = attach_adapter(tiny, Tuning(rank=16, dropout=0.0), seed=1)
    config = LocalTraining(steps=1, batch_size=12, optimizer=optimizer)  # type: ignore[arg-type]
    losses = [train_locally(model, tiny, batch, config, 1e-2, (0, step, 0)).loss for step in range(15)]
    assert losses[-1] < losses[0] - 0.05


def test_the_proximal_term_keeps_weights_near_the_global_ones(tiny: LoadedModel, batch: list[np.ndarray]) -> None:
    moved = []
    for mu in (0.0, 100.0):
        model = attach_adapter(tiny, Tuning(), seed=1)
        before = adapter_arrays(model)
        # Without a limit on the norm of gradients, which would hide the pull.
        config = LocalTraining(steps=8, batch_size=4, proximal=mu, max_gradient_norm=1e9)
        train_locally(model, tiny, batch, config, 1e-2, (0, 1, 0))
        moved.append(sum(float(((a - before[n]) ** 2).sum()) for n, a in adapter_arrays(model).items()))
    assert moved[1] < moved[0]


def test_batches_take_every_window_before_any_again() -> None:
    drawn = np.concatenate(list(draw_batches(10, LocalTraining(steps=5, batch_size=4), (1, 2, 3))))
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))


def test_a_share_smaller_than_a_batch_is_taken_over_and_over() -> None:
    assert all(sorted(b) == [0, 1, 2] for b in draw_batches(3, LocalTraining(steps=3, batch_size=3), (0, 0, 0)))
    assert [len(b) for b in draw_batches(3, LocalTraining(steps=2, batch_size=8), (0, 0, 0))]


def test_the_rate_falls_from_its_maximum_along_a_cosine() -> None:
    rates = [cosine_rate(number, 50, 1e-3, 1e-5) for number in range(1, 51)]
    assert rates[0] == 1e-3
    assert rates[25] == pytest.approx((1e-3 + 1e-5) / 2)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))
    assert rates[-1] > 1e-5


def test_nothing_to_train_is_an_error(tiny: LoadedModel, batch: list[np.ndarray]) -> None:
    model = attach_adapter(tiny, Tuning(kind="none"), seed=1)
    with pytest.raises(LearningError, match="Nothing to train"):
        train_locally(model, tiny, batch, LocalTraining(), 1e-3, (0, 1, 0))
