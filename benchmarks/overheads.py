"""What everything but the work costs, with a model so small that little work is left: `python -m benchmarks.overheads`.

(a) a cached rerun of a whole experiment against a running Prefect server, as the user waits for it, beside a bare
`import prefect`; (b) seconds of orchestration in the experiment's first run, as a share of a run of ten minutes;
(c) 1,000 simulated clients, 50 a round: seconds a round and the memory of all processes.

PREFECT_API_URL names the server to use; without it one is started beforehand and stopped at the end. Home, tracking
store and shares lie in a temporary folder.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.command_line import Size, given_options, options, tell
from benchmarks.process_trees import Spent, spend, watch
from benchmarks.tiny_model import save_tiny_model
from fl.federation import Federation, TrainingJob, save_job
from fl.hyperparameters import LocalTraining, Tuning
from flows.server import TemporaryServer, quiet_environment
from storage.adapters import committed_rounds
from storage.events import read_events
from storage.executions import BETWEEN, last_execution
from storage.layout import Layout
from storage.runs import list_runs

TEN_MINUTES = 600.0
PROJECT = Path(__file__).resolve().parent.parent
_ATALAIA = "from flows.cli import main; main()"
_SETTINGS = ("dataset.blocks=400", "federation.rounds=2", "federation.clients=4", "training.steps=1")


def measure_experiment(layout: Layout, model: Path, reruns: int) -> dict[str, Any]:
    """A first run, then `reruns` cached ones, each beside a bare import of Prefect."""
    run = [sys.executable, "-c", _ATALAIA, "run", "demo", f"model.name={model}", *_SETTINGS]
    environment = {**os.environ, "ATALAIA_HOME": str(layout.home)}
    first = spend(run, environment, PROJECT)
    run_id = list_runs(layout)[-1]["run_id"]
    figures = {"first": _told(first) | _execution(run_id, layout)}
    overhead = first.seconds - figures["first"]["work_seconds"]
    figures["first"] |= {"overhead_seconds": overhead, "share_of_ten_minutes": overhead / TEN_MINUTES}
    pairs = []
    for _ in range(reruns):
        rerun = spend(run, environment, PROJECT)
        pairs.append((rerun, _execution(run_id, layout), spend([sys.executable, "-c", "import prefect"], environment)))
    figures["cached_rerun"] = {
        **_median([_told(rerun) for rerun, _, _ in pairs]),
        "stages_seconds": statistics.median(sum(told["stages"].values()) for _, told, _ in pairs),
        "between_stages_seconds": statistics.median(told["between_stages_seconds"] for _, told, _ in pairs),
    }
    figures["import_prefect"] = _median([_told(bare) for _, _, bare in pairs])
    return figures


def _execution(run_id: str, layout: Layout) -> dict[str, Any]:
    """What the run itself recorded of its newest execution: from the command's first lines to the flow's last."""
    found = last_execution(run_id, layout)
    if found is None:
        raise SystemExit(f"The run {run_id} recorded no execution.")
    stages = {stage.stage: stage.seconds for stage in found.stages}
    return {
        "work_seconds": found.work_seconds,
        "stages": stages,
        "overhead_of_stages": {stage.stage: stage.seconds - stage.work_seconds for stage in found.stages},
        f"{BETWEEN.replace(' ', '_')}_seconds": found.seconds - sum(stages.values()),
    }


def _told(spent: Spent) -> dict[str, float]:
    return {"seconds": spent.seconds, "cpu_seconds": spent.cpu_seconds}


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def measure_clients(folder: Path, model: Path, clients: int, drawn: int, rounds: int) -> dict[str, Any]:
    """The training job itself with this many simulated clients."""
    job = TrainingJob(
        run_id=f"clients-{clients}",
        run_folder=folder / f"clients-{clients}",
        model_folder=model,
        shares_folder=_random_shares(folder / f"shares-{clients}", clients),
        tuning=Tuning(rank=2),
        training=LocalTraining(steps=3, batch_size=4),
        federation=Federation(rounds=rounds, clients=clients, fraction=min(1.0, drawn / clients)),
        device="cpu",
        threads=1,
    )
    save_job(job)
    spent = watch([sys.executable, "-m", "fl.simulation", str(job.run_folder)], os.environ, PROJECT)
    committed = [found.folder for found in committed_rounds(job.run_folder)[1:]]
    seconds = [pl.read_parquet(path / "round.parquet")["seconds"].item() for path in committed]
    training = [pl.read_parquet(path / "clients.parquet")["seconds"].sum() for path in committed]
    times = {event["event"]: event["time"] for event in reversed(read_events(job.run_folder)[0])}
    return {
        "clients": clients,
        "clients_a_round": job.federation.clients_per_round,
        **_told(spent),
        "peak_mb": spent.peak_mb,
        "processes": spent.processes,
        "seconds_to_start_and_end": spent.seconds - (times["finished"] - times["round"]),
        "seconds_a_round": statistics.median(seconds),
        "of_which_training": statistics.median(training),
    }


def _random_shares(folder: Path, clients: int) -> Path:
    """A share of 20 short windows of random tokens for each client."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for partition in range(clients):
        windows = [draw.integers(3, 512, draw.integers(5, 25)).tolist() for _ in range(20)]
        column = pl.Series("token_ids", windows, dtype=pl.List(pl.UInt32))
        pl.DataFrame([column]).write_parquet(folder / f"share-{partition:05d}.parquet")
    return folder


def main() -> None:
    """Measure and print JSON."""
    given = given_options(
        options(
            __doc__,
            reruns=Size(3, 1, "cached reruns"),
            clients=Size((100, 1000), (6,), "simulated clients"),
            drawn=Size(50, 2, "clients a round"),
            rounds=Size(5, 2, "rounds"),
        )
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = Path(given.model) if given.model else save_tiny_model(folder / "tiny")
        layout = Layout(folder / "home")
        quiet_environment(layout)
        server = None if os.environ.get("PREFECT_API_URL") else TemporaryServer(layout)
        try:
            if server is not None:
                server.wait()
                os.environ["PREFECT_API_URL"] = f"{server.address}/api"
            figures = {"load_average": os.getloadavg()[0], **measure_experiment(layout, model, given.reruns)}
        finally:
            if server is not None:
                server.stop()
        sizes = list(given.clients)
        figures["clients"] = [measure_clients(folder, model, size, given.drawn, given.rounds) for size in sizes]
        tell(figures)


if __name__ == "__main__":
    main()
