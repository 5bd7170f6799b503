"""README.md: its commands are those that there are, with options and settings that they take."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main

from flows.cli import app
from flows.presets import PRESETS
from flows.settings import run_config

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
COMMANDS: dict[str, click.Command] = getattr(typer.main.get_command(app), "commands")  # noqa: B009 (the group's)
_PLACEHOLDERS = {"key=value": "seed=1", "PRESET": "demo"}


def _lines() -> list[str]:
    """What follows `atalaia` on each line of a code block, without what is told of it, and in the text."""
    blocks = [re.split(r"\s{2,}|\s+#", line)[0] for line in re.findall(r"^ {4}atalaia (.+)$", README, re.MULTILINE)]
    return blocks + re.findall(r"`atalaia ([^`]+)`", README)


ALTERNATIVES = [line for line in _lines() if " | " in line]
"""Such as `prepare | train | evaluate ...` and `query "SELECT ..." | --view NAME`."""
WHOLE = [line for line in _lines() if " | " not in line]
SETTINGS = [span for span in re.findall(r"`([^`]+)`", README) if re.fullmatch(r"[\w.]+=\S+( [\w.]+=\S+)*", span)]


def _words(line: str) -> list[str]:
    """The arguments of a line: all that is optional given, and what may be repeated given once."""
    given: list[str] = []
    for word in shlex.split(line.replace("[", "").replace("]", "")):
        if word != "..." or given[-1].startswith("--"):
            given.append(_PLACEHOLDERS.get(word, word if word == "..." else word.removesuffix("...")))
    return given


@pytest.mark.parametrize("line", WHOLE)
def test_a_command_is_parsed_as_it_stands(line: str) -> None:
    name, *arguments = _words(line)
    given = COMMANDS[name].make_context(name, arguments).params
    if "settings" in given and "preset" in given:
        for preset in PRESETS if "PRESET" in line else [given["preset"]]:
            run_config(preset, given["settings"] or [])


@pytest.mark.parametrize("line", ALTERNATIVES)
def test_alternatives_are_commands_or_options_of_the_first(line: str) -> None:
    names = [_words(part)[0] for part in line.split(" | ")]
    options = {option for parameter in COMMANDS[names[0]].params for option in parameter.opts}
    assert set(names) <= COMMANDS.keys() | options


def test_every_command_is_told_of() -> None:
    assert COMMANDS.keys() <= {_words(part)[0] for line in _lines() for part in line.split(" | ")}


@pytest.mark.parametrize("span", sorted(set(SETTINGS)))
def test_a_setting_in_the_text_is_one_of_a_run(span: str) -> None:
    run_config("paper", span.split())
