"""Imports go one way, and each library has its place."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "fl", "storage")
BENEATH = {"flows": {"flows", "tasks", "fl", "storage"}, "tasks": {"tasks", "fl", "storage"}, "storage": {"storage"}}
FLOWER = {"fl.client_app", "fl.server_app", "fl.strategies", "fl.simulation"}
# The deployment runtime: the server and the client of real sites, and how each talks to the link.
FLOWER |= {"fl.link_app", "fl.site_app", "fl.link", "fl.link_guard", "fl.node"}
WITH_STORAGE = {"fl.client_app", "fl.server_app", "fl.simulation", "fl.link_app", "fl.link_guard"}
"""The server commits rounds, a client reads its share, the guard knows the registered sites and tells of denials."""
PLACES = {
    "prefect": lambda module: module.split(".")[0] in {"flows", "tasks"},
    "torch": lambda module: module.startswith("fl."),
    "transformers": lambda module: module.startswith("fl."),
    "peft": lambda module: module.startswith("fl."),
    "mlflow": lambda module: module in {"storage.tracking", "storage.registry", "storage.detector"},
    "flwr": lambda module: module in FLOWER,
    "ray": lambda module: module in FLOWER,
}
CORE = ("model", "adapter", "prefix_tree", "local_training", "scoring")


def _modules() -> list[str]:
    return [f"{package}.{path.stem}" for package in PACKAGES for path in sorted((ROOT / package).glob("*.py"))]


def _imported(module: str) -> Iterator[str]:
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("module", _modules())
def test_a_module_imports_only_from_its_own_layer_and_those_beneath(module: str) -> None:
    package = module.split(".")[0]
    used = {name.split(".")[0] for name in _imported(module)} & set(PACKAGES)
    if package == "fl":
        allowed = {"fl", "storage"} if module in WITH_STORAGE else {"fl"}
        assert used <= allowed, f"{module} imports {used - allowed}"
    else:
        assert used <= BENEATH[package], f"{module} imports {used - BENEATH[package]}"


@pytest.mark.parametrize("library", PLACES)
def test_a_library_is_imported_only_in_its_place(library: str) -> None:
    users = {module for module in _modules() if any(name.split(".")[0] == library for name in _imported(module))}
    assert {module for module in users if not PLACES[library](module)} == set()


def test_the_core_of_learning_runs_without_the_platform() -> None:
    absent = [
        "prefect",
        "mlflow",
        "flwr",
        "ray",
        "polars",
        "duckdb",
        "pydantic_settings",
        "typer",
        "rich",
        "matplotlib",
    ]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}));"
        f"import importlib; [importlib.import_module('fl.' + name) for name in {list(CORE)}]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_folder_mlflow_holds_no_python() -> None:
    assert list((ROOT / "mlflow").rglob("*.py*")) == []
