"""Attention over a pack of a prefix tree: each chain attends to its own path, so nothing is spent on other branches.

Registered with transformers as the implementation `prefix_tree`. On a CPU, each chain's queries meet the keys gathered
from its path by scaled_dot_product_attention: work in proportion to tokens x depth, not tokens x tokens. On other
devices one dense ancestors-only mask over the pack is used, where many small calls would cost more than they save.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.prefix_tree import Pack, ancestor_mask

IMPLEMENTATION = "prefix_tree"
_LONGEST_RUN = 128
"""Queries at a time: of a long chain's products with itself half would be masked away, runs leave most of them out."""


@dataclass(frozen=True)
class ChainPlan:
    """A run of a chain: queries [start, stop), the nodes on its path up to its last, and the mask between the two.

    `mask` is additive with shape (groups * length, path length): the query heads of a group share a key head, so
    they are stacked along the queries instead of copying keys.
    """

    start: int
    stop: int
    path: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TreePlan:
    """How the tokens of a pack attend: chain by chain, or by one dense mask of shape (1, 1, T, T)."""

    chains: tuple[ChainPlan, ...]
    dense: Tensor | None


def plan_attention(pack: Pack, config: Any, device: str, dtype: torch.dtype) -> TreePlan:  # noqa: ANN401
    """The plan for `pack` on `device`; `config` is the model's, for its numbers of heads."""
    if not device.startswith("cpu"):
        mask = torch.from_numpy(ancestor_mask(pack)).to(device)
        return TreePlan((), mask[None, None])
    groups = config.num_attention_heads // config.num_key_value_heads
    return TreePlan(tuple(_plan_chains(pack, groups, dtype)), None)


def _plan_chains(pack: Pack, groups: int, dtype: torch.dtype) -> Iterator[ChainPlan]:
    """The pack's chains in runs of at most `_LONGEST_RUN` queries: later keys are never read for earlier queries."""
    for chain in pack.chains:
        path = torch.from_numpy(np.concatenate([chain.stem, np.arange(chain.start, chain.stop)]))
        for start in range(chain.start, chain.stop, _LONGEST_RUN):
            stop = min(start + _LONGEST_RUN, chain.stop)
            seen = len(chain.stem) + stop - chain.start
            allowed = torch.ones(stop - start, seen, dtype=torch.bool).tril(seen - (stop - start))
            mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
            yield ChainPlan(start, stop, path[:seen], mask.repeat(groups, 1))


def _chain_attention(query: Tensor, key: Tensor, value: Tensor, chain: ChainPlan, scaling: float) -> Tensor:
    """Attention of one chain: query (heads, L, d), key and value (key heads, P, d) of its path; gives (heads, L, d)."""
    heads, length, width = query.shape
    stacked = query.reshape(key.shape[0], -1, width)
    out = F.scaled_dot_product_attention(stacked[None], key[None], value[None], attn_mask=chain.mask, scale=scaling)
    return out.reshape(heads, length, width)


class _TreeAttention(torch.autograd.Function):
    """All chains of a pack. The backward pass computes each chain again instead of keeping its gathered path."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, scaling: float) -> Tensor:  # noqa: ANN401
        out = torch.empty_like(query)
        for chain in plan.chains:
            keys, values = key.index_select(1, chain.path), value.index_select(1, chain.path)
            out[:, chain.start : chain.stop] = _chain_attention(
                query[:, chain.start : chain.stop], keys, values, chain, scaling
            )
        ctx.save_for_backward(query, key, value)
        ctx.plan, ctx.scaling = plan, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # noqa: ANN401
        query, key, value = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for chain in ctx.plan.chains:
            run = slice(chain.start, chain.stop)
            with torch.enable_grad():
                leaves = (
                    query[:, run].detach().requires_grad_(),
                    key.index_select(1, chain.path).requires_grad_(),
                    value.index_select(1, chain.path).requires_grad_(),
                )
                out = _chain_attention(*leaves, chain, ctx.scaling)
            from_out = torch.autograd.grad(out, leaves, gradients[0][:, run])
            to_query[:, run] = from_out[0]
            to_key.index_add_(1, chain.path, from_out[1])
            to_value.index_add_(1, chain.path, from_out[2])
        return to_query, to_key, to_value, None, None


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    tree: TreePlan,
    **_: Any,  # noqa: ANN401 (what transformers passes to every implementation)
) -> tuple[Tensor, None]:
    """The interface of transformers: query (1, heads, T, d) to output (1, T, heads, d)."""
    if tree.dense is not None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=tree.dense, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    out = _TreeAttention.apply(query[0], key[0], value[0], tree, scaling)
    return out.transpose(0, 1)[None], None


@contextmanager
def tree_attention(model: Any) -> Iterator[None]:  # noqa: ANN401 (any transformers or PEFT model)
    """Let `model` attend by `tree=` plans for the time of a `with` block."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = before


def hidden_states(model: Any, pack: Pack) -> Tensor:  # noqa: ANN401 (any transformers or PEFT causal model)
    """The model's last hidden states (T, hidden size) for every token of `pack`; within `tree_attention`."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    device = core.model.embed_tokens.weight.device
    plan = plan_attention(pack, core.config, str(device), core.model.embed_tokens.weight.dtype)
    return core.model(
        input_ids=torch.from_numpy(pack.token_ids)[None].to(device),
        position_ids=torch.from_numpy(pack.positions)[None].to(device),
        use_cache=False,
        tree=plan,
    ).last_hidden_state[0]


def output_head(model: Any) -> torch.nn.Module:  # noqa: ANN401 (any transformers or PEFT causal model)
    """The layer that turns hidden states into logits over the vocabulary."""
    return model.get_output_embeddings()
