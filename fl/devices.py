"""What a training job could run on: `python -m fl.devices` prints how many GPUs there are, and why none."""

import json
import sys
from pathlib import Path


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


if __name__ == "__main__":
    print(json.dumps(gpus()))
