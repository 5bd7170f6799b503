"""What a site's operator agreed to: the federation's rules, word for word, with their hash."""

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.disks import unwritten
from storage.errors import StorageError


class Consent(BaseModel):
    """Rules that were agreed to."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rules: str
    """As JSON, as the federation sent them."""
    sha256: str
    """Of the rules' text in UTF-8."""
    number: int
    """The site's number in the federation."""
    link: str
    """The link that sent them."""
    given: str
    """When, UTC."""


def rules_hash(rules: str) -> str:
    """The name of rules: the SHA-256 of their text, in hex."""
    return hashlib.sha256(rules.encode()).hexdigest()


def read_consent(folder: Path) -> Consent | None:
    """The consent in a site's folder; None where there is none; raises StorageError where it was damaged."""
    path = folder / "consent.json"
    try:
        found = Consent.model_validate_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StorageError(f"{path} cannot be read; remove it to be asked again.") from error
    if rules_hash(found.rules) != found.sha256:
        raise StorageError(f"{path} was changed by hand; remove it to be asked again.")
    return found


def write_consent(folder: Path, rules: str, number: int, link: str) -> Consent:
    """Keep a consent in a site's folder."""
    given = datetime.now(UTC).isoformat(timespec="seconds")
    consent = Consent(rules=rules, sha256=rules_hash(rules), number=number, link=link, given=given)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = folder / f".consent.{os.getpid()}"
    try:
        temporary.write_text(consent.model_dump_json(indent=1))
        temporary.replace(folder / "consent.json")
    except OSError as error:
        raise unwritten(error, f"the consent was not kept in {folder}") from error
    return consent


def changes(before: str, after: str) -> list[str]:
    """What differs between two sets of rules, one line a value."""
    old, new = _flat(json.loads(before)), _flat(json.loads(after))
    return [
        f"{name}: {json.dumps(old.get(name))} -> {json.dumps(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found
