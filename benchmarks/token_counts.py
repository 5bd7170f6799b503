"""Tokens computed against tokens given, by the number of windows in a batch; no model runs.

`python -m benchmarks.token_counts ARCHIVE`. For batches of normal windows as training draws them, and for windows of
all kinds as scoring meets them: tokens given, padded, of distinct windows, of distinct prefixes (the least), and those
computed in packs, which repeat stems in training, but not in scoring on a CPU, which carries them from pack to pack.
"""

from collections.abc import Sequence
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.windows import LogWindows, read_windows
from fl.model import end_token_id
from fl.prefix_tree import build_tree, cut_packs

_PADDED = 1024


def counts(windows: Sequence[np.ndarray], end: int, pack_tokens: int, *, carry: bool) -> dict[str, int]:
    """The tokens of some windows in every way of counting them; end tokens are not computed, so not counted."""
    tree = build_tree(windows, end)
    return {
        "given": sum(map(len, windows)),
        "padded_to_1024": _PADDED * len(windows),
        "padded_to_longest": max(map(len, windows)) * len(windows),
        "of_distinct_windows": sum(len(window) for window in {window.tobytes(): window for window in windows}.values()),
        "of_distinct_prefixes": tree.distinct_tokens,
        "in_packs": sum(len(pack.token_ids) for pack in cut_packs(tree, pack_tokens, carry=carry)),
    }


def averaged(draws: Sequence[Sequence[np.ndarray]], end: int, pack_tokens: int, *, carry: bool) -> dict[str, float]:
    """Mean counts over several draws, and how many times more is given, or padded, than computed in packs."""
    found = [counts(draw, end, pack_tokens, carry=carry) for draw in draws]
    means = {name: round(mean(one[name] for one in found), 1) for name in found[0]}
    return {
        "windows": len(draws[0]),
        **means,
        "given_to_computed": round(means["given"] / means["in_packs"], 2),
        "padded_to_1024_to_computed": round(means["padded_to_1024"] / means["in_packs"], 2),
    }


def scored(log: LogWindows, count: int, seed: int) -> list[np.ndarray]:
    """The tokens of `count` windows of the log drawn without repetition."""
    return [log.token_ids[number] for number in log.drawn(count, seed)]


def main() -> None:
    """Count and print JSON."""
    given = given_options(
        options(
            __doc__,
            batches=Size([2**power for power in range(11)], (1, 8, 32), "batch sizes of training"),
            windows=Size((200, 2301, 11501), (200,), "numbers of windows to score"),
            draws=Size(10, 2, "draws for each size"),
            training_pack=Size(2048, 2048, "tokens in a pack of training"),
            scoring_pack=Size(2048, 2048, "tokens in a pack of scoring"),
        )
    )
    folder = model_folder(given.model)
    log, end = read_windows(given.archive, folder / "tokenizer.json"), end_token_id(folder)
    seeds = range(given.draws)
    figures: dict[str, Any] = {
        "log": log.log,
        "draws": given.draws,
        "training": [
            averaged([log.batch(size, seed) for seed in seeds], end, given.training_pack, carry=False)
            for size in given.batches
        ],
        "scoring": [
            averaged([scored(log, count, seed) for seed in seeds], end, given.scoring_pack, carry=True)
            for count in given.windows
        ],
    }
    tell(figures)


if __name__ == "__main__":
    main()
