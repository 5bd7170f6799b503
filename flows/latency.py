"""Flow: the paper's Table 3 on this machine, SmolLM's shapes timed as the paper did and as Atalaia scores."""

from collections.abc import Iterable

from prefect import flow

from fl.costs import SMOLLM
from fl.devices import gpus
from fl.errors import LearningError, ModelError
from fl.shape_latency import RANDOM, SHAPES, TimingJob, usual_samples
from flows.config import RunConfig
from flows.prepare import prepare_data
from flows.settings import ConfigError
from storage.latencies import keep_timings, timings_table
from storage.layout import current
from storage.report_tables import markdown_table
from storage.runs import hardware, read_json, versions
from tasks.time_shapes import FIGURES, TIMINGS, WAYS, timing_name

SIZES = tuple(SMOLLM)


@flow(name="latency", flow_run_name="latency", persist_result=False)
def latency(
    config: RunConfig, sizes: list[str] | None = None, windows: int | None = None, repeats: int = 3
) -> list[str]:
    """Time each shape in each way, on test windows of the run's log; the files with the figures.

    Going on after one that fails; raises ModelError at the end where one did, and ConfigError for a size unknown.

    Args:
        config: What says which log is read and how, how it is split, and on which device.
        sizes: 135M, 360M, 1.7B, or tiny to try it; all three of SmolLM where none is named.
        windows: How many test windows; else 1,000 on a GPU, and on a CPU 1,000, 200 and 30 by size.
        repeats: How often all windows are scored together.
    """
    chosen = known_sizes(sizes or SIZES)
    prepared, device = prepare_data(config), device_of(config)
    facts = {**hardware(), "gpus": gpus()[1], "torch": versions()["torch"]}
    timed, failed = [], []
    for shape in chosen:
        samples = windows or usual_samples(shape, device)
        for way in WAYS:
            # The paper's figures are of float32, see fl/shape_latency.py; what Atalaia scores with, the device decides.
            job = TimingJob(shape, way, "float32" if way == "padded" else None, device, samples, repeats)
            name = timing_name(shape, way)
            try:
                found = TIMINGS[name](prepared.tokenized, prepared.split, job, facts, name)
            except LearningError as error:
                failed.append(str(error))
            else:
                timed.append((shape, way, read_json(found.file(FIGURES))))
    files = keep_timings(config.dataset.name, RANDOM, timed, current())
    _tell([markdown_table(timings_table(path)) for path in files])
    if failed:
        raise ModelError("; ".join(failed))
    return [str(path) for path in files]


def known_sizes(sizes: Iterable[str]) -> list[str]:
    """The sizes, once each; raises ConfigError for one that is not known."""
    chosen = list(dict.fromkeys(size.strip() for size in sizes))
    if unknown := [size for size in chosen if size not in SHAPES]:
        raise ConfigError(f"There is no shape {unknown[0]!r}; give some of {', '.join(SHAPES)}.")
    return chosen


def device_of(config: RunConfig) -> str:
    """The device that a run's models go to."""
    asked = config.model.device
    return asked if asked != "auto" else "cuda" if gpus()[0] else "cpu"


def _tell(tables: list[str]) -> None:
    from prefect.artifacts import create_markdown_artifact

    if tables:
        create_markdown_artifact("\n".join(tables), key="latency", description="Table 3 of the paper on this machine")
