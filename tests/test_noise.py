"""fl/noise.py: normal values that follow from a key, and from nothing else."""

import numpy as np
from scipy import stats

from fl.noise import gaussian, seed_key


def test_values_are_standard_normal_and_independent() -> None:
    drawn = gaussian(b"key", "purpose", 200_001)
    assert drawn.shape == (200_001,)
    assert stats.kstest(drawn, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / 200_000**0.5
    half = len(drawn) // 2 + 1  # the two values of a pair lie half the length apart
    assert abs(np.corrcoef(drawn[: len(drawn) - half], drawn[half:])[0, 1]) < 5 / 100_000**0.5
    assert abs(stats.kurtosis(drawn)) < 5 * (24 / 200_000) ** 0.5


def test_values_follow_from_key_and_purpose() -> None:
    drawn = gaussian(seed_key(1), "round 1", 100)
    np.testing.assert_array_equal(drawn, gaussian(seed_key(1), "round 1", 100))
    others = [gaussian(seed_key(2), "round 1", 100), gaussian(seed_key(1), "round 2", 100)]
    # What belongs to the key cannot be passed off as part of the purpose.
    others.append(gaussian(seed_key(1) + b"r", "ound 1", 100))
    assert all(abs(np.corrcoef(drawn, other)[0, 1]) < 0.5 for other in others)


def test_no_value_is_infinite_whatever_the_bits() -> None:
    assert all(np.isfinite(gaussian(b"", str(number), 1)).all() for number in range(1000))
    assert gaussian(b"", "", 0).shape == (0,)
