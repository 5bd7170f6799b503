"""Flow: from prepared windows to one adapter a round."""

import hashlib
import json
from typing import Any, cast

from prefect import flow, get_client, runtime
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from fl.errors import FederationError
from flows.config import RunConfig
from flows.prepare import Prepared, prepare_data, run_name
from storage.stages import Stage
from tasks.caching import plain
from tasks.train_federation import train_federation

GPU_POOL = "gpu"
"""The work pool of machines with a GPU."""
GPU_DEPLOYMENT = "train/train"
"""The deployment of this flow whose runs that pool takes, as prefect.yaml names it."""


@flow(name="train", flow_run_name=run_name, persist_result=False)
def train(config: RunConfig) -> str:
    """Prepare the data and train; the folder of the trained rounds."""
    prepared = prepare_data(config)
    return train_adapters(config, prepared, run_id_of(config, prepared)).path


def train_adapters(config: RunConfig, prepared: Prepared, run_id: str) -> Stage:
    """The adapters of all rounds, trained in the run's folder."""
    return train_federation(**_decisive(config, prepared), run_id=run_id)


def train_where_possible(config: RunConfig, prepared: Prepared, run_id: str) -> Stage:
    """The trained adapters; a deployed run has a worker of the `gpu` pool train them where one is online.

    That worker shares this home folder, so what it trained is found at rest. Everything else trains in this run's own
    process tree: waiting for a second place in the `cpu` pool would be for ever where it takes one run at a time.
    """
    if runtime.deployment.id and online(GPU_POOL):
        parameters = {"config": config.model_dump(mode="json")}
        run = cast(FlowRun, run_deployment(GPU_DEPLOYMENT, parameters=parameters))
        if run.state is None or not run.state.is_completed():
            raise FederationError(f"Training in the pool {GPU_POOL} ended as {run.state}; see its flow run {run.name}.")
    return train_adapters(config, prepared, run_id)


def online(pool: str) -> bool:
    """Whether a worker of the work pool is online."""
    with get_client(sync_client=True) as client:
        try:
            only_online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
            return bool(client.read_workers_for_work_pool(pool, worker_filter=only_online))
        except ObjectNotFound:
            return False


def run_id_of(config: RunConfig, prepared: Prepared) -> str:
    """The name of a run: the same for the same data, source and configuration, so that one that was cut off goes on."""
    training = train_federation.key(**_decisive(config, prepared), run_id="")
    facts = [training, plain(prepared.split), plain(config.scoring), plain(config.detection)]
    return f"{config.preset}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}"


def _decisive(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """What the adapters depend on."""
    return {
        "model": prepared.model,
        "partition": prepared.partition,
        "tuning": config.tuning,
        "training": config.training,
        "federation": config.federation,
        "quantization": config.model.quantization,
        "device": config.model.device,
    }
