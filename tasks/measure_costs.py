"""Task: count what training and scoring cost, beside full fine-tuning."""

from pathlib import Path

import polars as pl

from fl.hyperparameters import LocalTraining, Tuning
from storage.adapters import committed_rounds
from storage.stages import NewStage, Stage
from storage.summaries import PrivacyFacts, TrainingFacts
from tasks.prepare_model import model_folder
from tasks.progress import progress_of
from tasks.stage_task import stage

_SAMPLES, _SAMPLES_ON_CUDA = 3, 1000
"""Windows whose time is taken, as many as in the paper's Table 3 where that takes a minute; `atalaia latency` takes
them on CPUs too."""


@stage("costs")
def measure_costs(
    new: NewStage,
    model: Stage,
    tokenized: Stage,
    trained: Stage,
    scored: Stage,
    training: LocalTraining,
    tuning: Tuning,
    seed: int,
    quantization: str,
    device: str,
) -> None:
    """Parameters, bytes as serialized, tokens and seconds, from what the rounds recorded; the time of one window."""
    latency = _latency(model, tokenized, trained, scored, tuning, seed, quantization, device)
    facts = _training_facts(model, trained, scored, training).model_copy(update=latency)
    (new.path / "costs.json").write_text(facts.model_dump_json(indent=1))
    new.counts |= {"bytes_sent": facts.bytes_sent, "bytes_sent_by_full": facts.bytes_sent_by_full}


def _latency(
    model: Stage,
    tokenized: Stage,
    trained: Stage,
    scored: Stage,
    tuning: Tuning,
    seed: int,
    quantization: str,
    device: str,
) -> dict[str, float]:
    """How long scoring one window takes, each by itself, and what memory that needs: the paper's Table 3."""
    from fl.adapter import attach_adapter, load_adapter_arrays
    from fl.costs import measure_latency
    from fl.model import load_model
    from fl.scoring import score_sequences

    last = scored.counts["rounds"][-1]
    known = pl.read_parquet(scored.file(f"round-{last:04d}.parquet"), columns=["sequence_id", "seconds"])
    sequences = pl.read_parquet(
        tokenized.file("sequences.parquet"), columns=["sequence_id", "token_ids", "message_starts"]
    )
    chosen = sequences.join(known, on="sequence_id", how="semi").sort("sequence_id")
    loaded = load_model(model_folder(model), quantization, device)
    samples = _SAMPLES_ON_CUDA if loaded.device.startswith("cuda") else _SAMPLES
    chosen = chosen.gather_every(max(1, len(chosen) // samples)).head(samples)
    adapted = attach_adapter(loaded, tuning, seed)
    load_adapter_arrays(adapted, committed_rounds(Path(trained.path))[last].arrays())
    ids, starts = ([row.to_numpy() for row in chosen[name]] for name in ("token_ids", "message_starts"))
    tell = progress_of("costs")

    def run(sample: int) -> None:
        tell(sample, len(ids), "windows timed")
        score_sequences(adapted, loaded, [ids[sample]], [starts[sample]], (1,))

    found = measure_latency(run, len(ids), loaded.device, warm_up=1)
    return {
        "latency_ms": found.mean_ms,
        "latency_deviation_ms": found.deviation_ms,
        "latency_median_ms": found.median_ms,
        "latency_p99_ms": found.p99_ms,
        "latency_peak_mb": found.peak_mb,
        "latency_windows": found.samples,
        "together_ms": 1000 * float(known["seconds"].sum()) / max(1, len(known)),
        "together_windows": len(known),
    }


def _mean(sizes: pl.Series) -> int:
    """Bytes of a message; RoLoRA's two parts, sent in turn, are not equally large."""
    return round(sizes.sum() / max(1, len(sizes)))


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
        bytes_down_per_client_round=_mean(clients["bytes_down"]),
        bytes_up_per_client_round=_mean(clients["bytes_up"]),
        full_model_bytes=full.bytes,
        client_rounds=len(clients),
        examples=int(clients["steps"].sum()) * training.batch_size,
        tokens=int(clients["tokens"].sum()),
        computed_tokens=int(clients["computed_tokens"].sum()),
        train_seconds=float(seconds),
        score_seconds=float(scored.counts["seconds"]),
        peak_memory_mb=float(peak) if peak is not None else None,  # type: ignore[arg-type]
        privacy=PrivacyFacts.model_validate(told) if (told := rounds[-1].facts.get("privacy")) else None,
    )
