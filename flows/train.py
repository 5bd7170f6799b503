"""Flow: from prepared windows to one adapter a round."""

import hashlib
import json
import time
from datetime import UTC, datetime
from typing import Any, cast

from prefect import flow, get_client, runtime
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import FlowRun, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from fl.devices import gpus
from fl.errors import FederationError
from fl.federation import tuning_from
from fl.hyperparameters import Tuning
from flows.config import RunConfig
from flows.prepare import Prepared, prepare_data, run_name
from flows.settings import ConfigError
from flows.watcher import goes_on
from storage.detectors import registered_version
from storage.layout import current
from storage.stages import Stage
from storage.tracking import store_identity
from tasks.caching import plain
from tasks.take_adapter import take_adapter
from tasks.train_federation import train_federation

GPU_POOL = "gpu"
"""The work pool of machines with a GPU."""
GPU_DEPLOYMENT = "train/train"
"""The deployment of this flow whose runs that pool takes, as prefect.yaml names it."""
_LOOK_SECONDS = 5.0
"""Between two looks at a run that was handed to a worker."""


@flow(name="train", flow_run_name=run_name, persist_result=False)
def train(config: RunConfig, start_from: str | None = None) -> str:
    """Prepare the data and train; the folder of the trained rounds.

    Args:
        config: The run: a preset, and what differs from it.
        start_from: A registered detector to train on from, such as models:/hdfs@champion; none: an untrained adapter.
    """
    config, _ = with_trainable_weights(config)
    prepared = prepare_data(config)
    start = starting_adapter(config, prepared, start_from)
    return train_adapters(config, prepared, run_id_of(config, prepared, start), start).path


def with_trainable_weights(config: RunConfig) -> tuple[RunConfig, dict[str, str]]:
    """The run with plain weights where a GPU would quantize what is trained or differentiated, and why, by name.

    What is given stands. Without a GPU `auto` means plain weights already, and stays: stages are found by it.
    """
    tuning = config.tuning
    needing = "full fine-tuning" if tuning.kind == "full" else "bases from a gradient" if tuning.takes_gradient else ""
    if not needing or config.model.quantization != "auto" or not _on_gpu(config.model.device):
        return config, {}
    model = config.model.model_copy(update={"quantization": "none"})
    reasons = {"quantization": f"none: {needing} needs unquantized weights, which auto is not on a GPU"}
    return config.model_copy(update={"model": model}), reasons


def _on_gpu(device: str) -> bool:
    """Whether training on this device, which may be `auto`, is on a GPU: this machine's, or that of a worker."""
    if device != "auto":
        return device.startswith("cuda")
    return gpus()[0] > 0 or bool(runtime.deployment.id and online(GPU_POOL))


def starting_adapter(config: RunConfig, prepared: Prepared, start_from: str | None) -> Stage | None:
    """The adapter of a registered detector; raises ConfigError where this run could not train on from it."""
    if start_from is None:
        return None
    version, _ = registered_version(start_from, current())
    start = take_adapter(version.name, version.version, version.tags["adapter_hash"], store_identity())
    if start.counts["base_model_sha256"] != prepared.model.counts["weights_sha256"]:
        raise ConfigError(f"{version.called} needs the base model {start.counts['base_model']}; give it as model.name.")
    if (trained := tuning_from(start.counts["tuning"], Tuning)) != config.tuning:
        raise ConfigError(f"{version.called} was trained with {trained}; give the same tuning to train on from it.")
    return start


def train_adapters(config: RunConfig, prepared: Prepared, run_id: str, start: Stage | None = None) -> Stage:
    """The adapters of all rounds, trained in the run's folder."""
    return train_federation(**_decisive(config, prepared, start), run_id=run_id)


def train_where_possible(config: RunConfig, prepared: Prepared, run_id: str, start: Stage | None = None) -> Stage:
    """The trained adapters; a deployed run has a worker of the `gpu` pool train them where one is online.

    That worker shares this home folder, so what it trained is found at rest. Everything else trains in this run's own
    process tree: waiting for a second place in the `cpu` pool would be for ever where it takes one run at a time.
    """
    if runtime.deployment.id and online(GPU_POOL):
        uri = f"models:/{start.counts['name']}/{start.counts['version']}" if start else None
        parameters = {"config": config.model_dump(mode="json"), "start_from": uri}
        run = _ended(cast(FlowRun, run_deployment(GPU_DEPLOYMENT, parameters=parameters)))
        if run.state is None or not run.state.is_completed():
            raise FederationError(f"Training in the pool {GPU_POOL} ended as {run.state}; see its flow run {run.name}.")
    return train_adapters(config, prepared, run_id, start)


def _ended(run: FlowRun) -> FlowRun:
    """A deployed run when it has ended for good: one that crashed is started again by the watcher, a few times."""
    while run.state is None or not run.state.is_final() or _goes_on(run):
        time.sleep(_LOOK_SECONDS)
        with get_client(sync_client=True) as client:
            run = client.read_flow_run(run.id)
    return run


def _goes_on(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_crashed() and goes_on(run.model_dump(mode="json"), datetime.now(UTC))


def trained_at_rest(config: RunConfig, prepared: Prepared, start: Stage | None = None) -> bool:
    """Whether the adapters of all rounds are there already."""
    return train_federation.at_rest(**_decisive(config, prepared, start), run_id="")


def online(pool: str) -> bool:
    """Whether a worker of the work pool is online."""
    with get_client(sync_client=True) as client:
        try:
            only_online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE]))
            return bool(client.read_workers_for_work_pool(pool, worker_filter=only_online))
        except ObjectNotFound:
            return False


def run_id_of(config: RunConfig, prepared: Prepared, start: Stage | None = None) -> str:
    """The name of a run: the same for the same data, source and configuration, so that one that was cut off goes on."""
    training = train_federation.key(**_decisive(config, prepared, start), run_id="")
    facts = [training, plain(prepared.split), plain(config.scoring), plain(config.detection)]
    # Left out where there are none, so that runs from before there were baselines go on too.
    facts += [plain(config.baselines)] if config.baselines.methods else []
    facts += [plain(config.instability)] if config.instability.kind != "none" else []
    return f"{config.preset}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]}"


def _decisive(config: RunConfig, prepared: Prepared, start: Stage | None) -> dict[str, Any]:
    """What the adapters depend on."""
    return {
        "model": prepared.model,
        "partition": prepared.partition,
        "tuning": config.tuning,
        "training": config.training,
        "federation": config.federation,
        "quantization": config.model.quantization,
        "device": config.model.device,
        "start": start,
        "privacy": config.privacy,
    }
