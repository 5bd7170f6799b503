"""Adapters that send less: what is trained and carried, exact averages, and where the frozen bases come from."""

import copy
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fl.adapter import (
    adapter_arrays,
    attach_adapter,
    load_adapter_arrays,
    trained_in_round,
    without_adapter,
)
from fl.bases import square_layers
from fl.errors import ModelError
from fl.first_update import set_gradient_bases
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import draw_batches, train_locally
from fl.model import LoadedModel, load_model

KINDS = {
    "lora": Tuning(rank=4, dropout=0),
    "ffa": Tuning(kind="ffa", rank=4, dropout=0),
    "rolora": Tuning(kind="rolora", rank=4, dropout=0),
    **{f"sb-{bases}": Tuning(kind="sb", rank=4, dropout=0, bases=bases) for bases in ("gradient", "weights", "random")},  # type: ignore[arg-type]
}
WINDOWS = [np.random.default_rng(seed).integers(3, 40, 6 + seed) for seed in range(20)]


@pytest.fixture
def tiny(tiny_model: Path) -> Iterator[LoadedModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    load_model.cache_clear()
    yield load_model(tiny_model)
    torch.set_num_threads(threads)


def _attached(tiny: LoadedModel, tuning: Tuning, seed: int = 1) -> torch.nn.Module:
    model = attach_adapter(tiny, tuning, seed)
    if tuning.kind == "sb" and tuning.bases == "gradient":
        set_gradient_bases(model, tiny, WINDOWS, LocalTraining(batch_size=8), seed)
    return model


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 20)[None]).logits


def _deltas(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """What each layer adds to its weight, as PEFT would merge it."""
    return {
        name: layer.get_delta_weight("default").detach().double().numpy()
        for name, layer in square_layers(model).items()
    }


@pytest.mark.parametrize("tuning", KINDS.values(), ids=KINDS)
def test_a_fresh_adapter_changes_nothing(tiny: LoadedModel, tuning: Tuning) -> None:
    untouched = _logits(tiny.model)
    assert torch.equal(_logits(_attached(tiny, tuning)), untouched)


@pytest.mark.parametrize(
    ("kind", "values"),
    # 2 layers, q 64 to 64 and v 64 to 32, rank 4.
    [
        ("lora", 2 * 4 * (64 + 64 + 64 + 32)),
        ("ffa", 2 * 4 * (64 + 32)),
        ("rolora", 2 * 4 * (64 + 64 + 64 + 32)),
        ("sb-gradient", 2 * 4 * (64 + 64 + 64 + 32) + 4 * 16),
        ("sb-weights", 4 * 16),
        ("sb-random", 4 * 16),
    ],
)
def test_an_adapter_carries_what_does_not_follow_from_model_and_seed(tiny: LoadedModel, kind: str, values: int) -> None:
    assert sum(array.size for array in adapter_arrays(_attached(tiny, KINDS[kind])).values()) == values


@pytest.mark.parametrize("tuning", KINDS.values(), ids=KINDS)
def test_only_what_a_round_trains_changes_in_it_and_the_loss_falls(tiny: LoadedModel, tuning: Tuning) -> None:
    model = _attached(tiny, tuning)
    before = adapter_arrays(model)
    losses = []
    for number in (1, 2, 3):
        with trained_in_round(model, tuning, number):
            result = train_locally(model, tiny, WINDOWS, LocalTraining(steps=4, batch_size=20), 1e-2, (1, number, 0))
        after = adapter_arrays(model)
        changed = {name for name in after if not np.array_equal(after[name], before[name])}
        assert changed == {name for name in after if tuning.trains(name, number)}
        losses.append(result.loss)
        before = after
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_rolora_trains_b_then_a(tiny: LoadedModel) -> None:
    names = adapter_arrays(_attached(tiny, KINDS["rolora"]))
    trained = [{name.split(".")[-2] for name in names if KINDS["rolora"].trains(name, number)} for number in (1, 2, 3)]
    assert trained == [{"lora_B"}, {"lora_A"}, {"lora_B"}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 2])
def test_averages_are_exact_but_for_plain_lora(tiny: LoadedModel, kind: str, number: int) -> None:
    tuning = KINDS[kind]
    model = _attached(tiny, tuning)
    draw = np.random.default_rng(0)
    start = {name: array + draw.normal(size=array.shape) for name, array in adapter_arrays(model).items()}
    clients = [
        {
            name: (array + tuning.trains(name, number) * draw.normal(size=array.shape)).astype(np.float32)
            for name, array in start.items()
        }
        for _ in range(3)
    ]
    weights = [0.2, 0.3, 0.5]
    deltas = []
    for arrays in clients:
        load_adapter_arrays(model, arrays)
        deltas.append(_deltas(model))
    mean = {name: np.average([part[name] for part in clients], axis=0, weights=weights) for name in start}
    load_adapter_arrays(model, {name: array.astype(np.float32) for name, array in mean.items()})
    errors = [
        np.abs(delta - np.average([part[name] for part in deltas], axis=0, weights=weights)).max()
        for name, delta in _deltas(model).items()
    ]
    assert (max(errors) < 1e-4) == (kind != "lora")


@pytest.mark.parametrize("kind", ["ffa", "sb-random", "sb-weights"])
def test_what_is_not_carried_follows_from_the_seed(tiny: LoadedModel, kind: str) -> None:
    arrays = {name: np.ones_like(array) for name, array in adapter_arrays(_attached(tiny, KINDS[kind])).items()}
    logits = []
    for seed in (1, 1, 2):
        model = _attached(tiny, KINDS[kind], seed)
        load_adapter_arrays(model, arrays)
        logits.append(_logits(model))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2]) == (kind == "sb-weights")


def test_a_square_adapter_is_scale_times_b_r_a(tiny: LoadedModel) -> None:
    plain = copy.deepcopy(tiny.model)
    model = _attached(tiny, KINDS["sb-gradient"])
    draw = np.random.default_rng(3)
    arrays = {name: draw.normal(size=array.shape).astype(np.float32) for name, array in adapter_arrays(model).items()}
    load_adapter_arrays(model, arrays)
    for name, module in plain.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            b, r, a = (torch.from_numpy(arrays[f"base_model.model.{name}.lora_{part}.weight"]) for part in "BRA")
            module.weight.data += 2 * b @ r @ a  # alpha is twice the rank
    torch.testing.assert_close(_logits(model), _logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bases", ["weights", "random", "gradient"])
def test_bases_are_orthonormal(tiny: LoadedModel, bases: str) -> None:
    for layer in square_layers(_attached(tiny, KINDS[f"sb-{bases}"])).values():
        a, b = layer.lora_A["default"].base, layer.lora_B["default"].weight
        for gram in (a @ a.T, b.T @ b):
            torch.testing.assert_close(gram, torch.eye(4), rtol=0, atol=1e-5)


def test_bases_of_the_weights_hold_what_the_best_approximation_of_that_rank_holds(tiny: LoadedModel) -> None:
    for layer in square_layers(_attached(tiny, KINDS["sb-weights"])).values():
        weight = layer.get_base_layer().weight.detach().double().numpy()
        _assert_leading(weight, layer)


def test_bases_of_the_gradient_are_those_of_its_signs(tiny: LoadedModel) -> None:
    plain = copy.deepcopy(tiny.model).requires_grad_(True)
    model = _attached(tiny, KINDS["sb-gradient"])
    config = LocalTraining(batch_size=8)
    batch = [WINDOWS[index] for index in next(draw_batches(len(WINDOWS), config, (1, 0, 0)))]
    loss = torch.zeros(())
    for window in batch:
        ids = torch.tensor([*window, tiny.end_token_id])
        loss = loss + F.cross_entropy(plain(ids[None]).logits[0, :-1], ids[1:], reduction="sum")
    loss.backward()
    gradients = {name: weight.grad for name, weight in plain.named_parameters()}
    for name, layer in square_layers(model).items():
        gradient = gradients[f"{name.removeprefix('base_model.model.')}.weight"]
        _assert_leading(-np.sign(gradient.double().numpy()), layer)


def _assert_leading(matrix: np.ndarray, layer: torch.nn.Module) -> None:
    """The layer's bases hold all but a thousandth of what the best ones of their rank would."""
    a = layer.lora_A["default"].base.detach().double().numpy()  # type: ignore[index, union-attr]
    b = layer.lora_B["default"].weight.detach().double().numpy()  # type: ignore[index, union-attr]
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[:4] ** 2).sum())
    assert 0.999 * best < np.linalg.norm(b.T @ matrix @ a.T) < best * (1 + 1e-5)


def test_looking_at_the_untouched_model_leaves_what_is_frozen_frozen(tiny: LoadedModel) -> None:
    model = _attached(tiny, KINDS["ffa"])
    names = adapter_arrays(model).keys()
    with without_adapter(model):
        pass
    assert adapter_arrays(model).keys() == names
    assert all("lora_B" in name for name, weight in model.named_parameters() if weight.requires_grad)


def test_what_cannot_be_is_told_in_one_line(tiny: LoadedModel) -> None:
    with pytest.raises(ModelError, match=r"Rank 40 is more than .*v_proj has"):
        attach_adapter(tiny, Tuning(kind="sb", rank=40), 1)
    quantized = copy.copy(tiny)
    object.__setattr__(quantized, "quantization", "nf4")
    with pytest.raises(ModelError, match="bases=weights"):
        attach_adapter(quantized, Tuning(kind="sb"), 1)
