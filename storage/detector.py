"""The detector as an MLflow model from code: raw log lines in, judged windows out; storage/answers.py does the work.

Served by `mlflow models serve`, it takes {"inputs": ["line", ...]}. What a request has wrong is answered with 400 and
the reason, what the server has wrong with 500 and the reason.
"""

import json
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR
from mlflow.pyfunc import PythonModel

from storage.answers import Answerer, JudgedWindow
from storage.datasets import DatasetSpec
from storage.errors import DataError, FormatError
from storage.example_lines import example_lines
from storage.judging import FACTS
from storage.windows import WindowRule


def pyfunc_arguments(folder: Path) -> dict[str, Any]:
    """What `mlflow.pyfunc.log_model` needs to keep a detector's folder: this file as code, nothing pickled.

    The package itself is the only requirement, since it comes from no index: serve with `--env-manager local`.
    """
    facts = json.loads((folder / FACTS).read_text())
    arguments = {
        "python_model": str(Path(__file__).resolve()),
        "artifacts": {path.name: str(path) for path in sorted(folder.iterdir())},
        "pip_requirements": ["atalaia"],
        "metadata": {"base_model": facts["model"]["name"], "base_model_sha256": facts["model"]["sha256"]},
    }
    with suppress(FormatError):
        spec, rule = DatasetSpec.model_validate(facts["dataset"]), WindowRule.model_validate(facts["window"])
        arguments["input_example"] = example_lines(spec, rule)
    return arguments


class Refused(MlflowException):
    """An answer with a status and a reason.

    MLflow's server puts the whole request before the reason; what it sets is cut back to the reason.
    """

    @property
    def message(self) -> str:
        """The reason."""
        return self._reason

    @message.setter
    def message(self, text: str) -> None:
        self._reason = text.rpartition("\nError: ")[2]


class Detector(PythonModel):
    """Judges the windows of raw log lines."""

    def load_context(self, context: Any) -> None:  # noqa: ANN401 (named as MLflow wants it)
        """Read what the detector consists of, and have its model in memory.

        So a server says that it is ready when it is, and the first request, too, is answered within MLflow's 60 s. What
        keeps the model from being loaded is told by each answer.
        """
        self._answerer = Answerer(Path(next(iter(context.artifacts.values()))).parent)
        with suppress(DataError):
            self._answerer.load()
        # The server answers each request in a thread of its own, and the model is one.
        self._one_at_a_time = Lock()

    def predict(
        self, context: object, model_input: list[str], params: dict[str, str] | None = None
    ) -> list[JudgedWindow]:
        """The windows of the raw lines, in order of first appearance."""
        lines = list(model_input)
        if not any(line.strip() for line in lines):
            raise Refused("There are no lines to judge; give at least one.", BAD_REQUEST)
        with self._one_at_a_time:
            try:
                self._answerer.load()
                return self._answerer.answer(lines)
            except FormatError as error:
                raise Refused(str(error), BAD_REQUEST) from error
            except DataError as error:
                raise Refused(str(error), INTERNAL_ERROR) from error


mlflow.models.set_model(Detector())
