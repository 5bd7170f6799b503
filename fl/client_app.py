"""The client: trains the adapter it receives on its own share of windows, and sends back weights and numbers only."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.adapter import Arrays, adapter_arrays, attach_adapter, load_adapter_arrays, trained_in_round
from fl.codecs import Codec
from fl.errors import FederationError
from fl.exchange import pack_update, pack_update_with_feedback, unpack_adapter
from fl.federation import available_cores, tuning_from
from fl.first_update import set_gradient_bases
from fl.hyperparameters import LocalTraining, Tuning
from fl.local_training import train_locally
from fl.model import LoadedModel, load_model
from fl.noise import seed_key
from fl.plain_arrays import claimed_array
from fl.privacy import Privacy, clipped_update, hidden_update
from storage.events import append_event
from storage.noise_keys import noise_key
from storage.partitions import share_file
from storage.progress import Progress, silent
from storage.residuals import keep_residual, read_residual, residual_folder

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
    state_folder: Path | None = None
    """Where the client keeps from round to round what its coded messages left out."""


def site_of(context: Context) -> Site:
    """The site's settings: from the node's configuration, else from the environment (ATALAIA_SHARES_FOLDER, ...)."""
    return site_from(context.node_config)


def site_from(node_config: Mapping[str, Any]) -> Site:
    """As `site_of`, from the node's configuration itself."""

    def setting(name: str, default: str | None = None) -> str:
        value = node_config.get(name, os.environ.get(f"ATALAIA_{name.replace('-', '_').upper()}", default))
        if value is None:
            raise FederationError(f"This client has no {name}; give it in the node's configuration.")
        return str(value)

    run_folder = setting("run-folder", "")
    state_folder = setting("state-folder", str(Path(run_folder) / "sites") if run_folder else "")
    return Site(
        partition=int(setting("partition-id")),
        shares_folder=Path(setting("shares-folder")),
        model_folder=Path(setting("model-folder")),
        device=setting("device", "auto"),
        threads=int(setting("threads", str(available_cores()))),
        run_folder=Path(run_folder) if run_folder else None,
        state_folder=Path(state_folder) if state_folder else None,
    )


@app.query("partition")
def tell_partition(message: Message, context: Context) -> Message:
    """Which partition this node holds and how many windows are in it."""
    site = site_of(context)
    metrics = MetricRecord({"partition": site.partition, "examples": count_windows(site)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@app.query("adapter")
def first_adapter(message: Message, context: Context) -> Message:
    """The untrained adapter: it follows from model, tuning and seed, so any client gives the same.

    But for bases from a gradient: those are of this client's windows.
    """
    site, config = site_of(context), dict(message.content["config"])
    torch.set_num_threads(site.threads)
    _model.cache_clear()
    tuning = _tuning(config)
    loaded, model, _ = _ready_model(site, config)
    if tuning.takes_gradient:
        set_gradient_bases(model, loaded, read_share(site), _training(config), int(config["seed"]))
    return Message(RecordDict({"arrays": _record(adapter_arrays(model))}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the received adapter on this site's share; reply with the weights and what the training cost."""
    site, config = site_of(context), dict(message.content["config"])
    torch.set_num_threads(site.threads)
    tuning, number = _tuning(config), int(config["round"])
    loaded, model, first = _ready_model(site, config)
    sent = message.content["arrays"]
    received = {name: claimed_array(array, name, ("float32", "uint8")) for name, array in sent.items()}
    start = unpack_adapter(received, first, _codec(config, "downlink"))
    load_adapter_arrays(model, start)
    with trained_in_round(model, tuning, number):
        result = train_locally(
            model,
            loaded,
            read_share(site),
            _training(config),
            float(config["learning-rate"]),
            (int(config["seed"]), number, site.partition),
            progress=_progress(site, number),
        )
    trained = {name: array for name, array in adapter_arrays(model).items() if tuning.trains(name, number)}
    trained, told = _protected(site, config, trained, start)
    metrics = MetricRecord(
        {
            **told,
            "partition": site.partition,
            "round": number,
            "examples": int(result.examples),
            "tokens": int(result.tokens),
            "computed_tokens": int(result.computed_tokens),
            "steps": int(result.steps),
            "loss": float(result.loss),
            "seconds": float(result.seconds),
            "peak_memory_mb": float(result.peak_memory_mb),
        }
    )
    arrays = _packed(site, config, trained, start)
    return Message(RecordDict({"arrays": _record(arrays), "metrics": metrics}), reply_to=message)


def _protected(
    site: Site, config: dict[str, Any], trained: Arrays, start: Arrays
) -> tuple[Arrays, dict[str, int | float]]:
    """The trained arrays as they may leave the site: clipped, and with noise where the site adds its own.

    Under adaptive clipping the reply also tells whether the update was within the clipping norm.
    """
    if "privacy" not in config:
        return trained, {}
    privacy, norm = Privacy(**json.loads(str(config["privacy"]))), float(config["clipping-norm"])
    before = {name: start[name] for name in trained}
    if privacy.noise == "central":
        clipped, is_whole = clipped_update(trained, before, norm)
        return clipped, {"unclipped": int(is_whole)} if privacy.is_adaptive else {}
    purpose = f"{config['run']} {config['round']} {site.partition}"
    key = _noise_key(site, config, privacy)
    return hidden_update(trained, before, norm, privacy.noise_multiplier, key, purpose), {}


def _noise_key(site: Site, config: dict[str, Any], privacy: Privacy) -> bytes:
    if privacy.noise_source == "seed":
        return seed_key(int(config["seed"]))
    if site.state_folder is None:
        raise FederationError("This client has no state-folder for the key of its noise; give it to the node.")
    return noise_key(residual_folder(site.state_folder, str(config["run"]), site.partition), is_begun=False)


def _packed(site: Site, config: dict[str, Any], trained: Arrays, start: Arrays) -> Arrays:
    """The reply's arrays; what coding leaves out is kept where the server asks for error feedback."""
    codec, number = _codec(config, "uplink"), int(config["round"])
    if "residual-of" not in config:
        generator = np.random.default_rng((int(config["seed"]), number, site.partition, 1))
        return pack_update(trained, start, codec, generator)
    if site.state_folder is None:
        raise FederationError("This client has no state-folder for what coding leaves out; give it to the node.")
    folder = residual_folder(site.state_folder, str(config["run"]), site.partition)
    before = int(config["residual-of"])
    arrays, residual = pack_update_with_feedback(trained, start, codec, read_residual(folder, before))
    keep_residual(folder, number, residual, before)
    return arrays


def model_with(site: Site, config: dict[str, Any], adapter: Arrays) -> tuple[LoadedModel, torch.nn.Module]:
    """The base model, and the same with an adapter in place, as a round's configuration asks for it."""
    torch.set_num_threads(site.threads)
    loaded, model, _ = _ready_model(site, config)
    load_adapter_arrays(model, adapter)
    return loaded, model


def forget_model() -> None:
    """Give the model kept for the next message free."""
    _model.cache_clear()


def count_windows(site: Site) -> int:
    """How many windows the site's share holds, from the file's footer; raises FederationError for none."""
    path = _share(site)
    if not path.is_file():
        raise FederationError(f"Client {site.partition} has no share at {path}; run the partition stage again.")
    windows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
    if not windows:
        raise FederationError(f"The share of client {site.partition} is empty; use fewer clients or more windows.")
    return windows


def _share(site: Site) -> Path:
    return site.shares_folder / share_file(Path(), site.partition).name


def read_share(site: Site) -> list[np.ndarray]:
    """The token ids of each window in the site's share, in its order; raises FederationError for none."""
    count_windows(site)
    column = pl.read_parquet(_share(site), columns=["token_ids"])["token_ids"]
    lengths = column.list.len().to_numpy()
    return np.split(column.explode(empty_as_null=False).to_numpy().astype(np.int64), np.cumsum(lengths)[:-1])


def _tuning(config: dict[str, Any]) -> Tuning:
    return tuning_from(json.loads(str(config["tuning"])), Tuning)


def _training(config: dict[str, Any]) -> LocalTraining:
    return LocalTraining(**json.loads(str(config["training"])))


def _codec(config: dict[str, Any], way: str) -> Codec:
    return Codec(**json.loads(str(config[way])))


def _model_config(config: dict[str, Any]) -> tuple[str, Tuning, int, bool]:
    is_coded = _codec(config, "downlink").name != "none"
    return str(config["quantization"]), _tuning(config), int(config["seed"]), is_coded


def _ready_model(site: Site, config: dict[str, Any]) -> tuple[LoadedModel, torch.nn.Module, Arrays]:
    """The model that a message's configuration asks for; loading it is told to a server on the same machine."""
    loadings, began = _model.cache_info().misses, time.monotonic()
    ready = _model(site.model_folder, site.device, *_model_config(config))
    if site.run_folder is not None and _model.cache_info().misses > loadings:
        append_event(site.run_folder, "loaded", seconds=time.monotonic() - began)
    return ready


@lru_cache(maxsize=1)
def _model(
    folder: Path, device: str, quantization: str, tuning: Tuning, seed: int, keep_first: bool
) -> tuple[LoadedModel, torch.nn.Module, Arrays]:
    """The base model with its adapter, and the first adapter where it is needed, for all clients and rounds."""
    loaded = load_model(folder, quantization, device)
    model = attach_adapter(loaded, tuning, seed)
    return loaded, model, adapter_arrays(model) if keep_first else {}


def _progress(site: Site, round_number: int) -> Progress:
    if site.run_folder is None:
        return silent
    folder, partition = site.run_folder, site.partition

    def tell(done: float, total: float | None, note: str = "") -> None:
        append_event(folder, "client", round=round_number, partition=partition, done=done, total=total)

    return tell


def _record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})
