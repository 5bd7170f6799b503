"""fl/message_sizes.py: counted from shapes alone, equal to what Flower counts of real messages."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from transformers import AutoConfig

from fl.adapter import adapter_arrays, attach_adapter
from fl.codecs import encode
from fl.costs import Architecture, adapter_shapes, message_size
from fl.federation import Federation
from fl.hyperparameters import Tuning
from fl.message_sizes import CODECS, codec_table, round_bytes
from fl.message_sizes import TUNINGS as SENDING_LESS
from fl.model import load_model
from flows.computed_views import message_bytes

TUNINGS = [
    Tuning(rank=2),
    Tuning(kind="ffa", rank=4),
    Tuning(kind="rolora", rank=3),
    Tuning(kind="sb", rank=5),
    Tuning(kind="sb", rank=5, bases="random"),
    Tuning(kind="full"),
]


def _counted(arrays: dict[str, np.ndarray]) -> int:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()}).count_bytes()


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_sizes_from_shapes_are_those_of_real_messages(tiny_model: Path, tuning: Tuning) -> None:
    loaded = load_model(tiny_model)
    arrays = adapter_arrays(attach_adapter(loaded, tuning, 0))
    shapes = adapter_shapes(AutoConfig.from_pretrained(tiny_model), tuning)
    assert shapes == {name: array.shape for name, array in arrays.items()}
    for name, federation in CODECS.items():
        trained = [{n: a for n, a in arrays.items() if tuning.trains(n, number)} for number in (1, 2)]
        if name != "none":
            trained = [{"update": encode(part, federation.uplink)} for part in trained]
        found = round_bytes(shapes, tuning, federation, full_bytes=10**6)
        assert found.up == sum(map(_counted, trained)) / 2
        assert found.down == _counted(arrays)
        assert found.times_below_full == pytest.approx(10**6 / found.up)


def test_a_coded_download_counts_coded(tiny_model: Path) -> None:
    shapes = adapter_shapes(AutoConfig.from_pretrained(tiny_model), Tuning())
    values = sum(int(np.prod(shape)) for shape in shapes.values())
    found = round_bytes(shapes, Tuning(), Federation(downlink_codec="float16"), 1)
    # Name, NumPy's header, the codec's header, and two bytes a value.
    assert found.down == len("update") + 128 + 28 + 2 * values


def test_the_uplink_of_the_135m_model_can_be_twenty_thousand_times_smaller() -> None:
    square = {"square 8": Tuning(kind="sb", rank=8, bases="weights")}
    rows = {row["codec"]: row for row in codec_table(tunings=square)}
    # 30 layers, q and v, 8 x 8 values of 4 bytes, and 162 bytes of headers and name.
    assert rows["float32"]["bytes_up"] == 60 * 64 * 4 + 162
    assert rows["float32"]["times_below_full"] == pytest.approx(538_090_408 / 15_522)
    assert json.dumps(list(rows.values()))


def test_files_count_what_a_kind_carries() -> None:
    from fl.costs import SMOLLM

    config = SMOLLM["135M"].config()
    parameters = {kind: message_size(config, Tuning(kind=kind, rank=8)).parameters for kind in ("lora", "ffa", "sb")}
    assert parameters == {"lora": 460_800, "ffa": 30 * 8 * (576 + 192), "sb": 460_800 + 60 * 64}


def test_the_view_of_codecs_shows_the_papers_tunings_and_every_adapter_that_sends_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fl.costs.SMOLLM", {"tiny": Architecture(2, 48, 96, 3, 1, 100)})
    rows = {(row["tuning"], row["codec"]): row for row in message_bytes().to_dicts()}
    names = [*(f"R={rank}" for rank in (2, 8, 32, 128)), "FFT", *SENDING_LESS]
    assert set(rows) == {(tuning, codec) for tuning in names for codec in CODECS}
    assert {tuning.kind for tuning in SENDING_LESS.values()} == {"ffa", "rolora", "sb"}
    lora, rolora, ffa, square = (rows[name, "none"] for name in ("R=8", "RoLoRA 8", "FFA-LoRA 8", "square 8"))
    assert lora["bytes_down"] == rolora["bytes_down"] == 2 * rolora["bytes_up"]
    assert square["bytes_up"] < ffa["bytes_up"] == ffa["bytes_down"] < lora["bytes_up"]
    for name, tuning in SENDING_LESS.items():
        shapes = adapter_shapes(Architecture(2, 48, 96, 3, 1, 100).config(), tuning)
        sent = [{n: np.zeros(s, np.float32) for n, s in shapes.items() if tuning.trains(n, turn)} for turn in (1, 2)]
        assert rows[name, "none"]["bytes_up"] == sum(map(_counted, sent)) / 2
