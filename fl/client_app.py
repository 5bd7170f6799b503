"""The client: trains the adapter it receives on its own share of windows, and sends back weights and numbers only."""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.adapter import adapter_arrays, attach_adapter, load_adapter_arrays
from fl.errors import FederationError
from fl.federation import available_cores, tuning_from
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import train_locally
from fl.model import LoadedModel, load_model
from storage.events import append_event
from storage.partitions import share_file
from storage.progress import Progress, silent

app = ClientApp()


@dataclass(frozen=True)
class Site:
    """What belongs to the client's own machine and never travels: where its share and its base model lie."""

    partition: int
    shares_folder: Path
    model_folder: Path
    device: str
    threads: int
    run_folder: Path | None
    """Where progress is told, when client and server share a machine."""


def site_of(context: Context) -> Site:
    """The site's settings: from the node's configuration, else from the environment (ATALAIA_SHARES_FOLDER, ...)."""

    def setting(name: str, default: str | None = None) -> str:
        value = context.node_config.get(name, os.environ.get(f"ATALAIA_{name.replace('-', '_').upper()}", default))
        if value is None:
            raise FederationError(f"This client has no {name}; give it in the node's configuration.")
        return str(value)

    run_folder = setting("run-folder", "")
    return Site(
        partition=int(setting("partition-id")),
        shares_folder=Path(setting("shares-folder")),
        model_folder=Path(setting("model-folder")),
        device=setting("device", "auto"),
        threads=int(setting("threads", str(available_cores()))),
        run_folder=Path(run_folder) if run_folder else None,
    )


@app.query("partition")
def tell_partition(message: Message, context: Context) -> Message:
    """Which partition this node holds and how many windows are in it."""
    site = site_of(context)
    metrics = MetricRecord({"partition": site.partition, "examples": len(read_share(site))})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query("adapter")
def first_adapter(message: Message, context: Context) -> Message:
    """The untrained adapter: it follows from model, tuning and seed, so any client gives the same."""
    site, config = site_of(context), dict(message.content["config"])
    torch.set_num_threads(site.threads)
    _model.cache_clear()
    _, model = _model(site.model_folder, site.device, *_model_config(config))
    return Message(RecordDict({"arrays": _record(adapter_arrays(model))}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received adapter on this site's share; reply with the weights and what the training cost."""
    site, config = site_of(context), dict(message.content["config"])
    torch.set_num_threads(site.threads)
    loaded, model = _model(site.model_folder, site.device, *_model_config(config))
    received = {name: array.numpy() for name, array in message.content["arrays"].items()}
    load_adapter_arrays(model, received)
    result = train_locally(
        model,
        loaded,
        read_share(site),
        LocalTraining(**json.loads(str(config["training"]))),
        float(config["learning-rate"]),
        (int(config["seed"]), int(config["round"]), site.partition),
        progress=_progress(site, int(config["round"])),
    )
    metrics = MetricRecord(
        {
            "partition": site.partition,
            "examples": int(result.examples),
            "tokens": int(result.tokens),
            "computed_tokens": int(result.computed_tokens),
            "steps": int(result.steps),
            "loss": float(result.loss),
            "seconds": float(result.seconds),
            "peak_memory_mb": float(result.peak_memory_mb),
        }
    )
    return Message(RecordDict({"arrays": _record(adapter_arrays(model)), "metrics": metrics}), reply_to=message)


def read_share(site: Site) -> list[np.ndarray]:
    """The token ids of each window in the site's share, in its order; raises FederationError for none."""
    path = site.shares_folder / share_file(Path(), site.partition).name
    if not path.is_file():
        raise FederationError(f"Client {site.partition} has no share at {path}; run the partition stage again.")
    column = pl.read_parquet(path, columns=["token_ids"])["token_ids"]
    if not len(column):
        raise FederationError(f"The share of client {site.partition} is empty; use fewer clients or more windows.")
    lengths = column.list.len().to_numpy()
    return np.split(column.explode(empty_as_null=False).to_numpy().astype(np.int64), np.cumsum(lengths)[:-1])


def _model_config(config: dict[str, Any]) -> tuple[str, Tuning, int]:
    tuning = tuning_from(json.loads(str(config["tuning"])), Tuning)
    return str(config["quantization"]), tuning, int(config["seed"])


@lru_cache(maxsize=1)
def _model(
    folder: Path, device: str, quantization: str, tuning: Tuning, seed: int
) -> tuple[LoadedModel, torch.nn.Module]:
    """The base model with its adapter, loaded once for all clients and rounds of this process."""
    loaded = load_model(folder, quantization, device)
    return loaded, attach_adapter(loaded, tuning, seed)


def _progress(site: Site, round_number: int) -> Progress:
    if site.run_folder is None:
        return silent
    folder, partition = site.run_folder, site.partition

    def tell(done: float, total: float | None, note: str = "") -> None:
        append_event(folder, "client", round=round_number, partition=partition, done=done, total=total)

    return tell


def _record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})
