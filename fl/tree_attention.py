"""Attention over a pack of a prefix tree: each chain attends to its own path, so nothing is spent on other branches.

Registered with transformers as the implementation `prefix_tree`. On a CPU, each chain's queries meet the keys gathered
from its path by scaled_dot_product_attention: work in proportion to tokens x depth, not tokens x tokens. On CUDA, where
many small calls would cost more than they save, FlexAttention takes a whole pack at once and leaves out the blocks that
hold no path; where it cannot be used, and on other devices, one dense ancestors-only mask over the pack is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl import flex_attention
from fl.errors import ModelError
from fl.prefix_tree import Pack, ancestor_mask

IMPLEMENTATION = "prefix_tree"
_LONGEST_RUN = 128
"""Queries at a time: of a long chain's products with itself half would be masked away, runs leave most of them out."""
_LONGEST_DENSE = 8192
"""Tokens for which a dense mask is still affordable: 134 MB in bfloat16."""
_ALIGNED = 16
"""Dense masks are padded to a multiple of it: CUDA's kernel would otherwise copy the mask in every layer."""

_ROUNDING = 1e-3
"""Of the largest logit: the same computation twice, of which a device may add up some sums in another order."""

Kind = Literal["chains", "flex", "dense"]


@dataclass(frozen=True)
class Choice:
    """How packs of a model attend on a device, why, and how many tokens a pack may have for it."""

    kind: Kind
    reason: str
    longest_pack: int | None = None


@dataclass
class CarriedPath:
    """What a pack leaves to the one after it: the path of its last window, as the model has computed it."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    """Keys and values of each layer (key heads, P, d), and the last hidden states (P, hidden size)."""
    taken: int = 0
    """How many nodes the pack in work carries on, root first."""
    last: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """The nodes of the pack in work that it leaves."""

    def begin(self, pack: Pack) -> None:
        """Take up the next pack."""
        self.taken, self.last = pack.carried, torch.from_numpy(pack.last_path)

    def carry_on(self, part: str, computed: Tensor) -> Tensor:
        """A part of all nodes of the pack, given that of the computed ones; the last but one axis is the nodes'."""
        whole = torch.cat([self.parts[part][..., : self.taken, :], computed], dim=-2) if self.taken else computed
        self.parts[part] = whole.index_select(-2, self.last)
        return whole


@dataclass(frozen=True)
class Run:
    """A run of a chain: queries [start, stop), how many nodes of its path they see, and the mask between the two.

    Queries are numbered without the nodes that the pack carries. `mask` is additive with shape (groups * length, seen):
    the query heads of a group share a key head, so they are stacked along the queries instead of copying keys.
    """

    start: int
    stop: int
    seen: int
    mask: Tensor


@dataclass(frozen=True)
class ChainPlan:
    """A chain: the nodes on its path up to its last one, carried ones among them, and its runs."""

    path: Tensor
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class TreePlan:
    """How the tokens of a pack attend: chain by chain, by blocks, or by one dense additive mask (1, 1, T, T).

    `length` is the number of tokens T that are computed: the pack's, or with some of padding that nothing attends to;
    `longest` is that of the longest path. `path` is where packs carry the states of a path from one to the next.
    """

    chains: tuple[ChainPlan, ...]
    blocks: Any
    dense: Tensor | None
    length: int
    longest: int
    path: CarriedPath | None = None


def choose_attention(config: Any, device: str, dtype: torch.dtype) -> Choice:  # noqa: ANN401
    """How a model (`config`: its own) attends over packs on `device`; on CUDA the first call compiles and tries."""
    heads, key_heads = config.num_attention_heads, _key_heads(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return _choose(torch.device(device).type, dtype, heads, key_heads, width)


def _key_heads(config: Any) -> int:  # noqa: ANN401
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


@lru_cache(maxsize=8)
def _choose(device: str, dtype: torch.dtype, heads: int, key_heads: int, width: int) -> Choice:
    if device == "cpu":
        return Choice("chains", "chain by chain: on a CPU work in proportion to tokens x depth")
    if device != "cuda":
        return Choice("dense", f"one dense mask: there is nothing better for {device}", _LONGEST_DENSE)
    fault = flex_attention.fault(device, dtype, heads, key_heads, width)
    if fault is None:
        return Choice("flex", "FlexAttention: on CUDA one kernel takes all branches of a pack")
    return Choice("dense", f"one dense mask: FlexAttention cannot be used ({fault})", _LONGEST_DENSE)


def plan_attention(
    pack: Pack,
    config: Any,  # noqa: ANN401 (any transformers configuration)
    device: str,
    dtype: torch.dtype,
    path: CarriedPath | None = None,
) -> TreePlan:
    """The plan for `pack` on `device`; `config` is the model's, for its heads, `path` where packs carry."""
    size, longest = len(pack.token_ids), int(pack.positions.max(initial=-1)) + 1
    kind = choose_attention(config, device, dtype).kind
    if kind == "chains":
        groups = config.num_attention_heads // _key_heads(config)
        return TreePlan(tuple(_plan_chains(pack, groups, dtype)), None, None, size, longest, path)
    if kind == "flex":
        blocks = flex_attention.block_mask(pack, device)
        return TreePlan((), blocks, None, flex_attention.padded_length(size), longest)
    length = -(-size // _ALIGNED) * _ALIGNED
    return TreePlan((), None, _dense_mask(pack, length, device, dtype), length, longest)


def _dense_mask(pack: Pack, length: int, device: str, dtype: torch.dtype) -> Tensor:
    """Additive mask of the pack's paths; padding attends to itself, as a row without anything would give NaN."""
    allowed = np.eye(length, dtype=bool)
    size = len(pack.token_ids)
    allowed[:size, :size] = ancestor_mask(pack)
    mask = torch.zeros(length, length, dtype=dtype, device=device)
    return mask.masked_fill_(~torch.from_numpy(allowed).to(device), float("-inf"))[None, None]


def _plan_chains(pack: Pack, groups: int, dtype: torch.dtype) -> Iterator[ChainPlan]:
    """The pack's chains in runs of at most `_LONGEST_RUN` queries: later keys are never read for earlier queries."""
    for chain in pack.chains:
        path = torch.from_numpy(np.concatenate([chain.stem, np.arange(chain.start, chain.stop)]))
        runs = []
        for start in range(chain.start, chain.stop, _LONGEST_RUN):
            stop = min(start + _LONGEST_RUN, chain.stop)
            seen = len(chain.stem) + stop - chain.start
            allowed = torch.ones(stop - start, seen, dtype=torch.bool).tril(seen - (stop - start))
            mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, float("-inf"))
            runs.append(Run(start - pack.carried, stop - pack.carried, seen, mask.repeat(groups, 1)))
        yield ChainPlan(path, tuple(runs))


def _run_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of one run: query (heads, L, d), key and value (key heads, P, d) of its path; gives (heads, L, d)."""
    heads, length, width = query.shape
    stacked = query.reshape(key.shape[0], -1, width)
    out = F.scaled_dot_product_attention(stacked[None], key[None], value[None], attn_mask=mask, scale=scaling)
    return out.reshape(heads, length, width)


class _TreeAttention(torch.autograd.Function):
    """All chains of a pack. The backward pass computes each chain again instead of keeping its gathered path."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: TreePlan, scaling: float) -> Tensor:  # noqa: ANN401
        out = torch.empty_like(query)
        # transformers hands on transposed views, which index_select would copy as a whole for each chain.
        key, value = key.contiguous(), value.contiguous()
        for chain in plan.chains:
            keys, values = key.index_select(1, chain.path), value.index_select(1, chain.path)
            for run in chain.runs:
                out[:, run.start : run.stop] = _run_attention(
                    query[:, run.start : run.stop], keys[:, : run.seen], values[:, : run.seen], run.mask, scaling
                )
        ctx.save_for_backward(query, key, value)
        ctx.plan, ctx.scaling = plan, scaling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # noqa: ANN401
        query, key, value = ctx.saved_tensors
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for chain in ctx.plan.chains:
            for run in chain.runs:
                queries, path = slice(run.start, run.stop), chain.path[: run.seen]
                with torch.enable_grad():
                    leaves = (
                        query[:, queries].detach().requires_grad_(),
                        key.index_select(1, path).requires_grad_(),
                        value.index_select(1, path).requires_grad_(),
                    )
                    out = _run_attention(*leaves, run.mask, ctx.scaling)
                from_out = torch.autograd.grad(out, leaves, gradients[0][:, queries])
                to_query[:, queries] = from_out[0]
                to_key.index_add_(1, path, from_out[1])
                to_value.index_add_(1, path, from_out[2])
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
    sliding_window: int | None = None,
    **_: Any,  # noqa: ANN401 (what transformers passes to every implementation)
) -> tuple[Tensor, None]:
    """The interface of transformers: query (1, heads, T, d) to output (1, T, heads, d).

    Raises ModelError for a model that does not attend to all of a path. Those whose attention has capped scores or
    sinks do not get here: transformers loads none with the attention `sdpa`.
    """
    if sliding_window is not None and sliding_window < tree.longest:
        raise ModelError(
            f"The base model attends to {sliding_window:,} tokens back, and a window has {tree.longest:,}; give "
            f"tokens.max_tokens={sliding_window}, or a model that attends to all."
        )
    if tree.blocks is not None:
        return flex_attention.attend(query, key, value, tree.blocks, scaling).transpose(1, 2), None
    if tree.dense is not None:
        # Keys are repeated: with `enable_gqa` and a mask, torch falls back to a kernel that holds all scores in memory.
        groups = query.shape[1] // key.shape[1]
        keys, values = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=tree.dense, scale=scaling)
        return out.transpose(1, 2), None
    keys, values = key[0], value[0]
    if tree.path is not None:
        keys = tree.path.carry_on(f"keys {module.layer_idx}", keys)
        values = tree.path.carry_on(f"values {module.layer_idx}", values)
    out = _TreeAttention.apply(query[0], keys, values, tree, scaling)
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


def carried_path(model: Any) -> CarriedPath | None:  # noqa: ANN401 (any transformers or PEFT causal model)
    """Where packs of `model` that are taken one after the other, without gradients, can leave their last path.

    None where it is no use: a GPU's packs are large, and what attends to all of a pack at once repeats stems.
    """
    core, device, dtype = _core(model)
    return CarriedPath() if choose_attention(core.config, device, dtype).kind == "chains" else None


def _core(model: Any) -> tuple[Any, str, torch.dtype]:  # noqa: ANN401
    """The model without its adapter's wrapping, its device and its type."""
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    embedding = core.model.embed_tokens.weight
    return core, str(embedding.device), embedding.dtype


def hidden_states(model: Any, pack: Pack, path: CarriedPath | None = None) -> Tensor:  # noqa: ANN401
    """The model's last hidden states (C + T, hidden size) for every node of `pack`; within `tree_attention`.

    `path` (of `carried_path`) holds those of the pack before, where packs carry, and then those of this one.
    """
    core, device, dtype = _core(model)
    if path is not None:
        path.begin(pack)
    plan = plan_attention(pack, core.config, device, dtype, path)
    size = len(pack.token_ids)
    token_ids, positions = (np.pad(ids, (0, plan.length - size)) for ids in (pack.token_ids, pack.positions))
    states = core.model(
        input_ids=torch.from_numpy(token_ids)[None].to(device),
        position_ids=torch.from_numpy(positions)[None].to(device),
        use_cache=False,
        tree=plan,
    ).last_hidden_state[0]
    if path is not None:
        return path.carry_on("states", states)
    return states if plan.length == size else states[:size]


def output_head(model: Any) -> torch.nn.Module:  # noqa: ANN401 (any transformers or PEFT causal model)
    """The layer that turns hidden states into logits over the vocabulary."""
    return model.get_output_embeddings()


def unlike_llama(model: Any) -> str | None:  # noqa: ANN401 (any transformers causal model)
    """What a model does beside what is computed of it here, on which nothing else would fail; None where nothing.

    Costs a forward pass of a few tokens.
    """
    core: Any = getattr(model, "model", None)
    layers = getattr(core, "layers", ())
    if not hasattr(core, "embed_tokens") or not layers or not all(hasattr(layer, "self_attn") for layer in layers):
        return "its parts are not those of Llama: embedded tokens, layers with attention, and a head"
    if not model._supports_attention_backend:
        return "its attention cannot be replaced"
    token_ids = torch.arange(min(8, core.embed_tokens.num_embeddings), device=core.embed_tokens.weight.device)[None]
    with torch.no_grad():
        logits = model(input_ids=token_ids, use_cache=False).logits.float()
        expected = output_head(model)(core(input_ids=token_ids, use_cache=False).last_hidden_state).float()
    if (logits - expected).abs().max() > _ROUNDING * expected.abs().max():
        return "it scales or caps its logits"
    return None


def float_logits(head: torch.nn.Module, states: Tensor) -> Tensor:
    """The logits of hidden states (rows, hidden size), computed in float32: in bfloat16 near ones would be ties."""
    if type(head) is torch.nn.Linear and states.dtype != torch.float32:
        return F.linear(states.float(), head.weight.float(), None if head.bias is None else head.bias.float())
    return head(states).float()


def logit_rows(device: torch.device) -> int:
    """Rows of logits at a time: memory must not grow with tokens times vocabulary, and small slices idle a GPU."""
    return 256 if device.type == "cpu" else 2048
