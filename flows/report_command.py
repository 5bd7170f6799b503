"""The command report: a run's summary again, or two runs side by side."""

from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from storage.comparison import Differences
    from storage.layout import Layout
    from storage.summaries import Summary


def report(
    run_id: Annotated[Optional[str], typer.Argument(help="A run or a sweep; the newest run if left out.")] = None,  # noqa: UP045
    other: Annotated[Optional[str], typer.Argument(help="A second run, to be compared with the first.")] = None,  # noqa: UP045
) -> None:
    """Show the summary of a finished run or sweep again, or what differs between two runs."""
    from storage.sweeps import RECORD, read_sweep, sweep_folder

    if other is None and run_id and (sweep_folder(run_id) / RECORD).is_file():
        from flows.sweep_command import show_sweep

        show_sweep(read_sweep(run_id))
        return
    if other is None:
        from flows.terminal import show_report

        show_report(run_id)
        return
    from flows.terminal import show_tables
    from storage.comparison import comparison_tables
    from storage.runs import summary_of

    one, two = summary_of(run_id or ""), summary_of(other)
    show_tables(comparison_tables(one, two, paired_differences(one, two)))


def paired_differences(one: "Summary", other: "Summary", layout: "Layout | None" = None) -> "Differences | None":
    """F1 of `other` minus F1 of `one` at each kind of threshold, resampled over the test windows that both have.

    None where the two were not judged by the same windows, or these have no anomalies.
    """
    from fl.bootstrap import f1_difference
    from storage.comparison import same_test_windows
    from storage.summaries import THRESHOLDS

    windows = same_test_windows(one, other, layout)
    if windows is None or not (windows["label"] == 1).any():
        return None
    labels = windows["label"].to_numpy()
    found = {}
    for kind in THRESHOLDS:
        first, second = one.findings.get(kind), other.findings.get(kind)
        if first and second:
            flags = (windows["score"] > first["threshold"]).to_numpy()
            others = (windows["score_other"] > second["threshold"]).to_numpy()
            difference = f1_difference(labels, others, flags)
            found[kind] = (difference.estimate, difference.low, difference.high)
    return found
