"""The detector as an MLflow model from code: raw log lines in, judged windows out; storage/judging.py does the work."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from storage.judging import FACTS, Judge


def pyfunc_arguments(folder: Path) -> dict[str, Any]:
    """What `mlflow.pyfunc.log_model` needs to keep a detector's folder: this file as code, nothing pickled."""
    facts = json.loads((folder / FACTS).read_text())
    return {
        "python_model": str(Path(__file__).resolve()),
        "artifacts": {path.name: str(path) for path in sorted(folder.iterdir())},
        "pip_requirements": ["atalaia"],
        "metadata": {"base_model": facts["model"]["name"], "base_model_sha256": facts["model"]["sha256"]},
    }


class Detector(PythonModel):
    """Judges the windows of raw log lines."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401 (named as MLflow wants it)
        """Read what the detector consists of; the model itself is loaded with the first lines."""
        self.judge = Judge(Path(next(iter(context.artifacts.values()))).parent)

    def predict(self, context: object, model_input: list[str], params: dict[str, str] | None = None) -> pd.DataFrame:
        """One row a window (a pandas frame) of the raw lines: key, lines, score, threshold, anomalous."""
        return self.judge.judge(list(model_input)).to_pandas()


mlflow.models.set_model(Detector())
