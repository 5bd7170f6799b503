"""What is asked of logits over a whole vocabulary, in as few passes over them as can be: they are larger than caches.

Names that end in an underscore overwrite the logits that they are given.
"""

import torch
from torch import Tensor

_GROUP = 128
"""Tokens of which the largest logit is found first; 49,152 are 384 such groups."""


def best_tokens(logits: Tensor, top: int) -> Tensor:
    """The `top` most probable tokens of each row (rows, vocabulary), best first; equal ones in any order.

    On a CPU the groups with the largest logits are found first, as the best tokens can be in no other: a third of the
    time of a search through all.
    """
    rows, size = logits.shape
    if logits.device.type != "cpu" or size % _GROUP or size // _GROUP < top:
        return logits.topk(top, dim=-1).indices
    grouped = logits.view(rows, -1, _GROUP)
    groups = grouped.amax(-1).topk(top, dim=-1).indices
    candidates = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    found = candidates.topk(top, dim=-1).indices
    return groups.gather(1, found // _GROUP) * _GROUP + found % _GROUP


def log_sum_exp_(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the logarithm of the summed exponentials, and the sum over that of the largest one.

    Leaves exponentials in place of the logits, 1 for the largest of a row.
    """
    largest = logits.amax(-1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(-1)
    return largest[:, 0] + total.log(), total


def loss_and_gradient_(logits: Tensor, rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of edges (row of the logits, target token) the summed weighted surprise, and its gradient by the logits.

    The gradient of an edge is its weight times (softmax - one-hot). Computed in float32; overwrites float32 logits.
    """
    table = logits.float()
    true = table[rows, targets]
    log_sum, total = log_sum_exp_(table)
    loss = ((log_sum[rows] - true) * weights).sum()
    by_row = torch.zeros_like(total).index_add_(0, rows, weights)
    table.mul_((by_row / total)[:, None])
    table.index_put_((rows, targets), -weights, accumulate=True)
    return loss, table.to(logits.dtype)
