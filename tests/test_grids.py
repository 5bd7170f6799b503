"""flows/grids.py: which cells a grid has, and what is wrong with one."""

from pathlib import Path
from typing import get_args

import pytest

from fl.federation import CodecName
from flows.grids import GRIDS, cells_of, read_grid
from flows.settings import ConfigError, run_config

TUNINGS = ["PT", "R=2", "R=8", "R=32", "R=128", "FFT"]


def test_the_papers_grid_is_every_size_tuning_and_seed_with_the_papers_values() -> None:
    cells = cells_of(GRIDS["paper"], [])
    assert len({cell.name for cell in cells}) == len(cells) == 3 * 6 * 3
    assert {cell.config.model.name.removeprefix("HuggingFaceTB/SmolLM-") for cell in cells} == {"135M", "360M", "1.7B"}
    seed_0 = [cell.config.tuning for cell in cells if cell.name.startswith("360M") and cell.config.seed == 0]
    assert [(tuning.kind, tuning.rank) for tuning in seed_0[1:5]] == [("lora", rank) for rank in (2, 8, 32, 128)]
    assert (seed_0[0].kind, seed_0[5].kind) == ("none", "full")
    assert {(cell.config.federation.rounds, cell.config.training.batch_size) for cell in cells} == {(50, 32)}


def test_cells_of_one_group_differ_in_their_seed_alone() -> None:
    cells = [cell for cell in cells_of(GRIDS["small"], []) if cell.group == "R=8"]
    assert [cell.name for cell in cells] == ["R=8, seed 0", "R=8, seed 1"]
    same = [cell.config.model_dump() | {"seed": None} for cell in cells]
    for values in same:
        for part in ("dataset", "split", "partition", "federation", "instability"):
            values[part]["seed"] = None
    assert same[0] == same[1]


def test_sites_that_differ_train_as_many_steps_as_one_that_has_all_and_one_that_is_alone() -> None:
    cells = {cell.group: cell.config for cell in cells_of(GRIDS["sites"], [])}
    assert len(cells) == 14
    steps = {config.training.steps * config.federation.clients_per_round for config in cells.values()}
    assert steps == {4}
    assert {config.partition.clients for config in cells.values()} == {1, 2, 10, 50}
    alone = [config.partition for config in cells.values() if config.partition.only is not None]
    dealt = {(rule.kind, rule.only, rule.of) for rule in alone}
    assert dealt == {("dirichlet", 0, 10), ("dirichlet", 5, 10), ("time", 0, 10), ("time", 9, 10)}
    ten = cells["10 by kind"].partition
    assert {rule.concentration for rule in alone if rule.kind == "dirichlet"} == {ten.concentration}


def test_what_is_sent_differs_in_adapter_and_codec_alone_and_every_one_of_them_is_there() -> None:
    cells = {cell.group: cell.config for cell in cells_of(GRIDS["codecs"], [])}
    assert {config.tuning.kind for config in cells.values()} == {"lora", "ffa", "rolora", "sb"}
    assert {config.federation.codec for config in cells.values()} == set(get_args(CodecName)) - {"float32"}
    assert {config.federation.downlink_codec for config in cells.values()} == {"none", "int8"}
    assert {config.tuning.bases for config in cells.values()} == {"gradient", "weights", "random"}
    same = {"kind", "rank", "alpha", "bases", "codec", "codec_block", "topk_share", "error_feedback", "downlink_codec"}
    rest = [config.model_dump() for config in cells.values()]
    for values in rest:
        for part in ("tuning", "federation"):
            values[part] = {name: value for name, value in values[part].items() if name not in same}
    assert all(values == rest[0] for values in rest)


@pytest.mark.parametrize("name", GRIDS)
def test_every_place_of_a_grid_can_be_asked_for_by_its_name(name: str) -> None:
    for axis, values in GRIDS[name].axes.items():
        for place in values:
            assert cells_of(GRIDS[name], [f"{axis}={place}"])


@pytest.mark.parametrize("name", GRIDS)
def test_every_cell_is_judged_beside_the_learned_baselines(name: str) -> None:
    methods = {cell.config.baselines.methods for cell in cells_of(GRIDS[name], [])}
    assert methods == {("deeplog", "logbert", "fedlog")}


def test_a_setting_holds_for_all_cells_and_one_that_names_an_axis_takes_some_of_its_places() -> None:
    cells = cells_of(GRIDS["small"], ["tuning=R=8,FFT", "seed=7", "rounds=2"])
    assert [cell.name for cell in cells] == ["R=8, seed 7", "FFT, seed 7"]
    assert {cell.config.federation.rounds for cell in cells} == {2}
    # What a place on an axis says stands above what all cells have in common.
    assert cells[1].config.training.learning_rate_max == 2e-4


def test_the_command_of_a_cell_runs_that_cell() -> None:
    for cell in cells_of(GRIDS["small"], []):
        preset, *settings = cell.command.split()[2:]
        assert run_config(preset, settings) == cell.config


def test_a_users_file_varies_settings_and_named_places(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'preset = "demo"\nsettings = {rounds = 2, targets = ["q_proj"]}\n[axes]\nrank = [2, 8]\n'
        '[axes.codec.plain]\n[axes.codec.coded]\n"federation.codec" = "int8"\n'
    )
    cells = cells_of(read_grid(str(path)), [])
    assert [cell.name for cell in cells] == ["rank=2, plain", "rank=2, coded", "rank=8, plain", "rank=8, coded"]
    assert [cell.config.federation.codec for cell in cells] == ["none", "int8", "none", "int8"]
    assert {(cell.config.federation.rounds, cell.config.tuning.targets) for cell in cells} == {(2, ("q_proj",))}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("preset = 'demo'\naxis = {rank = [2]}", "it takes preset, settings, axes"),
        ("preset = 'demo'", "axes"),
        ("axes = {rank = 2}", "an axis is a list of values, or a table"),
        ("axes = {rank = []}", "The axis rank is empty"),
        ("preset = 'dmo'\naxes = {rank = [2]}", "presets are paper"),
        ("axes = {rnak = [2]}", "There is no setting 'rnak'"),
        ("axes = {rank = [0]}", "rank must be at least 1"),
        ("axes = [", "is not TOML"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        cells_of(read_grid(str(path)), [])
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("grid", "settings", "told"),
    [
        ("smal", [], "There is no grid 'smal'; give paper or small"),
        ("nowhere.toml", [], "cannot be read"),
        ("small", ["tuning=R=9"], "The axis tuning has no 'R=9'; it has PT, R=2"),
        ("small", ["rouds=3"], "federation.rounds"),
        ("small", ["seed="], "give some of its values"),
    ],
)
def test_a_wrong_grid_or_setting_is_told_with_what_is_allowed(grid: str, settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        cells_of(read_grid(grid), settings)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
