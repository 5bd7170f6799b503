"""The proof that scores by the prefix tree equal the plain ones: every distinct window of a log, one at a time.

`python -m benchmarks.equality ARCHIVE --folder FOLDER` keeps what it has computed in FOLDER and goes on from there when
it is started again: the plain scores some windows at a time, then the tree's. The plain ones stay when the tree's code
changes; then only the tree's are computed anew. Exit status 1 where the two are not equal.

Equal means: log-probabilities within 1e-4, and ranks the same but for ties, that is, the tree's rank is one that the
true token could have if logits within 1e-4 of its own were ordered in another way.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.windows import read_windows
from fl.model import LoadedModel, load_model
from fl.scoring import score_tokens
from tasks.caching import source_hash

TOLERANCE = 1e-4
_CARD = "card.json"
_LOGIT_ROWS = 256


@dataclass(frozen=True)
class PlainScores:
    """Of the tokens 1..n-1 and the end token of some windows, one window after the other."""

    log_probability: np.ndarray
    rank: np.ndarray
    """0 for the most probable token; ties count for the true one."""
    lowest_rank: np.ndarray
    """With every logit within the tolerance counted as worse than the true token's."""
    highest_rank: np.ndarray
    """With every logit within the tolerance counted as better."""


@torch.inference_mode()
def score_plainly(loaded: LoadedModel, window: np.ndarray) -> PlainScores:
    """One forward pass of one window by the model's own attention; probabilities in float64 from float32 logits."""
    closed = torch.from_numpy(np.append(window, loaded.end_token_id)).to(loaded.device)
    all_logits = loaded.model(closed[None, :-1]).logits[0]
    parts = []
    for logits, asked in zip(all_logits.split(_LOGIT_ROWS), closed[1:].split(_LOGIT_ROWS), strict=True):
        precise = logits.double()
        true = precise.gather(1, asked[:, None])
        parts.append(
            (
                (true - precise.logsumexp(1, keepdim=True))[:, 0],
                (precise > true).sum(1),
                (precise > true + TOLERANCE).sum(1),
                (precise >= true - TOLERANCE).sum(1) - 1,
            )
        )
    return PlainScores(*(torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)))


def joined(parts: Sequence[PlainScores]) -> PlainScores:
    """The scores of several windows as one."""
    return PlainScores(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(PlainScores)))


class Proof:
    """A folder with the plain scores of a list of windows, as far as they are computed, and the tree's."""

    def __init__(self, folder: Path, loaded: LoadedModel, windows: Sequence[np.ndarray], windows_at_once: int) -> None:
        self.folder, self.loaded, self.windows, self.at_once = folder, loaded, windows, windows_at_once
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for window in windows:
            digest.update(window.astype("<u4").tobytes() + b"\xff" * 4)
        card = {"model": loaded.model_hash, "windows": digest.hexdigest(), "windows_at_once": windows_at_once}
        path = folder / _CARD
        if path.is_file() and json.loads(path.read_text()) != card:
            raise SystemExit(f"{folder} holds the proof of other windows or another model; name another folder.")
        path.write_text(json.dumps(card))

    def plain(self) -> PlainScores:
        """The plain scores of all windows, computing those that are not in the folder."""
        parts = []
        for first in range(0, len(self.windows), self.at_once):
            path = self.folder / f"plain-{first:06d}.npz"
            if not path.is_file():
                started = time.perf_counter()
                scores = joined([score_plainly(self.loaded, w) for w in self.windows[first : first + self.at_once]])
                _save(path, **vars(scores))
                _tell_rate(f"plain, from window {first} of {len(self.windows)}", len(scores.rank), started)
            with np.load(path) as kept:
                parts.append(PlainScores(*(kept[f.name] for f in fields(PlainScores))))
        return joined(parts)

    def tree(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities and ranks by the prefix tree, computed anew where the code has changed."""
        path = self.folder / f"tree-{source_hash(['fl.scoring'])}.npz"
        if not path.is_file():
            started = time.perf_counter()
            scored = score_tokens(self.loaded.model, self.loaded, self.windows, top=1)
            logs, ranks = np.concatenate(scored.log_probabilities), np.concatenate(scored.ranks)
            _save(path, logs=logs, ranks=ranks, computed=np.array(scored.computed_tokens))
            _tell_rate("tree", scored.computed_tokens, started)
        with np.load(path) as kept:
            return kept["logs"], kept["ranks"]


def _save(path: Path, **arrays: np.ndarray) -> None:
    """Write all or nothing: a half-written file would be taken for computed."""
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def _tell_rate(what: str, tokens: int, started: float) -> None:
    rate = tokens / (time.perf_counter() - started)
    print(f"  {what}: {tokens:,} tokens, {rate:.0f} a second", file=sys.stderr, flush=True)


def compare(plain: PlainScores, logs: np.ndarray, ranks: np.ndarray) -> dict[str, Any]:
    """What differs; `equal` says whether the tree's scores are the plain ones as defined above."""
    apart = np.abs(plain.log_probability - logs)
    other_rank = ranks != plain.rank
    no_tie = (ranks < plain.lowest_rank) | (ranks > plain.highest_rank)
    return {
        "tokens": len(ranks),
        "largest_difference_of_log_probability": float(apart.max()),
        "log_probabilities_apart": int((apart > TOLERANCE).sum()),
        "ranks_that_differ": int(other_rank.sum()),
        "ranks_that_differ_without_a_tie": int(no_tie.sum()),
        "equal": bool((apart <= TOLERANCE).all() and not no_tie.any()),
    }


def main() -> None:
    """Compute what is missing, compare, print JSON."""
    parser = options(
        __doc__,
        windows=Size(1 << 30, 4, "distinct windows at most"),
        windows_at_once=Size(20, 2, "windows a file of plain scores"),
    )
    parser.add_argument("--folder", type=Path, required=True, help="where the scores are kept")
    given = given_options(parser)
    folder = model_folder(given.model)
    log, loaded = read_windows(given.archive, folder / "tokenizer.json"), load_model(folder)
    distinct = list({window.tobytes(): window for window in log.token_ids}.values())[: given.windows]
    proof = Proof(given.folder, loaded, distinct, given.windows_at_once)
    found = compare(proof.plain(), *proof.tree())
    tell({"log": log.log, "model": folder.name, "distinct_windows": len(distinct), **found})
    sys.exit(0 if found["equal"] else 1)


if __name__ == "__main__":
    main()
