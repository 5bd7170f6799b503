"""On a GPU, does torch.compile pay for training steps and scoring by the prefix tree?

`python -m benchmarks.gpu_compile FOLDER --windows FILE.npz` takes a shape of SmolLM with random weights and times, one
after the other as compiled modules stay compiled:

- eager: as it is; only the attention kernel is compiled;
- pieces: norms and feed-forward blocks compiled, each by itself;
- layers: whole layers compiled, attention within them.

Each way's first step and first scoring, with the time of compiling, are given apart from the median of the next ones.
"""

import argparse
import sys
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_models import given_options, given_windows, keep, options, random_model, timed
from benchmarks.gpu_windows import DealtWindows
from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays
from fl.devices import machine
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import train_locally
from fl.model import LoadedModel
from fl.scoring import score_tokens

Windows = list[np.ndarray]
_RATE = 1e-3
_PIECES = ("LlamaRMSNorm", "LlamaMLP")
_LAYERS = ("LlamaDecoderLayer",)
WAYS: dict[str, tuple[str, ...]] = {"eager": (), "pieces": _PIECES, "layers": _LAYERS}


def compile_modules(model: torch.nn.Module, kinds: tuple[str, ...], backend: str) -> int:
    """Compile every module of these classes in place, for packs of any length; how many there are."""
    chosen = [module for module in model.modules() if type(module).__name__ in kinds]
    for module in chosen:
        module.compile(dynamic=True, backend=backend)
    return len(chosen)


def measure_way(
    loaded: LoadedModel, batches: list[Windows], windows: Windows, kinds: tuple[str, ...], backend: str
) -> dict[str, Any]:
    """Seconds of the first and the later steps and scorings, from the same weights, with the first batch's loss."""
    model: Any = attach_adapter(loaded, Tuning(dropout=0.0), 0)
    start = adapter_arrays(model)
    config = LocalTraining(steps=1, batch_size=len(batches[0]))
    compiled = compile_modules(model, kinds, backend)
    steps, losses, scorings, logs = [], [], [], 0.0
    for batch in batches:
        load_adapter_arrays(model, start)
        result, took = timed(
            loaded.device, lambda batch=batch: train_locally(model, loaded, batch, config, _RATE, (0, 1, 0))
        )
        steps.append(took["seconds"])
        losses.append(result.loss)
    load_adapter_arrays(model, start)
    for _ in range(3):
        scored, took = timed(loaded.device, lambda: score_tokens(model, loaded, windows))
        scorings.append(took["seconds"])
        logs = float(np.concatenate(scored.log_probabilities).mean())
    return {
        "compiled_modules": compiled,
        "first_step_seconds": round(steps[0], 3),
        "step_seconds": round(median(steps[1:]), 4),
        "steps": [round(step, 4) for step in steps],
        "first_scoring_seconds": round(scorings[0], 3),
        "scoring_seconds": round(median(scorings[1:]), 4),
        "loss": losses[0],
        "mean_log_probability": logs,
    }


def profile(loaded: LoadedModel, batch: Windows, windows: Windows) -> dict[str, Any]:
    """What the device is busy with in one eager step and one scoring: kernels by their summed time, ms."""
    model: Any = attach_adapter(loaded, Tuning(dropout=0.0), 0)
    config = LocalTraining(steps=1, batch_size=len(batch))
    works = {
        "step": lambda: train_locally(model, loaded, batch, config, _RATE, (0, 1, 0)),
        "scoring": lambda: score_tokens(model, loaded, windows),
    }
    found: dict[str, Any] = {}
    for name, work in works.items():
        work()
        with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as seen:
            _, took = timed(loaded.device, work)
        events = seen.key_averages()
        kernels = sorted(events, key=lambda event: -event.self_device_time_total)[:15]
        found[name] = {
            "milliseconds": round(1e3 * took["seconds"], 1),
            "device_milliseconds": round(sum(event.self_device_time_total for event in events) / 1e3, 1),
            "launches": sum(event.count for event in events if event.key == "cudaLaunchKernel"),
            "longest": {kernel.key[:80]: [kernel.count, kernel.self_device_time_total / 1e3] for kernel in kernels},
        }
    return found


def measure(given: argparse.Namespace, dealt: DealtWindows) -> dict[str, Any]:
    """Every way, written as it comes; one that fails says why."""
    windows = [dealt.log.token_ids[number] for number in dealt.distinct("test")]
    batches = [dealt.log.batch(given.batch, seed) for seed in range(given.repeats)]
    figures: dict[str, Any] = {"machine": machine(given.device), "log": dealt.log.log, "shape": given.shape}
    figures["profile"] = profile(random_model(given.shape, given.device), batches[0], windows)
    for name, kinds in WAYS.items():
        loaded = random_model(given.shape, given.device)
        try:
            figures[name] = measure_way(loaded, batches, windows, kinds, given.backend)
        except Exception as error:  # whatever a compiler can raise; the other ways are measured all the same
            figures[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
        keep(given.folder, f"compile-{given.shape}", figures)
        print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
    return figures


def main() -> None:
    """Measure; the figures are in FOLDER/compile-SHAPE.json."""
    parser = options(__doc__, weights=False)
    parser.add_argument("--shape", default="135M", help="shape of the model")
    parser.add_argument("--repeats", type=int, default=6, help="steps of each way, each on a batch of its own")
    parser.add_argument("--batch", type=int, default=32, help="windows of a training step")
    parser.add_argument("--backend", default="inductor", help="what torch.compile hands its graphs to")
    given = given_options(parser)
    given.shape = "tiny" if given.tiny else given.shape
    measure(given, given_windows(given))


if __name__ == "__main__":
    main()
