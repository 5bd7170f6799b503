"""How much time has passed along a log, by the times that its lines tell: what only goes forward, whatever they do.

Clocks are set back (daylight saving, a corrected clock, the turn of a year or a day that a line does not name), and
single lines tell times of other years. Neither may end windows that still grow, nor keep others open for ever.
"""

import numpy as np

_FAR = 86_400.0
"""Seconds forward that one line alone does not prove."""
_BLOCK = 1024
"""Lines looked at together: a log that jumps all the time costs so many comparisons a line."""


class LogClock:
    """Seconds along a log. `patience`: seconds that a line may be behind others, as lines of several threads are."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self.elapsed = 0.0
        """Seconds since the first line that told a time."""
        self._latest: float | None = None
        self._doubtful: float | None = None

    def read(self, times: np.ndarray) -> np.ndarray:
        """What the clock says at each of the next lines; times in seconds (float64), NaN where a line tells none.

        Steps forward count, lines somewhat behind do not. A step back by more than the patience, or forward by more
        than a day, is believed once a second line agrees: a step back starts anew from there, without time passing.
        """
        said = np.full(len(times), np.nan)
        known, before, place = np.flatnonzero(~np.isnan(times)), self.elapsed, 0
        while place < len(known):
            lines = known[place : place + _BLOCK]
            usual = self._step(times[lines], said, lines)
            place += usual
            if usual < len(lines):
                self._jump(float(times[lines[usual]]))
                said[lines[usual]] = self.elapsed
                place += 1
        return np.fmax.accumulate(np.concatenate([[before], said]))[1:]

    def _step(self, times: np.ndarray, said: np.ndarray, lines: np.ndarray) -> int:
        """Take in times up to the first that jumps; how many there were."""
        start = float(times[0]) if self._latest is None else self._latest
        latest = np.maximum.accumulate(np.concatenate([[start], times]))
        steps = times - latest[:-1]
        jumps = (steps > _FAR) | (steps < -self._patience)
        usual = int(jumps.argmax()) if jumps.any() else len(times)
        self._latest = float(latest[usual])
        if usual:
            passed = self.elapsed + (latest[1 : usual + 1] - start)
            said[lines[:usual]], self.elapsed, self._doubtful = passed, float(passed[-1]), None
        return usual

    def _jump(self, time: float) -> None:
        """Believe in a jump where the line before has jumped to the same place."""
        assert self._latest is not None  # _step has seen this line
        if self._doubtful is None or not -self._patience <= time - self._doubtful <= _FAR:
            self._doubtful = time
            return
        self.elapsed += max(0.0, time - self._latest)
        self._latest, self._doubtful = time, None
