"""Task: count what training and scoring cost, beside full fine-tuning."""

from pathlib import Path

import polars as pl

from fl.hyperparameters import LocalTraining
from storage.adapters import committed_rounds
from storage.stages import NewStage, Stage
from storage.summaries import TrainingFacts
from tasks.stage_task import stage


@stage("costs")
def measure_costs(new: NewStage, model: Stage, trained: Stage, scored: Stage, training: LocalTraining) -> None:
    """Parameters, bytes as serialized, tokens and seconds, from what the rounds recorded."""
    facts = _training_facts(model, trained, scored, training)
    (new.path / "costs.json").write_text(facts.model_dump_json(indent=1))
    new.counts |= {"bytes_sent": facts.bytes_sent, "bytes_sent_by_full": facts.bytes_sent_by_full}


def _training_facts(model: Stage, trained: Stage, scored: Stage, training: LocalTraining) -> TrainingFacts:
    from fl.costs import full_model_size

    rounds = committed_rounds(Path(trained.path))
    clients = pl.concat([pl.read_parquet(found.folder / "clients.parquet") for found in rounds])
    seconds = pl.concat([pl.read_parquet(found.folder / "round.parquet") for found in rounds])["seconds"].sum()
    full = full_model_size(model.path)
    peak = clients["peak_memory_mb"].max()
    return TrainingFacts(
        trainable_parameters=sum(array.size for array in rounds[0].arrays().values()),
        full_parameters=full.parameters,
        bytes_down_per_client_round=int(clients["bytes_down"].max() or 0),  # type: ignore[arg-type]
        bytes_up_per_client_round=int(clients["bytes_up"].max() or 0),  # type: ignore[arg-type]
        full_model_bytes=full.bytes,
        client_rounds=len(clients),
        examples=int(clients["steps"].sum()) * training.batch_size,
        tokens=int(clients["tokens"].sum()),
        computed_tokens=int(clients["computed_tokens"].sum()),
        train_seconds=float(seconds),
        score_seconds=float(scored.counts["seconds"]),
        peak_memory_mb=float(peak) if peak is not None else None,  # type: ignore[arg-type]
    )
