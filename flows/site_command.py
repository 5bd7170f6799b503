"""The command `atalaia site`."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from flows.site_rules import SiteRules


def site(
    logs: Annotated[str, typer.Option(help="The site's own log, plain or compressed.")],
    dataset: Annotated[str, typer.Option("--format", help="How its lines look: hdfs, bgl, or a .toml file.")],
    link: Annotated[str, typer.Option(metavar="HOST:PORT", help="The federation's link.")],
    certs: Annotated[Path, typer.Option(help="The site's folder of `atalaia certs`: ca.crt and site.key.")],
    name: Annotated[Optional[str], typer.Option(help="The site here; else as its folder of keys.")] = None,  # noqa: UP045 (typer reads it at run time)
    model: Annotated[Optional[str], typer.Option(help="A local directory with the base model.")] = None,  # noqa: UP045
    accept: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="HASH", help="Agree to the rules with this hash, without being asked."),
    ] = None,
    watch: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="A log to write alerts on, instead of the one learned from; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Alerts with raw lines: a .jsonl, .csv or .parquet file.")
    ] = None,
    audit: Annotated[bool, typer.Option("--audit/--no-audit", help="Keep a ledger of everything sent.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[Optional[int], typer.Option(min=1, help="Threads of the computation; else all cores.")] = None,  # noqa: UP045
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for a link that was never reached.")] = 300.0,
) -> None:
    """Take part in a federation beside the site's own logs, which never leave it; then write alerts.

    Exit status: 0 when the federation is done, 2 where the rules are not agreed to or something is wrong here.
    """
    from flows.server import quiet_environment
    from flows.settings import ConfigError
    from storage.layout import current

    host, colon, port = link.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ConfigError(f"--link {link}: write HOST:PORT, for example link.example.org:9092.")
    layout = current()
    quiet_environment(layout)
    _quiet_flower()
    from flows.site import run_site
    from flows.site_member import SiteSettings

    certs = certs.expanduser().resolve()
    settings = SiteSettings(
        name=name or certs.name,
        logs=logs,
        dataset=dataset,
        link=link,
        certs=certs,
        model=model,
        watch=tuple(watch or ()),
        output=output,
        audit=audit,
        device=device,
        threads=threads,
        wait=wait,
    )

    def agree(rules: "SiteRules", digest: str, changed: list[str], number: int) -> bool:
        return _agreed(rules, digest, changed, number, link, accept)

    outcome = run_site(settings, layout, agree, _tell)
    sent = f"{outcome.bytes_sent / 1e6:.2f} MB sent in all"
    print(f"Done. Rounds: {outcome.rounds}; alerts: {outcome.alerts:,}, in {outcome.output}; {sent}.", flush=True)
    if outcome.ledger:
        print(f"Everything sent is listed in {outcome.ledger}.", flush=True)


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _agreed(rules: "SiteRules", digest: str, changed: list[str], number: int, link: str, accept: str | None) -> bool:
    from flows.terminal_sites import show_rules

    given = accept is not None and len(accept) >= 12 and digest.startswith(accept.lower())
    show_rules(rules, digest, changed, number, link)
    if given:
        print("Agreed to, as --accept says.", flush=True)
        return True
    if accept is not None or not sys.stdin.isatty():
        return False
    return typer.confirm("Take part by these rules?", default=False)


def _quiet_flower() -> None:
    """Flower's log lines say nothing to an operator that is not told here."""
    import logging
    import os

    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
