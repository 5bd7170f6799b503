"""How long each execution of a run took, stage by stage, and how much of that was the work itself.

Work includes what the same work takes in a process of its own: importing torch and loading the model. Orchestration is
the rest: Prefect, the start and end of Ray, Flower's messages, MLflow, the start of the command.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from storage.layout import Layout, current

BETWEEN = "between stages"
"""The row of what no stage took: the start of the command, keys, API calls, the run's page."""
EXECUTION_SCHEMA: dict[str, pl.DataType] = {
    "began": pl.String(),
    "status": pl.String(),
    "stage": pl.String(),
    "state": pl.String(),
    "seconds": pl.Float64(),
    "work_seconds": pl.Float64(),
    "overhead_seconds": pl.Float64(),
}
"""One row a stage and execution. began: ISO 8601, UTC; state: ran, cached or failed; work_seconds: within the
stage's own function, of training what the clients report with their loading of the model, of tracking none;
overhead_seconds: the others."""


@dataclass(frozen=True)
class StageTime:
    """A stage in an execution."""

    stage: str
    state: Literal["ran", "cached", "failed"]
    seconds: float
    """As the user waits for it."""
    work_seconds: float = 0.0
    """Of which within the work itself; none where the stage was reused."""


@dataclass(frozen=True)
class Execution:
    """One execution of a run: the first, or one that found some or all of it at rest."""

    began: str
    """ISO 8601, UTC."""
    status: str
    """finished or failed."""
    seconds: float
    """From its beginning to its end."""
    stages: tuple[StageTime, ...]

    @property
    def work_seconds(self) -> float:
        """Seconds that went into the work."""
        return sum(stage.work_seconds for stage in self.stages)

    @property
    def overhead_seconds(self) -> float:
        """Seconds that went into everything else."""
        return self.seconds - self.work_seconds

    def in_words(self) -> str:
        """What a person wants to know of it."""
        share = f"{100 * self.overhead_seconds / self.seconds:.1f} %" if self.seconds else "0 %"
        return (
            f"Took {self.seconds:.1f} s: {self.work_seconds:.1f} s of work, "
            f"{self.overhead_seconds:.1f} s ({share}) of orchestration"
        )


def record_execution(run_id: str, execution: Execution, layout: Layout | None = None) -> Path:
    """Keep an execution in its run's folder, as one small Parquet file."""
    between = execution.seconds - sum(stage.seconds for stage in execution.stages)
    rows = [*execution.stages, StageTime(BETWEEN, "ran", between)]
    facts = {"began": execution.began, "status": execution.status}
    table = [{**facts, **asdict(row), "overhead_seconds": row.seconds - row.work_seconds} for row in rows]
    folder = (layout or current()).run(run_id) / "executions"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(list(folder.glob('*.parquet'))):04d}.parquet"
    pl.DataFrame(table, schema=EXECUTION_SCHEMA).write_parquet(path)
    return path


def last_execution(run_id: str, layout: Layout | None = None) -> Execution | None:
    """The newest execution of a run; None where none is recorded."""
    files = sorted(((layout or current()).run(run_id) / "executions").glob("*.parquet"))
    if not files:
        return None
    rows = pl.read_parquet(files[-1]).drop("overhead_seconds").to_dicts()
    began, status = rows[0]["began"], rows[0]["status"]
    times = [StageTime(**{name: row[name] for name in StageTime.__dataclass_fields__}) for row in rows]
    stages = tuple(time for time in times if time.stage != BETWEEN)
    return Execution(began, status, sum(time.seconds for time in times), stages)


def training_seconds(round_folders: Sequence[Path], at_a_time: int) -> float:
    """What the clients of these rounds report to have trained, `at_a_time` of them at the same time."""
    clients = [pl.read_parquet(folder / "clients.parquet", columns=["seconds"]) for folder in round_folders]
    return float(pl.concat(clients)["seconds"].sum()) / at_a_time if clients else 0.0
