"""fl/strategies.py: equation 1 against numpy and Flower, and strategies whose state outlives the process."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from fl.errors import FederationError
from fl.federation import STRATEGY_OPTIONS, Federation
from fl.strategies import Arrays, Reply, aggregate, weighted_mean
from storage.adapters import commit_round, committed_rounds

SHAPES = {"layer.A": (2, 6), "layer.B": (5, 2), "bias": (3,)}
OPTIONS: dict[str, dict[str, float]] = {
    "fedprox": {"proximal_mu": 0.1},
    "fedavgm": {"server_learning_rate": 0.5, "server_momentum": 0.9},
    "fedadam": {"eta": 0.01},
    "fedyogi": {"eta": 0.01},
    "fedadagrad": {"eta": 0.01},
    "fedtrimmedavg": {"beta": 0.2},
    "krum": {"num_malicious_nodes": 1},
    "multikrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "bulyan": {"num_malicious_nodes": 1},
    "qfedavg": {"q": 0.2},
}


def _arrays(seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def _replies(seed: int, count: int = 7) -> list[Reply]:
    return [Reply(index, _arrays(100 * seed + index), 10 + 7 * index, 1.5 - 0.1 * index) for index in range(count)]


def _federation(strategy: str) -> Federation:
    return Federation(strategy=strategy, strategy_options=OPTIONS.get(strategy, {}))  # type: ignore[arg-type]


def test_the_weighted_mean_is_equation_1() -> None:
    parts, examples = [_arrays(seed) for seed in range(5)], [3, 40, 1, 700, 12]
    mean = weighted_mean(parts, examples)
    for name in SHAPES:
        expected = np.average([part[name] for part in parts], axis=0, weights=examples)
        np.testing.assert_allclose(mean[name], expected, rtol=1e-6, atol=1e-7)
        assert mean[name].dtype == np.float32


def test_the_weighted_mean_agrees_with_flowers() -> None:
    replies = _replies(1)
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in reply.arrays.items()}),
                "metrics": MetricRecord({"examples": reply.examples}),
            }
        )
        for reply in replies
    ]
    flowers = aggregate_arrayrecords(records, "examples")
    ours, _ = aggregate(Federation(), 1, _arrays(0), replies, {}, 1e-3)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], flowers[name].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("strategy", sorted(STRATEGY_OPTIONS))
def test_the_order_in_which_replies_arrive_does_not_change_a_bit(strategy: str) -> None:
    replies, federation = _replies(2), _federation(strategy)
    forward, _ = aggregate(federation, 1, _arrays(0), replies, {}, 1e-3)
    backward, _ = aggregate(federation, 1, _arrays(0), replies[::-1], {}, 1e-3)
    assert all(forward[name].tobytes() == backward[name].tobytes() for name in SHAPES)
    assert {name: array.shape for name, array in forward.items()} == SHAPES


@pytest.mark.parametrize("strategy", sorted(STRATEGY_OPTIONS))
def test_state_kept_with_the_rounds_continues_a_strategy_exactly(strategy: str, tmp_path: Path) -> None:
    federation = _federation(strategy)
    current, state = _arrays(0), {}
    for number in (1, 2, 3):
        current, state = aggregate(federation, number, current, _replies(number), state, 1e-3)
    kept = _arrays(0)
    commit_round(tmp_path, 0, kept, "", [], {"round": 0})
    for number in (1, 2, 3):  # each round as a new process would do it: all it knows is on the disk
        last = committed_rounds(tmp_path)[-1]
        kept, next_state = aggregate(federation, number, last.arrays(), _replies(number), last.state(), 1e-3)
        commit_round(tmp_path, number, kept, "", [], {"round": number}, state=next_state)
    assert all(current[name].tobytes() == kept[name].tobytes() for name in SHAPES)


def test_fedadam_follows_its_equations_over_two_rounds() -> None:
    eta, beta_1, beta_2, tau = 0.02, 0.8, 0.95, 1e-2
    federation = Federation(
        strategy="fedadam", strategy_options={"eta": eta, "beta_1": beta_1, "beta_2": beta_2, "tau": tau}
    )
    current = expected = _arrays(0)
    state: Arrays = {}
    first = second = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number in (1, 2):
        replies = _replies(number)
        weights = [reply.examples for reply in replies]
        means = {name: np.average([r.arrays[name] for r in replies], axis=0, weights=weights) for name in SHAPES}
        delta = {name: means[name] - expected[name] for name in SHAPES}
        first = {name: beta_1 * first[name] + (1 - beta_1) * delta[name] for name in SHAPES}
        second = {name: beta_2 * second[name] + (1 - beta_2) * delta[name] ** 2 for name in SHAPES}
        rate = eta * np.sqrt(1 - beta_2 ** (number + 1)) / (1 - beta_1 ** (number + 1))
        expected = {name: expected[name] + rate * first[name] / (np.sqrt(second[name]) + tau) for name in SHAPES}
        current, state = aggregate(federation, number, current, replies, state, 1e-3)
    for name in SHAPES:
        np.testing.assert_allclose(current[name], expected[name], rtol=1e-4, atol=1e-5)


def test_the_median_ignores_one_wild_client() -> None:
    replies = _replies(3, count=5)
    wild = {name: array + 1e6 for name, array in replies[2].arrays.items()}
    replies[2] = Reply(2, wild, 10**6, 1.0)
    arrays, _ = aggregate(_federation("fedmedian"), 1, _arrays(0), replies, {}, 1e-3)
    expected = np.median([reply.arrays["bias"] for reply in replies], axis=0)
    np.testing.assert_allclose(arrays["bias"], expected, rtol=1e-6)


def test_fedprox_hands_its_weight_to_the_clients() -> None:
    assert _federation("fedprox").client_options == {"proximal": 0.1}
    assert Federation().client_options == {}


def test_too_few_replies_for_a_strategy_are_an_error() -> None:
    with pytest.raises(FederationError, match="bulyan needs more than 3 replies"):
        aggregate(_federation("bulyan"), 4, _arrays(0), _replies(1, count=3), {}, 1e-3)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_result_that_is_not_finite_is_an_error() -> None:
    federation = Federation(strategy="fedavgm", strategy_options={"server_learning_rate": 1e38, "server_momentum": 0.0})
    replies = [Reply(0, {"x": np.full(2, 1e3, np.float32)}, 1, 1.0)]
    with pytest.raises(FederationError, match="not finite"):
        aggregate(federation, 1, {"x": np.zeros(2, np.float32)}, replies, {}, 1e-3)
