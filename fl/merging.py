"""Adapters written out for others: in PEFT's own form, or merged into the base weights, W + (alpha / r) B A (eq. 3)."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fl.adapter import attach_adapter, load_adapter_arrays, save_adapter
from fl.bases import square_layers
from fl.errors import ModelError
from fl.hyperparameters import Tuning
from fl.model import load_model, weights_hash

_PREFIX = "base_model.model."
"""What PEFT puts before the base model's own names."""
_WEIGHTS = {".safetensors", ".bin", ".pt", ".gguf"}
_NOT_COPIED = {"card.json", "model.safetensors.index.json"}


def merge_adapter(base: Path, arrays: Mapping[str, np.ndarray], tuning: Tuning, seed: int, into: Path) -> Path:
    """Write the model in `base` with the adapter in its weights to the empty or new folder `into`.

    The result is a directory that `load_model` and transformers read, without PEFT. Weights keep the type they have on
    disk; the sum is made in float32. An adapter trained on quantized weights is merged into the unquantized ones.
    Raises ModelError where the adapter is not for this model, or the folder is taken.
    """
    _prepare_folder(into)
    weights = _weights(base)
    for name, change in _changes(base, arrays, tuning, seed).items():
        former = weights[name]
        sum_ = change if tuning.kind == "full" else former.float() + change
        weights[name] = sum_.to(former.dtype).contiguous()
    for path in base.iterdir():
        if path.is_file() and path.suffix not in _WEIGHTS and path.name not in _NOT_COPIED:
            shutil.copyfile(path, into / path.name)
    save_file(weights, into / "model.safetensors", {"format": "pt"})
    card = _card(base)
    card |= {"name": into.name, "source": f"{card.get('name', base.name)} with an adapter merged in"}
    (into / "card.json").write_text(json.dumps(card | {"weights_sha256": weights_hash(into)}, indent=1))
    return into


def export_adapter(base: Path, arrays: Mapping[str, np.ndarray], tuning: Tuning, seed: int, into: Path) -> Path:
    """Write an adapter to the empty or new folder `into` as PEFT's `PeftModel.from_pretrained` reads it.

    Adapters of other kinds than LoRA are written as the A and B that they amount to.
    """
    from peft import LoraConfig

    if not tuning.has_rank:
        raise ModelError(f"Tuning {tuning.kind} leaves no adapter to export; export the weights with --merged.")
    _prepare_folder(into)
    matrices = {}
    for name, layer in _layers(base, arrays, tuning, seed).items():
        matrices[f"{name}.lora_A.weight"], matrices[f"{name}.lora_B.weight"] = (each.numpy() for each in _pair(layer))
    save_adapter(into / "adapter_model.safetensors", matrices, {"format": "pt"})
    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(_card(base).get("name", base.name)),
        inference_mode=True,
        r=tuning.rank,
        lora_alpha=tuning.scale_numerator,
        lora_dropout=tuning.dropout,
        target_modules=list(tuning.targets),
    ).save_pretrained(str(into))
    return into


def _prepare_folder(into: Path) -> None:
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise ModelError(f"{into} is there already; name a folder that is not.")
    into.mkdir(parents=True, exist_ok=True)


def _card(base: Path) -> dict[str, str]:
    path = base / "card.json"
    card: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    return card


def _weights(base: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return found


def _changes(base: Path, arrays: Mapping[str, np.ndarray], tuning: Tuning, seed: int) -> dict[str, torch.Tensor]:
    """What is added to each weight, by its name on disk; for full fine-tuning the weights themselves."""
    if tuning.kind == "full":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    found = {}
    for name, layer in _layers(base, arrays, tuning, seed).items():
        down, up = _pair(layer)
        found[f"{name.removeprefix(_PREFIX)}.weight"] = layer.scaling["default"] * (up @ down)
    return found


def _layers(base: Path, arrays: Mapping[str, np.ndarray], tuning: Tuning, seed: int) -> dict[str, Any]:
    """The adapted layers of the model, by name."""
    if not tuning.has_rank:
        return {}
    adapted = attach_adapter(load_model(base, "none", "cpu"), tuning, seed)
    load_adapter_arrays(adapted, arrays)
    return square_layers(adapted)


def _pair(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401 (PEFT's LoRA layer)
    """A and B."""
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return down.detach().float().contiguous(), up.detach().float().contiguous()
