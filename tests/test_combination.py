"""fl/combination.py and fl/arrivals.py: replies taken one by one, and what one hostile client can do to their mean."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from federated_jobs import LocalGrid, misbehaving_client, small_job, write_shares

from fl import client_app
from fl.arrivals import replies_as_they_come
from fl.combination import Combination
from fl.errors import BadMessage, LostClients
from fl.federation import MEANS, STRATEGY_OPTIONS, Federation, draw_clients
from fl.privacy import NO_PRIVACY, Privacy
from fl.server_app import train_federation
from fl.strategies import Arrays, Reply, aggregate
from storage.adapters import committed_rounds

SHAPES = {"layer.A": (2, 6), "layer.B": (5, 2)}


def _arrays(seed: int) -> Arrays:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


REPLIES = [Reply(index, _arrays(100 + index), 10 + 7 * index, 1.5) for index in range(7)]


def _combined(federation: Federation, replies: Iterable[Reply], privacy: Privacy = NO_PRIVACY) -> tuple[Arrays, list]:
    combination = Combination(federation, privacy, _arrays(0), privacy.clipping_norm)
    kept = [combination.take(reply) for reply in replies]
    return combination.result(1, kept, {}, 1e-3, b"key")[0], kept


def _federation(strategy: str, **values: Any) -> Federation:  # noqa: ANN401
    options = {"fedprox": {"proximal_mu": 0.1}}.get(strategy, {})
    return Federation(strategy=strategy, strategy_options=options, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", sorted(STRATEGY_OPTIONS))
def test_replies_one_by_one_in_any_order_give_the_bits_of_all_at_once(strategy: str) -> None:
    federation = _federation(strategy, clients=70)  # 7 a round
    at_once, _ = aggregate(federation, 1, _arrays(0), REPLIES, {}, 1e-3)
    for order in (REPLIES, REPLIES[::-1], REPLIES[3:] + REPLIES[:3]):
        found, kept = _combined(federation, order)
        assert all(found[name].tobytes() == at_once[name].tobytes() for name in SHAPES)
        assert all(not reply.arrays for reply in kept) == (strategy in MEANS)


@pytest.mark.parametrize("noise", ["none", "local"])
def test_a_norm_bound_limits_what_one_client_does_and_leaves_the_others_alone(noise: str) -> None:
    start, federation = _arrays(0), Federation(norm_bound=10.0, max_examples=1)
    privacy = Privacy(noise, 0.0)  # type: ignore[arg-type]
    small = [Reply(i, {name: start[name] + 0.01 for name in SHAPES}, 5, 1.0) for i in range(3)]
    wild = Reply(9, {name: start[name] + 1000 for name in SHAPES}, 10**6, 1.0)
    honest, _ = _combined(federation, small, privacy)
    attacked, kept = _combined(federation, [*small, wild], privacy)
    moved = np.sqrt(sum(np.square(attacked[name] - start[name]).sum() for name in SHAPES))
    assert moved <= (10 + 3 * 0.01 * np.sqrt(22)) / 4 * 1.001
    told = kept[-1].metrics.get("update_norm")
    assert told == (None if privacy.is_on else pytest.approx(1000 * np.sqrt(22), rel=1e-4))  # as it came
    expected, _ = aggregate(Federation(max_examples=1), 1, start, small, {}, 1e-3)
    assert all(honest[name].tobytes() == expected[name].tobytes() for name in SHAPES)


def test_a_client_counts_for_no_more_windows_than_the_limit() -> None:
    replies = [replace(REPLIES[0], examples=5), replace(REPLIES[1], examples=10**6)]
    found, _ = _combined(Federation(max_examples=5), replies)
    np.testing.assert_allclose(found["layer.A"], np.mean([r.arrays["layer.A"] for r in replies], axis=0), rtol=1e-6)


@pytest.mark.parametrize("noise", ["central", "local"])
def test_in_a_private_round_all_clients_weigh_the_same_and_no_norm_is_told(noise: str) -> None:
    privacy = Privacy(noise, 0.0, clipping_norm=1e6)  # type: ignore[arg-type]
    found, kept = _combined(Federation(clients=70), REPLIES, privacy)  # 7 a round
    for name in SHAPES:
        expected = np.mean([reply.arrays[name] for reply in REPLIES], axis=0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)
    assert not any("update_norm" in reply.metrics for reply in kept)


def test_values_that_cannot_be_added_and_a_missing_bit_are_the_clients_fault() -> None:
    wild = replace(REPLIES[0], arrays={name: np.full(shape, 1e30, np.float32) for name, shape in SHAPES.items()})
    with pytest.raises(BadMessage, match="cannot be counted"):
        _combined(Federation(), [wild])
    with pytest.raises(BadMessage, match="does not tell whether"):
        _combined(Federation(clients=400), REPLIES, Privacy("central", 1.0, clipping="adaptive"))


def test_a_round_without_any_reply_is_lost() -> None:
    with pytest.raises(LostClients, match="no client replied"):
        _combined(Federation(), [])


def test_a_bad_reply_is_dropped_where_that_is_wanted(tmp_path: Path, tiny_model: Path) -> None:
    shares = write_shares(tmp_path / "shares")
    job = small_job(tmp_path / "run", tiny_model, shares, rounds=2, min_replies=1, bad_replies="drop")
    bad, good = draw_clients(job.federation, 2)
    spoiling = misbehaving_client("NaN")

    def client(message: Any, context: Any) -> Any:  # noqa: ANN401
        return (spoiling if context.node_config["partition-id"] == bad else client_app.app)(message, context)

    train_federation(LocalGrid(job, client), job)  # type: ignore[arg-type]
    rows = pl.read_parquet(committed_rounds(job.run_folder)[2].folder / "clients.parquet")
    assert rows["partition"].to_list() == [good]
    assert rows["update_norm"][0] > 0


@dataclass
class _Reply:
    number: str

    @property
    def metadata(self) -> "_Reply":
        return self

    @property
    def reply_to_message_id(self) -> str:
        return self.number


class _SlowWire:
    """Every third message is answered in each pass."""

    def __init__(self) -> None:
        self.asked_at_once: list[int] = []
        self._passes: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        return [str(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[_Reply]:
        numbers = list(message_ids)
        self.asked_at_once.append(len(numbers))
        for number in numbers:
            self._passes[number] = self._passes.get(number, 0) + 1
        return [_Reply(number) for number in numbers if self._passes[number] > int(number) % 3]


def test_each_reply_comes_once_and_few_at_a_time() -> None:
    wire = _SlowWire()
    found = [int(reply.number) for reply in replies_as_they_come(wire, range(100), None)]
    assert sorted(found) == list(range(100))
    assert max(wire.asked_at_once) <= 16


def test_replies_that_do_not_come_in_time_are_left_out() -> None:
    class Silent(_SlowWire):
        def pull_messages(self, message_ids: Iterable[str]) -> list[_Reply]:
            return [reply for reply in super().pull_messages(message_ids) if reply.number != "5"]

    found = [int(reply.number) for reply in replies_as_they_come(Silent(), range(10), 1.0)]
    assert sorted(found) == [number for number in range(10) if number != 5]
    assert list(replies_as_they_come(Silent(), [], None)) == []
