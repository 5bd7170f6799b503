"""Adapters: names, seeds, files, and what does not fit."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

from fl.adapter import (
    Tuning,
    adapter_arrays,
    adapter_hash,
    attach_adapter,
    load_adapter_arrays,
    read_adapter,
    save_adapter,
    without_adapter,
)
from fl.errors import ModelError
from fl.model import LoadedModel, load_model


@pytest.fixture
def tiny(tiny_model: Path) -> LoadedModel:
    load_model.cache_clear()
    return load_model(tiny_model)


def _logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 20)[None]).logits


def test_a_fresh_adapter_changes_nothing_and_is_drawn_from_the_seed(tiny: LoadedModel) -> None:
    untouched = _logits(tiny.model)
    drawn = [adapter_arrays(attach_adapter(tiny, Tuning(), seed)) for seed in (1, 1, 2)]
    assert torch.equal(_logits(attach_adapter(tiny, Tuning(), 1)), untouched)
    assert adapter_hash(drawn[0]) == adapter_hash(drawn[1]) != adapter_hash(drawn[2])


def test_another_tuning_replaces_the_former(tiny: LoadedModel) -> None:
    untouched = _logits(tiny.model)
    model = attach_adapter(tiny, Tuning(rank=4), 1)
    load_adapter_arrays(model, {n: np.ones_like(a) for n, a in adapter_arrays(model).items()})
    assert not torch.equal(_logits(model), untouched)
    with without_adapter(model):
        assert torch.equal(_logits(model), untouched)
    again = attach_adapter(tiny, Tuning(rank=2), 1)
    assert {a.shape for n, a in adapter_arrays(again).items() if "lora_A" in n} == {(2, 64)}
    assert torch.equal(_logits(attach_adapter(tiny, Tuning(kind="none"), 1)), untouched)


def test_names_are_those_of_peft_adapter_files(tiny: LoadedModel, tmp_path: Path) -> None:
    model = attach_adapter(tiny, Tuning(), 1)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert read_adapter(tmp_path / "adapter_model.safetensors").keys() == adapter_arrays(model).keys()


def test_the_untouched_model_trains_nothing_and_full_tuning_everything(tiny: LoadedModel) -> None:
    assert adapter_arrays(attach_adapter(tiny, Tuning(kind="none"), 1)) == {}
    full = adapter_arrays(attach_adapter(tiny, Tuning(kind="full"), 1))
    assert sum(array.size for array in full.values()) == sum(p.numel() for p in tiny.model.parameters())


def test_arrays_survive_a_file(tiny: LoadedModel, tmp_path: Path) -> None:
    arrays = adapter_arrays(attach_adapter(tiny, Tuning(), 3))
    save_adapter(tmp_path / "adapter.safetensors", arrays)
    assert adapter_hash(read_adapter(tmp_path / "adapter.safetensors")) == adapter_hash(arrays)


def test_what_does_not_fit_is_refused_in_one_line(tiny: LoadedModel, tmp_path: Path) -> None:
    model = attach_adapter(tiny, Tuning(), 1)
    arrays = adapter_arrays(model)
    first = next(iter(arrays))
    for wrong in ({}, arrays | {"other": np.zeros(1)}, arrays | {first: np.zeros((3, 3), np.float32)}):
        with pytest.raises(ModelError) as caught:
            load_adapter_arrays(model, wrong)
        assert "\n" not in str(caught.value)
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="no readable adapter"):
        read_adapter(tmp_path / "broken.safetensors")
    with pytest.raises(ModelError, match="cannot be attached"):
        attach_adapter(tiny, Tuning(targets=("no_such_layer",)), 1)


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert Tuning(rank=32).scale_numerator == 64
    assert Tuning(rank=32, alpha=5).scale_numerator == 5


def test_threads_that_load_and_attach_at_once_have_the_model_that_each_would_have_alone(tiny_model: Path) -> None:
    tokens = torch.arange(1, 30)[None]

    def made(begin: Barrier | None = None) -> tuple[float, str]:
        if begin:
            begin.wait()
        # Past the cache: threads of a sweep ask for different devices.
        adapted = attach_adapter(load_model.__wrapped__(tiny_model), Tuning(rank=2), 0)
        with torch.inference_mode():
            return adapted(input_ids=tokens).logits.double().sum().item(), adapter_hash(adapter_arrays(adapted))

    alone = made()
    for _ in range(3):
        begin = Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            found = [future.result() for future in [pool.submit(made, begin) for _ in range(2)]]
        assert [adapter for _, adapter in found] == [alone[1]] * 2
        assert [total for total, _ in found] == pytest.approx([alone[0]] * 2, rel=1e-6)
