"""The commands promote, rollback and detectors: which registered detector is used."""

import json
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from storage.registry import Version

_NOT_PROMOTED = 1
"""Exit status of `atalaia promote` where the challenger does not win."""

Name = Annotated[
    Optional[str],  # noqa: UP045 (typer reads it at run time)
    typer.Argument(help="The logs that the detector is for, such as hdfs; may be left out where there is only one."),
]


def promote(
    name: Name = None,
    version: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A version's number; the challenger if left out."),
    ] = None,
    margin: Annotated[
        float, typer.Option(min=0, help="How much better it must be: in F1, without labels as a share of the loss.")
    ] = 0.01,
    force: Annotated[bool, typer.Option(help="Promote it whatever the comparison says.")] = False,
) -> None:
    """Make the challenger the champion if it beats the champion there is (the untouched model, if there is none)."""
    from flows.server import quiet_environment
    from storage.layout import current
    from storage.registry import CHALLENGER, only_name

    quiet_environment(current())
    from tasks.promote_detector import promote as decide

    found = decide(only_name(name), version or CHALLENGER, margin, force=force)
    print(found.line)
    if not found.promoted:
        raise typer.Exit(_NOT_PROMOTED)


def rollback(name: Name = None) -> None:
    """Give the title back to the champion before; a second call changes nothing."""
    from flows.server import quiet_environment
    from storage.layout import current
    from storage.registry import only_name, roll_back

    quiet_environment(current())
    champion, lost = roll_back(only_name(name))
    if lost is None:
        print(f"{champion.called} is the champion already, since a rollback; nothing was changed.")
    else:
        print(f"{champion.called} is champion again, in the place of version {lost.version}.")


def detectors(
    name: Name = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list on stdout, newest first.")] = False,
) -> None:
    """List the registered detectors with the runs, pages, rounds and data they came from."""
    from flows.server import quiet_environment
    from storage.layout import current
    from storage.registry import model_names, only_name, versions_of

    quiet_environment(current())
    names = [only_name(name)] if name else model_names()
    found = [version for each in names for version in versions_of(each)]
    if as_json:
        print(json.dumps([_row(version) for version in found], indent=1))
        return
    from flows.terminal_detectors import show_detectors

    show_detectors(found)


def _row(version: "Version") -> dict[str, object]:
    return {
        "name": version.name,
        "version": version.version,
        "uri": version.uri,
        "aliases": list(version.aliases),
        "registered": version.registered,
        "description": version.description,
        "mlflow_run_id": version.run_id,
        **version.tags,
    }
