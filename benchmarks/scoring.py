"""Scores of windows: the prefix tree against the reference's evaluation function, and against plain forward passes.

`python -m benchmarks.scoring ARCHIVE --reference FOLDER`. All ways get the same model and windows and take turns:

- atalaia: every score of every window, each distinct prefix computed once;
- reference: its `next_token_top_k`, one window at a time, tokenizing the text and taking four top-k's of all logits;
- plain: a forward pass of each window and one log-softmax, without anything else.

The other two are timed on some windows, which stand for equal parts of all windows by length, and scaled up by these
parts: such times are marked as extrapolated. The reference's accuracies must equal the `unaligned` scores.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import reference
from benchmarks.command_line import SKIPPED, Size, given_options, model_folder, options, tell
from benchmarks.turns import Way, compared, in_turns, seconds
from benchmarks.windows import LogWindows, read_windows
from fl.model import LoadedModel, load_model
from fl.prefix_tree import build_tree
from fl.scoring import KS, score_sequences

_TIE = 1e-9
"""Accuracies are shares of whole tokens; equal ones differ by rounding only."""


@dataclass(frozen=True)
class Sample:
    """Windows that stand for others of about their length."""

    numbers: np.ndarray
    counts: np.ndarray
    """How many windows each stands for, itself included."""


def stratified(numbers: np.ndarray, lengths: Sequence[int], size: int) -> Sample:
    """The windows (numbers into `lengths`) sorted by length, cut into `size` parts, and the most average of each."""
    ordered = numbers[np.argsort([lengths[number] for number in numbers], kind="stable")]
    parts = np.array_split(ordered, min(size, len(ordered)))
    chosen = []
    for part in parts:
        own = np.array([lengths[number] for number in part])
        chosen.append(part[np.abs(own - own.mean()).argmin()])
    return Sample(np.array(chosen), np.array([len(part) for part in parts]))


class Scorers:
    """The ways of scoring one draw of windows, each with what it found last."""

    def __init__(self, loaded: LoadedModel, log: LogWindows, numbers: np.ndarray, sampled: int) -> None:
        self.loaded, self.log = loaded, log
        self.distinct = np.unique(numbers)
        self.sample = stratified(numbers, [len(ids) for ids in log.token_ids], sampled)
        self.scores: dict[str, np.ndarray] = {}
        self.accuracies: dict[str, np.ndarray] = {}

    def atalaia(self, _: int) -> float:
        """Seconds for all windows."""
        token_ids = [self.log.token_ids[number] for number in self.distinct]
        starts = [self.log.message_starts[number] for number in self.distinct]

        def work() -> None:
            self.scores = score_sequences(self.loaded.model, self.loaded, token_ids, starts)

        return seconds(work)

    def warm_up(self) -> None:
        """The first pass of a process takes longer than the others."""
        window = self.log.token_ids[self.distinct[0]][:64]
        score_sequences(self.loaded.model, self.loaded, [window], [np.zeros(1, np.int64)])
        self._pass(window)

    def reference(self, evaluate: Callable[..., reference.Accuracies], tokenizer: Any) -> Callable[[int], float]:  # noqa: ANN401
        """The way that gives the reference's seconds for all windows, by those of the sample."""

        def way(_: int) -> float:
            found: list[reference.Accuracies] = []
            times = [
                seconds(lambda n=n: found.append(evaluate({"text": [self.log.texts[n]]}, self.loaded.model, tokenizer)))  # type: ignore[misc]
                for n in self.sample.numbers
            ]
            self.accuracies = {f"unaligned_{k}": np.array([one[f"top{k}"][0] for one in found]) for k in KS}
            return float(self.sample.counts @ times)

        return way

    def plain(self, _: int) -> float:
        """Seconds for all windows, by those of the sample."""
        times = [seconds(lambda n=n: self._pass(self.log.token_ids[n])) for n in self.sample.numbers]  # type: ignore[misc]
        return float(self.sample.counts @ times)

    @torch.inference_mode()
    def _pass(self, window: np.ndarray) -> None:
        self.loaded.model(torch.from_numpy(window)[None].to(self.loaded.device)).logits.log_softmax(-1)

    def equality(self) -> dict[str, Any]:
        """How the reference's accuracies on the sample compare with the unaligned scores."""
        rows = np.searchsorted(self.distinct, self.sample.numbers)
        apart = np.concatenate([np.abs(self.accuracies[name] - self.scores[name][rows]) for name in self.accuracies])
        return {
            "accuracies": len(apart),
            "equal": int((apart <= _TIE).sum()),
            "largest_difference": float(apart.max()),
        }


def measure(
    loaded: LoadedModel,
    log: LogWindows,
    count: int,
    repeats: int,
    sampled: int,
    evaluate: tuple[Callable[..., reference.Accuracies], Any] | None,
) -> dict[str, Any]:
    """One draw of `count` windows, all ways; `evaluate` is the reference's function and the tokenizer for it."""
    numbers = log.drawn(count)
    scorers = Scorers(loaded, log, numbers, sampled)
    ways: dict[str, Way] = {"atalaia": scorers.atalaia, "plain": scorers.plain}
    if evaluate:
        ways["reference"] = scorers.reference(*evaluate)
    print(f"{len(numbers)} windows", file=sys.stderr)
    scorers.warm_up()
    times = in_turns(ways, repeats)
    tree = build_tree([log.token_ids[number] for number in scorers.distinct], loaded.end_token_id)
    tokens, computed = log.tokens(numbers), round(float(scorers.scores["computed_tokens"].sum()))
    return {
        "windows": len(numbers),
        "distinct_windows": len(scorers.distinct),
        "tokens": tokens,
        "distinct_prefix_tokens": tree.distinct_tokens,
        "computed_tokens": computed,
        "tokens_given_to_distinct": round(tokens / tree.distinct_tokens, 2),
        **compared(times),
        "computed_tokens_per_second": round(computed / float(np.median(times["atalaia"])), 1),
        "others_extrapolated": len(scorers.sample.numbers) < len(numbers),
        "others_timed_on_windows": len(scorers.sample.numbers),
        "tokens_by_the_sample": int(
            sum(c * len(log.token_ids[n]) for n, c in zip(scorers.sample.numbers, scorers.sample.counts, strict=True))
        ),
        "equality_with_reference": scorers.equality() if evaluate else SKIPPED,
    }


def _reference(checkout: Path | None, folder: Path) -> tuple[Callable[..., reference.Accuracies], Any] | None:
    if checkout is None:
        print(f"reference: {SKIPPED}", file=sys.stderr)
        return None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    return reference.evaluation(checkout), tokenizer


def main() -> None:
    """Measure and print JSON."""
    given = given_options(
        options(
            __doc__,
            windows=Size((200, 2301, 11501), (6, 12), "numbers of windows to score"),
            repeats=Size((3, 3, 1), (1, 1), "repetitions for each of these numbers, the last for all further ones"),
            sampled=Size(24, 3, "windows that the other ways are timed on"),
        )
    )
    folder = model_folder(given.model)
    log, loaded = read_windows(given.archive, folder / "tokenizer.json"), load_model(folder)
    evaluate = _reference(given.reference, folder)
    measured = [
        measure(loaded, log, count, given.repeats[min(place, len(given.repeats) - 1)], given.sampled, evaluate)
        for place, count in enumerate(given.windows)
    ]
    tell({"log": log.log, "model": folder.name, "threads": torch.get_num_threads(), "scoring": measured})


if __name__ == "__main__":
    main()
