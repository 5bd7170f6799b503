"""Logs without labels and a model without training go through the whole chain, and nothing is claimed of them."""

# ruff: noqa: F401, F811 (fixtures are imported, and named again as parameters)
from pathlib import Path

import polars as pl
import pytest
from prefect_session import home, prefect_api

from flows.config import RunConfig
from storage.hdfs_generator import generate
from storage.layout import Layout
from storage.reports import terminal_text
from storage.runs import summary_of

DESCRIPTION = """
name = "blocks"
source = "logs/HDFS.log"
format = "<Date> <Time> <Pid> <Level> <Component>: <Content>"

[window]
kind = "session"
key = 'blk_-?\\d+'

[mask]
preset = "hdfs"
"""


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> RunConfig:
    """A simulated log whose labels are left behind, and a model that is judged as it is."""
    (tmp_path / "logs").mkdir()
    generate(tmp_path / "logs", blocks=120, seed=0)
    (tmp_path / "logs" / "anomaly_label.csv").unlink()
    (tmp_path / "blocks.toml").write_text(DESCRIPTION)
    parts = {"dataset": {"name": str(tmp_path / "blocks.toml")}, "model": {"name": str(tiny_model)}}
    return RunConfig.model_validate({"preset": "demo", **parts, "tuning": {"kind": "none"}})


@pytest.mark.usefixtures("prefect_api")
def test_an_untouched_model_judges_unlabelled_logs_without_figures_it_cannot_have(
    config: RunConfig, home: Path
) -> None:
    from flows.experiment import experiment

    run = experiment(config)
    folder = Layout(home).run(run)
    metrics = pl.read_parquet(folder / "metrics.parquet")
    assert metrics.schema["f1"] == pl.read_parquet(folder / "rules.parquet").schema["f1"] == pl.Float64
    assert metrics["f1"].null_count() == len(metrics) > 0
    summary = summary_of(run)
    assert (summary.findings["score"], summary.findings["headline"]) == ("rarity", None)
    assert all(alert.compared_windows > 0 and alert.messages[0].token for alert in summary.alerts)
    told = [terminal_text(summary, 80), (folder / "report.md").read_text(), (folder / "report.html").read_text()]
    for text in told:
        assert "have no labels" in " ".join(text.split())
        assert "tuned model" not in text
        assert "untouched model" in text
