"""On a GPU, do the prefix tree's scores and gradients equal the plain ones?

`python -m benchmarks.gpu_correctness FOLDER --windows FILE.npz --models FOLDER` takes SmolLM2-135M in float32 and in
the type that is used on the device. Held against each other are, of the same model:

- tree: `score_tokens` and `accumulate_gradients`, all windows as packs;
- plain: the model's own forward pass, one window at a time.

In float32 the two must agree. In bfloat16 neither is exact, so both are held against plain float32: the tree must be no
farther from it than the plain way is, by a factor of 1.5. Exit status 1 where either does not hold.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu_models import given_model, given_options, given_windows, keep, options, timed
from benchmarks.gpu_windows import SPLITS
from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays
from fl.devices import machine
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import accumulate_gradients, token_budget
from fl.model import LoadedModel
from fl.scoring import score_tokens
from fl.tree_attention import choose_attention, float_logits, output_head

_FLOAT32 = {"log_probability": 2e-4, "gradient": 1e-3}
"""What may lie between two orders of float32 additions through 30 layers; on a CPU 1e-5 and 1e-4 are seen."""
_FARTHER = 1.5
_TYPES = ("float32", "bfloat16")
Logs = list[np.ndarray]
Gradients = dict[str, torch.Tensor]


def placed(loaded: LoadedModel, device: str, dtype: torch.dtype) -> LoadedModel:
    """The same model moved to a device and type."""
    why = {"attention": choose_attention(loaded.model.config, device, dtype).reason}
    model = loaded.model.to(device)
    for parameter in model.parameters():  # not the buffers: a model keeps its rotary frequencies in float32
        parameter.data = parameter.data.to(dtype)
    return dataclasses.replace(loaded, device=device, dtype=str(dtype).removeprefix("torch."), reasons=why)


@torch.inference_mode()
def plain_scores(loaded: LoadedModel, windows: Sequence[np.ndarray]) -> tuple[Logs, Logs, Logs]:
    """Log-probabilities and ranks of every window's tokens, and how near the next logit lies, one window at a time."""
    logs, ranks, gaps = [], [], []
    for window in windows:
        closed = torch.from_numpy(np.append(window, loaded.end_token_id)).to(loaded.device)
        states = loaded.model.model(input_ids=closed[None, :-1]).last_hidden_state[0]
        logits = float_logits(output_head(loaded.model), states).double()
        true = logits.gather(1, closed[1:, None])
        logs.append((true[:, 0] - logits.logsumexp(1)).cpu().numpy())
        ranks.append((logits > true).sum(1).cpu().numpy())
        gaps.append((logits - true).abs().topk(2, largest=False).values[:, 1].cpu().numpy())
    return logs, ranks, gaps


def apart(one: Logs, other: Logs) -> dict[str, float]:
    """The largest and the mean distance of two lists of log-probabilities."""
    distance = np.abs(np.concatenate(one).astype(np.float64) - np.concatenate(other))
    return {"largest": float(distance.max()), "mean": float(distance.mean())}


def _collected(model: torch.nn.Module) -> Gradients:
    found = {name: p.grad.detach().double().cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def plain_gradients(model: Any, loaded: LoadedModel, windows: Sequence[np.ndarray]) -> Gradients:  # noqa: ANN401
    """The gradients of the batch's mean token loss, one window at a time."""
    predicted = sum(map(len, windows))
    for window in windows:
        closed = torch.from_numpy(np.append(window, loaded.end_token_id)).to(loaded.device)
        logits = model(input_ids=closed[None, :-1]).logits[0].float()
        (F.cross_entropy(logits, closed[1:], reduction="sum") / predicted).backward()
    return _collected(model)


def tree_gradients(model: Any, loaded: LoadedModel, windows: Sequence[np.ndarray]) -> Gradients:  # noqa: ANN401
    """The same by the tree."""
    accumulate_gradients(model, loaded, windows, token_budget(loaded, LocalTraining()))
    return _collected(model)


def relative(one: Gradients, other: Gradients) -> float:
    """The norm of the difference over that of `other`, all matrices together."""
    difference = sum(float((one[name] - other[name]).square().sum()) for name in other)
    return (difference / sum(float(gradient.square().sum()) for gradient in other.values())) ** 0.5


def both_ways(loaded: LoadedModel, windows: Sequence[np.ndarray], batch: Sequence[np.ndarray]) -> dict[str, Any]:
    """Scores and gradients by tree and plain, with the seconds of each; compiled kernels are waited for before."""
    score_tokens(loaded.model, loaded, windows[:2])
    tree, tree_time = timed(loaded.device, lambda: score_tokens(loaded.model, loaded, windows))
    plain, plain_time = timed(loaded.device, lambda: plain_scores(loaded, windows))
    model = attach_adapter(loaded, Tuning(dropout=0.0), 0)
    drawn = np.random.default_rng(1)  # away from LoRA's B = 0, where half of the gradients vanish
    arrays = {
        name: drawn.normal(0, 0.02, array.shape).astype(np.float32) for name, array in adapter_arrays(model).items()
    }
    load_adapter_arrays(model, arrays)
    gradients = {"tree": tree_gradients(model, loaded, batch), "plain": plain_gradients(model, loaded, batch)}
    attach_adapter(loaded, Tuning(kind="none"), 0)
    return {"tree": tree, "plain": plain, "gradients": gradients, "times": {"tree": tree_time, "plain": plain_time}}


def report(name: str, found: dict[str, Any], exact: dict[str, Any], why: dict[str, str]) -> dict[str, Any]:
    """The distances of one type's results from each other and from plain float32, and whether they are as they must."""
    tree, (plain, ranks, gaps), right = found["tree"], found["plain"], exact["plain"][0]
    moved = np.concatenate(tree.ranks) != np.concatenate(ranks)
    gradients, true = found["gradients"], exact["gradients"]["plain"]
    figures: dict[str, Any] = {
        "attention": why["attention"],
        "tokens": int(sum(map(len, plain))),
        "computed_tokens": tree.computed_tokens,
        "log_probability": {
            "tree_and_plain": apart(tree.log_probabilities, plain),
            "tree_and_float32": apart(tree.log_probabilities, right),
            "plain_and_float32": apart(plain, right),
        },
        "ranks_that_differ": int(moved.sum()),
        "widest_gap_of_logits_where_they_do": float(np.concatenate(gaps)[moved].max(initial=0.0)),
        "gradient": {
            "tree_and_plain": relative(gradients["tree"], gradients["plain"]),
            "tree_and_float32": relative(gradients["tree"], true),
            "plain_and_float32": relative(gradients["plain"], true),
        },
        "times": found["times"],
    }
    logs, slopes = figures["log_probability"], figures["gradient"]
    if name == "float32":
        figures["holds"] = (
            logs["tree_and_plain"]["largest"] <= _FLOAT32["log_probability"]
            and slopes["tree_and_plain"] <= _FLOAT32["gradient"]
            and figures["widest_gap_of_logits_where_they_do"] <= _FLOAT32["log_probability"]
        )
    else:
        figures["holds"] = (
            logs["tree_and_float32"]["mean"] <= _FARTHER * logs["plain_and_float32"]["mean"]
            and slopes["tree_and_float32"] <= _FARTHER * slopes["plain_and_float32"]
        )
    return figures


def measure(given: argparse.Namespace) -> bool:
    """Both types, float32 first, written as they come; whether all holds."""
    dealt = given_windows(given)
    distinct = np.random.default_rng(0).permutation(dealt.distinct(*SPLITS))[: given.count]
    windows = [dealt.log.token_ids[number] for number in np.sort(distinct)]
    batch = dealt.log.batch(min(given.batch, len(windows)), 0)
    figures: dict[str, Any] = {"machine": machine(given.device)}
    exact: dict[str, Any] | None = None
    # From the file's own values, not from those that loading rounds for the device.
    base = given_model(given, "cpu")
    for name in given.types:
        typed = placed(base, given.device, getattr(torch, name))
        found = both_ways(typed, windows, batch)
        exact = exact or found
        figures[name] = report(name, found, exact, typed.reasons)
        keep(given.folder, "correctness", figures)
    return all(figures[name]["holds"] for name in given.types)


def main() -> int:
    """Measure; 0 where everything holds."""
    parser = options(__doc__, weights=True)
    parser.add_argument("--count", type=int, default=200, help="distinct windows to score; many for all of the log")
    parser.add_argument("--types", nargs="+", choices=_TYPES, default=_TYPES, help="types, of which the first is exact")
    parser.add_argument("--batch", type=int, default=32, help="normal windows for the gradients")
    given = given_options(parser)
    holds = measure(given)
    print((given.folder / "correctness.json").read_text())
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
