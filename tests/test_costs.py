"""Costs against the paper's Table 2, real safetensors files and hand-made sums."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from fl.adapter import Tuning
from fl.costs import (
    SMOLLM,
    Architecture,
    full_model_size,
    measure_latency,
    message_size,
    safetensors_bytes,
    table_2,
)
from fl.errors import ModelError
from fl.host_memory import keep_freed_memory

# As printed in the paper: megabytes of a message, millions of trained parameters.
PAPER = {
    ("135M", "R=2"): (0.48, 0.12),
    ("135M", "R=8"): (1.86, 0.46),
    ("135M", "R=32"): (7.39, 1.84),
    ("135M", "R=128"): (29.51, 7.37),
    ("135M", "FFT"): (538.09, 134.52),
    ("360M", "R=2"): (0.84, 0.20),
    ("360M", "R=8"): (3.29, 0.82),
    ("360M", "R=32"): (13.12, 3.28),
    ("360M", "R=128"): (52.45, 13.11),
    ("360M", "FFT"): (1447.32, 361.82),
    ("1.7B", "R=2"): (1.59, 0.39),
    ("1.7B", "R=8"): (6.30, 1.57),
    ("1.7B", "R=32"): (25.18, 6.29),
    ("1.7B", "R=128"): (100.68, 25.17),
    ("1.7B", "FFT"): (6845.53, 1711.38),
}
TINY = Architecture(layers=2, hidden=32, mlp=64, heads=4, key_value_heads=2, vocabulary=128)


def test_table_2_equals_the_paper_in_all_thirty_values() -> None:
    rows = table_2()
    printed = {
        (row["model"], row["tuning"]): (round(row["megabytes"], 2), round(row["parameters_m"], 2)) for row in rows
    }
    assert printed == PAPER


def test_the_full_135m_file_has_its_published_size() -> None:
    assert message_size(SMOLLM["135M"].config(), Tuning(kind="full")).bytes == 538_090_408


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_computed_size_is_that_of_a_real_safetensors_file(metadata: dict[str, str] | None) -> None:
    shapes = {"b.weight": (3, 5), "a.weight": (7,), "empty": (0, 4), "scalar": ()}
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    assert safetensors_bytes(shapes, metadata) == len(save(arrays, metadata=metadata))


def test_lora_parameters_equal_their_formula() -> None:
    # A: rank x inputs, B: outputs x rank, for q (32 to 32) and v (32 to 16), in both layers.
    for rank in (1, 4):
        expected = 2 * rank * ((32 + 32) + (32 + 16))
        assert message_size(TINY.config(), Tuning(rank=rank)).parameters == expected
    only_q = message_size(TINY.config(), Tuning(rank=4, targets=("q_proj",)))
    assert only_q.parameters == 2 * 4 * (32 + 32)


def test_full_parameters_equal_those_of_a_real_model() -> None:
    from transformers import LlamaForCausalLM

    real = sum(parameter.numel() for parameter in LlamaForCausalLM(TINY.config()).parameters())
    assert message_size(TINY.config(), Tuning(kind="full")).parameters == real


def test_the_untouched_model_sends_nothing() -> None:
    assert message_size(TINY.config(), Tuning(kind="none")).bytes == 0


def test_the_full_size_is_read_from_a_folder_without_weights(tmp_path: Path) -> None:
    TINY.config().save_pretrained(tmp_path)
    assert full_model_size(tmp_path) == message_size(TINY.config(), Tuning(kind="full"))
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    with pytest.raises(ModelError, match=r"config\.json"):
        full_model_size(tmp_path / "nowhere")


def test_latency_is_measured_after_the_warm_up_for_every_sample() -> None:
    seen: list[int] = []
    found = measure_latency(seen.append, samples=5, warm_up=2)
    assert seen == [0, 1, 0, 1, 2, 3, 4]
    assert found.samples == 5
    assert found.mean_ms >= 0


def test_times_are_summed_up_as_the_statistics_of_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = [0.001 * sample for sample in range(1, 201)]
    clock = iter([reading for duration in durations for reading in (10.0, 10.0 + duration)])
    monkeypatch.setattr("fl.costs.time.perf_counter", lambda: next(clock))
    found = measure_latency(lambda _: None, samples=200, warm_up=0)
    assert found.mean_ms == pytest.approx(100.5)
    assert found.deviation_ms == pytest.approx(statistics.pstdev(range(1, 201)))
    assert found.median_ms == pytest.approx(100.5)
    cut = statistics.quantiles(range(1, 201), n=100, method="inclusive")
    assert found.p99_ms == pytest.approx(cut[98])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="needs Linux, where a peak can be forgotten")
def test_the_peak_is_of_this_measurement_only() -> None:
    keep_freed_memory()  # as every process does that has loaded a model
    before = measure_latency(lambda _: torch.ones(100_000_000).sum(), samples=1, warm_up=0)
    after = measure_latency(lambda _: None, samples=1, warm_up=0)
    assert before.peak_mb - after.peak_mb > 300


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account of the peak")
def test_the_peak_is_what_linux_says() -> None:
    held: list[torch.Tensor] = []
    found = measure_latency(lambda _: held.append(torch.ones(50_000_000)), samples=1, warm_up=0)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kilobytes = int(status["VmHWM"].split()[0])
    assert found.peak_mb == pytest.approx(kilobytes * 1024 / 1e6, rel=0.02)
