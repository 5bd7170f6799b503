"""The training job on one machine: `python -m fl.simulation RUN_FOLDER` runs server and clients in Flower's simulation.

A child process of whoever wants the training: its crash takes nobody along. Ends with status 0 only when every round is
committed; otherwise `error.json` in the run's folder and one line on standard error say why. Where another job trains
in that folder, whose file that is, the status alone says so.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fl.accounting import affordable_rounds
from fl.errors import FederationError, JobTaken, LearningError, LostClients
from fl.federation import TrainingJob, load_job
from storage.adapters import committed_rounds
from storage.errors import DataError
from storage.events import append_event
from storage.noise_keys import forget_noise_key

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

ERROR = "error.json"
TAKEN = 3
"""The exit status where another job trains in the run's folder."""
LOG = "simulation.log"

_OBJECT_STORE_BYTES = 128 << 20
"""Ray's shared memory: an adapter on its way is a few megabytes; what does not fit is spilled to disk."""
_LONGEST_SOCKET_FOLDER = 40
"""Ray's sockets lie below its folder, and a socket's path holds 107 characters at most."""


def main(arguments: list[str], client_app: "ClientApp | None" = None) -> int:
    """Run the job of a run folder; the exit status: 0 done, 2 an error that is explained, TAKEN, 1 any other.

    `client_app` takes the place of the usual client.
    """
    folder = Path(arguments[0]).resolve() if len(arguments) == 1 else None
    if folder is None:
        print("Usage: python -m fl.simulation RUN_FOLDER", file=sys.stderr)
        return 2
    try:
        with only_job(folder):
            return _run_and_tell(folder, client_app)
    except FederationError as error:
        print(error, file=sys.stderr)
        return TAKEN if isinstance(error, JobTaken) else 2


def _run_and_tell(folder: Path, client_app: "ClientApp | None") -> int:
    (folder / ERROR).unlink(missing_ok=True)
    try:
        run_job(load_job(folder), client_app)
        return 0
    except (LearningError, DataError) as error:
        return told(folder, error, 2)
    except BaseException as error:
        logging.getLogger("flwr").exception("The job failed.")
        return told(folder, error, 1)


def run_job(job: TrainingJob, client_app: "ClientApp | None" = None) -> None:
    """Train until every round is committed; `client_app` takes the place of the usual one.

    Raises what the server raised, or FederationError when it stopped without a reason.
    """
    if job.tuning.kind == "none":
        _commit_untouched(job)
        return
    until = affordable_rounds(job.privacy, job.federation)
    if len(committed_rounds(job.run_folder)) > until:
        from fl.server_app import check_same_job

        check_same_job(job, committed_rounds(job.run_folder))
        forget_noise_key(job.run_folder)  # of a job that was killed just before it did
        append_event(job.run_folder, "finished", rounds=until)
        return
    _prepare_environment(job)
    _run_in_simulation(job, client_app)
    done = len(committed_rounds(job.run_folder)) - 1
    if done < until:
        raise FederationError(f"The job stopped after {max(done, 0)} of {until} rounds; run it again.")


def _commit_untouched(job: TrainingJob) -> None:
    from fl.server_app import commit_untouched

    commit_untouched(job, {})
    append_event(job.run_folder, "finished", rounds=0)


def _prepare_environment(job: TrainingJob) -> None:
    """Set what Flower, Ray and the clients read from the environment, some of it only when they are imported."""
    # Threads that wait must not spin for long: beside other busy processes training gets several times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.update(
        ATALAIA_RUN_FOLDER=str(job.run_folder),
        ATALAIA_SHARES_FOLDER=str(job.shares_folder.resolve()),
        ATALAIA_MODEL_FOLDER=str(job.model_folder.resolve()),
        ATALAIA_DEVICE=job.device,
        ATALAIA_THREADS=str(job.threads),
        OMP_NUM_THREADS=str(job.threads),
        FLWR_TELEMETRY_ENABLED="0",
        RAY_USAGE_STATS_ENABLED="0",
        # Ray would lower the priority of the clients, which are the ones that work.
        RAY_worker_niceness="0",
        # Clients ask Ray for no GPU, so that its fractions need no tuning; without this it would hide the GPUs.
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        DISABLE_MLFLOW_INTEGRATION="TRUE",
    )


def _run_in_simulation(job: TrainingJob, client_app: "ClientApp | None") -> None:
    from flwr.simulation import run_simulation

    from fl.server_app import app

    _log_to_file(job.run_folder / LOG)
    # Ray prints what it has to say about dead workers to standard output, whatever its log level.
    with (job.run_folder / LOG).open("a") as log, redirect_stdout(log), _ray(job):
        run_simulation(
            server_app=app,
            client_app=client_app or cast("ClientApp", _usual_client),
            num_supernodes=job.federation.clients,
            backend_config={"client_resources": {"num_cpus": 1}},
        )


@contextmanager
def _ray(job: TrainingJob) -> Iterator[None]:
    """A running Ray for Flower to find, whose first worker is the clients' own.

    In a Ray that it starts itself, Flower asks for workers with an environment of their own, and those that Ray has
    started beforehand are never used. Raises LostClients where Ray does not start, as on a machine that is too busy.
    """
    import ray

    with _ray_folder(job.run_folder) as folder:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        try:
            _start_ray(_ray_arguments(job, folder))
            yield
        finally:
            ray.shutdown()


def _start_ray(arguments: dict[str, Any]) -> None:
    import ray

    try:
        ray.init(**arguments)
    except Exception as error:  # Ray raises nothing more precise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise LostClients(f"Ray did not start: {reason} Run again when the machine is less busy.") from error


def _usual_client(message: "Message", context: "Context") -> "Message":
    """What Flower calls in Ray's worker; torch and all that a client needs are imported there, and only there."""
    is_first, began = "fl.client_app" not in sys.modules, time.monotonic()
    from fl.client_app import app

    if is_first:
        append_event(Path(os.environ["ATALAIA_RUN_FOLDER"]), "loaded", seconds=time.monotonic() - began)
    return app(message, context)


def _ray_arguments(job: TrainingJob, folder: str) -> dict[str, Any]:
    """A Ray of our own: one CPU slot a client that may train at the same time, little shared memory, no pages."""
    return {
        "address": "local",
        "num_cpus": job.concurrent_clients,
        "object_store_memory": max(_OBJECT_STORE_BYTES, 3 * job.concurrent_clients * _message_bytes(job)),
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
        "_temp_dir": folder,
    }


def _message_bytes(job: TrainingJob) -> int:
    """About how large a message is: full fine-tuning sends all weights, adapters are small."""
    if job.tuning.kind != "full":
        return 0
    return sum(path.stat().st_size for path in job.model_folder.glob("*.safetensors"))


@contextmanager
def _ray_folder(run_folder: Path) -> Iterator[str]:
    """A short folder for Ray's sockets and logs; what a killed job left in it is removed first."""
    usual = tempfile.gettempdir()
    parent = Path(usual if len(usual) <= _LONGEST_SOCKET_FOLDER else "/tmp")
    folder = parent / f"atalaia-{hashlib.sha256(str(run_folder).encode()).hexdigest()[:12]}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _log_to_file(path: Path) -> None:
    """Flower's and the job's log lines go to a file: the terminal belongs to the progress display."""
    logger = logging.getLogger("flwr")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.FileHandler(path)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False


@contextmanager
def only_job(folder: Path) -> Iterator[None]:
    """Hold the run's folder: two jobs in it would overwrite each other's rounds. Raises JobTaken where one has it."""
    if not folder.is_dir():
        raise FederationError(f"There is no run folder at {folder}; start a run with `atalaia train`.")
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken(folder) from error
        yield


def taken(folder: Path) -> JobTaken:
    """The error of a run folder in which another job trains."""
    return JobTaken(f"Another job is training in {folder}; wait for it, or stop it and run again.")


def told(folder: Path, error: BaseException, status: int) -> int:
    """Tell an error in one line and keep it for whoever started the job."""
    message = " ".join(str(error).split()) or "no reason given"
    if isinstance(error, SystemExit | KeyboardInterrupt):
        message = "The training job was stopped; run it again to go on after its last committed round."
    elif status == 1:
        message = f"The training job failed ({type(error).__name__}: {message}); see {folder / LOG}."
    print(message, file=sys.stderr)
    with suppress(OSError):  # a full disk takes no reason either
        (folder / ERROR).write_text(json.dumps({"error": type(error).__name__, "message": message}))
    append_event(folder, "error", message=message)
    return status


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The server's thread may still wait for replies that cannot come; the rounds are on the disk already.
    os._exit(code)
