"""What the server makes of a round's replies: a running mean where the strategy needs no more, else all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fl.averaging import ExactMean
from fl.errors import BadMessage, LearningError, LostClients
from fl.federation import MEANS, Federation
from fl.privacy import Privacy, PrivateMean, next_clipping_norm
from fl.strategies import Arrays, Reply, aggregate, next_adapter
from fl.update_norms import shortened, update_norm, update_of


class Combination:
    """A round's replies, taken one at a time in any order.

    For strategies in MEANS, and so for all private rounds, it holds a constant number of adapters however many clients
    reply, and the result is to the bit that of all replies at once.
    """

    def __init__(self, federation: Federation, privacy: Privacy, current: Arrays, clipping_norm: float) -> None:
        self._federation, self._privacy, self._current = federation, privacy, current
        self._clipping_norm = clipping_norm
        self._noisy = PrivateMean(current, clipping_norm) if privacy.noise == "central" else None
        self._mean = ExactMean(federation.most_drawn)

    def take(self, reply: Reply) -> Reply:
        """Count a checked reply; what is to be kept of it. Raises BadMessage for values that cannot be added."""
        if self._privacy.is_adaptive and reply.metrics.get("unclipped") not in (0, 1):
            raise BadMessage("does not tell whether its update was clipped")
        if self._noisy is not None:
            self._noisy.add(reply.arrays)
            return replace(reply, arrays={})
        reply = self._measured(reply)
        if self._federation.strategy not in MEANS:
            return reply
        weight = 1 if self._privacy.is_on else self._federation.weight(reply.examples)
        try:
            self._mean.add(reply.arrays, weight)
        except LearningError as error:
            raise BadMessage(f"cannot be counted: {error}") from error
        return replace(reply, arrays={})

    def _measured(self, reply: Reply) -> Reply:
        """The reply with its update's norm, and shortened to the norm bound; a noisy update's norm tells nothing."""
        bound = self._federation.norm_bound
        if bound is None and self._privacy.is_on:
            return reply
        if bound is None:
            norm = update_norm(update_of(reply.arrays, self._current))
        else:
            arrays, norm = shortened(reply.arrays, self._current, bound)
            reply = replace(reply, arrays=arrays)
        return reply if self._privacy.is_on else replace(reply, metrics={**reply.metrics, "update_norm": norm})

    def result(
        self, number: int, replies: Sequence[Reply], state: Arrays, rate: float, key: bytes
    ) -> tuple[Arrays, Arrays]:
        """The next adapter and the strategy's next state, after `take` has had each reply; `key` is the noise's."""
        if self._federation.strategy not in MEANS:
            return aggregate(self._federation, number, self._current, replies, state, rate)
        return next_adapter(self._federation, number, self._current, self._mean_of_round(number, key), state, rate)

    def _mean_of_round(self, number: int, key: bytes) -> Arrays:
        if self._noisy is None:
            if not self._mean.count:
                raise LostClients(f"Round {number}: no client replied. Run again to go on after round {number - 1}.")
            return self._mean.mean()
        drawn = self._federation.clients_per_round
        return self._noisy.mean(self._privacy.update_multiplier(drawn), drawn, key, number)

    def next_clipping_norm(self, number: int, replies: Sequence[Reply], key: bytes) -> float:
        """The clipping norm of the next round."""
        if not self._privacy.is_adaptive:
            return self._clipping_norm
        unclipped = [bool(reply.metrics["unclipped"]) for reply in replies]
        return next_clipping_norm(
            self._privacy, self._clipping_norm, unclipped, self._federation.clients_per_round, key, number
        )


def clipping_norm_after(privacy: Privacy, facts: Mapping[str, object]) -> float:
    """The clipping norm that the round after the one with these facts has."""
    told = facts.get("privacy")
    return float(told["next_clipping_norm"]) if isinstance(told, dict) else privacy.clipping_norm
