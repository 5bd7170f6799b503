"""Three small models of event sequences from the literature, to hold the language model against.

Each learns from normal windows only and scores a window by what it did not expect in it; higher is more anomalous. An
event that training never saw has probability zero in all of them; `NEVER` stands for its infinite surprise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fl.event_windows import FIRST, MASK, PADDING, Events, Vocabulary, histories, masked, padded

Floats = npt.NDArray[np.float64]
NEVER = -math.log(torch.finfo(torch.float32).tiny)
"""Nats: the surprise of the least probability that float32 holds, 87.3."""
_ROWS = 4096
"""Histories, or events of windows, that go through a model at once when it scores."""


@dataclass(frozen=True)
class ScoreKind:
    """A score of a window: its name, in words, and the threshold of the published rule where that is fixed."""

    name: str
    title: str
    published: float | None = None


class EventModel(nn.Module):
    """What the baselines have in common; the first of `kinds` is the score that stands for the model."""

    title: ClassVar[str]
    kinds: ClassVar[tuple[ScoreKind, ...]]

    def loss(self, windows: Sequence[Events], generator: np.random.Generator) -> Tensor:
        """The training loss of a batch of windows."""
        raise NotImplementedError

    def scores(self, windows: Sequence[Events], seed: int) -> dict[str, Floats]:
        """Each kind of score, one value a window."""
        raise NotImplementedError

    def settle(self, windows: Sequence[Events], generator: np.random.Generator) -> None:
        """Compute what is not trained by gradients from a client's windows, before and after its steps."""

    def carried(self) -> dict[str, Tensor]:
        """What a message holds, as the model's own tensors."""
        state: dict[str, Tensor] = self.state_dict()
        return state


def surprise_and_rank(logits: Tensor, events: Tensor) -> tuple[Tensor, Tensor]:
    """Nats and rank (1 is best; ties count for the event) of each event by a row of logits over the vocabulary."""
    known = events >= FIRST
    places = torch.where(known, events - FIRST, 0)[:, None]
    surprise = -functional.log_softmax(logits, dim=1).gather(1, places)[:, 0]
    rank = 1 + (logits > logits.gather(1, places)).sum(dim=1)
    return torch.where(known, surprise.clamp(max=NEVER), NEVER), torch.where(known, rank, logits.shape[1] + 1)


class NextEventModel(EventModel):
    """Predicts each event from the `HISTORY` events before it.

    The published rule flags a window with an event that is not among the g most probable ones.
    """

    HISTORY = 10
    """h of the DeepLog paper."""
    kinds = (ScoreKind("surprise", "highest surprise of an event"), ScoreKind("rank", "worst rank of an event", 9.0))

    def __init__(self, vocabulary: Vocabulary, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary.size, hidden, padding_idx=PADDING)
        self.output = nn.Linear(hidden, vocabulary.size - FIRST)

    def encoded(self, embedded: Tensor) -> Tensor:
        """Histories (n, HISTORY, hidden) as vectors (n, hidden)."""
        raise NotImplementedError

    def forward(self, history: Tensor) -> Tensor:
        """Logits over the vocabulary for the event after each history."""
        logits: Tensor = self.output(self.encoded(self.embedding(history)))
        return logits

    def loss(self, windows: Sequence[Events], generator: np.random.Generator) -> Tensor:
        """Mean surprise of an event; equal histories with equal next events are computed once."""
        cases, counts = np.unique(histories(windows, self.HISTORY)[0], axis=0, return_counts=True)
        events = torch.from_numpy(cases)
        surprises = functional.cross_entropy(self(events[:, :-1]), events[:, -1] - FIRST, reduction="none")
        return (surprises * torch.from_numpy(counts)).sum() / int(counts.sum())

    @torch.no_grad()
    def scores(self, windows: Sequence[Events], seed: int) -> dict[str, Floats]:
        """Highest surprise and worst rank over a window's events."""
        cases, owner = histories(windows, self.HISTORY)
        distinct, case = np.unique(cases, axis=0, return_inverse=True)
        parts = [surprise_and_rank(self(part[:, :-1]), part[:, -1]) for part in torch.from_numpy(distinct).split(_ROWS)]
        found = {}
        for kind, values in zip(self.kinds, zip(*parts, strict=True), strict=True):
            worst = np.full(len(windows), -np.inf)
            np.maximum.at(worst, owner, torch.cat(values).double().numpy()[case.ravel()])
            found[kind.name] = worst
        return found


class DeepLog(NextEventModel):
    """DeepLog's model of log keys (Du et al., CCS 2017): two LSTM layers of 64 units over 10 events, g = 9.

    An embedding takes the place of one-hot vectors times the first layer's input matrix.
    """

    title = "DeepLog-style LSTM"

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary, hidden=64)
        self.lstm = nn.LSTM(64, 64, num_layers=2, batch_first=True)

    def encoded(self, embedded: Tensor) -> Tensor:
        """The last output of the upper layer."""
        states: Tensor = self.lstm(embedded)[0]
        return states[:, -1]


class _ResidualBlock(nn.Module):
    """Two dilated causal convolutions beside a shortcut (Bai et al., arXiv 1803.01271, figure 1 b)."""

    def __init__(self, channels: int, dilation: int, kernel: int = 3) -> None:
        super().__init__()
        self.before = (kernel - 1) * dilation
        self.first = nn.Conv1d(channels, channels, kernel, dilation=dilation)
        self.second = nn.Conv1d(channels, channels, kernel, dilation=dilation)

    def forward(self, values: Tensor) -> Tensor:
        inner = functional.relu(self.first(functional.pad(values, (self.before, 0))))
        return functional.relu(values + functional.relu(self.second(functional.pad(inner, (self.before, 0)))))


class FedLog(NextEventModel):
    """A temporal convolution with attention after FedLog's TCN-ACNN (Li et al., IEEE TNSM 2022).

    Residual blocks of dilation 1, 2 and 4, then a convolution whose outputs are weighed by attention over time. Built
    from the paper's abstract and the network it names: layer sizes are ours, next-event prediction with g = 9 is that
    of DeepLog, which it is compared with, and its lottery-ticket masks of messages are left out.
    """

    title = "FedLog-style temporal convolution"

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary, hidden=32)
        self.blocks = nn.Sequential(*(_ResidualBlock(32, dilation) for dilation in (1, 2, 4)))
        self.convolution = nn.Conv1d(32, 32, 3, padding=1)
        self.attention = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def encoded(self, embedded: Tensor) -> Tensor:
        """The mean of the last convolution's outputs, weighed by attention."""
        states = functional.relu(self.convolution(self.blocks(embedded.transpose(1, 2)))).transpose(1, 2)
        mean: Tensor = (self.attention(states).softmax(dim=1) * states).sum(dim=1)
        return mean


class LogBert(EventModel):
    """LogBERT (Guo et al., IJCNN 2021, arXiv 2103.04475): masked events, and windows near a common centre.

    A transformer encoder, smaller than the paper's (2 layers of 64 instead of 4 of 256); loss: cross entropy of the
    masked events plus 0.1 times the mean over the 64 units of the squared difference of the window's vector to the
    centre, a 64th of the squared distance. The centre is the mean over a client's windows, and the weighted
    mean of these over clients. The published rule counts masked events that
    are not among the g = 6 most probable ones; its threshold is searched on labels, as `validated` is.
    """

    title = "LogBERT-style masked model"
    kinds = (
        ScoreKind("surprise", "mean surprise of a masked event"),
        ScoreKind("outside", "share of masked events outside the top 6"),
        ScoreKind("distance", "squared distance to the centre"),
    )
    MASKED = 0.65
    """Share of masked events, in training and in detection: the published code's for HDFS."""
    CANDIDATES = 6
    LONGEST = 512
    SAMPLE = 256
    """Windows of a client that give its centre."""
    DRAWS = 4
    """Seeded draws of masked events that a window's scores are the mean of."""

    centre: Tensor

    def __init__(self, vocabulary: Vocabulary, hidden: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary.size, hidden, padding_idx=PADDING)
        layer = nn.TransformerEncoderLayer(hidden, heads, 4 * hidden, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(hidden, vocabulary.size - FIRST)
        self.register_buffer("centre", torch.zeros(hidden))
        self.register_buffer("positions", _sinusoids(1 + self.LONGEST, hidden), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """States (windows, 1 + events, hidden) of padded rows; the first is the window's vector."""
        embedded = self.embedding(rows) + self.get_buffer("positions")[: rows.shape[1]]
        states: Tensor = self.encoder(embedded, src_key_padding_mask=rows == PADDING)
        return states

    def loss(self, windows: Sequence[Events], generator: np.random.Generator) -> Tensor:
        """Cross entropy of the masked events, plus 0.1 times the mean of squares over windows and units."""
        rows = padded(windows, self.LONGEST)
        hidden = masked(rows, self.MASKED, generator)
        states = self(torch.from_numpy(np.where(hidden, MASK, rows)))
        events = torch.from_numpy(rows[hidden]) - FIRST
        predicted = functional.cross_entropy(self.output(states[torch.from_numpy(hidden)]), events)
        return predicted + 0.1 * functional.mse_loss(states[:, 0], self.centre.expand(len(rows), -1))

    @torch.no_grad()
    def settle(self, windows: Sequence[Events], generator: np.random.Generator) -> None:
        """Set the centre to the mean vector of the windows, or of a sample of them."""
        sample = generator.permutation(len(windows))[: self.SAMPLE]
        total = torch.zeros(len(self.centre), dtype=torch.float64)
        for part in even_parts([windows[i] for i in sample], self.LONGEST, _ROWS):
            rows = padded([windows[i] for i in sample[part]], self.LONGEST)
            hidden = masked(rows, self.MASKED, generator)
            total += self(torch.from_numpy(np.where(hidden, MASK, rows)))[:, 0].double().sum(dim=0)
        self.centre.copy_(total / len(sample))

    @torch.no_grad()
    def scores(self, windows: Sequence[Events], seed: int) -> dict[str, Floats]:
        """Means over `DRAWS` seeded draws of masked events."""
        parts = even_parts(windows, self.LONGEST, _ROWS)
        return mean_over_draws(self.kinds, windows, parts, self.DRAWS, seed, self._scored)

    def _scored(self, windows: Sequence[Events], generator: np.random.Generator) -> dict[str, Floats]:
        rows = padded(windows, self.LONGEST)
        hidden = masked(rows, self.MASKED, generator)
        states = self(torch.from_numpy(np.where(hidden, MASK, rows)))
        logits = self.output(states[torch.from_numpy(hidden)])
        surprise, rank = surprise_and_rank(logits, torch.from_numpy(rows[hidden]))
        owner, number = np.nonzero(hidden)[0], hidden.sum(axis=1)
        distance = ((states[:, 0] - self.centre) ** 2).sum(dim=1)
        return {
            "surprise": np.bincount(owner, surprise.double().numpy(), len(rows)) / number,
            "outside": np.bincount(owner, (rank > self.CANDIDATES).double().numpy(), len(rows)) / number,
            "distance": distance.double().numpy(),
        }


def mean_over_draws(
    kinds: Sequence[ScoreKind],
    windows: Sequence[Events],
    parts: Sequence[npt.NDArray[np.int64]],
    draws: int,
    seed: int,
    scored: Callable[[Sequence[Events], np.random.Generator], dict[str, Floats]],
) -> dict[str, Floats]:
    """The scores of windows, some at a time, as means over seeded draws of what is masked."""
    found = {kind.name: np.zeros(len(windows)) for kind in kinds}
    for draw in range(draws):
        generator = np.random.default_rng((seed, draw))
        for part in parts:
            for name, values in scored([windows[i] for i in part], generator).items():
                found[name][part] += values / draws
    return found


def even_parts(windows: Sequence[Events], longest: int, most: int) -> list[npt.NDArray[np.int64]]:
    """The numbers of the windows in batches of like lengths, about `most` events each, of windows cut at `longest`."""
    order = np.argsort([len(window) for window in windows], kind="stable")
    lengths = np.array([min(len(windows[i]), longest) for i in order])
    return np.split(order, np.flatnonzero(np.diff(np.cumsum(lengths) // most)) + 1)


def _sinusoids(length: int, width: int) -> Tensor:
    """Positions as sines and cosines (Vaswani et al., arXiv 1706.03762, section 3.5)."""
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(length, width)
