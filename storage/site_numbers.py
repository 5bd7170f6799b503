"""What the sites of a federation tell of themselves, round by round, beside the rounds of a run.

federation.json   what the server needs beside its job: rules, sites with their nodes, which rounds are judged
sites.jsonl       one line a site and round: the numbers it declared
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.disks import append_whole, unwritten
from storage.errors import StorageError

FEDERATION, NUMBERS = "federation.json", "sites.jsonl"


@dataclass(frozen=True)
class FederationOfSites:
    """Who takes part by which rules."""

    rules: str
    """As JSON; the server hands them on unread."""
    nodes: dict[int, int]
    """The node of each partition, by its registered key."""
    names: tuple[str, ...]
    """The sites' names by partition."""
    judged_rounds: str | int
    """`all`, `last`, or every n-th round."""
    join_seconds: float
    """How long to wait for missing sites."""
    model_folder: str
    """Where the base model lies on the link's machine."""

    def judges(self, number: int, last: int) -> bool:
        """Whether the sites judge a round's adapter."""
        return is_judged_after(self.judged_rounds, number, last)


def is_judged_after(judged_rounds: str | int, number: int, last: int) -> bool:
    """Whether the sites judge the adapter of round `number` of `last`, where `judged_rounds` are to be judged."""
    if number == last or judged_rounds == "all":
        return True
    return isinstance(judged_rounds, int) and number % judged_rounds == 0


def save_federation(run_folder: Path, federation: FederationOfSites) -> None:
    """Put what the server needs into the run's folder."""
    path = run_folder / FEDERATION
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(federation), indent=1))
    temporary.replace(path)


def load_federation(run_folder: Path) -> FederationOfSites:
    """What `save_federation` put there; raises StorageError where it is not."""
    try:
        facts = json.loads((run_folder / FEDERATION).read_text())
        facts["nodes"] = {int(partition): int(node) for partition, node in facts["nodes"].items()}
        return FederationOfSites(**{**facts, "names": tuple(facts["names"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{run_folder} holds no federation of sites; start one with atalaia superlink.") from error


def append_numbers(run_folder: Path, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add a round's rows, each with the site's partition, by one write; they are on the disk when this returns."""
    text = "".join(json.dumps({"round": number, **row}) + "\n" for row in rows)
    try:
        append_whole(run_folder / NUMBERS, text.encode(), through=True)
    except OSError as error:
        raise unwritten(error, f"the sites' numbers of round {number} were not kept in {run_folder}") from error


def read_numbers(run_folder: Path) -> list[dict[str, Any]]:
    """All rows; of a round told twice (the server was killed after it) the later."""
    try:
        lines = (run_folder / NUMBERS).read_text().splitlines()
    except FileNotFoundError:
        return []
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for line in lines:
        try:
            row = json.loads(line)
            found[int(row["round"]), int(row["partition"])] = row
        except (ValueError, KeyError, TypeError):
            continue  # the end of a line that a full disk cut off
    return [found[key] for key in sorted(found)]


def worst_site(rows: Sequence[Mapping[str, Any]], number: int) -> Mapping[str, Any] | None:
    """The site that a round's adapter fits worst: the highest loss of its calibration windows; None without any."""
    told = [row for row in rows if row["round"] == number]
    return max(told, key=lambda row: (row["loss"], -row["partition"])) if told else None
