"""What models run on: `python -m fl.devices` prints how many GPUs there are, and why none."""

import json
import platform
import sys
from pathlib import Path
from typing import Any


def gpus() -> tuple[int, str]:
    """How many GPUs PyTorch can use, and in words what was found."""
    # Asking PyTorch takes seconds and 300 MB, which a machine without any such device is spared.
    if sys.platform == "linux" and not list(Path("/dev").glob("nvidia[0-9]*")) and not Path("/dev/kfd").exists():
        return 0, "this machine has no GPU (no /dev/nvidia0)"
    import torch

    if not torch.cuda.is_available():
        return 0, f"PyTorch {torch.__version__} cannot use this machine's GPU"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return len(names), ", ".join(names)


def machine(device: str) -> dict[str, Any]:
    """What a figure's reader must know of the machine that a model ran on."""
    import torch
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


if __name__ == "__main__":
    print(json.dumps(gpus()))
