"""docs/configuration.md is what the models say."""

import re

from flows.reference import PAGE, main, page
from flows.settings import settings_of_run


def test_the_committed_page_equals_what_the_models_give() -> None:
    assert PAGE.read_text() == page(), "write it anew: python -m flows.reference"
    assert main(["--check"]) == 0


def test_every_setting_of_a_run_has_one_row_with_a_meaning() -> None:
    chapter = page().split("## Settings of a run")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line) for line in chapter.splitlines() if line.startswith("| `")]
    assert sorted(row[1].strip(" `") for row in rows) == sorted(settings_of_run())
    assert [row[1] for row in rows if not row[4].strip()] == []
