"""Task: make a registered detector the champion of its logs where it is better than the one there is."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect import task

from fl.promotion import MARGIN, Decision
from storage.errors import DataError, RegistryError
from storage.registry import CHALLENGER, CHAMPION, Version, find_version, keep_with_run, make_champion, tag_version
from tasks.compare_detectors import compare


@dataclass(frozen=True)
class Promotion:
    """What became of a version that asked for the title."""

    name: str
    version: str
    promoted: bool
    line: str
    """What happened and why."""


@task(name="promote")
def promote_detector(name: str, wanted: str = CHALLENGER, margin: float = MARGIN) -> dict[str, Any]:
    """Make the challenger the champion if it beats it; what happened, as plain values."""
    return vars(promote(name, wanted, margin))


def promote(name: str, wanted: str = CHALLENGER, margin: float = MARGIN, *, force: bool = False) -> Promotion:
    """Compare a version (an alias or a number) with the champion on its own validation windows, and act on it.

    The first of its logs has to beat the untouched model. The comparison is kept with the version's run. Raises
    RegistryError where there is no such version, or the two cannot be judged on the same windows; with `force` it is
    promoted then too.
    """
    version, champion = find_version(name, wanted), find_version(name, CHAMPION)
    if version is None:
        raise RegistryError(f"{name} has no version {wanted!r}: `atalaia run` registers one as {CHALLENGER}.")
    if champion is not None and champion.version == version.version:
        return Promotion(name, version.version, False, f"{version.called} is the champion already.")
    decision = _forced(version, champion, margin) if force else compare(version, champion, margin)
    won = decision.wins or force
    verb = "is champion now" if won else "stays what it is"
    told = f"{version.called} {verb}: {decision.line}{', promoted by force' if force and not decision.wins else ''}."
    _keep(version, champion, decision, told, won)
    if won:
        make_champion(version)
    return Promotion(name, version.version, won, told)


def _forced(version: Version, champion: Version | None, margin: float) -> Decision:
    """The comparison where one is possible."""
    try:
        return compare(version, champion, margin)
    except DataError as error:
        return Decision(False, str(error).rstrip("."), {"how": "not compared"})


def _keep(version: Version, champion: Version | None, decision: Decision, told: str, won: bool) -> None:
    against = f"version-{champion.version}" if champion else "untouched-model"
    content = {"line": told, "promoted": won, **decision.figures}
    keep_with_run(version, content, f"comparison/against-{against}.json")
    when = {"promoted": datetime.now(UTC).isoformat(timespec="seconds")} if won else {}
    tag_version(version, {"comparison": told, **when})
