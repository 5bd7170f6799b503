"""A stage's key covers its inputs, its configuration and its source, and nothing else."""

import os
from pathlib import Path

import polars as pl
import pytest

from storage.splits import SplitRule
from storage.stages import Stage
from tasks import caching
from tasks.caching import edited_files, plain, source_files, source_hash, stage_key


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project: tasks.work uses storage.near, which uses storage.far in a function; storage.other is unused."""
    files = {
        "tasks/__init__.py": "",
        "tasks/work.py": "import json\nfrom storage import near\n",
        "storage/__init__.py": "",
        "storage/near.py": "def f():\n    from .far import g\n    return g()\n",
        "storage/far.py": "def g():\n    return 1\n",
        "storage/other.py": "x = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(caching, "PROJECT", tmp_path)
    return tmp_path


def _touch_up(path: Path, text: str) -> None:
    path.write_text(text)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))


def test_source_follows_imports_through_modules_and_functions(project: Path) -> None:
    found = source_files(["tasks.work"])
    assert set(found) == {"tasks.work", "storage", "storage.near", "storage.far"}


def test_changing_a_line_in_a_module_used_indirectly_changes_the_hash(project: Path) -> None:
    before = source_hash(["tasks.work"])
    _touch_up(project / "storage/far.py", "def g():\n    return 2\n")
    assert source_hash(["tasks.work"]) != before


def test_changing_an_unused_module_leaves_the_hash(project: Path) -> None:
    before = source_hash(["tasks.work"])
    _touch_up(project / "storage/other.py", "x = 2\n")
    assert source_hash(["tasks.work"]) == before


def test_a_new_import_brings_its_module_into_the_hash(project: Path) -> None:
    _touch_up(project / "tasks/work.py", "from storage import near, other\n")
    assert "storage.other" in source_files(["tasks.work"])


def test_files_edited_since_the_start_are_told_where_the_stage_uses_them(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching, "_AT_START", caching._digests())
    assert edited_files(["tasks.work"]) == []
    _touch_up(project / "storage/other.py", "x = 2\n")
    assert edited_files(["tasks.work"]) == []
    _touch_up(project / "storage/far.py", "def g():\n    return 2\n")
    _touch_up(project / "tasks/work.py", "from storage import near, new\n")
    (project / "storage/new.py").write_text("")
    assert edited_files(["tasks.work"]) == ["storage/far.py", "storage/new.py", "tasks/work.py"]


def test_named_extra_modules_enter_the_hash(project: Path) -> None:
    assert source_hash(["tasks.work"]) != source_hash(["tasks.work", "storage.other"])


def test_the_training_stage_depends_on_the_code_of_its_child_process() -> None:
    from tasks.train_federation import train_federation

    assert {"fl.simulation", "fl.server_app", "fl.client_app", "fl.local_training"} <= set(
        source_files(train_federation.modules)
    )


def test_an_earlier_stage_counts_by_content_not_by_place() -> None:
    here, there = Stage("mask", "k1", "/a", "same"), Stage("mask", "k2", "/b", "same", {"lines": 1})
    assert stage_key("x", [], {"mask": here}) == stage_key("x", [], {"mask": there})
    assert stage_key("x", [], {"mask": here}) != stage_key("x", [], {"mask": Stage("mask", "k1", "/a", "other")})


def test_every_configuration_value_enters_the_key() -> None:
    keys = {
        stage_key("split", [], {"rule": rule}) for rule in (SplitRule(), SplitRule(seed=1), SplitRule(kind="grouped"))
    }
    assert len(keys) == 3


def test_frames_are_refused_as_inputs() -> None:
    with pytest.raises(TypeError, match="plain value"):
        plain(pl.DataFrame({"x": [1]}))


def test_imports_of_every_form_are_found_wherever_they_stand(project: Path) -> None:
    lines = [
        "import storage.near as near, json",
        "from . import other as again",
        "class A:",
        "    def f(self):",
        "        from .. import fl",
        "        return [__import__('os') for _ in ()]",
        "from storage import *",
    ]
    (project / "storage" / "deep").mkdir()
    (project / "storage" / "deep" / "__init__.py").write_text("\n".join(lines))
    (project / "storage" / "deep" / "other.py").write_text("")
    (project / "fl").mkdir(exist_ok=True)
    (project / "fl" / "__init__.py").write_text("")
    found = source_files(["storage.deep"])
    assert {"storage.deep", "storage.deep.other", "storage", "storage.near", "storage.far"} == set(found)
