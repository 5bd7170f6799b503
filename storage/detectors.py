"""Which detector is meant: one by its name in the registry, by the run that made it, or by its folder."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from storage.errors import RegistryError, SourceError
from storage.layout import Layout
from storage.registry import CHALLENGER, CHAMPION, Version, detector_folder, find_version, model_names, only_name

_URI = re.compile(r"(?:models:/)?(?P<name>[^@/:]+)(?:[@/](?P<which>[\w.-]+))?")


@dataclass(frozen=True)
class ChosenDetector:
    """A detector at rest."""

    folder: Path
    name: str
    """How a person names it."""
    why: str
    """How it came to be chosen."""


@contextmanager
def chosen_detector(model: str | None, run_id: str | None, layout: Layout) -> Iterator[ChosenDetector]:
    """The detector that is meant, for as long as the block runs.

    `model`: `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `NAME` or a detector's folder; `run_id`: a run of this home.
    With neither, the newest registered champion or, where a model has none yet, challenger. Raises SourceError or
    RegistryError where there is no such.
    """
    if model is not None and run_id is not None:
        raise SourceError("Give either a model or a run, not both.")
    if run_id is not None:
        yield ChosenDetector(detector_of_run(run_id, layout), f"the detector of {run_id}", "as asked, from the run")
    elif model is not None and (Path(model) / "detector.json").is_file():
        yield ChosenDetector(Path(model), str(model), "as asked, a folder")
    else:
        version, why = registered_version(model, layout)
        with detector_folder(version, layout) as folder:
            yield ChosenDetector(folder, version.called, why)


def detector_of_run(run_id: str, layout: Layout) -> Path:
    """The folder of a run's detector as the run left it, the newest where it was registered more than once."""
    found = layout.stages.glob("register/*/detector/detector.json")
    mine = [path for path in found if json.loads(path.read_text()).get("run_id") == run_id]
    if mine:
        return max(mine, key=lambda path: path.stat().st_mtime_ns).parent
    raise SourceError(f"There is no detector of a run {run_id!r} here; `atalaia runs` lists the runs.")


def registered_version(model: str | None, layout: Layout) -> tuple[Version, str]:
    """The version that `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `NAME` means, and how it came to be chosen."""
    if model is None:
        return _newest(layout)
    found = _URI.fullmatch(model)
    if found is None:
        raise RegistryError(f"{model!r} names no detector; write models:/NAME@champion, NAME, or a detector's folder.")
    name, which = only_name(found["name"], layout), found["which"]
    if which is None:
        return _best(name, layout)
    version = find_version(name, which, layout)
    if version is None:
        raise RegistryError(f"{name} has no version or alias {which!r}; `atalaia detectors` lists what there is.")
    return version, "as asked"


def _best(name: str, layout: Layout) -> tuple[Version, str]:
    """The champion of a registered model, else its challenger."""
    if (champion := find_version(name, CHAMPION, layout)) is not None:
        return champion, "the champion"
    if (challenger := find_version(name, CHALLENGER, layout)) is not None:
        return challenger, "the challenger, since there is no champion yet"
    raise RegistryError(f"{name} has neither champion nor challenger; promote a version: atalaia promote {name}")


def _newest(layout: Layout) -> tuple[Version, str]:
    names = model_names(layout)
    if not names:
        only_name(None, layout)  # says what to do
    found = [_best(name, layout) for name in names]
    version, why = max(found, key=lambda each: each[0].registered)
    others = [name for name in names if name != version.name]
    return version, why + (f"; the newest, there are others for {', '.join(others)}" if others else "")
