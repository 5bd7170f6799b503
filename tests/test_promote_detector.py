"""Promotion: both detectors on the same windows of real stages, by labels and without, refused where it cannot be."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from mlflow_session import write_detector
from staged_data import prepared_stages

from fl.adapter import adapter_arrays, adapter_hash, attach_adapter, load_adapter_arrays, read_adapter
from fl.hyperparameters import Tuning
from fl.model import load_model, prepare_model
from fl.rarity import ROUNDING, USUAL_SCORES, UsualWindows, rarity
from fl.scoring import score_sequences
from fl.thresholds import metrics_at
from fl.usual_messages import UsualMessages
from storage.adapters import commit_round
from storage.errors import RegistryError
from storage.layout import Layout
from storage.masks import MaskRules
from storage.normal_windows import message_hash
from storage.registry import CHAMPION, find_version, register_detector
from storage.stages import Stage, new_stage
from storage.tokens import TokenRule
from storage.tracking import log_run, tracking_client
from tasks.promote_detector import promote
from tasks.usual_scores import write_usual

BLOCKS, ANOMALIES = 60, 22
TOKENS = TokenRule(max_tokens=96)
_TABLES = ("sequences", "windows")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout(tmp_path_factory.mktemp("home"))


@pytest.fixture(autouse=True)
def _default_store(home: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ATALAIA_HOME", str(home.home))


@pytest.fixture(scope="module")
def data(home: Layout, tiny_model: Path) -> dict[str, Stage]:
    return prepared_stages(home, tiny_model, BLOCKS, TOKENS)


def _labelled(data: Mapping[str, Stage], home: Layout, key: str, anomalous: np.ndarray) -> dict[str, Stage]:
    """The same data with labels: the windows with these numbers are anomalous."""
    with new_stage(home.stages, "tokenize", key) as new:
        for path in Path(data["tokenized"].path).glob("*.parquet"):
            table = pl.read_parquet(path)
            if path.name == "windows.parquet":
                labels = pl.col("window_id").is_in(anomalous.tolist()).cast(pl.Int8)
                table = table.with_columns(labels.alias("label"))
            table.write_parquet(new.path / path.name)
    return {**data, "tokenized": new.done}


def _columns(folder: Path, model: Path, home: Layout, sequences: pl.DataFrame) -> dict[str, np.ndarray]:
    """The scores of sequences by the adapter in a folder, straight from the scoring."""
    loaded = load_model(prepare_model(str(model), home.models))
    adapted = attach_adapter(loaded, Tuning(rank=2), 0)
    load_adapter_arrays(adapted, read_adapter(folder / "adapter.safetensors"))
    ids, starts = ([row.to_numpy() for row in sequences[name]] for name in ("token_ids", "message_starts"))
    return score_sequences(adapted, loaded, ids, starts, (1,), by_message=True)


def _scores(folder: Path, model: Path, home: Layout, data: Mapping[str, Stage]) -> np.ndarray:
    """Each window's mean surprise by the adapter in a folder."""
    sequences, windows = (pl.read_parquet(data["tokenized"].file(f"{name}.parquet")) for name in _TABLES)
    return _columns(folder, model, home, sequences)["mean_token"][windows["sequence_id"].to_numpy()]


def _facts(data: Mapping[str, Stage]) -> dict[str, Any]:
    kept = {name: {"stage": each.name, "key": each.key, "fingerprint": each.fingerprint} for name, each in data.items()}
    return {"data": kept, "run_id": "r1", "scoring": {"ks": [1], "device": "auto"}, "tokens": TOKENS.model_dump()}


def _folder(home: Layout, model: Path, name: str, data: Mapping[str, Stage], **how: Any) -> Path:  # noqa: ANN401
    return write_detector(home.home / name, model, home, **_facts(data), **how)


def _register(name: str, folder: Path) -> str:
    version = register_detector(name, log_run("r1", {}, [], {}, [], {}), folder, {"run_id": "r1"})
    return version.version


def _comparison(name: str, version: str, against: str) -> dict[str, Any]:
    found = find_version(name, version)
    assert found is not None
    path = tracking_client().download_artifacts(found.run_id, f"comparison/against-{against}.json")
    content: dict[str, Any] = json.loads(Path(path).read_text())
    return content


@pytest.fixture(scope="module")
def judged(
    home: Layout, data: dict[str, Stage], tiny_model: Path
) -> tuple[dict[str, Stage], float, np.ndarray, np.ndarray]:
    """Labelled data by which one badly trained adapter (seed 1) is perfect at the threshold given, and both scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATALAIA_HOME", str(home.home))
        good = _scores(_folder(home, tiny_model, "good", data, seed=1, noise=0.2), tiny_model, home, data)
        bad = _scores(_folder(home, tiny_model, "bad", data, seed=2, noise=0.2), tiny_model, home, data)
    validation = np.arange(1, len(good), 2)
    threshold = float(np.sort(good[validation])[-ANOMALIES - 1])
    labelled = _labelled(data, home, "labelled", np.flatnonzero(good > threshold))
    return labelled, threshold, good, bad


def test_the_better_one_on_the_same_labelled_windows_becomes_champion(
    home: Layout, tiny_model: Path, judged: tuple[dict[str, Stage], float, np.ndarray, np.ndarray]
) -> None:
    data, threshold, good, bad = judged
    validation = np.arange(1, len(good), 2)
    expected = metrics_at(bad[validation], (good > threshold)[validation], threshold).f1
    assert expected < 0.99
    first = _register("labels", _folder(home, tiny_model, "l1", data, seed=2, noise=0.2, threshold=threshold))
    assert promote("labels", force=True).promoted
    second = _register("labels", _folder(home, tiny_model, "l2", data, seed=1, noise=0.2, threshold=threshold))
    found = promote("labels", margin=0.005)
    assert found.promoted
    assert f"F1 1.000 against {expected:.3f} of labels version {first}" in found.line
    kept = _comparison("labels", second, f"version-{first}")
    assert (kept["promoted"], kept["line"], kept["challenger"]["f1"]) == (True, found.line, 1.0)
    assert kept["champion"]["f1"] == pytest.approx(expected)
    champion = find_version("labels", CHAMPION)
    assert champion is not None
    assert (champion.version, champion.tags["comparison"]) == (second, found.line)
    assert promote("labels", second).line.endswith("is the champion already.")

    third = _register("labels", _folder(home, tiny_model, "l3", data, seed=1, noise=0.2, threshold=threshold))
    equal = promote("labels")
    assert not equal.promoted
    assert "+0.000" in equal.line
    assert find_version("labels", CHAMPION) == champion
    assert not _comparison("labels", third, f"version-{second}")["promoted"]


@pytest.mark.parametrize("score", USUAL_SCORES)
def test_detectors_that_know_what_is_usual_are_judged_by_what_each_takes_for_it(
    score: str, home: Layout, tiny_model: Path, data: dict[str, Stage]
) -> None:
    folder = _folder(home, tiny_model, f"{score}-0", data, seed=1, noise=0.2)
    mean = np.sort(_scores(folder, tiny_model, home, data))
    scores = {"mean_token": mean, "max_excess": np.linspace(0, 90, len(mean))}
    others = {name: np.sort(np.append(values, [values.max() + 1] * 30)) for name, values in scores.items()}
    nothing = UsualWindows(UsualMessages(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0)), others)
    usual = UsualWindows(_usual(data), scores)
    ours, theirs = (_unusual(score, folder, tiny_model, home, data, known) for known in (usual, nothing))
    validation = np.arange(1, len(ours), 2)
    threshold = float(np.sort(ours[validation])[-ANOMALIES - 1])
    expected = metrics_at(theirs[validation], (ours > threshold)[validation], threshold).f1
    assert expected < 0.99
    labelled = _labelled(data, home, f"unusual-{score}", np.flatnonzero(ours > threshold))
    how: dict[str, Any] = {"seed": 1, "noise": 0.2, "threshold": threshold, "score": score}
    for number, known in ((1, nothing), (2, usual)):
        folder = _folder(home, tiny_model, f"{score}-{number}", labelled, **how)
        write_usual(known, folder)
        if score == "max_excess":  # as detectors were registered before there was a rarity
            (folder / "usual_scores.parquet").unlink()
        _register(f"by-{score}", folder)
        found = promote(f"by-{score}", force=number == 1)
    assert f"F1 1.000 against {expected:.3f} of by-{score} version 1" in found.line


def _usual(data: Mapping[str, Stage]) -> UsualMessages:
    """Something that differs from message to message."""
    hashes = sorted(message_hash(text) for text in pl.read_parquet(data["tokenized"].file("messages.parquet"))["text"])
    means = np.arange(len(hashes)) * 7.0
    return UsualMessages(np.array(hashes, np.uint64), means, np.sqrt(means))


def _unusual(
    score: str, folder: Path, model: Path, home: Layout, data: Mapping[str, Stage], usual: UsualWindows
) -> np.ndarray:
    """Each window's highest excess by the adapter in a folder, by plain loops, or how rare that or its mean is."""
    sequences, windows = (pl.read_parquet(data["tokenized"].file(f"{name}.parquet")) for name in _TABLES)
    texts = dict(pl.read_parquet(data["tokenized"].file("messages.parquet")).select("message_id", "text").iter_rows())
    columns = _columns(folder, model, home, sequences)
    told = usual.messages
    known = dict(zip(told.messages.tolist(), zip(told.means, told.deviations, strict=True), strict=True))
    scores = []
    for messages, surprises in zip(sequences["message_ids"].to_list(), columns["message_surprise"], strict=True):
        excess = [surprises[-1]]
        for message, surprise in zip(messages, surprises[:-1], strict=False):
            mean, deviation = known.get(message_hash(texts[message]), (0.0, 0.0))
            excess.append((surprise - mean) / (1 + deviation))
        scores.append(max(excess))
    if score == "rarity":
        parts = {"mean_token": columns["mean_token"], "max_excess": np.array(scores)}
        scores = np.maximum(*(rarity(parts[name], usual.scores[name], ROUNDING[name]) for name in parts)).tolist()
    return np.array(scores)[windows["sequence_id"].to_numpy()]


def test_without_labels_the_first_champion_must_predict_better_than_the_untouched_model(
    home: Layout, tiny_model: Path, data: dict[str, Stage]
) -> None:
    loaded = load_model(prepare_model(str(tiny_model), home.models))
    untouched = adapter_arrays(attach_adapter(loaded, Tuning(rank=2), 7))
    commit_round(home.run("r1"), 0, untouched, adapter_hash(untouched), [], {"round": 0})
    _register("floor", _folder(home, tiny_model, "f1", data, seed=7))
    same = promote("floor")
    assert not same.promoted
    assert "of the untouched model" in same.line
    assert "no labelled anomalies" in same.line
    figures = _comparison("floor", "1", "untouched-model")
    assert figures["challenger"]["loss"] == pytest.approx(figures["champion"]["loss"])
    # Every window is above a threshold of 0.
    assert figures["challenger"]["alerts"] == 1.0
    assert find_version("floor", CHAMPION) is None


def test_a_champion_with_other_masks_reads_the_same_windows_its_own_way(
    home: Layout, tiny_model: Path, judged: tuple[dict[str, Stage], float, np.ndarray, np.ndarray]
) -> None:
    data, threshold, _, _ = judged
    other = MaskRules(preset="numbers").model_dump(mode="json")
    _register("masks", _folder(home, tiny_model, "m1", data, seed=1, noise=0.2, threshold=threshold, mask=other))
    assert promote("masks", force=True).promoted
    _register("masks", _folder(home, tiny_model, "m2", data, seed=1, noise=0.2, threshold=threshold))
    found = promote("masks", margin=0.0)
    assert found.promoted
    kept = _comparison("masks", "2", "version-1")
    assert (kept["challenger"]["f1"], kept["windows"]) == (1.0, BLOCKS // 2)
    assert kept["champion"]["f1"] < 1.0


def test_what_cannot_be_judged_on_the_same_windows_is_refused_unless_forced(
    home: Layout, tiny_model: Path, data: dict[str, Stage]
) -> None:
    counted = {"kind": "count", "key": None, "key_field": "Content", "size": 10, "step": None}
    _register("refused", _folder(home, tiny_model, "r1", data, seed=1, window=counted))
    assert promote("refused", force=True).promoted
    _register("refused", _folder(home, tiny_model, "r2", data, seed=1))
    with pytest.raises(RegistryError, match="different windows"):
        promote("refused")
    lost = {**data, "split": Stage("split", "gone", "", "fingerprint", {})}
    _register("refused", _folder(home, tiny_model, "r3", lost, seed=1))
    with pytest.raises(RegistryError, match="split data of refused version 3 are no longer"):
        promote("refused")
    forced = promote("refused", force=True)
    assert forced.promoted
    assert forced.line.endswith("promoted by force.")
    with pytest.raises(RegistryError, match="no version '9'"):
        promote("refused", "9")
