"""Two registered detectors judged on the same windows: the validation and calibration windows of one's data."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from fl.promotion import MARGIN, Candidate, Decision, decide
from fl.rarity import USUAL_SCORES, UsualWindows
from fl.usual_messages import SURPRISES
from storage.adapters import CommittedRound, committed_rounds
from storage.datasets import DatasetSpec
from storage.errors import RegistryError
from storage.judging import read_usual
from storage.layout import current
from storage.masks import MaskRules, mask_log
from storage.registry import Version, detector_folder
from storage.stages import Stage, load_stage
from storage.tokens import TokenRule, tokenize_windows
from tasks.usual_scores import message_hashes, usual_scores

Facts = Mapping[str, Any]
_READING = ("mask", "tokens")
"""What two detectors must have in common to read the same tokens, with the base model."""


def compare(version: Version, champion: Version | None, margin: float = MARGIN) -> Decision:
    """Judge both on the validation and calibration windows of `version`'s data; with no champion, the untouched model.

    Scores that are known are looked up, the others computed. Raises RegistryError where both cannot be judged there.
    """
    from fl.errors import ScoreError

    with ExitStack() as opened:
        folder = opened.enter_context(detector_folder(version))
        facts = _facts(folder)
        windows = _judged_windows(version, facts)
        ours = _candidate(version.called, folder, facts, windows, _stage(version, facts, "tokenized"))
        if champion is None:
            theirs = _untouched(version, facts, windows, ours)
        else:
            other = opened.enter_context(detector_folder(champion))
            read = opened.enter_context(_tokens_of(champion, _facts(other), version, facts))
            theirs = _candidate(champion.called, other, _facts(other), windows, read)
            if not _same_tokens(facts, _facts(other)):
                theirs = replace(theirs, loss=None)
        labels = windows.filter(pl.col("split") == "validation")["label"].fill_null(-1).to_numpy().astype(np.int8)
        try:
            return decide(ours, theirs, labels, margin)
        except ScoreError as error:
            raise RegistryError(f"{str(error).rstrip('.')}; --force promotes without a comparison.") from error


def _facts(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((folder / "detector.json").read_text())
    return facts


def _stage(version: Version, facts: Facts, name: str) -> Stage:
    """A stage of the version's data as it was when the version was made."""
    known = facts.get("data", {}).get(name)
    found = load_stage(current().stages, known["stage"], known["key"]) if known else None
    if known is None or found is None or found.fingerprint != known["fingerprint"]:
        raise RegistryError(
            f"The {name} data of {version.called} are no longer in {current().stages}, so nothing can be judged on its "
            "validation windows; run the experiment again, or promote with --force."
        )
    return found


def _judged_windows(version: Version, facts: Facts) -> pl.DataFrame:
    """The validation and calibration windows: window_id, split, label."""
    splits = pl.scan_parquet(_stage(version, facts, "split").file("splits.parquet"))
    judged = splits.filter(pl.col("split").is_in(["validation", "calibration"]))
    labels = pl.scan_parquet(_stage(version, facts, "tokenized").file("windows.parquet")).select("window_id", "label")
    return judged.join(labels, on="window_id", how="left").sort("window_id").collect()


def _candidate(called: str, folder: Path, facts: Facts, windows: pl.DataFrame, tokenized: Stage) -> Candidate:
    """The detector in a folder, judged on the windows as `tokenized` has them."""
    adapter = CommittedRound(int(facts.get("round", 0)), folder, facts["adapter_hash"], {})
    usual = read_usual(folder, facts["score"]) if facts["score"] in USUAL_SCORES else None
    return _judged(called, adapter, facts, windows, tokenized, float(facts["threshold"]), usual)


def _untouched(version: Version, facts: Facts, windows: pl.DataFrame, ours: Candidate) -> Candidate:
    """The base model before training, with a label-free threshold by the same rule: the floor for a first champion."""
    from fl.calibration import calibrated_threshold

    rounds = committed_rounds(current().run(facts["run_id"]))
    if not rounds:
        raise RegistryError(
            f"The rounds of {facts['run_id']} are no longer here, and a first champion must beat its untouched model; "
            "run the experiment again, or promote with --force."
        )
    tokenized = _stage(version, facts, "tokenized")
    found = _judged("the untouched model", rounds[0], facts, windows, tokenized, 0.0)
    rule = facts.get("threshold_rule", "quantile")  # detectors of before have none
    return replace(found, threshold=calibrated_threshold(found.calibration, ours.false_alarm_rate, rule))


def _judged(
    called: str,
    adapter: CommittedRound,
    facts: Facts,
    windows: pl.DataFrame,
    tokenized: Stage,
    threshold: float,
    usual: UsualWindows | None = None,
) -> Candidate:
    """`usual`: what the detector takes for usual; None: what its calibration windows here are like."""
    from fl.anomaly_scores import anomaly_score

    columns = _scores(called, adapter, facts, windows, tokenized)
    if facts["score"] in USUAL_SCORES:
        columns = columns.with_columns(**_by_what_is_usual(columns, tokenized, usual))
    numbers = {name: columns[name].to_numpy() for name in columns.columns if name != SURPRISES}
    scores = anomaly_score(numbers, facts["score"], facts["k"])
    validation, calibration = ((columns["split"] == split).to_numpy() for split in ("validation", "calibration"))
    sums = columns.filter(pl.col("split") == "calibration").select(pl.col("loss_sum", "loss_tokens").sum()).row(0)
    return Candidate(
        called=called,
        threshold=threshold,
        validation=scores[validation],
        calibration=scores[calibration],
        loss=float(sums[0] / sums[1]) if sums[1] else None,
        false_alarm_rate=float(facts["false_alarm_rate"]),
    )


def _by_what_is_usual(columns: pl.DataFrame, tokenized: Stage, usual: UsualWindows | None) -> dict[str, pl.Series]:
    """The scores of each window that need to know what is usual."""
    messages = pl.read_parquet(tokenized.file("sequences.parquet"), columns=["sequence_id", "message_ids"])
    read = columns.select("sequence_id", "split", SURPRISES, "mean_token")
    read = read.join(messages, on="sequence_id", how="left", maintain_order="left")
    known = (read["split"] == "calibration").cast(pl.Int64) if usual is None else usual
    found, _ = usual_scores(read, message_hashes(Path(tokenized.path)), known)
    return {name: pl.Series(values) for name, values in found.items()}


def _scores(
    called: str, adapter: CommittedRound, facts: Facts, windows: pl.DataFrame, tokenized: Stage
) -> pl.DataFrame:
    """The score columns of each window, in order."""
    from fl.federation import tuning_from
    from fl.hyperparameters import Tuning
    from tasks.score_windows import Scorer

    _check_base_model(called, facts)
    known = facts["data"]["model"]
    base = {"name": facts["model"]["name"], "weights_sha256": facts["model"]["sha256"]}
    model = Stage(known["stage"], known["key"], "", known["fingerprint"], base)
    how = facts["scoring"]
    scorer = Scorer(
        model,
        tuning_from(facts["tuning"], Tuning),
        facts["seed"],
        tuple(how["ks"]),
        facts["model"]["quantization"],
        how["device"],
    )
    sequence_ids = pl.read_parquet(tokenized.file("windows.parquet"), columns=["window_id", "sequence_id"])
    placed = windows.join(sequence_ids, on="window_id", how="left", maintain_order="left")
    columns = ["sequence_id", "sequence_hash", "token_ids", "message_starts"]
    sequences = pl.read_parquet(tokenized.file("sequences.parquet"), columns=columns)
    wanted = sequences.join(placed.select("sequence_id").unique(), on="sequence_id", how="semi").sort("sequence_id")
    table, _ = scorer.scores(adapter, wanted, lambda *_: None)
    return placed.join(table, on="sequence_id", how="left", maintain_order="left")


def _check_base_model(called: str, facts: Facts) -> None:
    from fl.model import prepare_model

    card = prepare_model(facts["model"]["name"], current().models) / "card.json"
    if json.loads(card.read_text())["weights_sha256"] != facts["model"]["sha256"]:
        raise RegistryError(f"{facts['model']['name']} has other weights here than {called} was trained on.")


def _same_tokens(one: Facts, other: Facts) -> bool:
    """Whether two detectors read the same tokens from the same windows."""
    return all(one[part] == other[part] for part in _READING) and one["model"]["sha256"] == other["model"]["sha256"]


@contextmanager
def _tokens_of(champion: Version, reader: Facts, version: Version, facts: Facts) -> Iterator[Stage]:
    """The windows of `version`'s data as the champion reads them.

    Raises RegistryError where it cuts the log into other windows.
    """
    if reader["window"] != facts["window"] or reader["dataset"]["log_format"] != facts["dataset"]["log_format"]:
        raise RegistryError(
            f"{version.called} and {champion.called} cut the log into different windows, so no window is judged by "
            "both; --force promotes without a comparison."
        )
    if _same_tokens(facts, reader):
        yield _stage(version, facts, "tokenized")
        return
    from fl.model import prepare_model

    window, spec = _stage(version, facts, "window"), DatasetSpec.model_validate(facts["dataset"])
    raw = _stage(version, facts, "download").file(spec.raw_name)
    with TemporaryDirectory() as folder:
        masks, tokens = Path(folder) / "mask", Path(folder) / "tokenize"
        masks.mkdir()
        tokens.mkdir()
        mask_log(raw, Path(window.path), spec, MaskRules.model_validate(reader["mask"]), masks)
        tokenizer = prepare_model(reader["model"]["name"], current().models) / "tokenizer.json"
        tokenize_windows(Path(window.path), masks, tokenizer, TokenRule.model_validate(reader["tokens"]), tokens)
        yield Stage("tokenize", "", str(tokens), "", {})
