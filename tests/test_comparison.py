"""storage/comparison.py and flows/report_command.py: two runs side by side, with a paired interval where it is one."""

import numpy as np
import pytest
from run_folders import run_facts, save_run, training_facts
from sklearn.metrics import f1_score

from flows.report_command import paired_differences
from storage.comparison import comparison_tables, same_test_windows
from storage.layout import Layout
from storage.report_tables import Table, markdown_table
from storage.runs import summary_of

CONFIG = {"tuning": {"rank": 8, "targets": ["q_proj"]}, "federation": {"rounds": 2}}


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A sharp run, a noisy one on the same windows, and one on others."""
    layout = Layout(tmp_path_factory.mktemp("home"))
    save_run(layout, run_facts("sharp", config=CONFIG))
    noisy = {"tuning": {"rank": 2, "targets": ["q_proj"]}, "federation": {"rounds": 2}}
    cost = training_facts(trainable_parameters=115_200, bytes_up_per_client_round=480_000)
    save_run(layout, run_facts("noisy", seed=4, rank=2, config=noisy), cost, noise=3.0)
    save_run(layout, run_facts("elsewhere", config=CONFIG), labels_seed=1)
    return layout


def _tables(layout: Layout, one: str, other: str) -> dict[str, Table]:
    a, b = summary_of(one, layout), summary_of(other, layout)
    return {table.title: table for table in comparison_tables(a, b, paired_differences(a, b, layout))}


def test_only_settings_that_differ_are_told(layout: Layout) -> None:
    assert _tables(layout, "sharp", "noisy")["Settings that differ"].rows == [["tuning.rank", "8", "2"]]
    assert _tables(layout, "sharp", "elsewhere")["Settings that differ"].rows == [["none", None, None]]


def test_the_paired_difference_is_that_of_the_two_detectors_on_the_same_windows(layout: Layout) -> None:
    a, b = summary_of("sharp", layout), summary_of("noisy", layout)
    windows = same_test_windows(a, b, layout)
    assert windows is not None
    assert len(windows) == 200
    found = paired_differences(a, b, layout)
    assert found
    for kind, (estimate, low, high) in found.items():
        first, second = (
            f1_score(windows["label"], windows[name] > summary.findings[kind]["threshold"])
            for name, summary in (("score", a), ("score_other", b))
        )
        assert estimate == pytest.approx(second - first)
        assert low <= estimate <= high
    assert found["oracle"][1] < 0


def test_the_interval_is_that_of_resampling_windows_one_by_one(layout: Layout) -> None:
    a, b = summary_of("sharp", layout), summary_of("noisy", layout)
    windows = same_test_windows(a, b, layout)
    assert windows is not None
    labels = windows["label"].to_numpy()
    flags = [
        (windows[name] > summary.findings["oracle"]["threshold"]).to_numpy()
        for name, summary in (("score", a), ("score_other", b))
    ]
    draws = np.random.default_rng(5).integers(0, len(labels), (1000, len(labels)))
    f1 = [2 * (f & (labels == 1))[draws].sum(1) / (f[draws].sum(1) + (labels == 1)[draws].sum(1)) for f in flags]
    low, high = np.quantile(f1[1] - f1[0], [0.025, 0.975])
    found = paired_differences(a, b, layout)
    assert found
    assert found["oracle"][1:] == pytest.approx((low, high), abs=0.03)


def test_runs_on_other_windows_have_no_paired_interval_and_are_told_why(layout: Layout) -> None:
    a, b = summary_of("sharp", layout), summary_of("elsewhere", layout)
    assert same_test_windows(a, b, layout) is None
    assert paired_differences(a, b, layout) is None
    table = _tables(layout, "sharp", "elsewhere")["What they measured"]
    assert "not judged by the same test windows" in table.note
    assert [row[4] for row in table.rows] == [None] * len(table.rows)


def test_costs_stand_side_by_side_with_their_ratio(layout: Layout) -> None:
    rows = {row[0]: row[1:] for row in _tables(layout, "sharp", "noisy")["What they cost"].rows}
    assert rows["trained parameters"] == ["460,800", "115,200", "0.25 x"]
    assert rows["message up"] == ["1.87 MB", "0.48 MB", "0.257 x"]


def test_a_run_beside_itself_differs_in_nothing(layout: Layout) -> None:
    a = summary_of("sharp", layout)
    assert set(paired_differences(a, a, layout).values()) == {(0.0, 0.0, 0.0)}  # type: ignore[union-attr]


def test_every_table_can_be_drawn(layout: Layout) -> None:
    for table in _tables(layout, "sharp", "noisy").values():
        assert len({len(row) for row in table.rows} | {len(table.columns)}) == 1
        assert markdown_table(table)


def test_a_run_whose_scores_are_gone_is_told_with_the_command_that_makes_them(layout: Layout) -> None:
    from storage.errors import FormatError

    save_run(layout, run_facts("bare"))
    (layout.run("bare") / "window_scores.parquet").unlink()
    with pytest.raises(FormatError, match="start the run again: atalaia run demo"):
        same_test_windows(summary_of("bare", layout), summary_of("sharp", layout), layout)
