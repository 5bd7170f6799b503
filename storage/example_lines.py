"""Made-up log lines of a dataset's form: what a registered detector shows as its input, with nothing of a real log."""

import re

# Python's own parser of regular expressions; there is no public one, and the library keeps this one for tools.
import re._constants as codes  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from storage.datasets import DatasetSpec
from storage.errors import FormatError
from storage.log_formats import CONTENT
from storage.windows import WindowRule

_START = datetime(2024, 1, 2, 3, 4, 5, 678000)
_CATEGORIES = {codes.CATEGORY_DIGIT: "7", codes.CATEGORY_WORD: "a", codes.CATEGORY_SPACE: " "}
_PRINTABLE = [chr(code) for code in range(32, 127)]


def example_lines(spec: DatasetSpec, rule: WindowRule, count: int = 3) -> list[str]:
    """`count` lines that the format reads, in one window where windows are sessions; raises FormatError where none can
    be made up (a key that no simple text matches)."""
    key = example_text(rule.key) if rule.key is not None else None
    return [_line(spec, rule, key, number) for number in range(count)]


def _line(spec: DatasetSpec, rule: WindowRule, key: str | None, number: int) -> str:
    """The notation with a value in each field's place."""
    values = {field: field.lower() for field in spec.log_format.fields} | _times(spec, number)
    if spec.label_field:
        values[spec.label_field] = spec.normal_word
    values[CONTENT] = f"example message {number}"
    if key is not None:
        values[rule.key_field] = f"{values[CONTENT]} {key}" if rule.key_field == CONTENT else key
    return re.sub(r"<([^<>\s]+)>", lambda found: values[found[1]], spec.log_format.notation)


def _times(spec: DatasetSpec, number: int) -> dict[str, str]:
    """The time fields' values: one blank-separated part of the time a field, the rest in the last."""
    form, fields = spec.log_format.time_format, spec.log_format.time_fields
    if form is None:
        return {}
    time = _START + timedelta(seconds=number)
    text = f"{time.timestamp():.0f}" if form == "epoch" else time.strftime(form.replace("%z", "+0000"))
    return dict(zip(fields, text.split(" ", len(fields) - 1), strict=True))


def example_text(pattern: str) -> str:
    """A short text that a regular expression matches; raises FormatError where none is found."""
    text = _joined(parser.parse(pattern))
    if not text or not re.search(pattern, text):
        raise FormatError(f"No example can be made up for the window key {pattern!r}; use a simpler expression.")
    return text


def _piece(code: Any, value: Any) -> str:  # noqa: ANN401 (the parser's own codes and trees)
    """What one part of a parsed expression matches.

    Anchors are nothing; groups named again and look-around are too, and end as a text that does not match.
    """
    if code in {codes.MAX_REPEAT, codes.MIN_REPEAT, codes.POSSESSIVE_REPEAT}:
        least, most, inner = value
        return _joined(inner) * _times_repeated(least, most)
    kinds: dict[Any, Callable[[Any], str]] = {
        codes.LITERAL: chr,
        codes.ANY: lambda _: "a",
        codes.NOT_LITERAL: lambda value: "b" if value == ord("a") else "a",
        codes.IN: _member,
        codes.SUBPATTERN: lambda value: _joined(value[-1]),
        codes.BRANCH: lambda value: _joined(value[1][0]),
    }
    return kinds[code](value) if code in kinds else ""


def _joined(parts: Iterable[tuple[Any, Any]]) -> str:
    return "".join(_piece(code, value) for code, value in parts)


def _times_repeated(least: int, most: int) -> int:
    """Optional parts are left out, repeated ones come as often as they must, but twice where they may."""
    return max(least, 0 if most == 1 else min(2, most))


def _member(choices: Iterable[tuple[Any, Any]]) -> str:
    """A character of a set."""
    allowed = list(choices)
    if allowed and allowed[0][0] is codes.NEGATE:
        return next(
            (c for c in "a7-" + "".join(_PRINTABLE) if not any(_holds(choice, c) for choice in allowed[1:])), ""
        )
    last, value = allowed[-1]
    return (
        chr(value[0]) if last is codes.RANGE else _CATEGORIES.get(value, "a") if last is codes.CATEGORY else chr(value)
    )


def _holds(choice: tuple[Any, Any], character: str) -> bool:
    code, value = choice
    if code is codes.RANGE:
        return bool(value[0] <= ord(character) <= value[1])
    if code is codes.CATEGORY:
        tests = {
            codes.CATEGORY_DIGIT: str.isdigit,
            codes.CATEGORY_SPACE: str.isspace,
            codes.CATEGORY_WORD: lambda c: c.isalnum() or c == "_",
        }
        return value in tests and tests[value](character)
    return bool(ord(character) == value)
