"""What runs there are: the record each keeps in its folder from its start to its end."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from storage.errors import DataError, FormatError
from storage.layout import Layout, current
from storage.summaries import RunFacts, Summary, load_summary, run_row

RECORD = "run.json"
REPORT = "report.json"
VERSION = "detector.json"
"""Which registered version the run became."""
_DECIDING = ("torch", "transformers", "peft", "flwr", "tokenizers", "polars", "numpy")
"""Libraries whose version can change a number."""


def record_run(facts: RunFacts, layout: Layout | None = None) -> None:
    """Write the run's record into its folder, in one step."""
    _write((layout or current()).run(facts.run_id) / RECORD, facts.model_dump_json(indent=1))


def record_version(run_id: str, name: str, version: str, layout: Layout | None = None) -> None:
    """Write into the run's folder which version of which registered model it became, in one step."""
    _write((layout or current()).run(run_id) / VERSION, json.dumps({"name": name, "version": version}))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text)
    temporary.replace(path)


def read_record(run_id: str, layout: Layout | None = None) -> RunFacts:
    """The record of a run; raises DataError where there is none."""
    path = (layout or current()).run(run_id) / RECORD
    try:
        return RunFacts.model_validate_json(path.read_text())
    except FileNotFoundError:
        known = ", ".join(facts.run_id for facts in records(layout)[-5:]) or "none yet"
        raise DataError(f"There is no run {run_id!r}; the newest are: {known}.") from None
    except ValidationError as error:
        raise FormatError(f"{path} cannot be read ({error.errors()[0]['msg']}); run the experiment again.") from None


def records(layout: Layout | None = None) -> list[RunFacts]:
    """The records of all runs, newest last; folders without a readable one are left out."""
    found = []
    for path in (layout or current()).runs.glob(f"*/{RECORD}"):
        try:
            found.append(RunFacts.model_validate_json(path.read_text()))
        except (OSError, ValidationError):
            continue
    return sorted(found, key=lambda facts: (facts.started, facts.run_id))


def newest_finished(layout: Layout | None = None) -> str:
    """The newest run that has finished; raises DataError where none has."""
    finished = [facts.run_id for facts in records(layout) if facts.status == "finished"]
    if not finished:
        raise DataError("There is no finished run yet; start one with `atalaia run demo`.")
    return finished[-1]


def summary_of(run_id: str, layout: Layout | None = None) -> Summary:
    """The report of a finished run."""
    read_record(run_id, layout)
    return load_summary((layout or current()).run(run_id) / REPORT)


def list_runs(layout: Layout | None = None) -> list[dict[str, Any]]:
    """All runs as `atalaia runs --json` lists them, newest last; null for whatever a run has not come to."""
    return [_row(facts, layout) for facts in records(layout)]


def _row(facts: RunFacts, layout: Layout | None) -> dict[str, Any]:
    folder = (layout or current()).run(facts.run_id)
    version = read_json(folder / VERSION) if (folder / VERSION).is_file() else None
    try:
        summary = load_summary(folder / REPORT)
    except FormatError:
        return run_row(facts, None, None) | {"detector": version}
    return run_row(facts, summary.training, summary.findings) | {"detector": version}


def now() -> str:
    """The time in UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Python and the libraries that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in _DECIDING:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str]:
    """Processor, cores, memory and system of this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": _processor(),
        "cores": str(cores),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object that a stage left."""
    value: dict[str, Any] = json.loads(path.read_text())
    return value
