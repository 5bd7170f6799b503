"""What federated tuning costs: parameters, bytes of a message, bytes of a whole run, latency and memory.

Sizes come from shapes on the meta device, so no weights are needed; messages are counted as safetensors files of
float32 values, in units of 10^6 bytes, as in the paper's Table 2.
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.errors import ModelError
from fl.host_memory import give_back_freed_memory
from fl.hyperparameters import Tuning

Shapes = dict[str, tuple[int, ...]]
RANKS = (2, 8, 32, 128)
FULL = "FFT"


@dataclass(frozen=True)
class Architecture:
    """A Llama model with tied embeddings."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    key_value_heads: int
    vocabulary: int = 49152

    def config(self) -> Any:  # noqa: ANN401 (transformers' LlamaConfig)
        """The same as transformers has it."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            tie_word_embeddings=True,
        )


SMOLLM = {
    "135M": Architecture(30, 576, 1536, 9, 3),
    "360M": Architecture(32, 960, 2560, 15, 5),
    "1.7B": Architecture(24, 2048, 8192, 32, 32),
}


@dataclass(frozen=True)
class MessageSize:
    """What one client sends, or gets, in one round."""

    parameters: int
    """Trained, and so sent."""
    bytes: int
    """Of the safetensors file with float32 values."""

    @property
    def megabytes(self) -> float:
        """Bytes / 10^6."""
        return self.bytes / 1e6


def safetensors_bytes(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None) -> int:
    """Size of a safetensors file of float32 tensors: 8 bytes, a JSON header padded to 8, then the values."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in sorted(shapes):
        end = offset + 4 * int(np.prod(shapes[name], dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + (text + 7) // 8 * 8 + offset


def message_size(config: Any, tuning: Tuning) -> MessageSize:  # noqa: ANN401 (any transformers configuration)
    """Parameters and bytes of a message for a model's configuration under a tuning, without any weights."""
    return _size_of(adapter_shapes(config, tuning))


def _size_of(shapes: Shapes) -> MessageSize:
    if not shapes:
        return MessageSize(0, 0)
    parameters = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    return MessageSize(parameters, safetensors_bytes(shapes, {"format": "pt"}))


def adapter_shapes(config: Any, tuning: Tuning) -> Shapes:  # noqa: ANN401
    """The arrays of an adapter as `fl.adapter.adapter_arrays` gives them, without any weights."""
    if tuning.kind in {"full", "none"}:
        return _full_shapes(config) if tuning.kind == "full" else {}
    lora = _lora_shapes(config, tuning)
    if tuning.kind == "ffa":
        return {name: shape for name, shape in lora.items() if "lora_B" in name}
    if tuning.kind == "sb":
        squares = {name.replace("lora_A", "lora_R"): (tuning.rank, tuning.rank) for name in lora if "lora_A" in name}
        return (lora if tuning.bases == "gradient" else {}) | squares
    return lora


@lru_cache(maxsize=64)
def smollm_shapes(size: str, tuning: Tuning) -> Shapes:
    """The same for one of SmolLM's sizes, built once a process: several tables are made of them."""
    return adapter_shapes(SMOLLM[size].config(), tuning)


def full_model_size(folder: str | Path) -> MessageSize:
    """What full fine-tuning of the model in `folder` would send in one message."""
    return message_size(model_config(folder), Tuning(kind="full"))


def model_config(folder: str | Path) -> Any:  # noqa: ANN401
    """The transformers configuration of the model in `folder`; raises ModelError where it has none to use."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"There is no usable config.json in {folder}: prepare the model again.") from error


def _full_shapes(config: Any) -> Shapes:  # noqa: ANN401
    model = _empty_model(config)
    tied = getattr(config, "tie_word_embeddings", False)
    return {
        name: tuple(parameter.shape)
        for name, parameter in model.named_parameters()
        if not (tied and name == "lm_head.weight")
    }


def _lora_shapes(config: Any, tuning: Tuning) -> Shapes:  # noqa: ANN401
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    lora = LoraConfig(task_type="CAUSAL_LM", r=tuning.rank, target_modules=list(tuning.targets))
    model = get_peft_model(_empty_model(config), lora, low_cpu_mem_usage=True)
    return {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}


def _empty_model(config: Any) -> Any:  # noqa: ANN401
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def table_2() -> list[dict[str, Any]]:
    """The paper's Table 2: message size (MB) and trained parameters (M) by model and rank, with full fine-tuning."""
    tunings = {f"R={rank}": Tuning(rank=rank) for rank in RANKS} | {FULL: Tuning(kind="full")}
    sizes = {
        (model, name): _size_of(smollm_shapes(model, tuning)) for model in SMOLLM for name, tuning in tunings.items()
    }
    return [
        {"model": model, "tuning": name, "megabytes": size.megabytes, "parameters_m": size.parameters / 1e6}
        for (model, name), size in sizes.items()
    ]


@dataclass(frozen=True)
class Latency:
    """Time of one sample and peak memory of the process (of the device on CUDA), as in the paper's Table 3."""

    samples: int
    mean_ms: float
    deviation_ms: float
    """Standard deviation over the samples."""
    median_ms: float
    p99_ms: float
    """99th percentile, interpolated linearly between samples."""
    peak_mb: float
    """In 10^6 bytes."""


def measure_latency(run: Callable[[int], object], samples: int, device: str = "cpu", warm_up: int = 3) -> Latency:
    """Call `run(i)` for each sample and time it; batch 1 is the caller's to keep.

    The peak is the device's on CUDA, on the CPU the whole process's; since the end of the warm-up, except where the
    system does not let a process forget its peak (anywhere but on Linux): there it is since the process started.
    """
    cuda = device.startswith("cuda")
    for sample in range(min(warm_up, samples)):
        run(sample)
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _forget_process_peak()
    times = np.array([_timed(run, sample, device if cuda else None) for sample in range(samples)]) * 1000
    peak = torch.cuda.max_memory_allocated(device) if cuda else _process_peak()
    return Latency(
        samples=samples,
        mean_ms=float(times.mean()),
        deviation_ms=float(times.std()),
        median_ms=float(np.median(times)),
        p99_ms=float(np.percentile(times, 99)),
        peak_mb=peak / 1e6,
    )


def _timed(run: Callable[[int], object], sample: int, cuda: str | None) -> float:
    started = time.perf_counter()
    run(sample)
    if cuda:
        torch.cuda.synchronize(cuda)
    return time.perf_counter() - started


def _forget_process_peak() -> None:
    give_back_freed_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _process_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes on Linux, bytes on macOS.
    return peak if sys.platform == "darwin" else peak * 1024
