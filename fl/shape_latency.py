"""The paper's Table 3: time of a window and peak memory, for the shapes of SmolLM with random weights.

A shape is timed in one of these ways, with weights of one type:

- `padded`: batch 1, a row of 1024 tokens (longer windows cut, shorter ones filled with the end token), logits of all
  positions. The paper prints neither length nor type. Its memory beyond the float32 weights (483, 534 and 867 MB) has
  room for float32 logits of 1024 positions twice (403 MB), and its deviations of 1 to 3 % tell of rows of one length;
  so `padded` in float32 is what its figures are to be compared with;
- `plain`: batch 1, the window's own tokens, logits of all positions;
- `alone`: batch 1, Atalaia's scoring of one window: ranks, log-probabilities, all scores (a tenth of the samples);
- `together`: Atalaia's scoring of all drawn windows by their prefix tree, in some repetitions; a window's time is a
  repetition's divided by its windows;
- `split`: the same of all windows of the test split.

A way's peak holds the weights. `python -m fl.shape_latency FOLDER` does what the job in that folder says; in a process
of its own the peak is that of nothing else.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.costs import SMOLLM, Architecture, Latency, measure_latency
from fl.devices import machine
from fl.errors import DeviceError, LearningError, ModelError
from fl.model import LoadedModel, place
from fl.scoring import score_sequences
from fl.tree_attention import choose_attention

ROW = 1024
WAYS = ("padded", "plain", "alone", "together", "split")
PLAIN = frozenset({"padded", "plain"})
"""Ways without a prefix tree."""
SHAPES: Mapping[str, Architecture] = {**SMOLLM, "tiny": Architecture(2, 64, 128, 4, 2)}
"""SmolLM's; `tiny`, of their vocabulary, to see a measurement work."""
RANDOM = "random, seeded"
"""What is said of the weights."""
JOB, WINDOWS, FIGURES = "job.json", "windows.npz", "figures.json"
"""Files of a job's folder: what is asked for, the windows, and what came out."""

_SAMPLES = {"cuda": (1000, 1000, 1000), "cpu": (1000, 200, 30)}
"""Windows of the smallest, the middle and the largest shape; the paper's on a GPU."""
_OTHER_SAMPLES = 20
Tell = Callable[[int, int], object]
"""Told how many of how many passes are done."""


@dataclass(frozen=True)
class TimedWindows:
    """The distinct windows of a log's test split, and which of them each of its windows is."""

    token_ids: Sequence[np.ndarray]
    message_starts: Sequence[np.ndarray]
    order: np.ndarray
    """For each window of the split the place of its distinct window, 0 to the number of distinct windows - 1."""

    def drawn(self, count: int | None, seed: int = 0) -> "Sample":
        """`count` windows of the split drawn at random (again and again where it has fewer), or all of them."""
        chosen = self.order
        if count is not None:
            chosen = np.random.default_rng(seed).choice(chosen, count, replace=count > len(chosen))
        return Sample([self.token_ids[one] for one in chosen], [self.message_starts[one] for one in chosen])


@dataclass(frozen=True)
class Sample:
    """Windows to be timed, one array a window each."""

    token_ids: Sequence[np.ndarray]
    message_starts: Sequence[np.ndarray]

    def first(self, count: int) -> "Sample":
        """The first `count` windows."""
        return Sample(self.token_ids[:count], self.message_starts[:count])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each window."""
        return np.array([len(ids) for ids in self.token_ids])


@dataclass(frozen=True)
class TimingJob:
    """What is to be timed."""

    shape: str
    way: str
    dtype: str | None
    """float32, bfloat16 or float16; None: what the device calls for."""
    device: str
    """auto, cpu, cuda or cuda:<number>."""
    samples: int
    repeats: int
    """Repetitions of `together` and `split`."""


def usual_samples(shape: str, device: str) -> int:
    """How many windows are timed where nobody says: as many as in the paper where that takes an hour at most."""
    by_size = dict(zip(SMOLLM, _SAMPLES["cuda" if device.startswith("cuda") else "cpu"], strict=True))
    return by_size.get(shape, _OTHER_SAMPLES)


def random_model(
    architecture: Architecture, name: str, device: str, dtype_name: str | None = None, *, tree: bool = True
) -> LoadedModel:
    """A model of a shape with seeded random weights, in the type given or that the device calls for.

    Without `tree` the attention of prefix trees is not tried out, which on CUDA compiles it.
    """
    from transformers import AutoModelForCausalLM

    device, called_for, _ = place(device)
    dtype = getattr(torch, dtype_name) if dtype_name else called_for
    config = architecture.config()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    why = {"attention": choose_attention(config, device, dtype).reason} if tree else {}
    return LoadedModel(model, device, str(dtype).removeprefix("torch."), "none", 0, f"random {name}", why)


def rows_of(sample: Sample, end: int, row: int | None) -> list[torch.Tensor]:
    """Each window as a batch of one: of its own length, or cut or filled with end tokens to `row`."""
    if row is None:
        return [torch.from_numpy(ids)[None] for ids in sample.token_ids]
    rows = torch.full((len(sample.token_ids), 1, row), end)
    for target, ids in zip(rows, sample.token_ids, strict=True):
        target[0, : len(ids)] = torch.from_numpy(ids[:row])
    return list(rows)


def forward_latency(loaded: LoadedModel, sample: Sample, row: int | None, tell: Tell) -> Latency:
    """A plain forward pass of each window by itself, from tokens in the machine's memory to logits on the device."""
    rows = rows_of(sample, loaded.end_token_id, row)

    @torch.inference_mode()
    def run(number: int) -> object:
        tell(number, len(rows))
        return loaded.model(input_ids=rows[number].to(loaded.device)).logits

    return measure_latency(run, len(rows), loaded.device)


def scoring_latency(loaded: LoadedModel, sample: Sample, tell: Tell) -> Latency:
    """Atalaia's scoring of each window by itself."""
    windows = len(sample.token_ids)

    def run(number: int) -> None:
        tell(number, windows)
        score_sequences(loaded.model, loaded, sample.token_ids[number : number + 1], sample.message_starts[number:][:1])

    return measure_latency(run, windows, loaded.device)


def tree_latency(loaded: LoadedModel, sample: Sample, repeats: int, tell: Tell) -> dict[str, float]:
    """Atalaia's scoring of all windows together: a window's share of the time, and how many tokens were computed."""
    windows, computed = len(sample.token_ids), 0.0

    def run(number: int) -> None:
        nonlocal computed
        tell(number, repeats)
        computed = score_sequences(loaded.model, loaded, sample.token_ids, sample.message_starts)["computed_tokens"][0]

    found = measure_latency(run, repeats, loaded.device, warm_up=1 if loaded.device.startswith("cuda") else 0)
    return {
        "repeats": repeats,
        "windows": windows,
        **{name: value / windows for name, value in asdict(found).items() if name.endswith("_ms")},
        "peak_mb": found.peak_mb,
        "computed_tokens": round(computed * windows),
    }


def measure_way(
    way: str, loaded: LoadedModel, windows: TimedWindows, samples: int, repeats: int, tell: Tell = lambda *_: None
) -> dict[str, Any]:
    """The figures of one way, with the lengths of the windows they are of."""
    sample = windows.drawn(None if way == "split" else samples)
    if way == "alone":
        sample = sample.first(max(1, samples // 10))
    ways: dict[str, Callable[[], Any]] = {
        "padded": lambda: asdict(forward_latency(loaded, sample, ROW, tell)),
        "plain": lambda: asdict(forward_latency(loaded, sample, None, tell)),
        "alone": lambda: asdict(scoring_latency(loaded, sample, tell)),
        "together": lambda: tree_latency(loaded, sample, repeats, tell),
        "split": lambda: tree_latency(loaded, sample, repeats, tell),
    }
    lengths = np.full(len(sample.token_ids), ROW) if way == "padded" else sample.lengths
    told = {"tokens": int(lengths.sum()), "tokens_mean": float(lengths.mean()), "tokens_max": int(lengths.max())}
    why = {} if way in PLAIN else loaded.reasons
    return {**told, **ways[way](), **why}


def save_job(job: TimingJob, windows: TimedWindows, folder: Path) -> None:
    """Leave a job and its windows for `python -m fl.shape_latency`; raises ModelError for none, or unknown tokens."""
    if not len(windows.order):
        raise ModelError("There is no test window to be timed; the split must have some (split.test).")
    highest = max((int(ids.max()) for ids in windows.token_ids if len(ids)), default=0)
    if highest >= SHAPES[job.shape].vocabulary:
        known = f"SmolLM's shapes know {SHAPES[job.shape].vocabulary:,} tokens"
        raise ModelError(f"{known}, and these windows hold number {highest:,}: have a SmolLM's tokenizer read them.")
    (folder / JOB).write_text(json.dumps(asdict(job)))
    arrays: dict[str, Any] = {"order": windows.order}
    for name, parts in (("tokens", windows.token_ids), ("starts", windows.message_starts)):
        arrays |= {f"{name}_values": np.concatenate(parts), f"{name}_lengths": np.array([len(part) for part in parts])}
    np.savez_compressed(folder / WINDOWS, **arrays)


def _windows(path: Path) -> TimedWindows:
    with np.load(path, allow_pickle=False) as file:
        tokens, starts = (
            np.split(file[f"{name}_values"].astype(np.int64), np.cumsum(file[f"{name}_lengths"])[:-1])
            for name in ("tokens", "starts")
        )
        return TimedWindows(tokens, starts, file["order"])


def run_job(folder: Path, tell: Tell) -> None:
    """Do what the folder's job says; raises DeviceError where the device's memory does not suffice."""
    job = TimingJob(**json.loads((folder / JOB).read_text()))
    windows = _windows(folder / WINDOWS)
    try:
        loaded = random_model(SHAPES[job.shape], job.shape, job.device, job.dtype, tree=job.way not in PLAIN)
        found = measure_way(job.way, loaded, windows, job.samples, job.repeats, tell)
    except torch.OutOfMemoryError as error:
        raise DeviceError(str(error).splitlines()[0]) from error
    figures = {"machine": machine(loaded.device), "dtype": loaded.dtype, "figures": found}
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n")


def main() -> None:
    """Do the job of the folder that is named; a line on stdout before each pass, how many of how many are done."""
    try:
        run_job(Path(sys.argv[1]), lambda done, total: print(done, total, flush=True))
    except LearningError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
