"""The command `atalaia detect`."""

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from storage.alerts import FoundAlert
    from storage.detection import DetectConfig, Outcome

Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="Logs, plain or compressed; a folder of them; or -")
]


def detect(
    files: Files,
    model: Annotated[
        Optional[str],  # noqa: UP045 (typer reads it at run time)
        typer.Option(help="models:/NAME@champion, NAME, or a detector's folder; else the newest registered."),
    ] = None,
    run: Annotated[Optional[str], typer.Option(help="A run of this home, to use its detector.")] = None,  # noqa: UP045
    output: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--output", "-o", help="Alerts with raw lines: a .jsonl, .csv or .parquet file."),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Keep the file, add only alerts it lacks.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Alerts as JSON Lines on stdout, all else on stderr.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Read on as the log grows, until Ctrl-C.")] = False,
    gap: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Seconds without a line that end a session (--follow, --leave-open: 300); else the input's end."
        ),
    ] = None,
    leave_open: Annotated[
        bool, typer.Option("--leave-open", help="Leave windows that may still grow unjudged at the end.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="Kinds of alerts shown here.")] = 5,
    explain: Annotated[int, typer.Option(min=0, help="Kinds of alerts that get reasons, in each batch.")] = 20,
    raw_lines: Annotated[int, typer.Option(min=0, help="Raw lines kept of an alert.")] = 100,
    most_misread: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unreadable lines above which the log does not fit.")
    ] = 0.5,
    memory: Annotated[int, typer.Option(min=1, help="MB that open windows may take.")] = 1024,
    fail_on_alerts: Annotated[bool, typer.Option("--fail-on-alerts", help="Exit status 1 if there are any.")] = False,
) -> None:
    """Judge raw logs: alerts with their raw lines, how unusual they are, and what surprised the model most.

    Exit status: 0 whether or not there are alerts (1 with --fail-on-alerts), 2 for wrong input.
    """
    from pydantic import ValidationError

    from flows.server import quiet_environment
    from flows.settings import ConfigError
    from storage.detection import DetectConfig
    from storage.layout import current

    quiet_environment(current())
    settings: dict[str, Any] = {
        "files": files,
        "model": model,
        "run": run,
        "output": "-" if as_json else output,
        "append": append,
        "follow": follow,
        "gap": gap,
        "leave_open": leave_open,
        "explain": explain,
        "raw_lines": raw_lines,
        "most_misread": most_misread,
        "memory_mb": memory,
    }
    if as_json and output:
        raise ConfigError("--json writes alerts to standard output: leave --output out, or write there without --json.")
    try:
        config = DetectConfig.model_validate(settings)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"{fault['loc'][0]} = {fault['input']!r}: {fault['msg']}.") from error
    outcome = _detected(config, show)
    if fail_on_alerts and outcome.verdict.alerts:
        raise typer.Exit(1)


def _detected(config: "DetectConfig", show: int) -> "Outcome":
    """Detect, and show what was found: on stderr where alerts go to stdout."""
    import signal

    from rich.console import Console

    from flows.terminal_detection import alert_title, alert_view, outcome_view, showing_work
    from storage.progress import silent
    from tasks.detect_anomalies import detect_anomalies

    page = _page(config)

    def tell(alert: "FoundAlert") -> None:
        page.print(alert_view(alert, alert_title(alert)))

    try:
        if config.follow:
            # A service manager's stop is as good an end as Ctrl-C.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            outcome = detect_anomalies(config, tell if show else None, silent)
        else:
            with showing_work(Console(stderr=True)) as progress:
                outcome = detect_anomalies(config, None, progress)
        page.print(outcome_view(outcome, 0 if config.follow else show))
    except BrokenPipeError:
        # Whoever reads has seen enough; what is left in the buffer must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    return outcome


def _page(config: "DetectConfig") -> "Console":
    from rich.console import Console

    on_stderr = config.output == "-"
    terminal = (sys.stderr if on_stderr else sys.stdout).isatty()
    return Console(stderr=on_stderr, highlight=False, width=None if terminal else 120)
