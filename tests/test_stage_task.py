"""Stages are computed once, reused while intact, and retried only where it can help."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
import json
from importlib import import_module
from pathlib import Path

import pytest
from prefect import flow
from prefect_session import endings, home, prefect_api

import tasks
from fl.errors import LearningError
from storage.errors import DataError, FormatError, SourceError, StorageError
from storage.stages import NewStage, Stage
from tasks.stage_task import Retry, StageTask, stage

pytestmark = pytest.mark.usefixtures("prefect_api", "home")
_calls: list[str] = []


@stage("first")
def first(new: NewStage, text: str) -> None:
    """Write a text."""
    _calls.append("first")
    (new.path / "text.txt").write_text(text)
    new.counts["characters"] = len(text)


@stage("second", unkeyed=("speed",))
def second(new: NewStage, before: Stage, times: int, speed: int = 1) -> None:
    """Repeat it."""
    _calls.append("second")
    (new.path / "text.txt").write_text(before.file("text.txt").read_text() * times)


@flow
def chain(text: str, times: int, speed: int = 1) -> tuple[Stage, Stage]:
    a = first(text)
    return a, second(a, times, speed=speed)


def test_a_second_run_reuses_every_stage(endings: list[tuple[str, str]]) -> None:
    once, again = chain("ab", 2), chain("ab", 2)
    assert endings == [("first", "ran"), ("second", "ran"), ("first", "cached"), ("second", "cached")]
    assert again == once
    assert once[1].file("text.txt").read_text() == "abab"


def test_a_changed_value_reruns_only_what_depends_on_it(endings: list[tuple[str, str]]) -> None:
    chain("ab", 2)
    chain("ab", 3)
    assert endings[2:] == [("first", "cached"), ("second", "ran")]


def test_a_value_outside_the_key_reruns_nothing(endings: list[tuple[str, str]]) -> None:
    chain("ab", 2)
    chain("ab", 2, speed=9)
    assert endings[2:] == [("first", "cached"), ("second", "cached")]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("xbab")], ids=["deleted", "changed"])
def test_a_recorded_result_without_its_intact_file_is_a_miss(damage, endings: list[tuple[str, str]]) -> None:  # noqa: ANN001
    _, made = chain("ab", 2)
    damage(made.file("text.txt"))
    _, again = chain("ab", 2)
    assert endings[2:] == [("first", "cached"), ("second", "ran")]
    assert again.file("text.txt").read_text() == "abab"


def test_nothing_is_computed_by_code_that_was_loaded_before_it_was_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    chain("ab", 2)
    monkeypatch.setattr("tasks.stage_task.edited_files", lambda modules: ["storage/reports.py"])
    chain("ab", 2)
    with pytest.raises(StorageError, match=r"storage/reports\.py changed since this run began.* run again"):
        chain("ab", 3)
    monkeypatch.undo()
    assert chain("ab", 3)[1].file("text.txt").read_text() == "ababab"


def test_an_equal_result_of_a_rerun_spares_what_follows(endings: list[tuple[str, str]]) -> None:
    before, _ = chain("ab", 2)
    before.file("text.txt").unlink()
    chain("ab", 2)
    assert endings[2:] == [("first", "ran"), ("second", "cached")]


def test_results_are_kept_as_json_without_the_data() -> None:
    from prefect.settings import PREFECT_LOCAL_STORAGE_PATH

    made, _ = chain("a text that stays where it is", 2)
    record = json.loads((Path(PREFECT_LOCAL_STORAGE_PATH.value()) / f"first-{made.key}").read_text())
    assert record["metadata"]["serializer"]["type"] == "json"
    assert "a text that stays" not in json.dumps(record)


def _failing(error: Exception, times: int) -> tuple[list[int], object]:
    tries: list[int] = []

    @stage(f"failing-{type(error).__name__.lower()}", retry=Retry((SourceError,), times=2, first_delay=0.01))
    def failing(new: NewStage) -> None:
        """Fail for a while."""
        tries.append(1)
        if len(tries) <= times:
            raise error

    @flow
    def run() -> None:
        failing()

    return tries, run


def test_an_error_that_another_try_can_mend_is_retried() -> None:
    tries, run = _failing(SourceError("The line dropped."), times=2)
    run()  # type: ignore[operator]
    assert len(tries) == 3


def test_an_error_that_no_try_can_mend_is_raised_at_once(endings: list[tuple[str, str]]) -> None:
    tries, run = _failing(FormatError("This is no log."), times=2)
    with pytest.raises(FormatError, match="no log"):
        run()  # type: ignore[operator]
    assert len(tries) == 1
    assert endings == [("failing-formaterror", "failed")]


def test_a_stage_is_tried_again_only_after_errors_that_stages_raise() -> None:
    """Those of the application: whatever a library raises is turned into one of them before it leaves a stage."""
    modules = [import_module(f"tasks.{path.stem}") for path in Path(tasks.__file__).parent.glob("[a-z]*.py")]
    stages = {each.name: each for module in modules for each in vars(module).values() if isinstance(each, StageTask)}
    assert {"download", "train", "register"} <= set(stages)
    waited_for = {error for each in stages.values() for error in each.retry.on}
    assert {error for error in waited_for if not issubclass(error, DataError | LearningError)} == set()
