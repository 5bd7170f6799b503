"""Task: train the learned baselines on the clients' shares, and score every window with them."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from fl.event_settings import EventBaselines, Method
from fl.federation import Federation
from storage.progress import Progress
from storage.stages import NewStage, Stage
from tasks.prepare_model import model_folder
from tasks.progress import progress_of
from tasks.stage_task import stage

END_OF_WINDOW = np.iinfo(np.uint32).max
"""The message id that stands for a window's end; messages are numbered from 0 and never get so far."""

if TYPE_CHECKING:
    from fl.baseline_models import Text
    from fl.event_federation import TrainedBaseline, Window


@stage("baselines")
def train_event_models(
    new: NewStage,
    tokenized: Stage,
    partition: Stage,
    baselines: EventBaselines,
    clients: int,
    fraction: float,
    seed: int,
    masked: Stage | None = None,
    separator: str = " ;-; ",
) -> None:
    """Train each method on the same shares, clients drawn by the seed, and score all windows of the log.

    As many a round, whatever the run's own draws are: Poisson draws, or those of a secret key, are no part of this.

    `masked` is the model that `logfit` tunes; it reads a window's messages with `separator` between them.
    """
    federation = Federation(clients=clients, fraction=fraction, seed=seed)
    text = _text(masked, tokenized, separator) if masked else None
    scores, facts = scores_of_baselines(tokenized, partition, baselines, federation, progress_of("baselines"), text)
    scores.write_parquet(new.path / "window_scores.parquet")
    (new.path / "baselines.json").write_text(json.dumps(facts, indent=1))
    new.counts |= {"methods": list(baselines.methods), "windows": len(scores)}


def scores_of_baselines(
    tokenized: Stage,
    partition: Stage,
    baselines: EventBaselines,
    federation: Federation,
    tell: Progress,
    text: "Text | None" = None,
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Every window's scores, a column `<method>.<score>` each, and what each method's training was and cost."""
    from fl.baselines import distinct_windows
    from fl.event_federation import train_baseline

    table = pl.read_parquet(tokenized.file("windows.parquet"), columns=["window_id", "message_ids"]).sort("window_id")
    messages = table["message_ids"]
    distinct = distinct_windows(messages.explode(empty_as_null=False).to_numpy(), messages.list.len().to_numpy())
    end = (END_OF_WINDOW,) if baselines.baseline_end else ()
    windows = [np.array((*window, *end), dtype=np.uint32) for window in distinct.windows]
    places = pl.DataFrame({"window_id": table["window_id"], "place": distinct.index})
    shares = _shares(partition, places, windows, federation.clients)
    scores, facts = table.select("window_id"), []
    for number, method in enumerate(baselines.methods):
        part = _part(tell, number, len(baselines.methods), baselines)
        trained = train_baseline(method, shares, baselines, federation, part, text)
        for name, values in trained.scores(windows, federation.seed).items():
            scores = scores.with_columns(pl.Series(f"{method}.{name}", values[distinct.index]))
        facts.append(_facts(method, trained, baselines))
    return scores, facts


def _text(masked: Stage, tokenized: Stage, separator: str) -> "Text":
    from fl.baseline_models import Text

    messages = pl.read_parquet(tokenized.file("messages.parquet"), columns=["message_id", "text"])
    return Text(model_folder(masked), dict(messages.iter_rows()), separator)


def _shares(partition: Stage, places: pl.DataFrame, windows: "list[Window]", clients: int) -> "list[list[Window]]":
    """The windows of each client, in order of window_id."""
    dealt = pl.read_parquet(partition.file("shares.parquet")).join(places, on="window_id").sort("window_id")
    mine = dealt.group_by("partition", maintain_order=True).agg("place")
    owned = dict(zip(mine["partition"].to_list(), mine["place"].to_list(), strict=True))
    return [[windows[place] for place in owned.get(number, [])] for number in range(clients)]


def _part(tell: Progress, number: int, methods: int, baselines: EventBaselines) -> Progress:
    """Progress of one method as a part of the whole."""

    def told(done: float, total: float | None, note: str = "") -> None:
        tell(number * baselines.baseline_rounds + done, methods * baselines.baseline_rounds, note)

    return told


def _facts(method: Method, trained: "TrainedBaseline", baselines: EventBaselines) -> dict[str, Any]:
    return {
        "method": method,
        "parameters": trained.parameters,
        "message_bytes": trained.message_bytes,
        "trained_windows": trained.windows,
        "rounds": baselines.baseline_rounds,
        "losses": trained.losses,
        "seconds": round(trained.seconds, 1),
    }
