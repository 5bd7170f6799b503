"""Bytes of a round's messages for every kind of adapter and codec, as Flower serializes them, without any weights."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.codecs import Codec, encoded_bytes
from fl.costs import Shapes, safetensors_bytes, smollm_shapes
from fl.exchange import UPDATE
from fl.federation import Federation
from fl.hyperparameters import Tuning

TUNINGS: dict[str, Tuning] = {
    **{f"FFA-LoRA {rank}": Tuning(kind="ffa", rank=rank) for rank in (2, 8)},
    **{f"RoLoRA {rank}": Tuning(kind="rolora", rank=rank) for rank in (2, 8)},
    **{f"square {rank}": Tuning(kind="sb", rank=rank, bases="weights") for rank in (8, 16, 32)},
    "square 16, bases from a gradient": Tuning(kind="sb", rank=16),
}
"""Adapters that send less than LoRA of their rank."""
CODECS: dict[str, Federation] = {
    "none": Federation(),
    **{name: Federation(codec=name) for name in ("float32", "float16", "int8", "int4")},  # type: ignore[arg-type]
    "sign": Federation(codec="sign", codec_block=256),
    "topk 5 %": Federation(codec="topk", topk_share=0.05),
    "topk 1 %": Federation(codec="topk", topk_share=0.01),
}


@dataclass(frozen=True)
class RoundBytes:
    """What one client sends and gets in one round; for RoLoRA the mean of an odd and an even one."""

    up: float
    down: float
    times_below_full: float
    """Full fine-tuning's message, a file of float32 values as in the paper's Table 2, over what is sent up."""


def flower_bytes(shapes: Mapping[str, Sequence[int]], dtype: str = "<f4") -> int:
    """What Flower's ArrayRecord counts: for each array its name, NumPy's header and the values."""
    return sum(
        len(name) + _numpy_header(tuple(shape), dtype) + math.prod(shape) * np.dtype(dtype).itemsize
        for name, shape in shapes.items()
    )


def _numpy_header(shape: tuple[int, ...], dtype: str) -> int:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.tell()


def coded_bytes(shapes: Shapes, codec: Codec) -> int:
    """What a message of these arrays takes."""
    if codec.name == "none":
        return flower_bytes(shapes)
    size = sum(math.prod(shape) for shape in shapes.values())
    return flower_bytes({UPDATE: (encoded_bytes(size, codec),)}, "|u1")


def round_bytes(shapes: Shapes, tuning: Tuning, federation: Federation, full_bytes: int) -> RoundBytes:
    """Bytes up and down of a client and round, for an adapter of these shapes."""
    up = [
        coded_bytes({name: shape for name, shape in shapes.items() if tuning.trains(name, number)}, federation.uplink)
        for number in (1, 2)
    ]
    return RoundBytes(sum(up) / 2, coded_bytes(shapes, federation.downlink), 2 * full_bytes / sum(up))


def codec_table(
    models: Iterable[str] = ("135M",),
    tunings: Mapping[str, Tuning] = TUNINGS,
    codecs: Mapping[str, Federation] = CODECS,
) -> list[dict[str, Any]]:
    """A row for each model, tuning and codec: bytes up and down, and how many times full fine-tuning sends."""
    rows = []
    for model in models:
        full = safetensors_bytes(smollm_shapes(model, Tuning(kind="full")), {"format": "pt"})
        for tuning_name, tuning in tunings.items():
            shapes = smollm_shapes(model, tuning)
            for codec_name, federation in codecs.items():
                found = round_bytes(shapes, tuning, federation, full)
                rows.append(
                    {
                        "model": model,
                        "tuning": tuning_name,
                        "codec": codec_name,
                        "bytes_up": found.up,
                        "bytes_down": found.down,
                        "times_below_full": found.times_below_full,
                    }
                )
    return rows
