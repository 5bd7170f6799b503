"""A forward pass to the last hidden states: a distinct token of the prefix tree against a token of one window's pass.

`python -m benchmarks.forward ARCHIVE`. The tree's packs and single windows that stand for the others by their length
take turns; few windows, so that turns are short and the machine's moods meet both alike. The tokens of a tree lie
deeper than those of windows on average, so that attention has more to do for each.
"""

from typing import Any

import numpy as np
import torch

from benchmarks.command_line import Size, given_options, model_folder, options, tell
from benchmarks.scoring import stratified
from benchmarks.turns import compared, in_turns, seconds
from benchmarks.windows import LogWindows, read_windows
from fl.model import LoadedModel, load_model
from fl.prefix_tree import build_tree, cut_packs
from fl.tree_attention import carried_path, hidden_states, tree_attention


def measure(loaded: LoadedModel, log: LogWindows, count: int, sampled: int, pack: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a token of both ways, for the distinct ones of `count` windows drawn from the log."""
    numbers = np.unique(log.drawn(count))
    windows = [log.token_ids[number] for number in numbers]
    alone = [windows[i] for i in stratified(np.arange(len(windows)), [len(ids) for ids in windows], sampled).numbers]
    tree = build_tree(windows, loaded.end_token_id)
    path = carried_path(loaded.model)
    packs = list(cut_packs(tree, pack, carry=path is not None))

    def by_tree() -> None:
        with tree_attention(loaded.model):
            for each in packs:
                hidden_states(loaded.model, each, path)

    def by_window() -> None:
        for ids in alone:
            loaded.model.model(torch.from_numpy(ids)[None].to(loaded.device))

    given = sum(map(len, alone))
    with torch.inference_mode():
        by_window()
        times = in_turns({"atalaia": lambda _: seconds(by_tree), "plain": lambda _: seconds(by_window)}, repeats)
    tokens = {"atalaia": tree.distinct_tokens, "plain": given}
    figures = compared({way: [1000 * took / tokens[way] for took in taken] for way, taken in times.items()})
    return {
        "distinct_windows": len(windows),
        "distinct_prefix_tokens": tree.distinct_tokens,
        "mean_depth": round(float(tree.depths[tree.is_inner].mean()), 1),
        "plain_windows": len(alone),
        "plain_tokens": given,
        "plain_mean_depth": round(sum(len(ids) * (len(ids) - 1) / 2 for ids in alone) / given, 1),
        "ms_a_token": figures["seconds"],
        "median_ms_a_token": figures["median_seconds"],
        "times_longer": figures["times_longer"],
    }


def main() -> None:
    """Measure and print JSON."""
    given = given_options(
        options(
            __doc__,
            windows=Size(25, 4, "windows to draw"),
            sampled=Size(12, 2, "windows that the plain pass is timed on"),
            pack=Size(2048, 256, "tokens in a pack"),
            repeats=Size(9, 1, "repetitions of each"),
        )
    )
    folder = model_folder(given.model)
    log, loaded = read_windows(given.archive, folder / "tokenizer.json"), load_model(folder)
    figures = measure(loaded, log, given.windows, given.sampled, given.pack, given.repeats)
    tell({"log": log.log, "model": folder.name, "threads": torch.get_num_threads(), **figures})


if __name__ == "__main__":
    main()
