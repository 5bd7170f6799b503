"""Flow: from adapters to scores, thresholds and metrics."""

from dataclasses import dataclass

from prefect import flow

from fl.local_models import local_files
from flows.config import RunConfig, ScoringConfig
from flows.prepare import Prepared, prepare_data, run_name
from flows.train import run_id_of, train_adapters, with_trainable_weights
from storage.stages import Stage
from tasks.explain_alerts import explain_alerts
from tasks.prepare_model import prepare_model
from tasks.score_windows import score_windows
from tasks.search_threshold import search_threshold
from tasks.train_event_models import train_event_models


@dataclass(frozen=True)
class Judged:
    """What is known of the adapters."""

    scored: Stage
    evaluated: Stage
    explained: Stage


@flow(name="evaluate", flow_run_name=run_name, persist_result=False)
def evaluate(config: RunConfig) -> dict[str, str]:
    """Prepare, train, score and judge; the folder of each stage."""
    config, _ = with_trainable_weights(config)
    prepared = prepare_data(config)
    trained = train_adapters(config, prepared, run_id_of(config, prepared))
    return {name: stage.path for name, stage in vars(judge(config, prepared, trained)).items()}


def judge(config: RunConfig, prepared: Prepared, trained: Stage) -> Judged:
    """Scores of the chosen rounds, the thresholds they give, and what gave the worst windows away."""
    data, model, how = prepared.tokenized, prepared.model, config.model
    seed, detection = config.federation.seed, config.detection
    rounds = rounds_to_score(config.scoring, trained.counts["rounds"])
    loading = (how.quantization, how.device)
    scored = score_windows(
        model, data, prepared.split, trained, config.tuning, seed, rounds, config.scoring.ks, *loading
    )
    baselines = learned_baselines(config, prepared)
    evaluated = search_threshold(
        data,
        prepared.split,
        scored,
        detection.score,
        detection.k,
        detection.false_alarm_rate,
        config.seed,
        trained,
        config.training.batch_size,
        baselines,
        detection.threshold,
    )
    explained = explain_alerts(model, data, trained, evaluated, config.tuning, seed, *loading)
    return Judged(scored, evaluated, explained)


def learned_baselines(config: RunConfig, prepared: Prepared) -> Stage | None:
    """The learned baselines on the same shares, as many clients a round; None where the run asks for none."""
    if not config.baselines.methods:
        return None
    federation = config.federation
    dealt = (federation.clients, federation.fraction, federation.seed)
    reader = config.baselines.masked_model
    masked = prepare_model(reader, local_files(reader)) if "logfit" in config.baselines.methods else None
    reading = (masked, config.tokens.separator)
    return train_event_models(prepared.tokenized, prepared.partition, config.baselines, *dealt, *reading)


def rounds_to_score(scoring: ScoringConfig, last: int) -> list[int]:
    """The rounds to score: those asked for, and always the untouched model and the last."""
    step = {"all": 1, "last": max(1, last)}.get(str(scoring.scored_rounds)) or int(scoring.scored_rounds)
    return sorted({0, last, *range(0, last + 1, step)})
