"""flows/train.py: on a GPU, `auto` quantizes no weights that are trained."""

from typing import Any

import pytest

from flows.config import RunConfig
from flows.grids import GRIDS, cells_of
from flows.train import with_trainable_weights


def _config(tuning: dict[str, Any], **model: str) -> RunConfig:
    return RunConfig.model_validate({"preset": "demo", "tuning": tuning, "model": model})


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU."""
    monkeypatch.setattr("flows.train.gpus", lambda: (1, "some GPU"))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("device", ["auto", "cuda:1"])
@pytest.mark.parametrize("tuning", [{"kind": "full"}, {"kind": "sb", "bases": "gradient"}])
def test_weights_that_are_trained_or_differentiated_are_plain_on_a_gpu_and_the_reason_is_told(
    tuning: dict[str, Any], device: str
) -> None:
    given = _config(tuning, device=device)
    config, reasons = with_trainable_weights(given)
    assert config.model.quantization == "none"
    assert config.model_copy(update={"model": given.model}) == given
    assert "needs unquantized weights" in reasons["quantization"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("tuning", "model"),
    [
        ({"kind": "lora"}, {}),
        ({"kind": "none"}, {}),
        ({"kind": "sb", "bases": "weights"}, {}),
        ({"kind": "full"}, {"quantization": "nf4"}),
        ({"kind": "full"}, {"device": "cpu"}),
    ],
)
def test_everything_else_is_as_given(tuning: dict[str, Any], model: dict[str, str]) -> None:
    given = _config(tuning, **model)
    assert with_trainable_weights(given) == (given, {})


def test_without_a_gpu_a_run_keeps_the_names_of_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.train.gpus", lambda: (0, "none"))
    given = _config({"kind": "full"})
    assert with_trainable_weights(given) == (given, {})


def test_training_that_a_worker_with_a_gpu_does_has_plain_weights_on_both_machines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flows.train.gpus", lambda: (0, "none"))
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "deployed")
    monkeypatch.setattr("flows.train.online", lambda pool: pool == "gpu")
    assert with_trainable_weights(_config({"kind": "full"}))[0].model.quantization == "none"


@pytest.mark.usefixtures("gpu")
def test_the_papers_grid_quantizes_all_cells_but_those_of_full_fine_tuning() -> None:
    cells = cells_of(GRIDS["paper"], ["seed=0", "model=1.7B"])
    found = {cell.name.split(", ")[1]: with_trainable_weights(cell.config)[0].model.quantization for cell in cells}
    ranks = ["PT", "R=2", "R=8", "R=32", "R=128"]
    assert found == {**dict.fromkeys(ranks, "auto"), "FFT": "none"}
