"""Frozen bases of adapters that train a small square matrix between them: delta W = scale * B R A, with only R trained.

The form is that of LoRA-XS (arXiv 2405.17604), LoRA-SB (arXiv 2411.19557) and, federated, Fed-SB (arXiv 2502.15436):
the mean of the clients' R is exact, since B and A are the same everywhere. R starts at 0, so that training starts with
the untouched model; LoRA-SB starts with the first update's singular values instead.
"""

import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.errors import ModelError
from fl.hyperparameters import Tuning

_OVERSAMPLING, _ITERATIONS = 8, 16
"""Of the randomized decomposition (arXiv 0909.4061): enough for the flat spectra that weights and signs have."""


class SquareDown(torch.nn.Module):
    """Stands where LoRA has A (rank x inputs): the frozen base A, then the trained R."""

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.base = torch.nn.Parameter(base, requires_grad=False)
        self.square = torch.nn.Parameter(torch.zeros(len(base), len(base), device=base.device, dtype=base.dtype))

    @property
    def weight(self) -> Tensor:
        """R A, what LoRA would call A; PEFT merges with it."""
        return self.square @ self.base

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (..., inputs) to (..., rank)."""
        return F.linear(F.linear(inputs, self.base), self.square)


def square_layers(adapted: torch.nn.Module) -> dict[str, Any]:
    """The LoRA layers of a model by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}


def put_squares(adapted: torch.nn.Module, tuning: Tuning, seed: int) -> None:
    """Make each LoRA layer B R A, with bases as `tuning` says; those from a gradient are 0 until they are set."""
    for name, layer in square_layers(adapted).items():
        down, up = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight
        if tuning.rank > min(len(up), down.shape[1]):
            raise ModelError(f"Rank {tuning.rank} is more than {name} has inputs or outputs; take a smaller one.")
        if tuning.bases == "gradient":
            left, right = torch.zeros_like(up.data), torch.zeros_like(down)
        elif tuning.bases == "random":
            left, right = (
                _orthonormal(size, tuning.rank, f"{seed} {name} {side}")
                for side, size in (("B", len(up)), ("A", down.shape[1]))
            )
            right = right.T
        else:
            left, right = singular_bases(_weight(layer), tuning.rank)
        layer.lora_A["default"] = SquareDown(right.to(down).contiguous())
        up.data.copy_(left)
        up.requires_grad_(False)


def _orthonormal(size: int, rank: int, seed: str) -> Tensor:
    """`rank` orthonormal columns of length `size`, the same on every machine up to rounding."""
    entropy = int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=16).digest(), "little")
    columns, triangle = np.linalg.qr(np.random.default_rng(entropy).standard_normal((size, rank)))
    return torch.from_numpy(columns * np.sign(np.diag(triangle)))


def _weight(layer: Any) -> Tensor:  # noqa: ANN401 (a LoRA layer of any kind)
    """The base weight (outputs x inputs) of a LoRA layer, dequantized where it is quantized."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer.get_base_layer()).detach()


def singular_bases(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The leading left (outputs x rank) and right (rank x inputs) singular vectors of a matrix, as float64.

    A seeded randomized decomposition; of each pair of vectors the right one's largest entry is positive, or machines
    could differ in signs.
    """
    wide = matrix.to("cpu", torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, _, right = torch.svd_lowrank(wide, q=min(rank + _OVERSAMPLING, *wide.shape), niter=_ITERATIONS)
    left, right = left[:, :rank], right[:, :rank].T
    signs = torch.sign(right.gather(1, right.abs().argmax(dim=1, keepdim=True)))
    return left * signs.T, right * signs
