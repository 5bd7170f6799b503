"""When a stage may be reused: its key covers its inputs, its configuration and the source that computes it."""

import functools
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from modulefinder import ModuleFinder
from pathlib import Path
from types import CodeType
from typing import Any

from pydantic import BaseModel

from storage.stages import Stage, hash_file

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "tasks", "fl", "storage")


def stage_key(name: str, modules: Iterable[str], inputs: Mapping[str, Any]) -> str:
    """The key of a stage: its name, the plain form of its inputs and the hash of its source."""
    facts = json.dumps([name, source_hash(modules), plain(dict(inputs))], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def plain(value: Any) -> Any:  # noqa: ANN401
    """A JSON form in which equal inputs are equal: an earlier stage counts by its content, not by where it lies."""
    if isinstance(value, Stage):
        return ["stage", value.name, value.fingerprint]
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"A stage's input must be a stage, a configuration or a plain value, not {type(value).__name__}.")


def source_hash(modules: Iterable[str]) -> str:
    """A hash of the bytes of `source_files`; a change in any line of any of them changes it."""
    digest = hashlib.sha256()
    for module, path in source_files(modules).items():
        digest.update(f"{module}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()[:32]


def edited_files(modules: Iterable[str]) -> list[str]:
    """Those of `source_files` that are not what they were when this process began, and loaded its code."""
    paths = source_files(modules).values()
    return sorted(str(path.relative_to(PROJECT)) for path in paths if _AT_START.get(path) != hash_file(path))


def _digests() -> dict[Path, str]:
    return {path: hash_file(path) for package in PACKAGES for path in (PROJECT / package).rglob("*.py")}


_AT_START = _digests()


def source_files(modules: Iterable[str]) -> dict[str, Path]:
    """The files of `modules` and, transitively, of every project module they import, sorted by module."""
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = _module_path(module)
        if path is None or module in found:
            continue
        found[module] = path
        waiting.extend(_imports(path, path.stat().st_mtime_ns, module))
    return dict(sorted(found.items()))


def _module_path(module: str) -> Path | None:
    """The file of a project module; None for a library's module or any other name."""
    if module.split(".")[0] not in PACKAGES:
        return None
    base = PROJECT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@functools.lru_cache(maxsize=1024)
def _imports(path: Path, modified_ns: int, module: str) -> tuple[str, ...]:
    """Every name a file imports, inside functions too; `modified_ns` is there so that a changed file is read again."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: list[str] = []
    # Compiled, not parsed to a tree: Python 3.11 may fail ("recursion depth mismatch") where two threads make trees at
    # a time, and libraries that are imported in another thread do.
    for level, origin, imported in _import_statements(compile(path.read_text(), str(path), "exec", dont_inherit=True)):
        name = importlib.util.resolve_name("." * level + origin, package) if level else origin
        names += [name, *(f"{name}.{each}" for each in imported)]
    return tuple(names)


def _import_statements(code: CodeType) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Of every import: the number of leading dots, the module's name, and the names taken from it."""
    for what, facts in ModuleFinder().scan_opcodes(code):
        if what == "absolute_import":
            yield 0, facts[1], facts[0] or ()
        elif what == "relative_import":
            yield facts[0], facts[2], facts[1] or ()
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _import_statements(inner)
