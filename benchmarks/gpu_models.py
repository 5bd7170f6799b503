"""Options, models and windows of the measurements on a GPU, and how they keep what they found."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_windows import DealtWindows, load_windows, random_windows
from fl import shape_latency
from fl.costs import SMOLLM, Architecture
from fl.model import EMBEDDED, LoadedModel, load_model, prepare_model

TINY = Architecture(2, 64, 128, 4, 2, 512)
SHAPES = {**SMOLLM, "tiny": TINY}


def options(doc: str | None, *, weights: bool) -> argparse.ArgumentParser:
    """A parser for the windows, the folder of the results, and where the real weights lie if they are needed."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where results are written as they come")
    parser.add_argument("--windows", type=Path, help="file of benchmarks.gpu_windows; needed without --tiny")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and random windows, on a CPU too")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    if weights:
        parser.add_argument("--models", type=Path, help="folder of prepared models; needed without --tiny")
    return parser


def given_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with the results' folder made and the device decided."""
    given = parser.parse_args()
    needed = [name for name in ("windows", "models") if name in vars(given)]
    if not given.tiny and (missing := [name for name in needed if getattr(given, name) is None]):
        parser.error(f"without --tiny, give --{' and --'.join(missing)}")
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    return given


def given_windows(given: argparse.Namespace, clients: int = 4) -> DealtWindows:
    """The windows of the file, or random ones for `--tiny`."""
    return random_windows(TINY.vocabulary, clients) if given.tiny else load_windows(given.windows)


def given_model(given: argparse.Namespace, device: str) -> LoadedModel:
    """The embedded model on a device, or the tiny one."""
    if given.tiny:
        return random_model("tiny", device)
    return load_model(prepare_model(EMBEDDED, given.models), device=device)


def random_model(shape: str, device: str, dtype_name: str | None = None, *, tree: bool = True) -> LoadedModel:
    """A model of one of SmolLM's shapes with seeded random weights, or of a tiny one."""
    return shape_latency.random_model(SHAPES[shape], shape, device, dtype_name, tree=tree)


def timed(device: str, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What a call gives, its seconds with the device's work finished, and the most memory it held, MB (CUDA only)."""
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    outcome = work()
    if on_gpu:
        torch.cuda.synchronize()
    figures = {"seconds": time.perf_counter() - started}
    if on_gpu:
        figures["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return outcome, figures


def keep(folder: Path, name: str, figures: Any) -> None:  # noqa: ANN401 (anything JSON has)
    """Write figures as `name`.json, whole or not at all, so that a run that is cut short leaves what it had."""
    path = folder / f"{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=1) + "\n")
    part.replace(path)
