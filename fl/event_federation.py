"""Federated training of the learned baselines: a federation's clients, draws and weighted mean, in one process.

They are small enough to need no Flower and no Ray: what a client would receive and send are the arrays given here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from fl.averaging import Arrays, weighted_mean
from fl.baseline_models import Reader, Text, make_model
from fl.errors import FederationError, LearningError
from fl.event_models import EventModel
from fl.event_settings import EventBaselines, Method
from fl.event_windows import Events
from fl.federation import Federation, draw_clients
from fl.hyperparameters import LocalTraining, cosine_rate
from fl.local_training import draw_batches
from fl.masked_text import LogFit

Window = npt.NDArray[np.uint32]
Progress = Callable[[float, float | None, str], None]


@dataclass(frozen=True)
class TrainedBaseline:
    """A baseline after its last round, and what it cost."""

    model: EventModel
    reader: Reader
    losses: list[float]
    """By round, the mean over its clients, weighted by their windows."""
    windows: int
    """Windows that went into steps, each as often as it did."""
    message_bytes: int
    """Of a message's arrays as they are, up or down."""
    seconds: float

    @property
    def parameters(self) -> int:
        """How many values are trained."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def scores(self, windows: Sequence[Window], seed: int) -> dict[str, npt.NDArray[np.float64]]:
        """Each kind of score, one value a window of message ids."""
        with _threads(self.model):
            return self.model.scores([self.reader.events(window) for window in windows], seed)


def train_baseline(
    method: Method,
    shares: Sequence[Sequence[Window]],
    baselines: EventBaselines,
    federation: Federation,
    progress: Progress = lambda *_: None,
    text: Text | None = None,
) -> TrainedBaseline:
    """Train a baseline on the clients' windows of message ids; `shares[p]` are those of partition p.

    `text` is what `logfit` needs. The outcome depends on nothing but the arguments. Raises FederationError where a
    round has no windows at all, LearningError where a loss is no longer finite, ModelError where `logfit` has no model.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(federation.seed)
        model, reader = make_model(method, [window for share in shares for window in share], baselines, text)
    with torch.random.fork_rng(devices=[]), _threads(model.eval()):
        arrays, losses, windows = _arrays(model), [], 0
        numbered = [[reader.events(window) for window in share] for share in shares]
        for number in range(1, baselines.baseline_rounds + 1):
            drawn = [partition for partition in draw_clients(federation, number) if numbered[partition]]
            if not drawn:
                raise FederationError(f"No client of round {number} has windows; deal them to fewer clients.")
            rate = cosine_rate(number, baselines.baseline_rounds, baselines.baseline_rate, baselines.baseline_rate / 10)
            replies, told = [], []
            for partition in drawn:
                _load(model, arrays)
                seed = (federation.seed, number, partition)
                told.append(_train_client(model, numbered[partition], baselines, rate, seed))
                replies.append(_arrays(model))
                windows += baselines.baseline_steps * min(baselines.baseline_windows, len(numbered[partition]))
            weights = [len(numbered[partition]) for partition in drawn]
            arrays = weighted_mean(replies, weights)
            losses.append(float(np.average(told, weights=weights)))
            progress(number, baselines.baseline_rounds, f"rounds of {method}, loss {losses[-1]:.3f}")
        _load(model, arrays)
    size = sum(array.nbytes for array in arrays.values())
    return TrainedBaseline(model, reader, losses, windows, size, time.perf_counter() - started)


@contextmanager
def _threads(model: EventModel) -> Iterator[None]:
    """Compute with one thread: such small models gain nothing from more, and sums are the same on every machine.

    A language model has all threads.
    """
    threads = torch.get_num_threads()
    if not isinstance(model, LogFit):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train_client(
    model: EventModel, windows: list[Events], baselines: EventBaselines, rate: float, seed: tuple[int, int, int]
) -> float:
    """Train on a client's windows in place; the mean loss of a step."""
    torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    generator = np.random.default_rng((*seed, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    drawing = replace(LocalTraining(), steps=baselines.baseline_steps, batch_size=baselines.baseline_windows)
    total = 0.0
    model.settle(windows, generator)
    model.train()
    for batch in draw_batches(len(windows), drawing, seed):
        loss = model.loss([windows[index] for index in batch], generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.item()
    model.eval()
    if not np.isfinite(total):
        raise LearningError("The loss of a learned baseline is no longer finite; lower baselines.baseline_rate.")
    model.settle(windows, generator)
    return total / baselines.baseline_steps


def _arrays(model: EventModel) -> Arrays:
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.carried().items()}


def _load(model: EventModel, arrays: Arrays) -> None:
    with torch.no_grad():
        for name, tensor in model.carried().items():
            tensor.copy_(torch.from_numpy(arrays[name]))
