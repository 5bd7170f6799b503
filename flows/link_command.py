"""The command `atalaia superlink`."""

import time
from pathlib import Path
from typing import Annotated, Optional

import typer


def superlink(
    preset: Annotated[str, typer.Argument(help="A named run: demo, hdfs-2pct or paper.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads it at run time)
        typer.Argument(metavar="[KEY=VALUE]...", help="What differs, for example rounds=6 dataset.name=app.toml."),
    ] = None,
    certs: Annotated[Path, typer.Option(help="The link's folder of `atalaia certs`.")] = Path("certs/link"),
    host: Annotated[str, typer.Option(help="Address that sites connect to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port that sites connect to.")] = 9092,
    control_port: Annotated[int, typer.Option(help="For this machine only: where runs are started.")] = 9093,
    app_port: Annotated[int, typer.Option(help="For this machine only: where the server app talks.")] = 9091,
    model_port: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Give the base model to the sites at this port; else each site has it itself."),
    ] = None,
    join_seconds: Annotated[float, typer.Option(help="Seconds to wait for missing sites.")] = 600.0,
    patience: Annotated[float, typer.Option(help="Seconds without a new round after which to give up.")] = 3600.0,
    rules_only: Annotated[bool, typer.Option("--rules", help="Show the rules and their hash, and start nothing.")] = (
        False
    ),
) -> None:
    """Run the link of a federation of sites until its last round; the same command goes on where it was stopped.

    TLS and the sites' keys are always asked for.
    """
    from pydantic import ValidationError

    from flows.server import quiet_environment
    from flows.settings import ConfigError
    from storage.layout import current

    layout = current()
    quiet_environment(layout)
    from flows.link import LinkRun, LinkSettings
    from flows.settings import run_config
    from flows.site_rules import federation_rules

    try:
        link = LinkSettings(
            certs=certs.expanduser().resolve(),
            host=host,
            port=port,
            control_port=control_port,
            app_port=app_port,
            model_port=model_port,
            join_seconds=join_seconds,
            patience=patience,
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"--{str(fault['loc'][0]).replace('_', '-')} {fault['input']}: {fault['msg']}.") from error
    rules, model = federation_rules(run_config(preset, settings or []), link.certs, model_port, layout)
    if rules_only:
        from flows.terminal_sites import show_rules

        show_rules(rules, rules.sha256, [], None, link.address)
        return
    run = LinkRun(rules, link, layout, _tell, model)
    _show(run.run(), run.names)


def _show(folder: Path, names: list[str]) -> None:
    from flows.terminal_sites import sites_table
    from storage.site_numbers import read_numbers

    rows = read_numbers(folder)
    print(f"\nDone: {folder}")
    if rows:
        print("\n".join(sites_table(rows, names, rows[-1]["round"])))


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
