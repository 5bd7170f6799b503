"""Write a detector's weights out for other tools: its adapter as PEFT reads it, or a whole model with it merged in."""

import json
from pathlib import Path

from storage.errors import DataError
from storage.layout import current


def export_detector(detector: Path, into: Path, *, merged: bool) -> Path:
    """Export from a detector's folder to a new one; `detector.json` goes along: it says how the weights are used.

    Raises DataError where the base model is not the one the detector was trained on.
    """
    from fl.adapter_files import read_adapter
    from fl.federation import tuning_from
    from fl.hyperparameters import Tuning
    from fl.merging import export_adapter, merge_adapter
    from fl.model import prepare_model

    facts = json.loads((detector / "detector.json").read_text())
    wanted = facts["model"]
    base = prepare_model(wanted["name"], current().models)
    if json.loads((base / "card.json").read_text())["weights_sha256"] != wanted["sha256"]:
        raise DataError(f"The base model {wanted['name']} has other weights than the detector was trained with.")
    write = merge_adapter if merged else export_adapter
    arrays = read_adapter(detector / "adapter.safetensors")
    write(base, arrays, tuning_from(facts["tuning"], Tuning), facts["seed"], into)
    (into / "detector.json").write_text(json.dumps(facts, indent=1))
    return into
