"""FlexAttention over a pack of a prefix tree: one kernel call for all branches of the pack, on CUDA.

A pack's tokens stand in depth-first order, so token k is on the path of token q (or is q) exactly when
k <= q < end[k], with end[k] the first token after k's subtree: one comparison with one vector, whatever the tree's
shape. The same vector tells which blocks of 128 x 128 hold such pairs, and which hold nothing else.

Traps that the code below steps around: a kernel that is compiled too often is silently replaced by one that holds all
scores in memory (hence `fullgraph`, which makes that an error, and dynamic shapes); some releases of torch compute
float32 products with 10 bits of mantissa (hence FLOAT32_PRECISION); and shapes of size 1 compile again (hence two
blocks at least).
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.prefix_tree import Pack, ancestor_mask, build_tree, cut_packs

BLOCK = 128
"""Tokens on a side of a block: FlexAttention's own size."""
_COMPILATIONS = 64
"""Training and scoring need about four, for each number of heads; torch's limit is 8 for all in a process."""
_TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""How far results may be from float32's, as a share of their norm: ten times what rounding does."""


@dataclass(frozen=True)
class Blocks:
    """For each block of queries, the blocks of keys on some path of theirs, partly or fully: counts and numbers.

    `partial` and `full` have shape (blocks, blocks); the first `partial_count[i]` entries of row i are meant.
    """

    partial_count: np.ndarray
    partial: np.ndarray
    full_count: np.ndarray
    full: np.ndarray


def padded_length(tokens: int) -> int:
    """The length that a pack is padded to: whole blocks, two at least."""
    return max(2, -(-tokens // BLOCK)) * BLOCK


def subtree_ends(pack: Pack, length: int) -> np.ndarray:
    """For each token the first one after its subtree, int32; tokens from the pack's end up to `length` stand alone.

    Each chain closes the tokens of the open path that are not in its stem, so every token is closed once: linear time.
    """
    size = len(pack.token_ids)
    ends = np.arange(1, length + 1, dtype=np.int32)
    path = np.empty(int(pack.positions.max(initial=-1)) + 1, np.int64)
    depth = 0
    for chain in pack.chains:
        stem = len(chain.stem)
        ends[path[stem:depth]] = chain.start
        depth = stem + chain.stop - chain.start
        path[stem:depth] = np.arange(chain.start, chain.stop)
    ends[path[:depth]] = size
    return ends


def find_blocks(ends: np.ndarray) -> Blocks:
    """Which blocks hold a token of some query's path, and which hold only such tokens, for all queries of a block.

    The subtree of a token is an unbroken run that begins with it, so the farthest end in a block of keys says which
    later blocks of queries see any of it, the nearest end which see all of it.
    """
    farthest, nearest = (find(ends.reshape(-1, BLOCK), axis=1) for find in (np.max, np.min))
    number = np.arange(len(farthest))
    begin, later = number[:, None] * BLOCK, number[:, None] > number
    seen = (later & (farthest > begin)) | np.eye(len(number), dtype=bool)
    full = later & (nearest >= begin + BLOCK)
    return Blocks(*_listed(seen & ~full), *_listed(full))


def _listed(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many columns of each row are chosen, and their numbers, those first."""
    return chosen.sum(1, dtype=np.int32), np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)


def block_mask(pack: Pack, device: str) -> Any:  # noqa: ANN401 (torch's BlockMask)
    """FlexAttention's mask for a pack padded to `padded_length`."""
    from torch.nn.attention.flex_attention import BlockMask

    known = subtree_ends(pack, padded_length(len(pack.token_ids)))
    ends = torch.from_numpy(known).to(device)
    blocks = find_blocks(known)

    def on_path(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    def placed(part: np.ndarray) -> Tensor:
        return torch.from_numpy(part)[None, None].to(device)

    return BlockMask.from_kv_blocks(
        placed(blocks.partial_count),
        placed(blocks.partial),
        placed(blocks.full_count),
        placed(blocks.full),
        BLOCK_SIZE=BLOCK,
        mask_mod=on_path,
    )


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.config.recompile_limit = max(_COMPILATIONS, torch._dynamo.config.recompile_limit)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float) -> Tensor:  # noqa: ANN401
    """Attention of a padded pack: query (1, heads, T, d), key and value (1, key heads, T, d); gives query's shape."""
    options = {"FLOAT32_PRECISION": "'ieee'"} if query.dtype == torch.float32 else None
    grouped = query.shape[1] != key.shape[1]
    return _compiled()(query, key, value, block_mask=mask, scale=scaling, enable_gqa=grouped, kernel_options=options)


def fault(device: str, dtype: torch.dtype, heads: int, key_heads: int, width: int) -> str | None:
    """Why FlexAttention cannot be used for such a model on this device, or None: found out by a small trial.

    The trial compiles the kernels that are needed afterwards anyway, runs them forward and backward on a small tree,
    and compares with scaled_dot_product_attention in float32.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton, which compiles it, is not installed"
    try:
        with torch.inference_mode(False), torch.enable_grad():  # wherever the question is first asked
            error = _trial(device, dtype, heads, key_heads, width)
    except Exception as problem:  # whatever a compiler can raise; the run goes on without it
        return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0][:160]}"
    limit = _TOLERANCES.get(dtype, min(_TOLERANCES.values()))
    return None if error <= limit else f"in a trial it was off by {error:.1e} of the result's norm, {limit:.0e} may be"


def _trial(device: str, dtype: torch.dtype, heads: int, key_heads: int, width: int) -> float:
    """The largest relative error of output and gradients over a tree of four windows; NaN counts as infinite.

    The tree has 11 blocks: were that a number of heads or their width, torch would take the one for the other, and what
    is compiled would fit this number of blocks only.
    """
    trunk = np.arange(1, 1100)
    windows = [trunk, np.append(trunk[:550], trunk[:90]), np.append(trunk[:550], trunk[:40]), trunk[100:170]]
    (pack,) = cut_packs(build_tree(windows, 0), 10_000)
    size, length = len(pack.token_ids), padded_length(len(pack.token_ids))
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, length, width) for count in (heads, key_heads, key_heads, heads)]
    query, key, value, weights = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    weights[:, :, size:] = 0
    mask = torch.eye(length, dtype=torch.bool)
    mask[:size, :size] = torch.from_numpy(ancestor_mask(pack))
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    plain = [tensor.float().requires_grad_() for tensor in (query, key, value)]
    out = attend(leaves[0], leaves[1], leaves[2], block_mask(pack, device), width**-0.5)
    # With heads repeated, kernels for groups of heads play no part in what these are held against.
    keys, values = (tensor.repeat_interleave(heads // key_heads, dim=1) for tensor in plain[1:])
    expected = F.scaled_dot_product_attention(plain[0], keys, values, attn_mask=mask.to(device))
    found = (out.detach()[:, :, :size], *torch.autograd.grad(out, leaves, weights))
    right = (expected.detach()[:, :, :size], *torch.autograd.grad(expected, plain, weights.float()))
    errors = [float((one.float() - other).norm() / other.norm()) for one, other in zip(found, right, strict=True)]
    return max(error if np.isfinite(error) else np.inf for error in errors)
