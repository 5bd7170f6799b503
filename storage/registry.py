"""MLflow's registry: a registered model for each dataset, its versions the detectors, aliases that say which is used.

`challenger` is the newest version, `champion` the one that detects, `previous` the champion before it.
"""

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from storage.errors import RegistryError
from storage.layout import Layout
from storage.tracking import told_as_tracking_error, tracking_client, tracking_uri

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS = "previous"
_OURS = {"made_by": "atalaia"}
"""The tag by which a registry shared with others tells detectors from other models."""


@dataclass(frozen=True)
class Version:
    """A registered detector."""

    name: str
    version: str
    run_id: str
    """The MLflow run it came from."""
    tracking_uri: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    registered: str = ""
    """ISO 8601, UTC."""
    description: str = ""

    @property
    def uri(self) -> str:
        """How MLflow names it."""
        return f"models:/{self.name}/{self.version}"

    @property
    def called(self) -> str:
        """How a person names it."""
        return f"{self.name} version {self.version}"


def registered_name(dataset: str) -> str:
    """The registered model of a dataset: its name with a hyphen for whatever has a meaning in models:/NAME@ALIAS."""
    return re.sub(r"[^\w.-]+", "-", dataset).strip("-.") or "detector"


def register_detector(
    name: str, run_id: str, folder: Path, tags: Mapping[str, str], description: str = "", layout: Layout | None = None
) -> Version:
    """Register a detector's folder (see storage/detector.py) as a new version with the alias `challenger`."""
    with told_as_tracking_error(layout):
        import mlflow

        from storage.answers import EXPLAINED
        from storage.detector import pyfunc_arguments

        client = tracking_client(layout)
        mlflow.set_tracking_uri(tracking_uri(layout))
        # MLflow advises on type hints at length; what the detector takes and gives is written in its docstring.
        with warnings.catch_warnings(action="ignore"), mlflow.start_run(run_id=run_id):
            # MLflow tries the detector on its example; reasons for made-up lines would take longer than all the rest.
            told = EXPLAINED.set(0)
            try:
                logged = mlflow.pyfunc.log_model(name="detector", **pyfunc_arguments(folder))
            finally:
                EXPLAINED.reset(told)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, tags=_OURS, description=f"Anomaly detectors for the logs {name}")
        made = client.create_model_version(
            name, logged.model_uri, run_id, tags=dict(tags), model_id=logged.model_id, description=description
        )
        client.set_registered_model_alias(name, CHALLENGER, made.version)
    found = find_version(name, str(made.version), layout)
    assert found is not None, "the version that was just made"
    return found


def load_detector(uri: str, layout: Layout | None = None) -> Any:  # noqa: ANN401 (mlflow's PyFuncModel)
    """A registered detector, such as `models:/hdfs@champion`, as a pyfunc model."""
    with told_as_tracking_error(layout):
        import mlflow

        mlflow.set_tracking_uri(tracking_uri(layout))
        return mlflow.pyfunc.load_model(uri)


@contextmanager
def detector_folder(version: Version, layout: Layout | None = None) -> Iterator[Path]:
    """A copy of the version's detector folder, for as long as the block runs."""
    with TemporaryDirectory() as copy:
        with told_as_tracking_error(layout):
            import mlflow

            tracking_client(layout)  # before anything is said about downloads
            mlflow.set_tracking_uri(tracking_uri(layout))
            path = mlflow.artifacts.download_artifacts(version.uri, dst_path=copy)
        yield Path(path) / "artifacts"


def model_names(layout: Layout | None = None) -> list[str]:
    """The registered models that hold detectors."""
    with told_as_tracking_error(layout):
        ours = " AND ".join(f"tags.{key} = '{value}'" for key, value in _OURS.items())
        return sorted(model.name for model in tracking_client(layout).search_registered_models(ours))


def only_name(name: str | None, layout: Layout | None = None) -> str:
    """The registered model that is meant: the named one, or the only one; raises RegistryError where there is none."""
    known = model_names(layout)
    if not known:
        raise RegistryError("No detector is registered yet; `atalaia run` registers one.")
    if name is None and len(known) > 1:
        raise RegistryError(f"There are detectors for {', '.join(known)}; name one of them.")
    if name is not None and name not in known:
        raise RegistryError(f"There is no registered detector {name!r}; there are {', '.join(known)}.")
    return name or known[0]


def versions_of(name: str, layout: Layout | None = None) -> list[Version]:
    """All versions of a registered model, newest first."""
    with told_as_tracking_error(layout):
        client = tracking_client(layout)
        aliases = _aliases(client, name)
        rows = [_version(row, aliases, layout) for row in client.search_model_versions(f"name = '{name}'")]
    return sorted(rows, key=lambda row: -int(row.version))


def find_version(name: str, wanted: str, layout: Layout | None = None) -> Version | None:
    """A version by its number or by an alias; None where there is no such."""
    found = versions_of(name, layout)
    return next((row for row in found if row.version == wanted or wanted in row.aliases), None)


def _aliases(client: Any, name: str) -> dict[str, str]:  # noqa: ANN401
    model = client.get_registered_model(name)
    return {alias: str(version) for alias, version in model.aliases.items()}


def _version(row: Any, aliases: Mapping[str, str], layout: Layout | None) -> Version:  # noqa: ANN401
    version = str(row.version)
    return Version(
        name=row.name,
        version=version,
        run_id=row.run_id,
        tracking_uri=tracking_uri(layout),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if number == version)),
        tags=dict(row.tags),
        registered=datetime.fromtimestamp(row.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        description=row.description or "",
    )


def tag_version(version: Version, tags: Mapping[str, str], layout: Layout | None = None) -> None:
    """Set tags of a version."""
    with told_as_tracking_error(layout):
        client = tracking_client(layout)
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, key, value)


def keep_with_run(version: Version, content: Mapping[str, Any], file: str, layout: Layout | None = None) -> None:
    """Store a small JSON file among the artifacts of the run that the version came from."""
    with told_as_tracking_error(layout):
        tracking_client(layout).log_dict(version.run_id, dict(content), file)


def make_champion(version: Version, layout: Layout | None = None) -> None:
    """Have the version detect from now on; the champion before it is kept as `previous`.

    Cut off in between, it leaves the old champion in its place, and can be done again.
    """
    with told_as_tracking_error(layout):
        client = tracking_client(layout)
        aliases = _aliases(client, version.name)
        former = aliases.get(CHAMPION)
        if former == version.version:
            return
        if former is not None:
            client.set_registered_model_alias(version.name, PREVIOUS, former)
        client.set_registered_model_alias(version.name, CHAMPION, version.version)
        if aliases.get(CHALLENGER) == version.version:
            client.delete_registered_model_alias(version.name, CHALLENGER)


def roll_back(name: str, layout: Layout | None = None) -> tuple[Version, Version | None]:
    """Give the title back to the champion before; the champion now, and the version that lost the title.

    A second call changes nothing (and names no loser): there is one step back, until the next promotion. Raises
    RegistryError where there is no champion, or never was one before it.
    """
    champion, previous = find_version(name, CHAMPION, layout), find_version(name, PREVIOUS, layout)
    if champion is None:
        raise RegistryError(f"{name} has no champion to roll back; promote one: atalaia promote {name}")
    if previous is None and "restored" not in champion.tags:
        raise RegistryError(f"{champion.called} is the first champion: there is none before it to go back to.")
    lost = champion if previous is not None and previous.version != champion.version else None
    with told_as_tracking_error(layout):
        client = tracking_client(layout)
        if previous is not None and lost is not None:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            tag_version(previous, {"restored": when}, layout)
            tag_version(lost, {"rolled_back": when}, layout)
            client.set_registered_model_alias(name, CHAMPION, previous.version)
        if previous is not None:
            client.delete_registered_model_alias(name, PREVIOUS)
    return (previous if lost is not None and previous is not None else champion), lost
