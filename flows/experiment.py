"""Flow: the whole experiment, from a raw log to a registered detector."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from prefect import flow

from fl.errors import FederationError, JobTaken
from fl.simulation import only_job
from flows.config import RunConfig
from flows.evaluate import Judged, judge
from flows.prepare import Prepared, prepare_data, run_name
from flows.settings import command_of
from flows.timing import Stopwatch, timing
from flows.train import (
    run_id_of,
    starting_adapter,
    train_where_possible,
    trained_at_rest,
    with_trainable_weights,
)
from flows.warm_up import ready_meanwhile
from storage.datasets import resolve
from storage.executions import record_execution
from storage.layout import current
from storage.runs import hardware, now, read_record, record_run, record_version, versions
from storage.stages import Stage
from storage.summaries import RunFacts
from storage.tracking import store_identity
from tasks.compare_models import compare_models
from tasks.draw_figures import draw_figures
from tasks.measure_costs import measure_costs
from tasks.register_detector import register_detector
from tasks.report_results import fill_run_folder, report_results
from tasks.run_pages import show_on_run_page
from tasks.window_logs import reading_facts


@flow(name="experiment", flow_run_name=run_name, persist_result=False)
def experiment(config: RunConfig, start_from: str | None = None) -> str:
    """Prepare, train, score, judge, report and register; the run's id.

    Args:
        config: The run: a preset, and what differs from it.
        start_from: A registered detector to train on from, such as models:/hdfs@champion; none: an untrained adapter.
    """
    with timing() as watch:
        config, reasons = with_trainable_weights(config)
        prepared = prepare_data(config)
        start = starting_adapter(config, prepared, start_from)
        run_id = run_id_of(config, prepared, start)
        with _recorded(config, run_id, start, reasons, watch) as facts:
            is_trained = trained_at_rest(config, prepared, start)
            with nullcontext() if is_trained else ready_meanwhile(current()):
                trained = train_where_possible(config, prepared, run_id, start)
            judged = judge(config, prepared, trained)
            written, figures = report(config, prepared, trained, judged, facts)
            register(config, prepared, trained, judged, written, figures, facts)
    return run_id


def report(
    config: RunConfig, prepared: Prepared, trained: Stage, judged: Judged, facts: RunFacts
) -> tuple[Stage, Stage]:
    """The run's report and figures, in its folder and on its page."""
    loading = (config.tuning, config.federation.seed, config.model.quantization, config.model.device)
    compared = compare_models(prepared.model, prepared.tokenized, trained, judged.evaluated, *loading)
    costs = measure_costs(prepared.model, prepared.tokenized, trained, judged.scored, config.training, *loading)
    figures = draw_figures(prepared.partition, trained, judged.evaluated)
    # The run's own reasons stand: to whoever scores, what was derived before is given.
    reasons = judged.scored.counts["reasons"] | facts.reasons
    facts = facts.model_copy(update={"status": "finished", "reasons": reasons})
    written = report_results(
        vars(prepared),
        judged.evaluated,
        judged.explained,
        compared,
        costs,
        figures,
        config.model_dump(mode="json"),
        facts=facts,
    )
    fill_run_folder(facts.run_id, trained, judged.scored, judged.evaluated, figures, written)
    show_on_run_page(written, figures)
    return written, figures


def register(
    config: RunConfig,
    prepared: Prepared,
    trained: Stage,
    judged: Judged,
    written: Stage,
    figures: Stage,
    facts: RunFacts,
) -> Stage:
    """The run in MLflow, its detector a registered version."""
    spec = resolve(config.dataset)
    rules = {
        "window": (config.window or spec.window).model_dump(mode="json"),
        "mask": (config.mask or spec.mask).model_dump(mode="json"),
        "tokens": config.tokens.model_dump(mode="json"),
        "scoring": {"ks": list(config.scoring.ks), "device": config.model.device},
    }
    registered = register_detector(
        vars(prepared),
        trained,
        judged.evaluated,
        written,
        figures,
        reading_facts(spec),
        rules,
        config.tuning,
        config.model.quantization,
        config.federation.seed,
        store_identity(),
        facts=facts,
        spec=spec,
    )
    record_version(facts.run_id, registered.counts["name"], registered.counts["version"])
    return registered


@contextmanager
def _recorded(
    config: RunConfig, run_id: str, start: Stage | None, reasons: dict[str, str], watch: Stopwatch
) -> Iterator[RunFacts]:
    """Keep the run's record up to date: running, then finished or failed, and how long this execution took."""
    facts = _run_facts(config, run_id, reasons)
    if start is not None:
        origin = f"{start.counts['name']} version {start.counts['version']}, which is what is called untouched here"
        command = f"{facts.command} --start-from models:/{start.counts['name']}/{start.counts['version']}"
        told = facts.reasons | {"training starts from": origin}
        facts = facts.model_copy(update={"reasons": told, "command": command})
    record_run(facts)
    try:
        yield facts
    except BaseException:
        # Another execution that still trains is the run then; that this one ended is no end of it.
        if not _trains(run_id):
            _end(facts, "failed", watch)
        raise
    _end(facts, "finished", watch)


def _trains(run_id: str) -> bool:
    try:
        with only_job(current().run(run_id)):
            return False
    except JobTaken:
        return True
    except (FederationError, OSError):  # why the run fails is what is to be told, not that its folder cannot be held
        return False


def _end(facts: RunFacts, status: str, watch: Stopwatch) -> None:
    record_run(facts.model_copy(update={"status": status}))
    record_execution(facts.run_id, watch.execution(status))


def _run_facts(config: RunConfig, run_id: str, reasons: dict[str, str]) -> RunFacts:
    return RunFacts(
        run_id=run_id,
        preset=config.preset,
        dataset=config.dataset.name,
        split=config.split.kind,
        model=config.model.name,
        tuning=config.tuning.kind,
        rank=config.tuning.rank if config.tuning.has_rank else None,
        seed=config.seed,
        rounds=config.federation.rounds,
        clients=config.federation.clients,
        clients_per_round=config.federation.clients_per_round,
        status="running",
        started=_first_start(run_id),
        command=command_of(config),
        config=config.model_dump(mode="json"),
        versions=versions(),
        hardware=hardware(),
        reasons=config.derived() | reasons,
    )


def _first_start(run_id: str) -> str:
    """When the run was first started: taken up again, it is still the same run."""
    from storage.errors import DataError

    try:
        return read_record(run_id).started
    except DataError:
        return now()
