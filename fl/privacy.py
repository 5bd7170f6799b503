"""Differential privacy of whole sites: what a site's training changed is clipped, and noise hides what is left of it.

Central noise (the paper's notebook; arXiv 1710.06963): the server adds the clipped updates, adds Gaussian noise of
standard deviation z C, and divides by the number of clients a round draws. Local noise: each client adds its own before
it sends. Every client weighs the same: weights by numbers of windows would let a large site through the bound.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.bounds import bounded
from fl.errors import FederationError
from fl.noise import gaussian
from fl.update_norms import clip_factor, update_norm, update_of

Arrays = dict[str, np.ndarray]

_STRICTLY = 1 - 1e-12
"""What rounding in float64 could add to a norm is taken off beforehand."""
_BITS = 40
"""A clipping norm is this many bits long in the units that sums are counted in."""
_COUNT_UNIT = 2.0**-20


@dataclass(frozen=True)
class Privacy:
    """How updates are clipped and hidden, and how much of a site may be learned at most."""

    __pydantic_config__ = {  # noqa: RUF012
        "extra": "forbid",
        "use_attribute_docstrings": True,
        "json_schema_extra": bounded(
            noise_multiplier={"at_least": 0},
            clipping_norm={"above": 0},
            clipping_quantile={"above": 0, "below": 1},
            clipping_rate={"above": 0},
            count_noise={"at_least": 0},
            delta={"above": 0, "below": 1},
            epsilon_budget={"above": 0},
        ),
    }

    noise: Literal["none", "central", "local"] = "none"
    """`none`: no differential privacy, nothing is clipped; `central`: the server adds noise to the sum of the clipped
    updates, and is trusted with them; `local`: each client adds noise to its own."""
    noise_multiplier: float = 1.0
    """z: standard deviation of the noise in units of the clipping norm (notebook: 0.02, which protects nobody); with
    adaptive clipping, that of update and count together. 0: clipping only, without any epsilon."""
    clipping_norm: float = 0.5
    """C: largest L2 norm of an update over all its trained arrays (notebook: 0.5); with adaptive clipping the first."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive`: C follows a quantile of the updates' norms from round to round (arXiv 1905.03871)."""
    clipping_quantile: float = 0.5
    """Share of the updates that adaptive clipping wants to leave whole."""
    clipping_rate: float = 0.2
    """Rate by which adaptive clipping corrects the logarithm of C."""
    count_noise: float | None = None
    """Standard deviation of the noise on the count of unclipped updates; None: a twentieth of the clients a round."""
    delta: float = 1e-5
    """Probability with which epsilon may not hold; well below 1 / clients."""
    epsilon_budget: float | None = None
    """No round begins that would spend more than this; None: no limit."""
    noise_source: Literal["secret", "seed"] = "secret"
    """`secret`: noise, and with central noise the draws of clients, from a random key that stays with whoever adds the
    noise, kept until the run ends, so that a resumed run gives the same bytes; `seed`: from the run's seed, for
    experiments to be repeated, which protects from nobody who knows it."""

    def __post_init__(self) -> None:
        """Raise FederationError where the values cannot work together."""
        for fault, is_so in (
            (f"noise_multiplier is {self.noise_multiplier}; give 0 or more", not self.noise_multiplier >= 0),
            (f"clipping_norm is {self.clipping_norm}; give a value above 0", not 0 < self.clipping_norm < math.inf),
            (
                f"clipping_quantile is {self.clipping_quantile}; give a value between 0 and 1",
                not 0 < self.clipping_quantile < 1,
            ),
            (f"clipping_rate is {self.clipping_rate}; give a value above 0", not self.clipping_rate > 0),
            (f"delta is {self.delta}; give a value between 0 and 1", not 0 < self.delta < 1),
            (
                "epsilon_budget needs noise; give privacy.noise=central or local, and noise_multiplier above 0",
                self.epsilon_budget is not None and not (self.is_on and self.noise_multiplier > 0),
            ),
            (
                "clipping=adaptive needs noise=central: a client's own noise cannot hide whether it was clipped",
                self.is_adaptive and self.noise != "central",
            ),
        ):
            if is_so:
                raise FederationError(f"privacy: {fault}.")

    @property
    def is_on(self) -> bool:
        """Whether updates are clipped at all."""
        return self.noise != "none"

    @property
    def is_adaptive(self) -> bool:
        """Whether the clipping norm follows the updates."""
        return self.clipping == "adaptive"

    @property
    def hides_draws(self) -> bool:
        """Whether the draws of clients come from the server's secret key, not from the federation's seed."""
        return self.noise == "central" and self.noise_source == "secret"

    def allows(self, clipping_norm: object) -> bool:
        """Whether a client that agreed to this may be told this clipping norm: the agreed one, any where it adapts, and
        in a message that asks for no training none."""
        if clipping_norm is None or not self.is_on:
            return clipping_norm is None
        is_norm = isinstance(clipping_norm, float) and 0 < clipping_norm < math.inf
        return is_norm and (self.is_adaptive or clipping_norm == self.clipping_norm)

    def count_deviation(self, clients: int) -> float:
        """Standard deviation of the noise on the count of unclipped updates, where `clients` are drawn a round."""
        return clients / 20 if self.count_noise is None else self.count_noise

    def update_multiplier(self, clients: int) -> float:
        """The noise multiplier of the updates alone: what is left of z when the count has its share (Theorem 1 of
        arXiv 1905.03871). Raises FederationError where nothing is left."""
        if not self.is_adaptive or self.noise_multiplier == 0:
            return self.noise_multiplier
        deviation = self.count_deviation(clients)
        rest = self.noise_multiplier**-2 - (2 * deviation) ** -2 if deviation > 0 else -1.0
        if rest <= 0:
            raise FederationError(
                f"privacy: count_noise {deviation:g} takes all of noise_multiplier {self.noise_multiplier:g}; "
                f"give more than {self.noise_multiplier / 2:g}, or draw more clients a round."
            )
        return rest**-0.5


NO_PRIVACY = Privacy()
"""Updates as they are."""


class PrivateMean:
    """The mean of clipped updates under central noise, added one at a time; it holds two adapters' worth of float64.

    Updates are counted in whole units of about C / 2^40, rounded towards zero, so that no sum depends on an order, no
    update exceeds C, and the noise, rounded to the same units, leaves nothing of the sum's last bits (Mironov 2012).
    """

    def __init__(self, start: Mapping[str, np.ndarray], clipping_norm: float) -> None:
        self._start = start
        self._norm = clipping_norm
        self._unit = 2.0 ** (math.ceil(math.log2(clipping_norm)) - _BITS)
        self._sums = {name: np.zeros(array.shape, np.int64) for name, array in start.items()}
        self.count = 0

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a client's arrays; whatever they hold, their change since the start counts for C at most."""
        update = update_of(arrays, self._start)
        factor = clip_factor(update_norm(update), self._norm * _STRICTLY) / self._unit
        for name, change in update.items():
            change *= factor
            np.add(self._sums[name], np.trunc(change, out=change), out=self._sums[name], casting="unsafe")
        self.count += 1

    def digest(self) -> str:
        """A name for what was added: other sums get other noise, the same sum, done again, gets the same."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self._sums):
            digest.update(self._sums[name].tobytes())
        return digest.hexdigest()

    def mean(self, multiplier: float, clients: int, key: bytes, round_number: int) -> Arrays:
        """The start moved by the noisy sum, divided by `clients`, the number a round draws and not that of replies."""
        digest = self.digest()
        moved = {}
        for name in sorted(self._sums):
            total = self._sums[name]
            if multiplier > 0:
                drawn = gaussian(key, f"updates {round_number} {digest} {name}", total.size).reshape(total.shape)
                drawn *= multiplier * self._norm / self._unit
                total = total + np.rint(drawn, out=drawn).astype(np.int64)
            moved[name] = (self._start[name] + total * (self._unit / clients)).astype(np.float32)
        return moved


def clipped_update(
    arrays: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray], clipping_norm: float
) -> tuple[Arrays, bool]:
    """What a client sends under central noise: its arrays with the change clipped, and whether it was within C."""
    update = update_of(arrays, start)
    factor = clip_factor(update_norm(update), clipping_norm)
    if factor == 1.0:
        return dict(arrays), True
    return {name: (start[name] + factor * change).astype(np.float32) for name, change in update.items()}, False


def hidden_update(
    arrays: Mapping[str, np.ndarray],
    start: Mapping[str, np.ndarray],
    clipping_norm: float,
    multiplier: float,
    key: bytes,
    purpose: str,
) -> Arrays:
    """What a client sends under local noise: the clipped change with Gaussian noise of z C on each value.

    `purpose` says whose noise it is and of which round; the same change, sent again, gets the same noise.
    """
    alone = PrivateMean(start, clipping_norm)
    alone.add(arrays)
    return alone.mean(multiplier, 1, key + purpose.encode(), 0)


def next_clipping_norm(
    privacy: Privacy, clipping_norm: float, unclipped: Sequence[bool], clients: int, key: bytes, round_number: int
) -> float:
    """Adaptive clipping's C of the next round: C exp(-rate (b - quantile)) with the noisy share b of unclipped updates.

    `unclipped` tells of each reply whether it was within C; `clients` is the number a round draws. Replies count as
    +1/2 and -1/2, as in arXiv 1905.03871, so that one client more or less moves the sum by half.
    """
    counted = sum(unclipped) - len(unclipped) / 2
    deviation = privacy.count_deviation(clients) if privacy.noise_multiplier > 0 else 0.0
    drawn = deviation * float(gaussian(key, f"count {round_number} {counted} {clipping_norm!r}", 1)[0])
    share = (counted + round(drawn / _COUNT_UNIT) * _COUNT_UNIT) / clients + 0.5
    return clipping_norm * math.exp(-privacy.clipping_rate * (share - privacy.clipping_quantile))
