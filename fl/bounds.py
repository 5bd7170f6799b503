"""Bounds of plain values in the JSON schema of the dataclass that holds them, so that forms refuse what it would.

The dataclasses check themselves, as their modules run where pydantic is not installed; this only tells it to schemas.
"""

from collections.abc import Callable
from typing import Any

_KEYWORDS = {"at_least": "minimum", "above": "exclusiveMinimum", "at_most": "maximum", "below": "exclusiveMaximum"}


def bounded(**fields: dict[str, float]) -> Callable[[dict[str, Any]], None]:
    """For `json_schema_extra`: each field's bounds by name (at_least, above, at_most, below).

    A field that may be null has them on its other alternative.
    """

    def extend(schema: dict[str, Any]) -> None:
        for field, bounds in fields.items():
            told = schema["properties"][field]
            target = next((option for option in told.get("anyOf", []) if option.get("type") != "null"), told)
            target |= {_KEYWORDS[name]: value for name, value in bounds.items()}

    return extend
