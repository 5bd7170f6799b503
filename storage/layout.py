"""Every path: where downloads, stages, models, runs and the services' state lie under one home folder."""

import os
from dataclasses import dataclass
from pathlib import Path


def default_home() -> Path:
    """The home folder: `ATALAIA_HOME` if set, else `.atalaia` beside the source, whatever the working directory."""
    named = os.environ.get("ATALAIA_HOME")
    return Path(named).expanduser().resolve() if named else Path(__file__).resolve().parent.parent / ".atalaia"


@dataclass(frozen=True)
class Layout:
    """The folders of one home."""

    home: Path

    @property
    def downloads(self) -> Path:
        """Archives as they were fetched, and parts of those still on their way."""
        return self.home / "downloads"

    @property
    def stages(self) -> Path:
        """Outputs of the cached stages: `<stage>/<key>/`."""
        return self.home / "stages"

    @property
    def models(self) -> Path:
        """Base models as local directories of safetensors, each with a card."""
        return self.home / "models"

    @property
    def runs(self) -> Path:
        """One folder a run: configuration, rounds, scores, report."""
        return self.home / "runs"

    @property
    def scores(self) -> Path:
        """Scores by (model and adapter hash, window hash), shared by all runs."""
        return self.home / "scores"

    @property
    def latency(self) -> Path:
        """Times measured apart from runs: `<name>/latency.json`."""
        return self.home / "latency"

    @property
    def mlflow(self) -> Path:
        """Database and artifacts of the default tracking store."""
        return self.home / "mlflow"

    @property
    def prefect(self) -> Path:
        """Prefect's database and persisted results."""
        return self.home / "prefect"

    def run(self, run_id: str) -> Path:
        """The folder of one run."""
        return self.runs / run_id


def current() -> Layout:
    """The layout of the default home."""
    return Layout(default_home())
