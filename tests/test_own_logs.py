"""The tutorial docs/own-logs.md is run as it stands, with a tiny model that learns the log in seconds."""

# ruff: noqa: F401 (fixtures are imported)
import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from prefect_session import home, prefect_api

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "own-logs.md").read_text()
QUICK = ["tuning.kind=full", "rounds=2", "steps=25", "batch_size=16"]
"""A model of random weights has to learn all of them."""


def _files() -> dict[str, str]:
    return dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))


def _commands() -> list[str]:
    blocks = re.findall(r"<!-- run -->\n```sh\n(.*?)```", PAGE, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def _atalaia(arguments: list[str], model: Path) -> None:
    """One `atalaia` command of the page, in this process."""
    if arguments[0] == "run":
        from flows.experiment import experiment
        from flows.settings import run_config

        experiment(run_config(arguments[1], [*arguments[2:], *QUICK, f"model.name={model}"]))
        return
    from flows.cli import main

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr("flows.server.quiet_environment", lambda layout: None)
        patch.setattr(sys, "argv", ["atalaia", *arguments])
        main()
    assert not caught.value.code


@pytest.mark.usefixtures("prefect_api", "home")
def test_the_tutorial_leads_from_a_log_to_alerts_with_reasons(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in _files().items():
        (tmp_path / name).write_text(text)
    for command in _commands():
        program, *arguments = shlex.split(command)
        if program == "atalaia":
            _atalaia(arguments, tiny_model)
        else:
            subprocess.run([sys.executable if program == "python" else program, *arguments], check=True)
    told = " ".join(capsys.readouterr().out.split())
    assert "till version 1 (the challenger, since there is no champion yet)" in told
    assert "of 200 windows" in told
    assert "all windows looked up" in told
    alerts = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    raw = "\n".join(line["text"] for alert in alerts for line in alert["raw"])
    assert all(line.startswith("2026-03-02 ") for line in raw.splitlines())
    # What no sale of the training log had.
    assert "payment abandoned" in raw
    assert "drawer forced open" in raw
    reasons = [reason["text"] for alert in alerts for reason in alert["reasons"]]
    assert any("card terminal gave no answer for <*> s" in text for text in reasons)
    assert not any(re.search(r"\d", text) for text in reasons)
    with (tmp_path / "alerts.csv").open(newline="") as file:
        assert [row["window"] for row in csv.DictReader(file)] == [alert["window"] for alert in alerts]
