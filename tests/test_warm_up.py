"""What is made ready beside training is ready after it, and its faults are nobody's but its user's."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows import warm_up
from flows.config import ModelConfig
from flows.warm_up import beside, ready_meanwhile, while_the_server_starts
from storage.layout import Layout

_FRESH = """
import sys
from pathlib import Path
from flows.warm_up import beside, ready_meanwhile, while_the_server_starts
from storage.layout import Layout
wanted = {"mlflow", "torch", "transformers.modeling_utils", "peft", "fl.scoring"}
assert not wanted & set(sys.modules)
with ready_meanwhile(Layout(Path(sys.argv[1]))):
    pass
assert wanted <= set(sys.modules), wanted - set(sys.modules)
"""


def test_after_the_block_the_store_is_there_and_the_libraries_are_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", _FRESH, str(tmp_path)]
    ended = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "mlflow" / "mlflow.db").is_file()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The imports that were made, which are none here."""
    made: list[str] = []
    monkeypatch.setattr(warm_up, "_import_scoring", lambda: made.append("scoring"))
    monkeypatch.setattr(warm_up, "_import_libraries", lambda: made.append("libraries"))
    return made


def test_a_store_that_cannot_be_opened_stops_neither_the_block_nor_the_imports(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(layout: Layout) -> None:
        raise OSError(f"no room in {layout.home}")

    monkeypatch.setattr(warm_up, "open_store", refuse)
    with ready_meanwhile(Layout(tmp_path)):
        pass
    assert steps == ["scoring", "libraries"]


def test_after_an_error_no_further_step_begins(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opening = threading.Event()
    monkeypatch.setattr(warm_up, "open_store", lambda layout: opening.wait(60))
    with pytest.raises(KeyboardInterrupt), ready_meanwhile(Layout(tmp_path)):
        threading.Timer(0.5, opening.set).start()
        raise KeyboardInterrupt
    assert steps == []


def test_of_a_wait_only_the_step_in_work_is_waited_for() -> None:
    taken: list[str] = []
    working = threading.Event()

    def slow() -> None:
        working.set()
        time.sleep(0.5)
        taken.append("slow")

    with beside([slow, lambda: taken.append("late")], all_of_them=False):
        working.wait(60)
    assert taken == ["slow"]


def test_before_the_first_run_the_usual_model_is_prepared_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(warm_up, "_prepare_model", lambda layout, name: made.append(name))
    usual = ModelConfig().name

    def steps(model: str) -> int:
        found = while_the_server_starts(Layout(tmp_path), model)
        if len(found) > 1:
            found[1]()
        return len(found)

    assert steps("someone/else") == 1
    assert made == []
    assert steps(usual) > 1
    assert made == [usual]
    (Layout(tmp_path).models / usual).mkdir(parents=True)
    (Layout(tmp_path).models / usual / "card.json").touch()
    assert steps(usual) == 1
