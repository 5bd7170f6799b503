"""The reference page of everything that can be set: `python -m flows.reference` writes docs/configuration.md.

What it says comes from the models' JSON schemas, which the forms on Prefect's pages are made of too.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from inspect import getdoc
from typing import Any

from pydantic import BaseModel

from flows.config import RunConfig
from flows.grids import Grid
from flows.link import LinkSettings
from flows.presets import PRESETS
from flows.services import PROJECT, PlatformSettings
from storage.descriptions import Description
from storage.detection import DetectConfig

PAGE = PROJECT / "docs" / "configuration.md"
COMMAND = "python -m flows.reference"
Schema = dict[str, Any]
Part = tuple[str, str, dict[str, Schema]]
"""A model's dotted path, what it is, and its own settings."""

_OPENING = f"""# Configuration

Everything that can be set, made from the program's own models by `{COMMAND}`: do not edit this page.

A setting of a run is given as `key=value` (`atalaia run hdfs-2pct federation.rounds=6`), in the form of a deployment,
or in `prefect.yaml`. On the command line its last name is enough where only one setting ends so (`rounds=6`), a list is
written with commas (`ks=1,5`), and `null` stands for no value. Whatever is not given has the preset's value, and what
the preset does not say the default below, the paper's but for `model` and `split`. `atalaia settings PRESET` prints
them all together.
"""

_CHAPTERS: tuple[tuple[str, type[BaseModel], str], ...] = (
    ("Settings of a run", RunConfig, "Of commands, and of the parameter `config` of deployments that train."),
    ("Your own logs", Description, "The `.toml` file that `dataset.name` may name; see [own-logs.md](own-logs.md)."),
    ("A grid of runs", Grid, "The `.toml` file that `atalaia sweep` may be given."),
    (
        "Detection",
        DetectConfig,
        "The parameter `config` of `detect-hourly`, and the options of `atalaia detect`, with hyphens there; "
        "`memory_mb` is `--memory`. Options alone: `--show` (kinds of alerts shown, 5), `--json` (alerts on standard "
        "output, as `output` `-`), and `--fail-on-alerts` (exit status 1 if there are any).",
    ),
    (
        "The link of real sites",
        LinkSettings,
        "The parameter `link` of `federate`, and options of `atalaia superlink`, with hyphens there, where `--certs` "
        "is `certs/link` if not given; `--rules` (an option alone) only shows the rules. See [sites.md](sites.md).",
    ),
    ("Services", PlatformSettings, "Options of `atalaia up`, with hyphens there; see [operations.md](operations.md)."),
)
_SEEN_ELSEWHERE = {
    "LinkSettings": "[a link](#the-link-of-real-sites)",
    "RunConfig": "a [run](#settings-of-a-run)",
    "DetectConfig": "[detection](#detection)",
    "MaskRule": "`{pattern, replacement}`",
}
"""How a table says what has a table of its own."""


def page() -> str:
    """The whole page."""
    chapters = [_chapter(title, model, told) for title, model, told in _CHAPTERS]
    return "\n".join([_OPENING, chapters[0], _presets(), *chapters[1:], _deployments()]).rstrip() + "\n"


def _chapter(title: str, model: type[BaseModel], told: str) -> str:
    # Of what is written out: the schema of what may be given to a run leaves out what its preset would fill in.
    schema = model.model_json_schema(mode="serialization")
    # In a TOML file a part is a table, whose name a heading of another chapter may have too.
    heading = "### [{}]" if model is Description else "### {}"
    parts = "\n".join(_part(heading, *part) for part in _parts(schema, schema.get("$defs", {})))
    return f"## {title}\n\n{told}\n\n{parts}"


def _parts(schema: Schema, known: Mapping[str, Schema], prefix: str = "") -> Iterator[Part]:
    """A model and all models within it."""
    inner: dict[str, Schema] = {}
    leaves: dict[str, Schema] = {}
    for name, field in schema["properties"].items():
        part = _referred(field, known)
        if part is None:
            leaves[prefix + name] = field | {"required": name in schema.get("required", [])}
        else:
            # What the field itself says of the part goes before what the part says of itself.
            inner[prefix + name] = part | {"description": field.get("description") or part.get("description", "")}
    yield prefix.rstrip("."), schema.get("description", ""), leaves
    for path, part in inner.items():
        yield from _parts(part, known, f"{path}.")


def _referred(field: Schema, known: Mapping[str, Schema]) -> Schema | None:
    """The model that a field holds, if it holds one."""
    names = [option["$ref"].rpartition("/")[2] for option in _options(field) if "$ref" in option]
    found = [known[name] for name in names if "properties" in known[name]]
    return found[0] if found else None


def _options(field: Schema) -> Sequence[Schema]:
    return field.get("anyOf") or [field]


def _part(heading: str, path: str, told: str, leaves: Mapping[str, Schema]) -> str:
    opening = f"{heading.format(path)}\n\n{_line(told)}\n\n" if path else ""
    return opening + _table(("key", "value", "default", "meaning"), [_row(key, leaf) for key, leaf in leaves.items()])


def _row(key: str, leaf: Schema) -> list[str]:
    empty: dict[str, Any] | None = {} if leaf.get("type") == "object" else None
    default = "required" if leaf.get("required") else _code(leaf.get("default", empty))
    return [f"`{key}`", " or ".join(_kinds(leaf)), default, _line(leaf.get("description", ""))]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [" | ".join(names), " | ".join("---" for _ in names), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _kinds(field: Schema) -> Iterator[str]:
    """What a field takes, in words, one for each of its alternatives."""
    for option in _options(field):
        if "enum" in option or "const" in option:
            yield ", ".join(_code(value) for value in option.get("enum", [option.get("const")]))
        elif option.get("type") == "array":
            yield f"list of {' or '.join(_kinds(option.get('items', {})))}"
        elif option.get("type") == "object":
            yield "table"
        elif "$ref" in option:
            yield _SEEN_ELSEWHERE[option["$ref"].rpartition("/")[2]]
        else:
            yield _KINDS.get(option.get("type", ""), "value") + _bounds(option)


_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "null": "`null`",
}
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "up to"}


def _bounds(option: Schema) -> str:
    found = [f"{word} {option[name]:g}" for name, word in _BOUNDS.items() if name in option]
    return " " + ", ".join(found) if found else ""


def _code(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`" if value != "" else "(empty)"


def _line(text: str) -> str:
    """Text of a docstring as one line of a table's cell."""
    return " ".join(text.split()).replace("|", r"\|")


def _presets() -> str:
    rows = [[f"`{name}`", f"`{key}`", _code(value)] for name, values in PRESETS.items() for key, value in _flat(values)]
    told = "What the named runs say; everything else is as above. `paper` says nothing: its values are the defaults."
    return f"## Presets\n\n{told}\n\n{_table(('preset', 'key', 'value'), rows)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _deployments() -> str:
    """The parameters of the deployed flows beside `config`, as their forms show them."""
    from prefect.utilities.callables import parameter_schema

    from flows.detect import detect
    from flows.experiment import experiment
    from flows.federate import federate
    from flows.nightly import nightly_retrain
    from flows.sweep import sweep
    from flows.train import train

    chapters = ["## Parameters of the deployments", ""]
    for flow in (experiment, train, nightly_retrain, detect, sweep, federate):
        schema = parameter_schema(flow)
        rows = [_row(name, field | {"required": name in schema.required}) for name, field in schema.properties.items()]
        chapters += [f"### {flow.name}", "", _line((getdoc(flow.fn) or "").split("\n\n")[0]), ""]
        chapters.append(_table(("parameter", "value", "default", "meaning"), rows))
    return "\n".join(chapters)


def main(arguments: Sequence[str]) -> int:
    """Write the page, or say whether it is up to date; the exit status."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Write docs/configuration.md from the models.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    if not parser.parse_args(arguments).check:
        PAGE.write_text(page())
        return 0
    if PAGE.is_file() and PAGE.read_text() == page():
        return 0
    print(f"{PAGE.relative_to(PROJECT)} is not what the models say; write it anew: {COMMAND}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
