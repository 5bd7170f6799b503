"""What an adapter gives away of the windows it was trained on: the windows for an audit, and two attacks on it.

Members and others are windows whose sequence occurs once in the whole log, so that only the random split decides which
of them training saw. Canaries are normal windows with a secret of ten random tokens in them; some are put into the
share of one client, the others, drawn alike, into none.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.gpu_windows import JUDGED, DealtWindows
from fl.model import LoadedModel
from fl.scoring import score_tokens

_SECRET_TOKENS = 10
_RATES = (0.01, 0.05)


@dataclass(frozen=True)
class Canaries:
    """Windows with a secret in them, and where it stands."""

    windows: list[np.ndarray]
    places: list[slice]
    """Of the secret, among the tokens that are predicted (the second on)."""


@dataclass(frozen=True)
class Audit:
    """Shares for the federation to be audited, and what its adapter is asked about."""

    shares: list[list[np.ndarray]]
    """The last canaries stand in share 0."""
    members: list[np.ndarray]
    others: list[np.ndarray]
    inserted: Canaries
    held_out: Canaries


def audit_windows(dealt: DealtWindows, clients: int, most: int, canaries: int, vocabulary: int) -> Audit:
    """Shares of at most `most` windows that occur once, `canaries` of the first client's windows with secrets."""
    log, draw = dealt.log, np.random.default_rng(0)
    once = (np.bincount(log.order, minlength=len(log.token_ids)) == 1)[log.order] & log.normal
    trained = draw.permutation(np.flatnonzero(once & (dealt.split == "train")))
    others = draw.permutation(np.flatnonzero(once & np.isin(dealt.split, JUDGED)))
    size = min(most, len(trained) // clients)
    dealt_to = [[log.token_ids[number] for number in log.order[trained[i::clients][:size]]] for i in range(clients)]
    inserted, held_out = (_canaries(dealt, count, vocabulary, draw) for count in (canaries, 16 * canaries))
    members = [window for share in dealt_to for window in share]
    dealt_to[0] = dealt_to[0] + inserted.windows
    return Audit(dealt_to, members, [log.token_ids[number] for number in log.order[others]], inserted, held_out)


def _canaries(dealt: DealtWindows, count: int, vocabulary: int, draw: np.random.Generator) -> Canaries:
    log = dealt.log
    long_enough = [number for number in np.unique(log.order[log.normal]) if len(log.message_starts[number]) > 1]
    windows, places = [], []
    for number in draw.choice(long_enough, count):
        tokens, start = log.token_ids[number], int(draw.choice(log.message_starts[number][1:]))
        secret = draw.integers(1, vocabulary, _SECRET_TOKENS)
        windows.append(np.concatenate([tokens[:start], secret, tokens[start:]]))
        places.append(slice(start - 1, start - 1 + _SECRET_TOKENS))
    return Canaries(windows, places)


def surprises(model: Any, loaded: LoadedModel, audit: Audit) -> dict[str, np.ndarray]:  # noqa: ANN401
    """Mean surprise of a token of members and others, and of the secrets' tokens of the canaries, nats."""
    groups = [audit.members, audit.others, audit.inserted.windows, audit.held_out.windows]
    logs = score_tokens(model, loaded, [window for group in groups for window in group]).log_probabilities
    ends = np.cumsum([len(group) for group in groups])[:-1]
    members, others, inserted, held_out = (list(part) for part in _cut(logs, ends))
    return {
        "members": np.array([-log.mean() for log in members]),
        "others": np.array([-log.mean() for log in others]),
        "inserted": np.array([-log[place].mean() for log, place in zip(inserted, audit.inserted.places, strict=True)]),
        "held_out": np.array([-log[place].mean() for log, place in zip(held_out, audit.held_out.places, strict=True)]),
    }


def _cut(values: list[np.ndarray], ends: np.ndarray) -> list[list[np.ndarray]]:
    return [values[start:stop] for start, stop in pairwise([0, *ends.tolist(), len(values)])]


def attack(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """How well low values tell members: area under the ROC curve, and true positive rates at low false positive rates.

    Ties count half in the area, and for nobody in the rates (Carlini et al. 2022, arXiv 2112.03570, on the latter).
    """
    below = (inside[:, None] < outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    rates = {}
    for rate in _RATES:
        allowed = int(rate * len(outside))
        threshold = np.sort(outside)[allowed] if allowed < len(outside) else np.inf
        rates[f"tpr_at_{rate:g}"] = float((inside < threshold).mean())
    return {"auc": float(below), **rates, "inside": len(inside), "outside": len(outside)}


def attacks(tuned: dict[str, np.ndarray], untouched: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Each attack on windows and on canaries: by the loss, and by what the untouched model's loss is above it."""
    pairs = {"windows": ("members", "others"), "canaries": ("inserted", "held_out")}
    gained = {name: tuned[name] - untouched[name] for name in tuned}
    return {
        f"{what}_by_{how}": attack(values[inside], values[outside])
        for what, (inside, outside) in pairs.items()
        for how, values in (("loss", tuned), ("gain", gained))
    }
