"""Task: have the base model in a local directory."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl.errors import ModelError
from storage.layout import current
from storage.stages import NewStage, Stage
from tasks.progress import progress_of
from tasks.stage_task import stage

_DESCRIBING = ("config.json", "tokenizer.json")


@stage("model")
def prepare_model(new: NewStage, name: str, files: Mapping[str, Sequence[int]]) -> None:
    """Fetch or dequantize the base model once, and keep what identifies it: card, configuration and tokenizer.

    `files` (of `local_files`) stand for what is in a local directory now.
    """
    from fl import model

    progress_of("model")(0, None, f"{name}: reading weights, once")
    folder = model.prepare_model(name, current().models)
    for file in _DESCRIBING:
        shutil.copyfile(folder / file, new.path / file)
    card = json.loads((folder / "card.json").read_text())
    # Files that were only touched hold the same model, and every stage made with it.
    card.pop("files", None)
    (new.path / "model-card.json").write_text(json.dumps(card, indent=1))
    new.counts |= {"name": name, "licence": card.get("licence"), "weights_sha256": card["weights_sha256"]}


def model_folder(prepared: Stage) -> Path:
    """The directory with the model's weights, made again where it was deleted.

    Raises ModelError where a local directory holds other weights by now than the stage names.
    """
    from fl import model

    name = prepared.counts["name"]
    folder = model.prepare_model(name, current().models)
    if json.loads((folder / "card.json").read_text())["weights_sha256"] != prepared.counts["weights_sha256"]:
        raise ModelError(f"The weights of {name} changed while they were used; run again to begin with the new ones.")
    return folder
