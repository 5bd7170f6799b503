"""What a person types, `key=value`, made into a run; and one line about what is wrong with it."""

import dataclasses
import difflib
import functools
import shlex
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from flows.config import RunConfig


class ConfigError(Exception):
    """A setting or value that a run cannot have; the message says what is allowed."""


def run_config(preset: str, settings: list[str]) -> RunConfig:
    """The run that a preset and `key=value` settings describe.

    A key is a dotted path (`federation.rounds`) or its last name where only one path ends so (`rounds`). Raises
    ConfigError, with what is allowed, for a wrong key or value.
    """
    values: dict[str, Any] = {"preset": preset}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"{setting!r} is not a setting; write key=value, for example rounds=6.")
        path = _path(key.strip())
        part = values
        for name in path[:-1]:
            part = part.setdefault(name, {})
        part[path[-1]] = _parsed(value.strip(), settings_of_run().get(".".join(path)))
    return validated(values)


def command_of(config: RunConfig) -> str:
    """The command that starts this run: its preset, and what differs from it."""
    preset = _flat(RunConfig.model_validate({"preset": config.preset, "seed": config.seed}).model_dump(mode="json"))
    given = {key: value for key, value in _flat(config.model_dump(mode="json")).items() if preset.get(key) != value}
    given.pop("partition.clients", None)
    if config.seed:
        given["seed"] = config.seed
    settings = [f"{key}={_text(value)}" for key, value in given.items()]
    return shlex.join(["atalaia", "run", config.preset, *settings])


def _text(value: object) -> str:
    """A value as it is typed."""
    return "null" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def validated(values: Mapping[str, Any]) -> RunConfig:
    """A run of plain values; raises ConfigError with one line about the first thing that is wrong."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error


@functools.cache
def settings_of_run() -> dict[str, Any]:
    """The dotted path and type of everything that can be set in a run."""
    return _leaves(RunConfig)


def _leaves(kind: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        if name.startswith("_") or name == "model_config":
            continue
        inner = next((option for option in _options(hint) if _is_part(option)), None)
        found |= _leaves(inner, f"{prefix}{name}.") if inner else {prefix + name: hint}
    return found


def _options(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)


def _is_part(kind: Any) -> bool:  # noqa: ANN401
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def _path(key: str) -> list[str]:
    """The path that a key means."""
    known = settings_of_run()
    parent = key.rpartition(".")[0]
    if key in known or get_origin(known.get(parent)) is dict:
        return key.split(".")
    # The number of clients is the federation's; the partition follows it.
    ends = [path for path in known if path.endswith(f".{key}") and path != "partition.clients"]
    if len(ends) == 1:
        return ends[0].split(".")
    if ends:
        raise ConfigError(f"{key!r} could be {' or '.join(ends)}; write one of them.")
    raise ConfigError(_unknown(key, known))


def _unknown(key: str, known: Mapping[str, Any]) -> str:
    """What there is instead of a setting that there is not: those of the same part, else the nearest and the parts."""
    below = [path for path in known if path.startswith(f"{key.split('.')[0]}.")]
    if below:
        return f"There is no setting {key!r}; settings are {', '.join(below)}."
    names = {path.rpartition(".")[2]: path for path in known} | {path: path for path in known}
    near = dict.fromkeys(names[name] for name in difflib.get_close_matches(key, names, n=4))
    guess = f"; did you mean {' or '.join(near)}?" if near else "."
    parts = ", ".join(dict.fromkeys(path.split(".")[0] for path in known))
    return f"There is no setting {key!r}{guess} Settings belong to {parts}; `atalaia settings` lists them all."


def _parsed(text: str, hint: Any) -> Any:  # noqa: ANN401
    """The plain value of a setting's text; numbers and truth values are left for the field to read."""
    if text == "null":
        return None
    if any(get_origin(option) is tuple for option in _options(hint)):
        return [item.strip() for item in text.strip("()[]").split(",") if item.strip()]
    return text


def _one_line(error: ValidationError) -> str:
    """The first fault of a validation as one line with what is allowed."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return _unknown(where, settings_of_run())
    what = fault["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{where} = {fault['input']!r}: {what}." if where else f"{what[:1].upper()}{what[1:]}."
