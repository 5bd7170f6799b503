"""Bases for square adapters from the first update that full fine-tuning would make, as LoRA-SB initializes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fl.bases import singular_bases, square_layers
from fl.hyperparameters import LocalTraining
from fl.local_training import accumulate_gradients, draw_batches, token_budget
from fl.model import LoadedModel


def set_gradient_bases(
    model: torch.nn.Module,
    loaded: LoadedModel,
    token_ids: Sequence[np.ndarray],
    config: LocalTraining,
    seed: int,
) -> None:
    """Set B and A of a square adapter to the leading singular vectors of -sign(gradient) on one batch of windows.

    That is AdamW's first step (arXiv 2411.19557, section 3.3) up to its rate. The paper takes 0.1 % of the training
    data; here it is one batch of the client that makes the first adapter. R must be 0, as it is when newly attached.
    """
    layers = square_layers(model)
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    batch = next(draw_batches(len(token_ids), config, (seed, 0, 0)))
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        windows = [token_ids[index] for index in batch]
        accumulate_gradients(model, loaded, windows, token_budget(loaded, config), share=config.share_prefixes)
        for name, layer in layers.items():
            _set_bases(layer, -torch.sign(weights[name].grad))
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
        model.zero_grad(set_to_none=True)


def _set_bases(layer: Any, update: torch.Tensor) -> None:  # noqa: ANN401 (a LoRA layer of any kind)
    down, up = layer.lora_A["default"].base, layer.lora_B["default"].weight
    left, right = singular_bases(update, len(down))
    with torch.no_grad():
        up.copy_(left)
        down.copy_(right)
