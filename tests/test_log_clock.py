"""The clock along a log equals a plain count line by line, and only ever goes forward."""

import numpy as np
import pytest

from storage.log_clock import LogClock

DAY = 86_400.0


def counted(times: list[float | None], patience: float) -> list[float]:
    """What passes along a log, line by line: steps forward; jumps once two lines agree."""
    latest: float | None = None
    doubtful: float | None = None
    passed, said = 0.0, []
    for time in times:
        if time is not None:
            if latest is None:
                latest = time
            if -patience <= time - latest <= DAY:
                passed += max(0.0, time - latest)
                latest, doubtful = max(latest, time), None
            elif doubtful is not None and -patience <= time - doubtful <= DAY:
                passed += max(0.0, time - latest)
                latest, doubtful = time, None
            else:
                doubtful = time
        said.append(passed)
    return said


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("jumps", [0.0, 0.02, 0.5])
def test_the_clock_equals_a_count_line_by_line_however_the_log_is_cut(seed: int, jumps: float) -> None:
    random = np.random.default_rng(seed)
    steps = random.uniform(-3, 6, 3000)
    far = random.random(3000) < jumps
    steps[far] = random.choice([-4 * DAY, -3600, -90, 90, 3600, 4 * DAY], far.sum())
    times = np.round(1e9 + np.cumsum(steps), 3)
    times[random.random(3000) < 0.1] = np.nan
    clock, said, place = LogClock(60.0), [], 0
    while place < len(times):
        size = int(random.integers(1, 1500))
        said += clock.read(times[place : place + size]).tolist()
        place += size
    expected = counted([None if np.isnan(time) else float(time) for time in times], 60.0)
    assert np.allclose(said, expected, atol=1e-3)
    assert np.diff(said).min() >= 0
    assert clock.elapsed == said[-1]


def test_a_log_without_times_stands_still() -> None:
    clock = LogClock(60.0)
    assert clock.read(np.full(5, np.nan)).tolist() == [0.0] * 5
    assert clock.read(np.array([])).tolist() == []
