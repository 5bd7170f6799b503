"""One client's work in a round: a few optimizer steps on batches of its windows, each batch as a prefix tree."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.errors import DeviceError, LearningError
from fl.hyperparameters import LocalTraining
from fl.model import LoadedModel
from fl.prefix_tree import Pack, build_tree, cut_packs, edge_slices
from fl.tree_attention import choose_attention, hidden_states, logit_rows, output_head, tree_attention
from fl.vocabulary import loss_and_gradient_

Tell = Callable[[float, float | None, str], None]
_BYTES_PER_STATE, _BYTES_PER_HALF_STATE = 70, 55
"""Memory in flight for a token, layer and hidden unit: measured in float32 on a CPU (1.2 MB a token for 30 x 576), in
bfloat16 with FlexAttention on a GPU (46 to 54, docs/results/gpu.md)."""
_CPU_BUDGET_MB = 2500
_CUDA_SHARE = 0.4


@dataclass(frozen=True)
class LocalResult:
    """What a client tells of its round."""

    steps: int
    examples: int
    """Windows in its share: the weight n_i of eq. 1."""
    tokens: int
    """Tokens predicted, as without sharing; padding does not exist."""
    computed_tokens: int
    """Tokens that went through the model."""
    loss: float
    """Mean negative log-likelihood of a token over the round's steps, nats."""
    seconds: float
    peak_memory_mb: float


def draw_batches(windows: int, config: LocalTraining, seed: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Indices of the windows of each step: shuffled, without repetition until all had their turn.

    `seed` is (run's seed, round, partition): the same for a retry, different for each client and round.
    """
    generator = np.random.default_rng(seed)
    waiting = np.empty(0, np.int64)
    for _ in range(config.steps):
        while len(waiting) < min(config.batch_size, windows):
            waiting = np.concatenate([waiting, generator.permutation(windows)])
        yield waiting[: config.batch_size]
        waiting = waiting[config.batch_size :]


def train_locally(
    model: Any,  # noqa: ANN401 (any transformers or PEFT causal model)
    loaded: LoadedModel,
    token_ids: Sequence[np.ndarray],
    config: LocalTraining,
    learning_rate: float,
    seed: tuple[int, int, int],
    progress: Tell | None = None,
) -> LocalResult:
    """Train the model's trainable weights in place on a client's windows (token ids without end token).

    On a CPU with a fixed number of threads the outcome depends on nothing but the arguments. Raises LearningError
    when the loss is no longer finite.
    """
    started = time.perf_counter()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    anchor = [parameter.detach().clone() for parameter in trained] if config.proximal else []
    optimizer = _optimizer(trained, config, learning_rate, loaded.device)
    budget = token_budget(loaded, config)
    torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    losses, tokens, computed = 0.0, 0, 0
    model.train()
    _set_checkpointing(model, config.gradient_checkpointing)
    try:
        for step, batch in enumerate(draw_batches(len(token_ids), config, seed), start=1):
            windows = [token_ids[index] for index in batch]
            loss, predicted, passed = accumulate_gradients(model, loaded, windows, budget, share=config.share_prefixes)
            if not math.isfinite(loss):
                raise LearningError(f"The loss is no longer finite at step {step}; lower learning_rate_max.")
            for parameter, start in zip(trained, anchor, strict=False):
                parameter.grad.add_(parameter.detach() - start, alpha=config.proximal)
            torch.nn.utils.clip_grad_norm_(trained, config.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses, tokens, computed = losses + loss * predicted, tokens + predicted, computed + passed
            if progress:
                progress(step, config.steps, f"steps, loss {loss:.3f}")
    finally:
        model.eval()
        _set_checkpointing(model, False)
    seconds = time.perf_counter() - started
    return LocalResult(
        config.steps, len(token_ids), tokens, computed, losses / tokens, seconds, peak_memory_mb(loaded.device)
    )


def accumulate_gradients(
    model: Any,  # noqa: ANN401
    loaded: LoadedModel,
    windows: Sequence[np.ndarray],
    budget: int,
    *,
    share: bool = True,
) -> tuple[float, int, int]:
    """Add the gradients of the batch's mean token loss; gives that loss, the tokens predicted and the tokens computed.

    The mean is over all tokens of all windows but their first, end tokens included: what a padded batch with masked
    labels gives. Packs are micro-batches; their gradients add up to the batch's whatever the budget.
    """
    tree = build_tree(windows, loaded.end_token_id, share=share)
    predicted = sum(len(path) - 1 for path in tree.paths)
    loss, computed = 0.0, 0
    with tree_attention(model):
        for pack in cut_packs(tree, budget):
            loss += _backward(model, pack, predicted)
            computed += len(pack.token_ids)
    return loss, predicted, computed


def _backward(model: Any, pack: Pack, predicted: int) -> float:  # noqa: ANN401
    """Backward pass of one pack: through the logits slice by slice into the hidden states, then through the model."""
    hidden = hidden_states(model, pack)
    head = output_head(model)
    ends = hidden.detach().requires_grad_()
    # Through a whole tied head (full fine-tuning) the weight gathers its gradient slice by slice as well.
    loss = 0.0
    for sources, edges, rows in edge_slices(pack, logit_rows(hidden.device)):
        logits = head(ends[_on(hidden, sources)])
        part, gradient = loss_and_gradient_(
            logits.detach(),  # nothing needs them any more: the head's own gradient is of its input and weights
            _on(hidden, rows),
            _on(hidden, pack.edge_target[edges]),
            _on(hidden, pack.edge_weights[edges] / predicted).float(),
        )
        logits.backward(gradient)
        loss += float(part)
    if ends.grad is not None:
        hidden.backward(ends.grad)
    return loss


def _on(like: Tensor, array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(like.device)


def token_budget(loaded: LoadedModel, config: LocalTraining) -> int:
    """How many tokens are in flight at once: the memory budget over what a token of this model needs.

    It follows from the configuration and the device's total memory, never from what is free at the moment: another
    cut would add up in another order and change the last bits.
    """
    shape = loaded.model.config
    per_state = _BYTES_PER_STATE if loaded.dtype == "float32" else _BYTES_PER_HALF_STATE
    per_token = per_state * shape.num_hidden_layers * shape.hidden_size
    if config.gradient_checkpointing:
        per_token //= 8
    budget = config.memory_budget_mb
    if budget is None and loaded.device.startswith("cuda"):
        budget = int(torch.cuda.get_device_properties(loaded.device).total_memory * _CUDA_SHARE / 1e6)
    tokens = max(64, int((budget or _CPU_BUDGET_MB) * 1e6 / per_token))
    return min(tokens, choose_attention(shape, loaded.device, getattr(torch, loaded.dtype)).longest_pack or tokens)


def _optimizer(
    parameters: list[torch.nn.Parameter], config: LocalTraining, learning_rate: float, device: str
) -> torch.optim.Optimizer:
    if not parameters:
        raise LearningError("Nothing to train: with tuning.kind=none there are no rounds.")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=config.weight_decay)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise DeviceError("optimizer=adamw8bit needs bitsandbytes, which is not installed; use adamw.") from error
    try:
        return AdamW8bit(parameters, lr=learning_rate, weight_decay=config.weight_decay)
    except (RuntimeError, NotImplementedError) as error:
        raise DeviceError(f"optimizer=adamw8bit does not run on {device}: {error}; use adamw.") from error


def _set_checkpointing(model: Any, on: bool) -> None:  # noqa: ANN401
    """Switch it on or off, by the newer of transformers' two names for it where there is one."""
    if on:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    else:
        disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
        disable()


def peak_memory_mb(device: str) -> float:
    """The most memory so far, MB: allocated on a CUDA device, resident for this process on a CPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
