"""Flow: from prepared windows to one adapter a round."""

import hashlib
import json
from typing import Any

from prefect import flow

from flows.config import RunConfig
from flows.prepare import Prepared, prepare_data
from storage.stages import Stage
from tasks.caching import plain
from tasks.train_federation import train_federation


@flow(name="train", persist_result=False)
def train(config: RunConfig) -> str:
    """Prepare the data and train; the folder of the trained rounds."""
    prepared = prepare_data(config)
    return train_adapters(config, prepared, run_id_of(config, prepared)).path


def train_adapters(config: RunConfig, prepared: Prepared, run_id: str) -> Stage:
    """The adapters of all rounds, trained in the run's folder."""
    return train_federation(**_decisive(config, prepared), run_id=run_id)


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
