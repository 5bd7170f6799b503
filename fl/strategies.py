"""How the replies of a round become the next adapter: weighted FedAvg, or as a value another strategy."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError, InconsistentMessageReplies
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    QFedAvg,
)

from fl.averaging import weighted_mean
from fl.errors import FederationError
from fl.federation import MEANS, Federation
from fl.robust import coordinate_median, geometric_median, multikrum, trimmed_mean

Arrays = dict[str, np.ndarray]

# FedProx is FedAvg at the server; its proximal term is in the clients' training.
_FLOWER: dict[str, Callable[..., FedAvg]] = {
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "bulyan": Bulyan,
    "qfedavg": QFedAvg,
}


@dataclass(frozen=True)
class Reply:
    """A client's checked result of one round."""

    partition: int
    arrays: Arrays
    examples: int
    """Windows in the client's share: n_i of equation 1."""
    loss: float
    """Mean negative log-likelihood of a token, nats, as the client says."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The other numbers the client sent."""
    bytes_up: int = 0


def _chosen(replies: Sequence[Reply], weights: Sequence[int], options: Mapping[str, float], count: int) -> Arrays:
    return multikrum([reply.arrays for reply in replies], weights, int(options.get("num_malicious_nodes", 0)), count)


# Each takes replies in the order of their partitions, their weights, and the strategy's options.
_ROBUST: dict[str, Callable[[Sequence[Reply], Sequence[int], Mapping[str, float]], Arrays]] = {
    "fedmedian": lambda replies, _, __: coordinate_median([reply.arrays for reply in replies]),
    "fedtrimmedavg": lambda replies, _, options: trimmed_mean(
        [reply.arrays for reply in replies], options.get("beta", 0.2)
    ),
    "krum": lambda replies, weights, options: _chosen(replies, weights, options, 1),
    "multikrum": lambda replies, weights, options: _chosen(
        replies, weights, options, int(options.get("num_nodes_to_select", 1))
    ),
    "geomedian": lambda replies, _, __: geometric_median([reply.arrays for reply in replies]),
}


def aggregate(
    federation: Federation,
    round_number: int,
    current: Arrays,
    replies: Sequence[Reply],
    state: Arrays,
    learning_rate: float,
) -> tuple[Arrays, Arrays]:
    """The next adapter and the strategy's next state, from the current ones and the replies of a round.

    A pure function: all that a strategy carries from round to round is in `state` (empty before the first), so a
    resumed job goes on as if it had not stopped. Replies are summed by partition id. Raises FederationError when the
    strategy cannot work with these replies, or its result is not finite.
    """
    ordered = [
        replace(reply, examples=federation.weight(reply.examples))
        for reply in sorted(replies, key=lambda reply: reply.partition)
    ]
    name, weights = federation.strategy, [reply.examples for reply in ordered]
    if name in MEANS:
        mean = weighted_mean([reply.arrays for reply in ordered], weights)
        return next_adapter(federation, round_number, current, mean, state, learning_rate)
    next_state: Arrays = {}
    try:
        if name in _ROBUST:
            arrays = _ROBUST[name](ordered, weights, federation.strategy_options)
            arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
        else:
            strategy = _restored(federation, current, state, learning_rate)
            arrays, next_state = _aggregated_by_flower(strategy, name, round_number, ordered), _state(strategy)
    except ValueError as error:
        raise FederationError(f"Round {round_number}: strategy {name} failed: {error}.") from error
    return _finite(arrays, name, round_number), next_state


def next_adapter(
    federation: Federation, round_number: int, current: Arrays, mean: Arrays, state: Arrays, learning_rate: float
) -> tuple[Arrays, Arrays]:
    """As `aggregate`, for strategies that need of the replies nothing but their mean (federation.MEANS)."""
    name = federation.strategy
    if name in {"fedavg", "fedprox"}:
        return _finite(mean, name, round_number), {}
    strategy = _restored(federation, current, state, learning_rate)
    arrays = _aggregated_by_flower(strategy, name, round_number, [Reply(0, mean, 1, 0.0)])
    return _finite(arrays, name, round_number), _state(strategy)


def _finite(arrays: Arrays, name: str, round_number: int) -> Arrays:
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FederationError(
            f"Round {round_number}: strategy {name} gave values that are not finite; "
            "take a smaller learning rate or other strategy_options."
        )
    return arrays


def _restored(federation: Federation, current: Arrays, state: Arrays, learning_rate: float) -> FedAvg:
    """Flower's strategy, as it stands before it combines a round."""
    options: dict[str, Any] = {
        name: int(value) if name.startswith("num_") else value for name, value in federation.strategy_options.items()
    }
    if federation.strategy == "qfedavg":
        options = {"client_learning_rate": learning_rate, **options, "train_loss_key": "loss"}
    strategy = _FLOWER[federation.strategy](weighted_by_key="examples", **options)
    flower: Any = strategy  # the attributes below belong to some of the strategies
    if federation.strategy in {"fedavgm", "qfedavg"}:
        flower.current_arrays = _record(current)
    elif hasattr(strategy, "current_arrays"):
        flower.current_arrays = dict(current)
    if momentum := _part(state, "momentum"):
        flower.momentum_vector = [momentum[name] for name in sorted(current)]
    for name in ("m_t", "v_t"):
        if moments := _part(state, name):
            setattr(flower, name, moments)
    return strategy


def _state(strategy: FedAvg) -> Arrays:
    """What the strategy carries to the next round, by name."""
    state: Arrays = {}
    for name in ("m_t", "v_t"):
        moments: Arrays = getattr(strategy, name, None) or {}
        state |= {f"{name}/{key}": np.asarray(array) for key, array in moments.items()}
    momentum = getattr(strategy, "momentum_vector", None)
    if momentum is not None:
        current: ArrayRecord = strategy.current_arrays
        state |= {f"momentum/{key}": np.asarray(array) for key, array in zip(current, momentum, strict=True)}
    return state


def _part(state: Arrays, name: str) -> Arrays:
    return {key.removeprefix(f"{name}/"): array for key, array in state.items() if key.startswith(f"{name}/")}


def _aggregated_by_flower(strategy: FedAvg, name: str, round_number: int, replies: Sequence[Reply]) -> Arrays:
    messages = [
        Message(
            RecordDict(
                {
                    "arrays": _record(reply.arrays),
                    "metrics": MetricRecord({"examples": reply.examples, "loss": reply.loss}),
                }
            ),
            dst_node_id=0,
            message_type="train",
        )
        for reply in replies
    ]
    # Some of Flower's strategies collect garbage after each array; all that torch has loaded would be looked through.
    gc.freeze()
    try:
        arrays, _ = strategy.aggregate_train(round_number, messages)
    except (AggregationError, InconsistentMessageReplies, ValueError, ZeroDivisionError) as error:
        raise FederationError(f"Round {round_number}: strategy {name} failed: {error}.") from error
    finally:
        gc.unfreeze()
    if arrays is None:
        raise FederationError(
            f"Round {round_number}: strategy {name} needs more than {len(replies)} replies; draw more clients a round."
        )
    return {key: array.numpy().astype(np.float32) for key, array in arrays.items()}


def _record(arrays: Arrays) -> ArrayRecord:
    # Sorted: FedAvgM and q-FedAvg pair arrays by position.
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays[name])) for name in sorted(arrays)})
