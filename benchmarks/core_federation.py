"""A federation in one process, with its codecs and error feedback but without Flower, Ray and Prefect around it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl.adapter import Arrays, adapter_arrays, attach_adapter, load_adapter_arrays, trained_in_round
from fl.averaging import weighted_mean
from fl.exchange import Exchange, pack_update, pack_update_with_feedback
from fl.federation import Federation, draw_clients
from fl.first_update import set_gradient_bases
from fl.hyperparameters import LocalTraining, Tuning, cosine_rate
from fl.local_training import LocalResult, train_locally
from fl.message_sizes import flower_bytes
from fl.model import LoadedModel

Share = Sequence[np.ndarray]


@dataclass(frozen=True)
class Trained:
    """A model with the adapter of the last round, and what it cost."""

    model: Any
    losses: list[float]
    """By round, nats a token, the mean over its clients weighted by their windows."""
    bytes_up: float
    """Of a client and round, as Flower serializes them; the mean over rounds."""
    bytes_down: float
    steps: int
    windows: int
    """Windows that went into steps, each as often as it did."""
    tokens: int
    computed_tokens: int
    seconds: float


class CoreFederation:
    """The rounds of a federation over `shares`, the token ids of each client's windows."""

    def __init__(
        self,
        loaded: LoadedModel,
        shares: Sequence[Share],
        tuning: Tuning,
        training: LocalTraining,
        federation: Federation,
    ) -> None:
        self._loaded, self._shares = loaded, shares
        self._tuning, self._federation = tuning, federation
        self._training = replace(training, **federation.client_options)
        self.model: Any = attach_adapter(loaded, tuning, federation.seed)
        if tuning.takes_gradient:
            windows = shares[draw_clients(federation, 1)[0]]
            set_gradient_bases(self.model, loaded, windows, training, federation.seed)
        self._first = adapter_arrays(self.model)
        self._current = self._first
        self._residuals: dict[int, Arrays] = {}
        self._results: list[LocalResult] = []
        self._up: list[int] = []
        self._down: list[int] = []

    def train(self) -> Trained:
        """All rounds; afterwards the model holds the last one's adapter."""
        started = time.perf_counter()
        losses = [self._round(number) for number in range(1, self._federation.rounds + 1)]
        load_adapter_arrays(self.model, self._current)
        steps = sum(result.steps for result in self._results)
        return Trained(
            self.model,
            losses,
            float(np.mean(self._up)) if self._up else 0.0,
            float(np.mean(self._down)) if self._down else 0.0,
            steps,
            sum(result.steps * min(self._training.batch_size, result.examples) for result in self._results),
            sum(result.tokens for result in self._results),
            sum(result.computed_tokens for result in self._results),
            time.perf_counter() - started,
        )

    def _round(self, number: int) -> float:
        """One round of FedAvg; its mean loss."""
        federation, config = self._federation, self._training
        trained = frozenset(name for name in self._current if self._tuning.trains(name, number))
        exchange = Exchange(self._current, self._first, trained, federation.uplink, federation.downlink)
        rate = cosine_rate(number, federation.rounds, config.learning_rate_max, config.learning_rate_min)
        updates, results = [], []
        for partition in draw_clients(federation, number):
            load_adapter_arrays(self.model, exchange.start)
            seed = (federation.seed, number, partition)
            with trained_in_round(self.model, self._tuning, number):
                results.append(train_locally(self.model, self._loaded, self._shares[partition], config, rate, seed))
            arrays = {name: array for name, array in adapter_arrays(self.model).items() if name in trained}
            reply = self._packed(arrays, exchange, number, partition)
            self._up.append(_bytes(reply))
            self._down.append(_bytes(exchange.sent))
            updates.append(exchange.read(reply))
        examples = [result.examples for result in results]
        self._current = self._current | weighted_mean(updates, examples)
        self._results += results
        return float(np.average([result.loss for result in results], weights=examples))

    def _packed(self, arrays: Arrays, exchange: Exchange, number: int, partition: int) -> Arrays:
        federation = self._federation
        if not federation.keeps_residuals:
            generator = np.random.default_rng((federation.seed, number, partition, 1))
            return pack_update(arrays, exchange.start, federation.uplink, generator)
        before = self._residuals.get(partition, {})
        reply, self._residuals[partition] = pack_update_with_feedback(arrays, exchange.start, federation.uplink, before)
        return reply


def _bytes(arrays: Arrays) -> int:
    return sum(flower_bytes({name: array.shape}, array.dtype.str) for name, array in arrays.items())
