"""What a run's rounds spend of a site's privacy: epsilon, by Google's dp-accounting.

Two ways of drawing clients fit two notions of neighbours, and dp-accounting keeps them apart:

- `draws=fixed`, as many clients in every round: sampling without replacement, whose theorem (Wang, Balle and
  Kasiviswanathan 2019, arXiv 1808.00087) compares federations in which one site has other data. Such an exchange moves
  the sum of clipped updates by 2 C, so the noise counts half.
- `draws=poisson`, each client by itself with the same probability (arXiv 1908.10530, arXiv 2106.02848): it compares
  federations with and without one site, which moves the sum by C.

Local noise compares a site's own data, all of which may be other: 2 C, over the rounds in which the site was drawn.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fl.federation import Federation, draw_clients
from fl.privacy import Privacy

_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512)
_DISCRETIZED = 0.3
"""Noise multipliers from which the distribution of the privacy loss is small enough to be composed by itself."""


@dataclass(frozen=True)
class Accountant:
    """What a federation spends under a privacy configuration; everything here is known before any data are seen."""

    privacy: Privacy
    federation: Federation

    @property
    def relation(self) -> str:
        """Which federations epsilon compares, in words."""
        if self.privacy.noise == "local":
            return "a site with other data, for whoever sees its messages"
        if self.federation.draws == "poisson":
            return "federations with and without one site"
        return "federations in which one site has other data"

    @property
    def _multiplier(self) -> float:
        """Standard deviation of the noise in units of how far neighbours can be apart."""
        with_or_without = self.privacy.noise == "central" and self.federation.draws == "poisson"
        return self.privacy.noise_multiplier / (1 if with_or_without else 2)

    def epsilon(self, rounds: int) -> float:
        """What so many rounds spend; infinite where there is no noise.

        With central noise it holds for those who see adapters and do not know who was drawn. Drawing at random can only
        hide more, so it is never more than without.
        """
        if self.privacy.noise == "local":
            return self.epsilon_known(self.most_participations(rounds))
        unsampled = self.epsilon_known(rounds)
        if not 0 < unsampled < np.inf or self.federation.clients_per_round == self.federation.clients:
            return unsampled
        return min(unsampled, self._renyi(rounds), self._discretized(rounds))

    def epsilon_known(self, participations: int) -> float:
        """What a site spends in so many rounds in which everyone knows that it was drawn."""
        from dp_accounting.gaussian_mechanism import get_epsilon_gaussian

        if participations == 0:
            return 0.0
        if self._multiplier == 0:
            return np.inf
        return float(get_epsilon_gaussian(self._multiplier / participations**0.5, self.privacy.delta))

    def most_participations(self, rounds: int) -> int:
        """In how many of the first rounds the site drawn most often takes part."""
        drawn = Counter(site for number in range(1, rounds + 1) for site in draw_clients(self.federation, number))
        return max(drawn.values(), default=0)

    def affordable_rounds(self) -> int:
        """How many of the run's rounds the budget allows; all of them where there is none."""
        budget, rounds = self.privacy.epsilon_budget, self.federation.rounds
        if budget is None or self.epsilon(rounds) <= budget:
            return rounds
        few, many = 0, rounds
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if self.epsilon(middle) <= budget else (few, middle)
        return few

    def _renyi(self, rounds: int) -> float:
        from dp_accounting.rdp import compute_epsilon

        federation = self.federation
        sizes = (federation.clients, federation.clients_per_round) if federation.draws == "fixed" else None
        of_a_round = _renyi_of_a_round(self._multiplier, federation.fraction, sizes)
        return float(compute_epsilon(_ORDERS, rounds * of_a_round, self.privacy.delta)[0])

    def _discretized(self, rounds: int) -> float:
        """From the distribution of the privacy loss: less than by Renyi's, but only for Poisson draws, in 0.6."""
        import dp_accounting as dp
        from dp_accounting.pld import PLDAccountant

        if self.federation.draws != "poisson" or self._multiplier < _DISCRETIZED:
            return np.inf
        a_round = dp.PoissonSampledDpEvent(self.federation.fraction, dp.GaussianDpEvent(self._multiplier))
        accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(a_round, rounds)
        return float(accountant.get_epsilon(self.privacy.delta))


@lru_cache(maxsize=8)
def _renyi_of_a_round(multiplier: float, probability: float, sizes: tuple[int, int] | None) -> np.ndarray:
    """Renyi divergences of one round at the orders; `sizes`: all clients and those drawn, where draws are fixed."""
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    noise = dp.GaussianDpEvent(multiplier)
    if sizes is None:
        accountant = RdpAccountant(_ORDERS, dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
        accountant.compose(dp.PoissonSampledDpEvent(probability, noise))
    else:
        accountant = RdpAccountant(_ORDERS, dp.NeighboringRelation.REPLACE_ONE)
        accountant.compose(dp.SampledWithoutReplacementDpEvent(*sizes, noise))
    return np.asarray(accountant._rdp)  # there is no public way to it


def affordable_rounds(privacy: Privacy, federation: Federation) -> int:
    """How many of the run's rounds the privacy budget allows."""
    if privacy.epsilon_budget is None:
        return federation.rounds
    return Accountant(privacy, federation).affordable_rounds()


def privacy_plan(privacy: Privacy, federation: Federation) -> dict[str, str]:
    """What a run will spend, in words, before it begins."""
    accountant, rounds = Accountant(privacy, federation), affordable_rounds(privacy, federation)
    most = accountant.most_participations(rounds)
    plan = {
        "privacy": f"epsilon {_told(accountant.epsilon(rounds))} after {rounds} rounds at delta {privacy.delta:g}: "
        f"{accountant.relation}"
    }
    if privacy.noise == "central":
        deviation = privacy.update_multiplier(federation.clients_per_round) * privacy.clipping_norm
        known = _told(accountant.epsilon_known(most))
        plan["privacy where draws are known"] = f"epsilon {known} for a site drawn {most} times, as by the seed"
        plan["noise"] = f"{deviation / federation.clients_per_round:.4g} standard deviation on each value of the mean"
    else:
        plan["noise"] = f"{privacy.noise_multiplier * privacy.clipping_norm:.4g} on each value of each update"
    if rounds < federation.rounds:
        plan["privacy budget"] = f"{privacy.epsilon_budget:g}: ends the run after round {rounds}"
    return plan


def _told(epsilon: float) -> str:
    return "without bound" if epsilon == np.inf else f"{epsilon:.3g}"
