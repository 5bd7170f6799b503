"""fl/server_app.py: rounds over a grid without Ray; what replies it takes and what it refuses."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from federated_jobs import LocalGrid, misbehaving_client, small_job, write_shares
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.app.error import Error

from fl import client_app
from fl.errors import BadReply, FederationError, LostClients
from fl.federation import TrainingJob, draw_clients
from fl.server_app import check_replies, find_clients, train_federation
from fl.strategies import weighted_mean
from storage.adapters import committed_rounds
from storage.events import read_events


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shares(tmp_path_factory.mktemp("partition") / "shares")


def _trained(job: TrainingJob, seed: int = 0) -> list[bytes]:
    train_federation(LocalGrid(job, client_app.app, seed), job)  # type: ignore[arg-type]
    return [found.adapter.read_bytes() for found in committed_rounds(job.run_folder)]


def test_neither_node_ids_nor_the_order_of_replies_change_a_byte(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    one = _trained(small_job(tmp_path / "one", tiny_model, shares, fraction=0.75), seed=1)
    two = _trained(small_job(tmp_path / "two", tiny_model, shares, fraction=0.75), seed=2)
    assert len(one) == 4
    assert one == two
    assert len(set(one)) == 4


def test_a_round_is_the_mean_of_its_clients_weighted_by_their_windows(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, rounds=1, fraction=1.0)
    grid = LocalGrid(job, client_app.app)
    train_federation(grid, job)  # type: ignore[arg-type]
    sent = [message.content for message in grid.messages if message.metadata.message_type == "train"]
    replies = [content for content in sent if "metrics" in content]
    assert [int(reply["metrics"]["examples"]) for reply in replies] == [20, 21, 22, 23]
    parts = [{name: array.numpy() for name, array in reply["arrays"].items()} for reply in replies]
    committed = committed_rounds(job.run_folder)[1].arrays()
    for name, array in committed.items():
        expected = np.average([part[name] for part in parts], axis=0, weights=[20, 21, 22, 23])
        np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-9)


def test_round_0_is_the_untouched_model(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, rounds=1)
    _trained(job)
    first = committed_rounds(job.run_folder)[0]
    assert all(not array.any() for name, array in first.arrays().items() if "lora_B" in name)
    assert any(array.any() for name, array in first.arrays().items() if "lora_A" in name)


def test_rounds_are_recorded_as_they_were(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares)
    _trained(job)
    for number, found in list(enumerate(committed_rounds(job.run_folder)))[1:]:
        clients = pl.read_parquet(found.folder / "clients.parquet")
        summary = pl.read_parquet(found.folder / "round.parquet").row(0, named=True)
        assert clients["partition"].to_list() == draw_clients(job.federation, number)
        assert summary["loss"] == pytest.approx(np.average(clients["loss"], weights=clients["examples"]))
        assert summary["bytes_up"] == clients["bytes_up"].sum() > 0
        assert summary["adapter_hash"] == found.adapter_hash
        # An adapter of 4-byte values: 2 layers, q and v, rank 2; and the names and headers of the arrays.
        values = sum(array.size for array in found.arrays().values())
        assert 4 * values < clients["bytes_down"][0] < 4 * values + 300 * len(found.arrays())
        assert (clients["computed_tokens"] > 0).all()
    events, _ = read_events(job.run_folder)
    assert [event["event"] for event in events if event["event"] != "client"] == [
        "started",
        *["round", "committed"] * 3,
        "finished",
    ]


def test_a_job_goes_on_after_its_last_intact_round(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    undisturbed = _trained(small_job(tmp_path / "run", tiny_model, shares))
    rounds = tmp_path / "run" / "rounds"
    shutil.rmtree(rounds / "round-0003")
    damaged = rounds / "round-0002" / "adapter.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    (rounds / ".round-0003.1234").mkdir()
    again = small_job(tmp_path / "run", tiny_model, shares)
    assert _trained(again, seed=5) == undisturbed
    assert sorted(path.name for path in rounds.iterdir()) == [f"round-000{number}" for number in range(4)]


def test_rounds_of_another_configuration_are_not_gone_on_with(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    _trained(small_job(tmp_path / "run", tiny_model, shares, rounds=1))
    with pytest.raises(FederationError, match="another configuration"):
        _trained(small_job(tmp_path / "run", tiny_model, shares, rounds=1, seed=8))


@pytest.mark.parametrize(
    ("how", "kind", "told"),
    [
        ("raise", LostClients, "1 of 2 clients replied, 2 are needed; .*the disk of this site is full"),
        ("NaN", BadReply, "NaN or infinity"),
        ("round", BadReply, "is of round 1"),
        ("shape", BadReply, r"not float32\("),
        ("type", BadReply, "as float64"),
        ("name", BadReply, "other array names"),
        ("count", BadReply, "counts 1000000000 examples where 2"),
        ("loss", BadReply, "no usable loss"),
    ],
)
def test_a_bad_reply_ends_the_job_and_keeps_the_rounds_before_it(
    how: str, kind: type[FederationError], told: str, tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares)
    # Round 2 draws two clients; when one raises, so does the other, unless only one misbehaves.
    grid = LocalGrid(job, _one_bad_client(how, draw_clients(job.federation, 2)[0]))
    with pytest.raises(kind, match=f"Round 2: .*{told}") as error:
        train_federation(grid, job)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert len(committed_rounds(job.run_folder)) == 2


def test_lost_clients_are_borne_down_to_the_configured_minimum(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, min_replies=1)
    lost, kept = draw_clients(job.federation, 2)
    train_federation(LocalGrid(job, _one_bad_client("raise", lost)), job)  # type: ignore[arg-type]
    second = committed_rounds(job.run_folder)[2]
    assert pl.read_parquet(second.folder / "clients.parquet")["partition"].to_list() == [kept]


def _one_bad_client(how: str, partition: int) -> "object":
    bad = misbehaving_client(how)

    def client(message: Message, context: object) -> Message:
        is_bad = context.node_config["partition-id"] == partition  # type: ignore[attr-defined]
        return (bad if is_bad else client_app.app)(message, context)  # type: ignore[arg-type]

    return client


def _reply(node: int, partition: int, metrics: dict[str, float] | None = None) -> Message:
    numbers = dict.fromkeys(("tokens", "computed_tokens", "steps", "loss", "seconds", "peak_memory_mb"), 1)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(np.full(3, partition, np.float32))}),
            "metrics": MetricRecord({"partition": partition, "round": 1, "examples": 5, **numbers, **(metrics or {})}),
        }
    )
    return Message(content, reply_to=Message(RecordDict(), dst_node_id=node, message_type="train"))


CURRENT = {"w": np.zeros(3, np.float32)}


def test_replies_come_in_the_order_of_their_partitions() -> None:
    partitions = {900: 0, 7: 1, 30: 2}
    messages = [_reply(node, partition) for node, partition in [(30, 2), (900, 0), (7, 1)]]
    replies = check_replies(messages, partitions, CURRENT, dict.fromkeys(range(3), 5), 1, 3)
    assert [reply.partition for reply in replies] == [0, 1, 2]
    np.testing.assert_array_equal(weighted_mean([reply.arrays for reply in replies], [1, 1, 1])["w"], [1, 1, 1])


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        ({"partition": 1}, "says that it comes from client 1"),
        ({"examples": 0}, "counts 0 examples where 5"),
        ({"tokens": -1}, "no usable tokens"),
        ({"seconds": float("nan")}, "no usable seconds"),
        ({"steps": 5_000_000_000}, "steps as 5000000000, which is no count"),
        ({"tokens": 2.5}, "tokens as 2.5, which is no count"),
    ],
)
def test_numbers_that_cannot_be_are_refused(metrics: dict[str, float], told: str) -> None:
    with pytest.raises(BadReply, match=told):
        check_replies([_reply(3, 0, metrics)], {3: 0}, CURRENT, {0: 5}, 1, 1)


def test_a_second_reply_of_a_client_is_refused() -> None:
    with pytest.raises(BadReply, match="not asked for"):
        check_replies([_reply(3, 0), _reply(3, 0)], {3: 0}, CURRENT, {0: 5}, 1, 1)


def test_a_reply_that_never_came_is_named() -> None:
    with pytest.raises(LostClients, match="client 1: no reply in time"):
        check_replies([_reply(3, 0)], {3: 0, 4: 1}, CURRENT, {0: 5, 1: 5}, 1, 2)


def test_a_clients_words_cannot_write_on_the_screen() -> None:
    asked = Message(RecordDict(), dst_node_id=4, message_type="train")
    told = Message(Error(code=1, reason="\x1b[2J\u202egone\ud800"), reply_to=asked)
    with pytest.raises(LostClients, match=r"client 1: \[2Jgone Run again"):
        check_replies([told, _reply(3, 0)], {3: 0, 4: 1}, CURRENT, {0: 5, 1: 5}, 1, 2)


def test_a_client_whose_node_is_gone_is_named_though_the_link_itself_answers() -> None:
    asked = Message(RecordDict(), dst_node_id=1, message_type="train")  # 1: the link
    gone = Message(Error(code=3, reason="Node Unavailable"), reply_to=asked)
    with pytest.raises(LostClients, match="client 1: Node Unavailable"):
        check_replies([gone, _reply(3, 0)], {3: 0, 4: 1}, CURRENT, {0: 5, 1: 5}, 1, 2)


class _CountingGrid(LocalGrid):
    """A grid that notes how many messages were open at the same time."""

    def __init__(self, job: TrainingJob) -> None:
        super().__init__(job, client_app.app)
        self.open: list[int] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        sent = list(messages)
        self.open.append(len(sent))
        return super().send_and_receive(sent, timeout=timeout)


def test_many_nodes_are_asked_some_at_a_time_and_each_partition_is_found_with_its_windows(tmp_path: Path) -> None:
    job = small_job(tmp_path / "run", tmp_path, write_shares(tmp_path / "shares", clients=250), clients=250)
    grid = _CountingGrid(job)
    nodes, examples = find_clients(grid, 250)  # type: ignore[arg-type]
    assert max(grid.open) <= 100
    assert sum(grid.open) == 250
    assert set(nodes.values()) == set(grid.get_node_ids())
    assert examples == {partition: 20 + partition for partition in range(250)}
