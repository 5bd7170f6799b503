"""How long work tells what is done and what is left."""

from typing import Protocol


class Progress(Protocol):
    """Called by long work now and then; must be cheap and never raise."""

    def __call__(self, done: float, total: float | None, note: str = "") -> None:
        """Tell that `done` of `total` (None: not known) units are done; `note` says of what, in a few words."""


def silent(done: float, total: float | None, note: str = "") -> None:
    """Tell nobody."""
