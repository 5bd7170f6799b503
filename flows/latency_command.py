"""The command latency: the paper's Table 3 on this machine."""

from pathlib import Path
from typing import Annotated, Optional

import typer


def latency(
    preset: Annotated[str, typer.Argument(help="A named run, whose log is read: demo, hdfs-2pct or paper.")],
    settings: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads it at run time)
        typer.Argument(metavar="[KEY=VALUE]...", help="What differs, for example source=HDFS_1.tar.gz device=cpu."),
    ] = None,
    sizes: Annotated[str, typer.Option(help="Which shapes of SmolLM; tiny tries it.")] = "135M,360M,1.7B",
    windows: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Test windows to time; else 1000 on a GPU, and on a CPU 1000, 200 and 30 by size."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often all windows are scored together.")] = 3,
) -> None:
    """Time of a window and peak memory for SmolLM's shapes, with random weights: the paper's Table 3."""
    from flows.server import quiet_terminal
    from storage.layout import current

    # Before Prefect is imported.
    quiet_terminal(current())
    from flows.cli import PREPARE, flow_run
    from flows.latency import known_sizes
    from flows.latency import latency as flow
    from flows.terminal import show_tables
    from storage.latencies import timings_table
    from tasks.time_shapes import timing_names

    chosen = known_sizes(sizes.split(","))
    steps = (*PREPARE, *timing_names(chosen))
    with flow_run(preset, settings, steps) as config:
        files = flow(config, chosen, windows, repeats)
    show_tables([timings_table(Path(file)) for file in files])
