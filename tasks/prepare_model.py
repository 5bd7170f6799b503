"""Task: have the base model in a local directory."""

import json
import shutil
from pathlib import Path

from storage.layout import current
from storage.stages import NewStage, Stage
from tasks.progress import progress_of
from tasks.stage_task import stage

_DESCRIBING = {"card.json": "model-card.json", "config.json": "config.json", "tokenizer.json": "tokenizer.json"}


@stage("model")
def prepare_model(new: NewStage, name: str) -> None:
    """Fetch or dequantize the base model once, and keep what identifies it: card, configuration and tokenizer."""
    from fl import model

    progress_of("model")(0, None, f"{name}: reading weights, once")
    folder = model.prepare_model(name, current().models)
    for file, kept in _DESCRIBING.items():
        shutil.copyfile(folder / file, new.path / kept)
    card = json.loads((folder / "card.json").read_text())
    new.counts |= {"name": name, "licence": card.get("licence"), "weights_sha256": card["weights_sha256"]}


def model_folder(prepared: Stage) -> Path:
    """The directory with the model's weights, made again where it was deleted."""
    from fl import model

    return model.prepare_model(prepared.counts["name"], current().models)
