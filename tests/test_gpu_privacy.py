"""benchmarks/gpu_privacy.py and gpu_audit.py in small: experiments are kept, go on, and need no platform."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from test_gpu_benchmarks import ABSENT, ROOT

from benchmarks.gpu_audit import attack, audit_windows
from benchmarks.gpu_privacy import experiments
from benchmarks.gpu_windows import DealtWindows
from benchmarks.windows import LogWindows

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the tiny experiments whose names begin so, in this process; gives the exit status."""

    def main(only: str, *arguments: object) -> int:
        command = ["gpu_privacy", tmp_path, "--tiny", "--device", "cpu", "--only", only, *arguments]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
        with pytest.raises(SystemExit) as end:
            runpy.run_module("benchmarks.gpu_privacy", run_name="__main__")
        return int(end.value.code or 0)

    return main


def _lines(folder: Path) -> dict[str, Any]:
    return {(line := json.loads(text))["name"]: line for text in (folder / "privacy.jsonl").read_text().splitlines()}


def test_an_experiment_that_is_kept_is_not_run_again(run: Run, tmp_path: Path) -> None:
    assert run("quality plain", "--minutes", -1) == 3
    assert run("quality plain") == 0
    kept = (tmp_path / "privacy.jsonl").read_bytes()
    assert run("quality plain") == 0
    assert (tmp_path / "privacy.jsonl").read_bytes() == kept
    assert list(_lines(tmp_path)) == ["quality plain"]


def test_a_thousandfold_update_moves_the_mean_and_not_the_median(run: Run, tmp_path: Path) -> None:
    for name in ("poisoned fedavg thousandfold 2", "poisoned fedmedian thousandfold 2"):
        assert run(name) == 0
    lines = _lines(tmp_path)
    # In round 2 clients start from what round 1 made: from a thousandfold step, they are elsewhere.
    first, second = (lines[name]["losses"] for name in lines)
    assert first[0] == second[0]
    assert abs(first[1] - first[0]) > 10 * abs(second[1] - second[0])


def test_the_norm_bound_needs_the_run_it_comes_from(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("poisoned norm_bound none 0") == 2
    assert "run that experiment first" in capsys.readouterr().err


def test_an_audit_tells_of_windows_and_of_canaries(run: Run, tmp_path: Path) -> None:
    assert run("audit plain") == 0
    attacks = _lines(tmp_path)["audit plain"]["attacks"]
    assert set(attacks) == {f"{what}_by_{how}" for what in ("windows", "canaries") for how in ("loss", "gain")}


def test_an_attack_is_measured_as_by_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(0, 1, 300).round(1), draw.normal(0.7, 1, 500).round(1)
    found = attack(inside, outside)
    truth, guess = np.repeat([1, 0], [300, 500]), -np.concatenate([inside, outside])
    assert found["auc"] == pytest.approx(roc_auc_score(truth, guess), abs=1e-12)
    false, true, _ = roc_curve(truth, guess, drop_intermediate=False)
    assert found["tpr_at_0.05"] == pytest.approx(true[false <= 0.05].max())


def test_members_others_and_held_out_canaries_are_in_no_share_but_their_own() -> None:
    draw = np.random.default_rng(0)
    tokens = [draw.integers(1, 512, draw.integers(5, 30)) for _ in range(200)]
    order = np.concatenate([np.arange(200), np.arange(100, 130)])  # thirty of them twice
    split = draw.choice(["train", "calibration", "validation", "test"], len(order))
    starts = [np.array([0, 3])] * 200
    log = LogWindows("made up", tokens, starts, [], order, draw.random(len(order)) < 0.9)
    dealt = DealtWindows(log, split, np.zeros(len(order), np.int32))
    audit = audit_windows(dealt, clients=2, most=10, canaries=3, vocabulary=512)
    trained = {window.tobytes() for share in audit.shares for window in share}
    assert {window.tobytes() for window in audit.members + audit.inserted.windows} == trained
    assert len(audit.members) == 20 and len(audit.others) > 50 and len(audit.shares[0]) == 13
    assert not {window.tobytes() for window in audit.others + audit.held_out.windows} & trained
    assert not {tokens[number].tobytes() for number in range(100, 130)} & {window.tobytes() for window in audit.others}
    for canaries in (audit.inserted, audit.held_out):
        for window, place in zip(canaries.windows, canaries.places, strict=True):
            without = np.concatenate([window[: place.start + 1], window[place.stop + 1 :]])
            assert without.tobytes() in {normal.tobytes() for normal in tokens}


def test_no_two_experiments_have_one_name() -> None:
    names = [experiment.name for experiment in experiments("whole")]
    assert len(set(names)) == len(names)
    for size in ("small", "tiny"):
        assert names == [experiment.name for experiment in experiments(size)]


@pytest.mark.long
@pytest.mark.parametrize("name", ["quality z=0.1", "poisoned geomedian flip 2", "audit plain"])
def test_an_experiment_needs_nothing_of_the_platform(name: str, tmp_path: Path) -> None:
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({[*ABSENT, 'dp_accounting']}));"
        f"sys.argv = ['benchmark', {str(tmp_path)!r}, '--tiny', '--device', 'cpu', '--only', {name!r}];"
        f"runpy.run_module('benchmarks.gpu_privacy', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
