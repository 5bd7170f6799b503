"""The commands up, down and status: Prefect, MLflow and the workers of this machine."""

import json
from typing import Annotated, Optional

import typer

_SHOWN_RUNS = 5
_NOT_WELL = 1
"""Exit status of `atalaia status` where something that should run does not."""


def up(
    host: Annotated[str, typer.Option(help="Address to listen at; any but loopback lets other machines in.")] = (
        "127.0.0.1"
    ),
    prefect_port: Annotated[int, typer.Option(help="Prefect's port.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="MLflow's port.")] = 5000,
    database: Annotated[
        Optional[str],  # noqa: UP045 (typer reads it at run time)
        typer.Option(envvar="ATALAIA_DATABASE", help="postgresql://USER@HOST/DATABASE for both; SQLite if left out."),
    ] = None,
    gpu: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--gpu/--no-gpu", help="Workers of the gpu pool; if left out, one for each GPU."),
    ] = None,
    cpu_runs: Annotated[int, typer.Option(help="Runs that the worker of the cpu pool takes at a time.")] = 2,
    deploy: Annotated[bool, typer.Option("--deploy/--no-deploy", help="Bring prefect.yaml to the server.")] = True,
    lost_after: Annotated[int, typer.Option(help="Seconds of silence after which a run counts as crashed.")] = 180,
    foreground: Annotated[bool, typer.Option(help="Stay in this terminal, as systemd wants it.")] = False,
) -> None:
    """Start Prefect, MLflow and the workers here, and keep them running until `atalaia down`."""
    from flows.operations import bring_up, settings_of
    from flows.terminal_services import show_status, showing_start

    settings = settings_of(
        host=host,
        prefect_port=prefect_port,
        mlflow_port=mlflow_port,
        database=database,
        gpu=gpu,
        cpu_runs=cpu_runs,
        deploy=deploy,
        lost_after=lost_after,
    )
    with showing_start() as tell:
        bring_up(settings, tell, foreground=foreground)
    if not foreground:
        show_status(_report())


def down() -> None:
    """Stop Prefect, MLflow, the workers and whatever they started."""
    from flows.operations import bring_down

    left = bring_down()
    print(f"Down; {left} processes were left over and ended." if left else "Down.")


def status(as_json: Annotated[bool, typer.Option("--json", help="A JSON object on stdout.")] = False) -> None:
    """Addresses, health and the last runs; the exit status is 0 where everything is well, else 1."""
    report = _report()
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        from flows.terminal_services import show_status

        show_status(report)
    if not report["healthy"]:
        raise typer.Exit(_NOT_WELL)


def _report() -> dict[str, object]:
    from flows.operations import status_report

    return status_report(_SHOWN_RUNS)
