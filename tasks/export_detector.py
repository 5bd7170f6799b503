"""Write a detector's weights out for other tools: its adapter as PEFT reads it, or a whole model with it merged in."""

import json
import shutil
from pathlib import Path
from typing import Any

from storage.judging import ADAPTER, FACTS, IN_FOLDER, Judge


def export_detector(detector: Path, into: Path, *, merged: bool) -> dict[str, Any]:
    """Export from a detector's folder to a new one; gives the detector's facts.

    `detector.json` goes along: it says how the weights are used. With the weights merged, the new folder is a detector
    that needs no other model. Raises DataError where the base model is not the one the detector was trained on.
    """
    from fl.adapter_files import read_adapter
    from fl.federation import tuning_from
    from fl.hyperparameters import Tuning
    from fl.merging import export_adapter, merge_adapter

    judge = Judge(detector)
    facts, base = judge.facts, judge.model_folder
    write = merge_adapter if merged else export_adapter
    tuning = tuning_from(facts["tuning"], Tuning)
    arrays = read_adapter(detector / ADAPTER) if tuning.kind != "none" else {}
    write(base, arrays, tuning, facts["seed"], into)
    (into / FACTS).write_text(json.dumps(_merged(facts, into) if merged else facts, indent=1))
    if merged:
        for path in detector.iterdir():
            if path.name not in {ADAPTER, FACTS}:
                shutil.copyfile(path, into / path.name)
    return facts


def _merged(facts: dict[str, Any], into: Path) -> dict[str, Any]:
    """The facts of a detector whose model lies in its own folder, with nothing to add to it."""
    sha256 = json.loads((into / "card.json").read_text())["weights_sha256"]
    model = {"name": IN_FOLDER, "sha256": sha256, "quantization": "none"}
    return {**facts, "model": model, "tuning": {"kind": "none"}}
