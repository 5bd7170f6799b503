"""Models of SmolLM's shapes with random weights, and what is told of a device, for measurements on a GPU."""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_windows import DealtWindows, load_windows, random_windows
from fl.costs import SMOLLM, Architecture
from fl.model import EMBEDDED, LoadedModel, load_model, prepare_model
from fl.tree_attention import choose_attention

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
    """A model of one of SmolLM's shapes with seeded random weights, in the type given or that the device calls for.

    Without `tree` the attention of prefix trees is not tried out, which on CUDA compiles it.
    """
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, dtype_name or ("bfloat16" if device.startswith("cuda") else "float32"))
    config = SHAPES[shape].config()
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval()
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    why = {"attention": choose_attention(config, device, dtype).reason} if tree else {}
    return LoadedModel(model, device, str(dtype).removeprefix("torch."), "none", 0, f"random {shape}", why)


def machine(device: str) -> dict[str, Any]:
    """What a figure's reader must know of the machine."""
    import transformers

    facts = {"device": device, "torch": torch.__version__, "transformers": transformers.__version__}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return {**facts, "gpu": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1)}
    return {**facts, "processor": _processor(), "threads": torch.get_num_threads()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


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
