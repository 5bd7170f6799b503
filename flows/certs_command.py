"""The command `atalaia certs`."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def certs(
    folder: Annotated[Path, typer.Argument(help="Where the authority, the link's files and each site's lie.")],
    site: Annotated[Optional[list[str]], typer.Option(help="A site to make keys for; may be repeated.")] = None,  # noqa: UP045 (typer reads it at run time)
    address: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A name or address of the link, beside those of loopback; may be repeated."),
    ] = None,
    key: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME=FILE", help="A site that made its keys itself, and its public key."),
    ] = None,
) -> None:
    """Make a test authority, the link's certificate, and keys for sites; what is there is kept."""
    from flows.settings import ConfigError
    from storage.certificates import issue, registered_sites

    keys = {}
    for given in key or []:
        name, equals, file = given.partition("=")
        if not equals or not file:
            raise ConfigError(f"--key {given}: write NAME=FILE, for example north=north.pub.")
        keys[name] = Path(file).expanduser()
    folder = folder.expanduser()
    issued = issue(folder, site or [], address or [], keys)
    if issued.authority:
        print(f"{folder / 'authority'}: the authority; keep ca.key there, nobody else needs it")
    print(f"{folder / 'link'}: for the link (atalaia superlink --certs)")
    registered = registered_sites(folder / "link") if site or key or (folder / "link" / "sites.json").is_file() else []
    for found in registered:
        place = folder / "sites" / found.name
        where = f"{place}: for the site" if place.is_dir() else "its own keys: site"
        print(f"{where} {found.name}, number {found.number}{' (new)' if found.name in issued.sites else ''}")
