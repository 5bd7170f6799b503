"""Bootstrap intervals against resampling window by window."""

import numpy as np
import pytest
from sklearn import metrics

from fl.bootstrap import f1_difference, f1_interval
from fl.errors import ScoreError
from fl.thresholds import Detection, metrics_at


def test_the_bootstrap_interval_equals_resampling_window_by_window() -> None:
    generator = np.random.default_rng(3)
    labels = (generator.random(400) < 0.2).astype(int)
    flags = (labels + generator.normal(0, 0.6, 400)) > 0.5
    other = (labels + generator.normal(0, 0.9, 400)) > 0.5
    drawn = []
    for _ in range(3000):
        rows = generator.integers(0, 400, 400)
        drawn.append([metrics_at(f[rows], labels[rows], 0.5).f1 for f in (flags, other)])
    plain = np.array(drawn)
    single = f1_interval(metrics_at(flags, labels, 0.5), samples=20_000)
    paired = f1_difference(labels, flags, other, samples=20_000)
    assert single.estimate == pytest.approx(metrics.f1_score(labels, flags))
    assert (single.low, single.high) == pytest.approx(np.quantile(plain[:, 0], [0.025, 0.975]), abs=0.012)
    difference = plain[:, 0] - plain[:, 1]
    assert (paired.low, paired.high) == pytest.approx(np.quantile(difference, [0.025, 0.975]), abs=0.012)


def test_a_detector_differs_from_itself_by_nothing() -> None:
    labels, flags = np.array([0, 1, 1, 0]), np.array([True, True, False, False])
    same = f1_difference(labels, flags, flags)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    found = metrics_at(flags, labels, 0.5)
    assert f1_interval(found, seed=4) == f1_interval(found, seed=4)


def test_an_interval_of_nothing_is_an_error() -> None:
    with pytest.raises(ScoreError, match="No labelled windows"):
        f1_interval(Detection(0, 0, 0, 0))
    with pytest.raises(ScoreError, match="No labelled windows"):
        f1_difference([], [], [])
