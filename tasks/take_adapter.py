"""Task: have the adapter of a registered detector at rest, to train on from it."""

import json
import shutil

from storage.errors import RegistryError
from storage.registry import detector_folder, find_version
from storage.stages import NewStage
from tasks.stage_task import stage

ADAPTER = "adapter.safetensors"


@stage("start", unkeyed=("store",))
def take_adapter(new: NewStage, name: str, version: str, adapter_hash: str, store: str) -> None:
    """Fetch a version's adapter and what it was trained with; `store` says where the registry is."""
    found = find_version(name, version)
    if found is None or found.tags.get("adapter_hash") != adapter_hash:
        raise RegistryError(f"{name} has no version {version} any more; `atalaia detectors` lists what there is.")
    with detector_folder(found) as folder:
        facts = json.loads((folder / "detector.json").read_text())
        shutil.copyfile(folder / ADAPTER, new.path / ADAPTER)
    new.counts |= {
        "name": name,
        "version": version,
        "adapter_hash": adapter_hash,
        "tuning": facts["tuning"],
        "base_model": facts["model"]["name"],
        "base_model_sha256": facts["model"]["sha256"],
    }
