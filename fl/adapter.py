"""What is trained and sent: LoRA adapters, or all weights, as plain named arrays."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fl.adapter_files import Arrays, adapter_hash, read_adapter, save_adapter
from fl.bases import put_squares
from fl.errors import ModelError
from fl.hyperparameters import Tuning
from fl.model import MAKING, LoadedModel

__all__ = (
    "Arrays",
    "adapter_arrays",
    "adapter_hash",
    "attach_adapter",
    "load_adapter_arrays",
    "read_adapter",
    "save_adapter",
    "trained_in_round",
    "without_adapter",
)


def attach_adapter(loaded: LoadedModel, tuning: Tuning, seed: int) -> torch.nn.Module:
    """The model with `tuning`'s weights trainable, sharing `loaded`'s base weights.

    LoRA's A is drawn from `seed`, B is 0. A former adapter is taken off first. Raises ModelError for full fine-tuning
    (or bases from its gradient) of quantized weights and for target names the model does not have.
    """
    if tuning.kind == "full" and loaded.quantization != "none":
        raise ModelError("Full fine-tuning needs unquantized weights; use quantization=none, or tuning.kind=lora.")
    if tuning.takes_gradient and loaded.quantization != "none":
        raise ModelError("Bases from a gradient need unquantized weights; use quantization=none, or bases=weights.")
    with MAKING:
        _detach(loaded.model)
        if tuning.has_rank:
            return _attach_lora(loaded.model, tuning, seed)
        for parameter in loaded.model.parameters():
            parameter.requires_grad_(tuning.kind == "full")
        return loaded.model


def _attach_lora(base: Any, tuning: Tuning, seed: int) -> torch.nn.Module:  # noqa: ANN401 (any transformers model)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.rank,
        lora_alpha=tuning.scale_numerator,
        lora_dropout=tuning.dropout,
        target_modules=list(tuning.targets),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own use of names that transformers renames
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(base, config)
        except ValueError as error:
            raise ModelError(f"Adapters cannot be attached to {', '.join(tuning.targets)}: {error}") from error
    _choose_trained(adapted, tuning, seed)
    adapted.eval()
    # Past torch's own attribute setting, which would make the adapter a submodule of its own base.
    object.__setattr__(base, "attached_adapter", adapted)
    return adapted


def _choose_trained(adapted: torch.nn.Module, tuning: Tuning, seed: int) -> None:
    """Freeze what this kind of adapter does not train; `carried` marks what is part of the adapter all the same."""
    if tuning.kind == "sb":
        put_squares(adapted, tuning, seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name and tuning.kind == "ffa":
            parameter.requires_grad_("lora_A" not in name)
        is_base = "lora_" in name and tuning.takes_gradient
        parameter.carried = is_base or (tuning.kind == "rolora" and parameter.requires_grad)  # type: ignore[attr-defined]


@contextmanager
def trained_in_round(model: torch.nn.Module, tuning: Tuning, round_number: int) -> Iterator[None]:
    """Train only what `tuning` trains in this round, for the time of a `with` block."""
    before = [(name, parameter, parameter.requires_grad) for name, parameter in _carried(model).items()]
    try:
        for name, parameter, _ in before:
            parameter.requires_grad_(tuning.trains(name, round_number))
        yield
    finally:
        for _, parameter, trained in before:
            parameter.requires_grad_(trained)


def _detach(base: Any) -> None:  # noqa: ANN401 (any transformers model)
    """Take off the adapter that this process attached before, if any, and give back the plain base model."""
    if (adapted := base.__dict__.pop("attached_adapter", None)) is not None:
        adapted.unload()
        base.__dict__.pop("peft_config", None)
        vars(base).pop("_hf_peft_config_loaded", None)


@contextmanager
def without_adapter(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The untouched base model for the time of a `with` block, by switching LoRA layers off."""
    if hasattr(model, "disable_adapter"):
        trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
        with model.disable_adapter():  # type: ignore[operator]
            yield model
        for parameter, is_trained in trained.items():  # PEFT makes all of an adapter trainable again
            parameter.requires_grad_(is_trained)
    else:
        yield model


def adapter_arrays(model: torch.nn.Module) -> Arrays:
    """The adapter's weights by name, float32, names sorted; empty for the untouched model.

    Those that follow from model and seed everywhere, such as FFA-LoRA's A, are not among them.
    """
    return {
        name: parameter.detach().to("cpu", torch.float32).numpy().copy()
        for name, parameter in sorted(_carried(model).items())
    }


def load_adapter_arrays(model: torch.nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Put `arrays` in the place of the adapter's; raises ModelError where a name or shape is not the model's."""
    carried = _carried(model)
    if missing := sorted(carried.keys() ^ arrays.keys()):
        raise ModelError(f"The adapter does not fit the model: {len(missing)} names differ, first {missing[0]!r}.")
    with torch.no_grad():
        for name, parameter in carried.items():
            array = arrays[name]
            if array.shape != tuple(parameter.shape):
                raise ModelError(
                    f"The adapter does not fit the model: {name} has shape {array.shape}, not {tuple(parameter.shape)}."
                )
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _carried(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by the names of PEFT's adapter files (for full fine-tuning, the model's own)."""
    return {
        _file_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or getattr(parameter, "carried", False)
    }


def _file_name(name: str) -> str:
    name = name.replace(".default.", ".")
    return name.replace(".lora_A.square", ".lora_R.weight").replace(".lora_A.base", ".lora_A.weight")
