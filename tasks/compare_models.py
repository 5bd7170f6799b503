"""Task: have the base and the tuned model go on from the same beginnings of normal windows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from fl.hyperparameters import Tuning
from storage.adapters import CommittedRound, committed_rounds
from storage.composer import TokenRule, encode, load_tokenizer
from storage.continuations import Continuation
from storage.errors import DataError
from storage.layout import current
from storage.progress import Progress
from storage.runs import summary_of
from storage.stages import NewStage, Stage
from tasks.prepare_model import model_folder
from tasks.progress import progress_of
from tasks.stage_task import stage

if TYPE_CHECKING:
    from fl.generation import Sampling

_FEWEST_MESSAGES = 4
"""Of a window that is cut in halves."""


@dataclass(frozen=True)
class Beginning:
    """The tokens to go on from, and those that followed in the log."""

    prefix: list[int]
    followed: list[int] | None


@stage("compare")
def compare_models(
    new: NewStage,
    model: Stage,
    tokenized: Stage,
    trained: Stage,
    evaluated: Stage,
    tuning: Tuning,
    seed: int,
    quantization: str,
    device: str,
    windows: int = 1,
) -> None:
    """Cut the most frequent normal windows in halves, and have both models write the second; nothing without tuning."""
    found: list[Continuation] = []
    if tuning.kind != "none":
        from fl.generation import Sampling

        rounds = committed_rounds(Path(trained.path))
        chosen = rounds[json.loads(evaluated.file("findings.json").read_text())["round"]]
        loading = (model_folder(model), quantization, device)
        beginnings = _beginnings(tokenized, evaluated, windows)
        told = progress_of("compare")
        found = _both_write(loading, tuning, seed, rounds[0], chosen, beginnings, Sampling(), told)
    (new.path / "continuations.json").write_text(json.dumps([each.model_dump() for each in found], indent=1))
    new.counts["continued"] = len(found)


def compare_run(run_id: str, sampling: "Sampling", prefix: str | None = None) -> list[Continuation]:
    """The same for a finished run, anew: from its own beginnings, or from a text with masked messages.

    Raises DataError or ModelError where the run has not finished or its model is not the one it was tuned from.
    """
    from fl.federation import tuning_from
    from fl.model import prepare_model

    summary = summary_of(run_id)
    config = summary.run.config
    if config["tuning"]["kind"] == "none":
        raise DataError(f"{run_id} left the model untouched: there is nothing to compare.")
    if prefix is None and not summary.continuations:
        raise DataError(f"{run_id} has no beginnings of its own; give one with --prefix.")
    rounds = committed_rounds(current().run(run_id))
    folder = prepare_model(config["model"]["name"], current().models)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    texts: list[tuple[str, str | None]] = [(each.prefix, each.followed) for each in summary.continuations]
    if prefix is not None:
        texts = [(TokenRule.model_validate(config["tokens"]).read(prefix), None)]
    encoded = [
        (encode(tokenizer, [start])[0], None if rest is None else encode(tokenizer, [rest])[0]) for start, rest in texts
    ]
    beginnings = [Beginning(ids.tolist(), None if rest is None else rest.tolist()) for ids, rest in encoded]
    loading = (folder, config["model"]["quantization"], config["model"]["device"])
    tuning, seed = tuning_from(config["tuning"], Tuning), config["federation"]["seed"]
    chosen = rounds[summary.findings["round"]]
    return _both_write(loading, tuning, seed, rounds[0], chosen, beginnings, sampling, lambda *_: None)


def _beginnings(tokenized: Stage, evaluated: Stage, count: int) -> list[Beginning]:
    """The first halves of the most frequent normal windows; no two alike."""
    splits = pl.scan_parquet(evaluated.file("window_scores.parquet")).filter(pl.col("split") == "calibration")
    windows = pl.scan_parquet(tokenized.file("windows.parquet")).select("window_id", "sequence_id")
    counted = windows.join(splits.select("window_id"), on="window_id", how="semi").group_by("sequence_id").len()
    sequences = pl.scan_parquet(tokenized.file("sequences.parquet"))
    # Where all windows have equally many messages, their starts are kept as an array.
    starts = pl.col("message_starts").cast(pl.List(pl.UInt32))
    long_enough = sequences.filter(starts.list.len() >= _FEWEST_MESSAGES)
    frequent = counted.join(long_enough, on="sequence_id").sort(["len", "sequence_id"], descending=[True, False])
    found: dict[tuple[int, ...], Beginning] = {}
    for row in frequent.head(20 * count).collect().iter_rows(named=True):
        middle = row["message_starts"][len(row["message_starts"]) // 2]
        prefix, followed = row["token_ids"][:middle], row["token_ids"][middle:]
        found.setdefault(tuple(prefix), Beginning(prefix, followed))
    return list(found.values())[:count]


def _both_write(
    loading: tuple[Path, str, str],
    tuning: Tuning,
    seed: int,
    untouched: CommittedRound,
    chosen: CommittedRound,
    beginnings: Sequence[Beginning],
    sampling: "Sampling",
    progress: Progress,
) -> list[Continuation]:
    from fl.adapter import attach_adapter, load_adapter_arrays
    from fl.generation import base_model, write_on
    from fl.model import load_model

    tokenizer = load_tokenizer(loading[0] / "tokenizer.json")
    loaded = load_model(*loading)
    model = attach_adapter(loaded, tuning, seed)
    arrays = chosen.arrays()
    load_adapter_arrays(model, arrays)

    def text(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    found = []
    for place, each in enumerate(beginnings):
        progress(place, len(beginnings), "beginnings continued by both models")
        tuned = write_on(model, loaded, each.prefix, sampling, each.followed)
        with base_model(model, tuning, untouched.arrays() if tuning.kind == "full" else {}, arrays) as plain:
            base = write_on(plain, loaded, each.prefix, sampling, each.followed)
        sides: dict[str, Any] = {}
        for name, written in (("base", base), ("tuned", tuned)):
            sides |= {name: text(written.token_ids), f"{name}_ended": written.ended, f"{name}_nats": written.nats}
        followed = None if each.followed is None else text(each.followed)
        found.append(Continuation(prefix=text(each.prefix), followed=followed, **sides))
    return found
