"""Which folder a run's detector is in."""

import json
import os
from pathlib import Path

import pytest

from storage.detectors import detector_of_run
from storage.errors import SourceError
from storage.layout import Layout


def test_of_a_run_that_was_registered_more_than_once_the_newest_detector_is_taken(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for age, key in enumerate("bca"):
        facts = layout.stages / "register" / key / "detector" / "detector.json"
        facts.parent.mkdir(parents=True)
        facts.write_text(json.dumps({"run_id": "other" if key == "b" else "mine"}))
        os.utime(facts, ns=(10**18 - age, 10**18 - age))
    assert detector_of_run("mine", layout).parent.name == "c"
    assert detector_of_run("other", layout).parent.name == "b"
    with pytest.raises(SourceError, match="no detector of a run 'none'"):
        detector_of_run("none", layout)
