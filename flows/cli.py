"""The command `atalaia`: runs the flows, and shows what they left."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from flows.certs_command import certs
from flows.compare_command import compare
from flows.detect_command import detect
from flows.export_command import export
from flows.latency_command import latency
from flows.link_command import superlink
from flows.promote_command import detectors, promote, rollback
from flows.report_command import report
from flows.services_commands import down, status, up
from flows.site_command import site
from flows.sweep_command import sweep

if TYPE_CHECKING:
    from flows.config import RunConfig

app = typer.Typer(
    help="Learns what normal logs look like, and points at what is not normal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

BASELINES = "baselines"
"""The stage that a run without learned baselines does not have."""
PREPARE = ("download", "window", "mask", "model", "tokenize", "split", "partition")
TRAIN = (*PREPARE, "train")
EVALUATE = (*TRAIN, "score", BASELINES, "evaluate", "explain")
RUN = (*EVALUATE, "compare", "costs", "figures", "report", "register")
"""The stages of each command, in order."""

_INTERRUPTED = 130
"""The status that Click gives to Ctrl-C."""

Preset = Annotated[str, typer.Argument(help="A named run: demo, hdfs-2pct or paper.")]
Settings = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads it at run time)
    typer.Argument(metavar="[KEY=VALUE]...", help="What differs, for example rounds=6 source=HDFS_1.tar.gz."),
]


StartFrom = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="A registered detector to train on from, or with rounds=0 to judge: models:/hdfs@champion."),
]


@app.command()
def run(preset: Preset, settings: Settings = None, start_from: StartFrom = None) -> None:
    """The whole experiment: prepare, train, score, judge, report and register."""
    with flow_run(preset, settings, RUN) as config:
        from flows.experiment import experiment

        run_id = experiment(config, start_from)
    from flows.terminal import show_report

    show_report(run_id)


@app.command()
def prepare(preset: Preset, settings: Settings = None) -> None:
    """Only the data: download, window, mask, tokenize, split and partition."""
    with flow_run(preset, settings, PREPARE) as config:
        from flows.prepare import prepare as flow

        flow(config)


@app.command()
def train(preset: Preset, settings: Settings = None) -> None:
    """Up to the trained adapters."""
    with flow_run(preset, settings, TRAIN) as config:
        from flows.train import train as flow

        flow(config)


@app.command()
def evaluate(preset: Preset, settings: Settings = None) -> None:
    """Up to scores, thresholds and metrics; no report, nothing registered."""
    with flow_run(preset, settings, EVALUATE) as config:
        from flows.evaluate import evaluate as flow

        flow(config)


@app.command()
def settings(preset: Annotated[str, typer.Argument(help="A named run.")] = "paper") -> None:
    """Everything that can be set, with the preset's values."""
    from flows.settings import run_config

    print(run_config(preset, []).model_dump_json(indent=2))


@app.command()
def runs(as_json: Annotated[bool, typer.Option("--json", help="A JSON list on stdout, newest last.")] = False) -> None:
    """List the runs, newest last."""
    from storage.runs import list_runs

    found = list_runs()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from flows.terminal import show_runs

    show_runs(found)


@app.command()
def query(
    sql: Annotated[Optional[str], typer.Argument(help="A DuckDB query over the views.")] = None,  # noqa: UP045
    view: Annotated[Optional[str], typer.Option("--view", help="Show a view: rounds, clients, scores, ...")] = None,  # noqa: UP045
) -> None:
    """Ask DuckDB about rounds, clients, scores, metrics and costs of all runs."""
    from flows.terminal import show_query

    show_query(sql, view)


for command in (
    up,
    down,
    status,
    promote,
    rollback,
    compare,
    detectors,
    export,
    detect,
    report,
    sweep,
    latency,
    certs,
    superlink,
    site,
):
    app.command()(command)


@contextmanager
def flow_run(preset: str, settings: list[str] | None, steps: tuple[str, ...]) -> Iterator["RunConfig"]:
    """The run's configuration, with a server to report to and the terminal showing what happens."""
    from flows.server import prefect_server, quiet_terminal
    from storage.layout import current

    quiet_terminal(current())
    from flows.settings import run_config
    from flows.terminal import showing_progress
    from flows.timing import timing
    from flows.warm_up import while_the_server_starts

    config = run_config(preset, settings or [])
    if not config.baselines.methods:
        steps = tuple(step for step in steps if step != BASELINES)
    meanwhile = while_the_server_starts(current(), config.model.name)
    with timing(), showing_progress(config, steps), prefect_server(current(), meanwhile):
        yield config


def main() -> None:
    """Run the command line; what went wrong is one line on stderr and exit status 2."""
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        if _is_expected(error):
            _end(str(error), 2)
        raise
    if status == _INTERRUPTED:
        _end("Stopped; the same command goes on from what is already done.", _INTERRUPTED)
    sys.exit(status or 0)


def _is_expected(error: Exception) -> bool:
    """Whether an error's message was written for people."""
    import click

    from fl.errors import LearningError
    from storage.errors import DataError

    if isinstance(error, click.ClickException | DataError | LearningError):
        return True
    return type(error).__name__ == "ConfigError"


def _end(message: str, status: int) -> None:
    print(f"atalaia: {message}", file=sys.stderr)
    sys.exit(status)
