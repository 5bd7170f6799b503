"""How badly a model predicts each window: rank and log-probability of every true token, and the scores made of them.

One forward pass over each distinct prefix gives everything: no top-k over the vocabulary for each K (the reference
code makes four a window). The last token asked for is the end token, so a window that stops too early is visible.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl.model import LoadedModel
from fl.prefix_tree import Pack, PrefixTree, build_tree, cut_packs, edge_slices
from fl.tree_attention import (
    CarriedPath,
    carried_path,
    float_logits,
    hidden_states,
    logit_rows,
    output_head,
    tree_attention,
)
from fl.vocabulary import best_tokens, log_sum_exp_

Tell = Callable[[float, float | None, str], None]
KS = (1, 3, 5, 10)
_CARRIED_PACK, _PACK = 2048, 8192
"""Tokens in a pack: where packs carry, as few as are fast; else many, which repeat fewer stems (4 % on HDFS)."""


@dataclass(frozen=True)
class TokenScores:
    """For each window: the tokens asked for (its tokens 1..n-1, then the end token) and how they were predicted."""

    ranks: list[np.ndarray]
    """0 for the most probable token; ties count for the true token."""
    log_probabilities: list[np.ndarray]
    """Natural logarithms."""
    predicted: list[np.ndarray]
    """The most probable tokens at each position, best first, shape (n, largest K)."""
    computed_tokens: int
    """Tokens that went through the model."""


def score_tokens(
    model: Any,  # noqa: ANN401 (any transformers or PEFT causal model)
    loaded: LoadedModel,
    token_ids: Sequence[np.ndarray],
    top: int = max(KS),
    token_budget: int | None = None,
    progress: Tell | None = None,
    *,
    share: bool = True,
) -> TokenScores:
    """Rank, log-probability and best `top` predictions for every token of every window but the first.

    `token_ids` has one array of token ids a window, end token not included. Equal windows are computed once.
    """
    tree = build_tree(token_ids, loaded.end_token_id, share=share)
    size = len(tree.tokens)
    ranks, logs = np.zeros(size, np.int32), np.zeros(size, np.float32)
    predicted = np.zeros((size, top), np.int32)
    computed, done = 0, 0
    model.eval()
    path = carried_path(model)
    with torch.inference_mode(), tree_attention(model):
        budget = token_budget or (_PACK if path is None else _CARRIED_PACK)
        for pack in cut_packs(tree, budget, carry=path is not None):
            for edges, rank, log, best in _score_pack(model, pack, top, path):
                ranks[edges], logs[edges], predicted[edges] = rank, log, best
            computed += len(pack.token_ids)
            done += len(pack.edges)
            if progress:
                progress(done, size - int((tree.depths == 0).sum()), "distinct tokens scored")
    return _by_window(tree, ranks, logs, predicted, computed)


def _by_window(
    tree: PrefixTree, ranks: np.ndarray, logs: np.ndarray, predicted: np.ndarray, computed: int
) -> TokenScores:
    edges = [path[1:] for path in tree.paths]
    return TokenScores(
        [ranks[path] for path in edges], [logs[path] for path in edges], [predicted[path] for path in edges], computed
    )


def _score_pack(
    model: Any,  # noqa: ANN401
    pack: Pack,
    top: int,
    path: CarriedPath | None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Edges of a pack with rank, log-probability and best predictions, a slice of logits at a time."""
    hidden = hidden_states(model, pack, path)
    head = output_head(model)
    for sources, edges, row_of_edge in edge_slices(pack, logit_rows(hidden.device)):
        rows = torch.from_numpy(row_of_edge).to(hidden.device)
        target = torch.from_numpy(pack.edge_target[edges]).to(hidden.device)
        logits = float_logits(head, hidden[torch.from_numpy(sources).to(hidden.device)])
        true = logits[rows, target]
        rank = _ranks(logits, rows, true)
        best = best_tokens(logits, top)[rows]
        log = true - log_sum_exp_(logits)[0][rows]
        yield pack.edges[edges], rank.cpu().numpy(), log.cpu().numpy(), best.cpu().numpy()


def _ranks(logits: torch.Tensor, rows: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """For each edge, how many tokens are more probable than its own: edges that leave the same node share a row."""
    if logits.device.type == "cpu":
        # NumPy counts what is true five times as fast as torch, which makes integers of it first.
        table, edges = logits.numpy(), zip(rows.tolist(), true.numpy(), strict=True)
        return torch.tensor([np.count_nonzero(table[row] > value) for row, value in edges])
    return ranks_at_once(logits, rows, true)


def ranks_at_once(logits: torch.Tensor, rows: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """The ranks of many edges in a call, for GPUs, where a call for each takes longer than the model; copies rows."""
    parts = zip(rows.split(len(logits)), true.split(len(logits)), strict=True)
    return torch.cat([(logits[some] > value[:, None]).sum(1) for some, value in parts])


def score_sequences(
    model: Any,  # noqa: ANN401
    loaded: LoadedModel,
    token_ids: Sequence[np.ndarray],
    message_starts: Sequence[np.ndarray],
    ks: Sequence[int] = KS,
    token_budget: int | None = None,
    progress: Tell | None = None,
    *,
    share: bool = True,
    by_message: bool = False,
) -> dict[str, np.ndarray]:
    """One row a window, as columns:

    - `top_K`: share of tokens whose true token is among the K most probable (paper, section 3.5), end token included;
    - `unaligned_K`: the reference code's variant: share of the window's tokens that occur among the K best predictions
      of any position of the window;
    - `mean_token`, `max_token`: surprise (negative log-likelihood, nats) of a token, end token counted;
    - `mean_message`, `max_message`: surprise of a whole message (the sum over its tokens; the end counts as a message);
    - `loss_sum`, `loss_tokens`: summed surprise and its number of tokens, for losses over many windows;
    - `message_surprise`, where asked for `by_message`: an array each, the surprises of its messages, its end's last.
    """
    started = time.perf_counter()
    tokens = score_tokens(model, loaded, token_ids, max(ks), token_budget, progress, share=share)
    columns = score_columns(token_ids, message_starts, tokens, ks, by_message=by_message)
    columns["computed_tokens"] = np.full(len(token_ids), tokens.computed_tokens / max(1, len(token_ids)))
    columns["seconds"] = np.full(len(token_ids), (time.perf_counter() - started) / max(1, len(token_ids)))
    return columns


def score_columns(
    token_ids: Sequence[np.ndarray],
    message_starts: Sequence[np.ndarray],
    tokens: TokenScores,
    ks: Sequence[int],
    *,
    unaligned: bool = True,
    by_message: bool = False,
) -> dict[str, np.ndarray]:
    """The scores of `score_sequences` from what is known of each token; `predicted` must reach to the largest K."""
    rows: list[dict[str, float]] = []
    surprises: list[np.ndarray] = []
    for ids, starts, ranks, logs, predicted in zip(
        token_ids, message_starts, tokens.ranks, tokens.log_probabilities, tokens.predicted, strict=True
    ):
        surprise = -logs.astype(np.float64)
        surprises.append(message_surprise(surprise, starts))
        row = {f"top_{k}": float((ranks < k).mean()) for k in ks}
        # The reference code asks the model with the bare text, so its predictions are those before the end token and
        # the one after the last token; the one for the first token does not exist.
        if unaligned:
            row |= {f"unaligned_{k}": float(np.isin(ids, predicted[:, :k]).mean()) for k in ks}
        row |= {
            "mean_token": float(surprise.mean()),
            "max_token": float(surprise.max()),
            "mean_message": float(surprises[-1].mean()),
            "max_message": float(surprises[-1].max()),
            "loss_sum": float(surprise.sum()),
            "loss_tokens": float(len(surprise)),
        }
        rows.append(row)
    names = rows[0] if rows else {}
    columns = {name: np.array([row[name] for row in rows]) for name in names}
    if by_message:
        columns["message_surprise"] = np.fromiter(surprises, dtype=object, count=len(surprises))
    return columns


def message_surprise(surprise: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The summed surprise of each message of a window, and last that of its end.

    `surprise[j]` is that of token j + 1; `starts` are the offsets of the messages' first own tokens. The separator
    after a message counts to that message. A message of which no token was asked for, a window's only one, has 0.
    """
    bounds = np.maximum(np.asarray(starts, np.int64) - 1, 0)
    bounds[0] = 0
    bounds = np.append(bounds, len(surprise) - 1)
    return np.where(np.diff(bounds, append=len(surprise)) > 0, np.add.reduceat(surprise, bounds), 0.0)
