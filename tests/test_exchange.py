"""fl/exchange.py, fl/server_app.py and fl/client_app.py: rounds of coded messages, over a grid without Ray."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from federated_jobs import LocalGrid, misbehaving_client, small_job, write_shares
from flwr.app import Array, ArrayRecord, Message
from safetensors.numpy import load_file

from fl import client_app
from fl.codecs import Codec, decode, encode
from fl.errors import BadMessage, BadReply, FederationError, LostClients
from fl.exchange import Exchange, pack_adapter, unpack_adapter
from fl.federation import Federation, TrainingJob, draw_clients
from fl.hyperparameters import Tuning
from fl.server_app import train_federation
from storage.adapters import committed_rounds
from storage.errors import StorageError
from storage.residuals import residual_folder

CODECS = ("float32", "float16", "int8", "int4", "sign", "topk")
KINDS = {
    "ffa": Tuning(kind="ffa", rank=2),
    "rolora": Tuning(kind="rolora", rank=2),
    "sb": Tuning(kind="sb", rank=2),
    "sb-weights": Tuning(kind="sb", rank=2, bases="weights"),
}


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shares(tmp_path_factory.mktemp("partition") / "shares")


def _train(job: TrainingJob, seed: int = 0, client: Any = client_app.app) -> LocalGrid:  # noqa: ANN401
    grid = LocalGrid(job, client, seed)
    train_federation(grid, job)  # type: ignore[arg-type]
    return grid


def _adapters(job: TrainingJob) -> list[bytes]:
    return [found.adapter.read_bytes() for found in committed_rounds(job.run_folder)]


def _replies(grid: LocalGrid) -> list[Message]:
    contents = [message for message in grid.messages if message.has_content()]
    return [message for message in contents if {"metrics", "arrays"} <= set(message.content)]


def _by_partition(grid: LocalGrid) -> dict[int, dict[str, np.ndarray]]:
    return {
        int(reply.content["metrics"]["partition"]): {n: a.numpy() for n, a in reply.content["arrays"].items()}
        for reply in _replies(grid)
    }


@pytest.mark.parametrize("codec", CODECS)
def test_a_coded_reply_is_one_array_of_the_bytes_recorded_and_the_round_stays_near(
    codec: str, tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    plain = small_job(tmp_path / "plain", tiny_model, shares, rounds=1)
    _train(plain)
    job = small_job(tmp_path / "run", tiny_model, shares, rounds=1, codec=codec, topk_share=0.2)
    replies = _replies(_train(job))
    for reply in replies:
        [array] = reply.content["arrays"].values()
        assert array.dtype == "uint8"
    _, first = committed_rounds(job.run_folder)
    recorded = pl.read_parquet(first.folder / "clients.parquet")["bytes_up"].to_list()
    assert sorted(recorded) == sorted(reply.content["arrays"].count_bytes() for reply in replies)
    start, exact = (found.arrays() for found in committed_rounds(plain.run_folder))
    coded = first.arrays()
    lost = np.sqrt(sum(((coded[name] - exact[name]) ** 2).sum() for name in exact))
    learned = np.sqrt(sum(((exact[name] - start[name]) ** 2).sum() for name in exact))
    # Each client's coding is a contraction: what it loses is less than what there was.
    most = {"float32": 1e-6, "float16": 1e-3, "int8": 0.02, "int4": 0.2, "sign": 0.8, "topk": 0.95}[codec]
    assert (0 if codec == "float32" else 1e-6) <= lost / learned < most


@pytest.mark.parametrize(("kind", "codec"), list(product(KINDS, ["none", "int4"])))
def test_every_kind_of_adapter_goes_through_rounds_with_and_without_a_codec(
    kind: str, codec: str, tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    tuning = KINDS[kind]
    job = small_job(tmp_path / "run", tiny_model, shares, tuning, codec=codec)
    grid = _train(job)
    rounds = [found.arrays() for found in committed_rounds(job.run_folder)]
    for number in (1, 2, 3):
        for name, array in rounds[number].items():
            assert np.array_equal(array, rounds[number - 1][name]) != tuning.trains(name, number)
    if codec == "none":
        sent = [set(reply.content["arrays"]) for reply in _replies(grid)]
        for number in (1, 2, 3):
            assert sent[2 * number - 1] == {name for name in rounds[0] if tuning.trains(name, number)}


def test_without_a_codec_the_arrays_travel_as_they_are(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, rounds=1)
    grid = _train(job)
    asked = [message.content for message in grid.messages if message.metadata.message_type == "train"]
    untouched = committed_rounds(job.run_folder)[0].arrays()
    for content in (content for content in asked if "metrics" not in content):
        assert {name: array.numpy().tobytes() for name, array in content["arrays"].items()} == {
            name: array.tobytes() for name, array in untouched.items()
        }


@pytest.mark.parametrize("strategy", [{}, {"strategy": "fedadam", "strategy_options": {"eta": 0.01}}])
@pytest.mark.parametrize("kind", ["lora", "rolora"])
def test_error_feedback_goes_on_with_the_same_bytes_wherever_a_job_stopped(
    kind: str, strategy: dict[str, Any], tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    tuning = KINDS.get(kind, Tuning(rank=2))
    values = {"codec": "topk", "topk_share": 0.1, "rounds": 5, **strategy}
    job = small_job(tmp_path / "run", tiny_model, shares, tuning, **values)
    _train(job)
    undisturbed = _adapters(job)
    assert len(set(undisturbed)) == 6
    # Killed after clients had trained round 4 and kept what it left out, but before it was committed.
    for number in (4, 5):
        shutil.rmtree(job.run_folder / "rounds" / f"round-000{number}")
    _train(job, seed=5)
    assert _adapters(job) == undisturbed
    again = small_job(tmp_path / "again", tiny_model, shares, tuning, **{**values, "error_feedback": False})
    _train(again)
    assert _adapters(again)[1:] != undisturbed[1:]
    assert not (again.run_folder / "sites").exists()


def test_a_process_killed_in_a_commit_leaves_residuals_from_which_the_same_bytes_follow(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    values: dict[str, Any] = {"codec": "int4", "rounds": 3, "fraction": 1.0}
    undisturbed, killed = (small_job(tmp_path / name, tiny_model, shares, **values) for name in ("one", "two"))
    _train(undisturbed)
    program = [sys.executable, str(Path(__file__).with_name("federated_jobs.py")), str(killed.run_folder)]
    ended = subprocess.run(program, env={**os.environ, "GRID": "local", "KILL_AT": "rename"}, check=False)
    assert ended.returncode == -signal.SIGKILL
    kept = killed.run_folder / "sites" / "two" / "client-00000"
    assert sorted(file.name for file in kept.iterdir()) == ["round-0001.safetensors", "round-0002.safetensors"]
    assert len(_adapters(killed)) == 2
    _train(killed, seed=3)
    assert _adapters(killed) == _adapters(undisturbed)


def test_a_client_keeps_what_its_message_left_out(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    plain, job = (
        small_job(tmp_path / codec, tiny_model, shares, rounds=1, codec=codec, topk_share=0.05)
        for codec in ("none", "topk")
    )
    exact, coded = (_by_partition(_train(found)) for found in (plain, job))
    start = committed_rounds(plain.run_folder)[0].arrays()
    for partition, arrays in exact.items():
        [file] = (job.run_folder / "sites" / "topk" / f"client-0000{partition}").iterdir()
        assert file.name == "round-0001.safetensors"
        kept = load_file(file)
        sent = decode(coded[partition]["update"], job.federation.uplink, start)
        assert any(array.any() for array in sent.values())
        for name, array in arrays.items():
            np.testing.assert_allclose(sent[name] + kept[name], array - start[name], atol=1e-8)


def test_a_lost_reply_does_not_lose_what_was_left_out_before(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, codec="sign", rounds=3, fraction=1.0, min_replies=3)
    bad = misbehaving_client("raise")

    def client(message: Message, context: Any) -> Message:  # noqa: ANN401
        return (bad if context.node_config["partition-id"] == 2 else client_app.app)(message, context)

    grid = _train(job, client=client)
    assert committed_rounds(job.run_folder)[3].facts["counted"] == {"0": 3, "1": 3, "2": 3, "3": 3}
    asked = [
        message.content["config"]["residual-of"]
        for message in grid.messages
        if message.has_content() and "config" in message.content and message.metadata.message_type == "train"
    ]
    assert sorted(asked) == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]


def test_a_client_that_lost_what_it_left_out_says_so(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, codec="int8", fraction=1.0)
    _train(job)
    for number in (2, 3):
        shutil.rmtree(job.run_folder / "rounds" / f"round-000{number}")
    shutil.rmtree(job.run_folder / "sites")
    with pytest.raises(LostClients, match=r"left out up to round 1 is not at .*bring it back"):
        _train(job)


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "/tmp"])
def test_a_run_s_name_leads_to_no_other_folder(name: str, tmp_path: Path) -> None:
    assert residual_folder(tmp_path, "run", 3).parent == tmp_path / "run"
    with pytest.raises(StorageError, match="no run's name"):
        residual_folder(tmp_path, name, 3)


@pytest.mark.parametrize("codec", ["float32", "float16", "int8", "int4"])
def test_a_coded_download_is_smaller_and_does_not_lose_what_was_learned(
    codec: str, tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    plain, job = (small_job(tmp_path / name, tiny_model, shares, downlink_codec=name) for name in ("none", codec))
    _train(plain)
    _train(job)
    down = [
        pl.read_parquet(committed_rounds(found.run_folder)[3].folder / "clients.parquet")["bytes_down"][0]
        for found in (plain, job)
    ]
    assert down[1] < down[0] / {"float32": 1.3, "float16": 2, "int8": 3, "int4": 4}[codec]
    start, exact = (committed_rounds(plain.run_folder)[number].arrays() for number in (0, 3))
    found = committed_rounds(job.run_folder)[3].arrays()
    lost = np.sqrt(sum(((found[name] - exact[name]) ** 2).sum() for name in exact))
    learned = np.sqrt(sum(((exact[name] - start[name]) ** 2).sum() for name in exact))
    assert lost < 0.3 * learned


def test_what_a_download_loses_is_not_part_of_the_next_adapter() -> None:
    draw = np.random.default_rng(0)
    first = {"w": draw.standard_normal(100).astype(np.float32)}
    current = {"w": first["w"] + draw.standard_normal(100).astype(np.float32)}
    exchange = Exchange(current, first, frozenset(current), Codec("none"), Codec("int4"))
    assert np.abs(exchange.start["w"] - current["w"]).max() > 0.01
    # A client that learned nothing sends back what it received.
    np.testing.assert_array_equal(exchange.read(exchange.start)["w"], current["w"])


def test_a_coded_download_that_is_none_is_refused() -> None:
    first = {"w": np.ones(8, np.float32)}
    with pytest.raises(BadMessage, match="other arrays"):
        unpack_adapter(first, first, Codec("int8"))
    packed = pack_adapter(first, {"w": np.zeros(8, np.float32)}, Codec("int8"))
    np.testing.assert_allclose(unpack_adapter(packed, {"w": np.zeros(8, np.float32)}, Codec("int8"))["w"], 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("forged", "told"),
    [
        (lambda update: update[:-1], r"has update as uint8\(\d+,\), not uint8"),
        (lambda update: np.concatenate([update, update]), "not uint8"),
        (lambda update: update.astype(np.float32), "as float32"),
        (lambda update: np.full_like(update, 255), "header of another codec"),
        (lambda update: np.concatenate([update[:28], np.full_like(update[28:], 255)]), "scale outside"),
        (lambda update: encode({"w": np.full(896, 3e38, np.float32)}, Codec("int8")), "header of another"),
    ],
    ids=range(6),
)
def test_a_forged_update_ends_the_round_with_one_line(
    forged: Callable[[np.ndarray], np.ndarray],
    told: str,
    tmp_path: Path,
    tiny_model: Path,
    shares: Path,
) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, codec="int8")
    target = draw_clients(job.federation, 1)[0]

    def client(message: Message, context: Any) -> Message:  # noqa: ANN401
        reply = client_app.app(message, context)
        if context.node_config["partition-id"] == target and message.metadata.message_type == "train":
            update = reply.content["arrays"]["update"].numpy()
            reply.content["arrays"] = ArrayRecord({"update": Array(np.ascontiguousarray(forged(update)))})
        return reply

    with pytest.raises(BadReply, match=f"reply of client {target} .*{told}") as caught:
        _train(job, client=client)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"topk_share": 0}, "topk_share is 0"),
        ({"topk_share": float("nan")}, "topk_share is nan"),
        ({"codec_block": 0}, "codec_block is 0"),
        ({"codec_block": 70000}, "codec_block is 70000"),
    ],
)
def test_values_that_no_codec_takes_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(FederationError, match=told):
        Federation(**values)


def test_a_coded_download_of_bases_that_clients_cannot_make_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="bases=weights"):
        small_job(tmp_path / "run", tmp_path, tmp_path, Tuning(kind="sb"), downlink_codec="int8")
