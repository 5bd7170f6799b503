"""The bounds that forms show are those by which the plain values check themselves."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from fl.errors import LearningError
from fl.event_settings import EventBaselines
from fl.federation import Federation
from fl.hyperparameters import LocalTraining, Tuning

STEP = {"minimum": -1, "exclusiveMinimum": 0, "maximum": 1, "exclusiveMaximum": 0}
"""From a bound to the nearest whole number outside of it."""


def _bounds() -> list[tuple[type, str, dict[str, Any]]]:
    found = []
    for part in (Federation, Tuning, LocalTraining, EventBaselines):
        for field, told in TypeAdapter(part).json_schema()["properties"].items():
            for option in told.get("anyOf", [told]):
                if bounds := {name: option[name] for name in STEP if name in option}:
                    found.append((part, field, bounds))
    return found


def test_there_are_bounds_to_hold() -> None:
    assert {part for part, _, _ in _bounds()} == {Federation, Tuning, LocalTraining, EventBaselines}


@pytest.mark.parametrize(("part", "field", "bounds"), _bounds())
def test_what_a_form_refuses_is_refused_without_one(part: type, field: str, bounds: dict[str, Any]) -> None:
    for name, bound in bounds.items():
        with pytest.raises((ValueError, LearningError)):
            part(**{field: bound + STEP[name]})
        if "exclusive" not in name:
            assert getattr(part(**{field: bound}), field) == bound
