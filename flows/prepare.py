"""Flow: from a raw log to one share of training windows for each client."""

from dataclasses import dataclass

from prefect import flow, runtime

from fl.local_models import local_files
from flows.config import RunConfig
from storage.archives import source_fingerprint
from storage.datasets import resolve
from storage.report_words import tuning_words
from storage.stages import Stage
from tasks.change_windows import change_windows
from tasks.download_logs import download_logs
from tasks.mask_messages import mask_messages
from tasks.partition_windows import partition_windows
from tasks.prepare_model import prepare_model
from tasks.split_windows import split_windows
from tasks.tokenize_windows import tokenize_windows
from tasks.window_logs import reading_facts, window_logs


@dataclass(frozen=True)
class Prepared:
    """The stages that training and scoring start from."""

    download: Stage
    window: Stage
    mask: Stage
    model: Stage
    tokenized: Stage
    split: Stage
    partition: Stage


def run_name() -> str:
    """How a flow run is called in Prefect's pages: by its preset and what tells it from other runs of that preset."""
    config = RunConfig.model_validate(runtime.flow_run.parameters["config"])
    tuning = tuning_words(config.tuning.kind, config.tuning.rank)
    return f"{config.preset}: {config.dataset.name}, {tuning}, seed {config.seed}"


@flow(name="prepare", flow_run_name=run_name, persist_result=False)
def prepare(config: RunConfig) -> dict[str, str]:
    """Download, window, mask, tokenize, split and partition; the folder of each stage."""
    prepared = prepare_data(config)
    return {name: stage.path for name, stage in vars(prepared).items()}


def prepare_data(config: RunConfig) -> Prepared:
    """The prepared data of a run, each stage computed only where none of its key lies at rest."""
    spec = resolve(config.dataset)
    reading = reading_facts(spec)
    download = download_logs(f"{spec.name} {source_fingerprint(config.dataset)}", config=config.dataset, spec=spec)
    window = window_logs(download, reading, config.window or spec.window, config.dataset.limit, spec=spec)
    mask = mask_messages(download, window, reading, config.mask or spec.mask, spec=spec)
    model = prepare_model(config.model.name, local_files(config.model.name))
    tokenized = tokenize_windows(window, mask, model, config.tokens)
    split = split_windows(tokenized, config.split)
    partition = partition_windows(tokenized, split, config.partition)
    if config.instability.kind != "none":
        # After the partition: what was trained and calibrated without the changes is used again.
        tokenized = change_windows(tokenized, split, model, config.tokens, config.instability)
    return Prepared(download, window, mask, model, tokenized, split, partition)
