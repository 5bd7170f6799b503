"""The measurements for a GPU run on any machine in small, and without what a machine with a GPU need not have."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.core_federation import CoreFederation
from benchmarks.gpu_models import TINY, random_model
from benchmarks.gpu_windows import DealtWindows, deal_windows, load_windows, random_windows, write_windows
from benchmarks.windows import LogWindows
from fl.adapter import adapter_arrays, attach_adapter
from fl.federation import Federation
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import train_locally
from storage.latencies import timed_table
from storage.layout import Layout

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., int]
ABSENT = ["prefect", "mlflow", "flwr", "ray", "polars", "duckdb", "pydantic", "typer", "bitsandbytes", "gguf"]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a benchmark as `python -m` does, in this process; gives its exit status."""

    def main(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, arguments), "--device", "cpu"])
        try:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return main


def test_tree_and_plain_agree(run: Run, tmp_path: Path) -> None:
    assert run("gpu_correctness", tmp_path, "--tiny") == 0
    figures = json.loads((tmp_path / "correctness.json").read_text())
    assert figures["float32"]["holds"] and figures["bfloat16"]["holds"]
    assert figures["float32"]["computed_tokens"] < figures["float32"]["tokens"]


def test_speed_is_measured_for_every_way(run: Run, tmp_path: Path) -> None:
    assert run("gpu_speed", tmp_path, "--tiny", "--repeats", 1, "--batch", 2) == 0
    figures = json.loads((tmp_path / "speed.json").read_text())["tiny"]
    assert set(figures["scoring"]["tokens_per_second"]) == {"atalaia", "padded"}
    assert set(figures["training"]["tokens_per_second"]) == {
        "atalaia",
        "without_sharing",
        "trainer_padded_to_1024",
        "trainer_padded_to_longest",
    }
    assert figures["training"]["relative_differences"]["trainer_padded_to_longest"]["gradient"] < 1e-4


def test_latency_is_told_of_every_way_and_of_the_windows_it_was_measured_on(run: Run, tmp_path: Path) -> None:
    ways = [f"float32:{way}" for way in ("padded", "plain", "alone", "together", "split")]
    layout = Layout(tmp_path)
    folder = layout.latency / "here"
    assert run("gpu_latency", folder, "--tiny", "--samples", 12, "--repeats", 2, "--ways", *ways) == 0
    figures = json.loads((folder / "latency.json").read_text())
    assert figures["weights"] == "random, seeded"
    tiny = figures["tiny"]
    assert set(tiny) == set(ways)
    assert [tiny[way]["samples"] for way in ways[:3]] == [12, 12, 1]
    assert tiny["float32:padded"]["tokens"] == 12 * 1024
    dealt = random_windows(TINY.vocabulary, 4)
    whole = [dealt.log.token_ids[number] for number in dealt.log.order[dealt.split == "test"]]
    # The end token is asked for, but does not go through the model.
    distinct = {tuple(ids[:end]) for ids in map(list, whole) for end in range(1, len(ids) + 1)}
    assert tiny["float32:split"]["tokens"] == sum(map(len, whole))
    assert tiny["float32:split"]["windows"] == len(whole)
    assert len(distinct) == tiny["float32:split"]["computed_tokens"]
    for found in tiny.values():
        assert 0 < found["median_ms"] <= found["p99_ms"]
    rows = timed_table([], layout).rows_by_key("way", named=True, unique=True)
    assert set(rows) == set(ways)
    assert rows["float32:plain"]["measured_p99_ms"] == tiny["float32:plain"]["p99_ms"]
    assert rows["float32:split"]["measured_windows"] == len(whole)
    assert {row["weights"] for row in rows.values()} == {"random, seeded"}


@pytest.mark.parametrize(
    "wrong", [["--ways", "int8:plain"], ["--ways", "float32:quick"], ["--samples", "0"], ["--samples", "3", "4"]]
)
def test_latency_says_what_can_be_asked_for(
    wrong: list[str], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("gpu_latency", tmp_path, "--tiny", *wrong) == 2
    assert f"{wrong[0]}" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "latency.json").exists()


def test_rounds_go_on_where_they_stopped_and_end_alike(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("gpu_learning", whole, "--tiny") == 0
    lines = (whole / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3]
    assert run("gpu_learning", cut, "--tiny", "--minutes", 0.0) == 3
    assert not (cut / "rounds.jsonl").exists()
    # Killed between the lines and the adapter of a round: what is beyond the adapter is done again.
    assert run("gpu_learning", cut, "--tiny", "--stop-after", 1) == 3
    (cut / "rounds.jsonl").write_text("\n".join([*lines[:2], "damaged"]) + "\n")
    assert run("gpu_learning", cut, "--tiny") == 0
    # Not the files' bytes: safetensors writes the entries of its metadata in no fixed order.
    ended, undisturbed = (load_file(folder / "adapter.safetensors") for folder in (cut, whole))
    assert ended.keys() == undisturbed.keys()
    assert all(ended[name].tobytes() == undisturbed[name].tobytes() for name in ended)
    again = [json.loads(line) for line in (cut / "rounds.jsonl").read_text().splitlines()]
    assert [line["test"] for line in again] == [json.loads(line)["test"] for line in lines]
    assert run("gpu_learning", cut, "--tiny", "--rounds", 5) == 2
    assert "empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpu_correctness", "gpu_speed", "gpu_latency", "gpu_learning", "gpu_experiments"])
def test_without_windows_a_measurement_says_what_it_needs(
    name: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, tmp_path) == 2
    assert "give --windows" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpu_correctness", "gpu_speed", "gpu_latency", "gpu_learning", "gpu_experiments"])
def test_measurements_need_nothing_of_the_platform(name: str, tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT}));"
        f"sys.argv = ['benchmark', {str(tmp_path)!r}, '--tiny', '--device', 'cpu'];"
        f"runpy.run_module('benchmarks.{name}', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_experiments_go_on_where_they_stopped_and_keep_what_they_found(run: Run, tmp_path: Path) -> None:
    some = ("--only", "headline", "unstable", "sends LoRA 8, topk 1 %", "alone dirichlet-0.1 10, client 0")
    assert run("gpu_experiments", tmp_path, "--tiny", "--minutes", 0.0, *some) == 3
    assert not (tmp_path / "experiments.jsonl").exists()
    assert run("gpu_experiments", tmp_path, "--tiny", "--only", "headline") == 0
    assert run("gpu_experiments", tmp_path, "--tiny", *some) == 0
    lines = (tmp_path / "experiments.jsonl").read_text().splitlines()
    found = {row["name"]: row for row in map(json.loads, lines)}
    assert len(lines) == len(found) == 5
    assert run("gpu_experiments", tmp_path, "--tiny", *some) == 0
    assert (tmp_path / "experiments.jsonl").read_text().splitlines() == lines
    assert found["sends LoRA 8, topk 1 %"]["bytes_up"] < found["headline"]["bytes_up"] / 20
    assert len(found["alone dirichlet-0.1 10, client 0"]["shares"]) == 1
    assert len(found["unstable"]["tests"]) == 18 and "losses" not in found["unstable"]
    scores, surprises = (np.load(tmp_path / f"{name}.npz") for name in ("scores", "surprises"))
    logs = np.split(surprises["headline, hdfs.log_probabilities"], np.cumsum(surprises["headline, hdfs.lengths"])[:-1])
    mean = scores["headline, hdfs.values"][:, scores["headline, hdfs.columns"].tolist().index("mean_token")]
    np.testing.assert_allclose([-part.astype(float).mean() for part in logs], mean, rtol=2e-3)


def test_the_core_federation_of_one_client_is_its_own_training_and_codecs_change_little() -> None:
    loaded, share = random_model("tiny", "cpu"), random_windows(512, 2).share(0)
    training, tuning = LocalTraining(steps=2, batch_size=4, learning_rate_max=5e-3), Tuning(rank=2)
    model = attach_adapter(loaded, tuning, 0)
    train_locally(model, loaded, share, training, 5e-3, (0, 1, 0))
    alone = adapter_arrays(model)
    trained = {}
    for codec in ("none", "float32", "int8"):
        federation = Federation(rounds=1, clients=1, fraction=1.0, codec=codec)  # type: ignore[arg-type]
        core = CoreFederation(loaded, [share], tuning, training, federation)
        trained[codec] = core.train(), adapter_arrays(core.model)
    assert all(np.array_equal(alone[name], array) for name, array in trained["none"][1].items())
    moved = max(float(np.abs(array).max()) for name, array in alone.items() if "lora_B" in name)
    for codec, within in (("float32", 1e-6), ("int8", moved / 100)):
        assert all(np.allclose(alone[name], array, atol=within) for name, array in trained[codec][1].items())
    assert trained["none"][0].bytes_up == trained["none"][0].bytes_down > 3 * trained["int8"][0].bytes_up


def _same(one: DealtWindows, other: DealtWindows) -> None:
    for name in ("split", "partition"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("order", "normal"):
        np.testing.assert_array_equal(getattr(one.log, name), getattr(other.log, name))
    for name in ("token_ids", "message_starts"):
        pairs = zip(getattr(one.log, name), getattr(other.log, name), strict=True)
        assert all(np.array_equal(left, right) for left, right in pairs)


def test_windows_come_back_from_their_file_as_they_were(tmp_path: Path) -> None:
    dealt = random_windows(49_152, clients=3)
    write_windows(dealt, tmp_path / "windows.npz")
    _same(load_windows(tmp_path / "windows.npz"), dealt)


def test_windows_are_split_and_dealt_as_a_run_of_the_paper_preset_does() -> None:
    drawn = np.random.default_rng(3)
    tokens = [np.array([number + 1, 2]) for number in range(300)]
    normal = drawn.random(1000) < 0.9
    log = LogWindows("made up", tokens, [np.array([0])] * 300, [], drawn.integers(0, 300, 1000), normal)
    dealt = deal_windows(log, clients=50)
    assert (dealt.partition >= 0).tolist() == (dealt.split == "train").tolist()
    assert log.normal[dealt.split == "train"].all() and log.normal[dealt.split == "calibration"].all()
    assert np.ptp(np.bincount(dealt.partition[dealt.partition >= 0], minlength=50)) <= 1
    assert sum(len(dealt.share(partition)) for partition in range(50)) == (dealt.split == "train").sum()
