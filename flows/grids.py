"""Grids of runs: what is varied, and the runs that come of it."""

import itertools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.config import RunConfig
from flows.presets import PRESETS
from flows.settings import ConfigError, command_of, run_config

Value = bool | int | float | str | list[bool | int | float | str]
SEED = "seed"
"""The axis whose cells are repetitions of each other."""


class Grid(BaseModel):
    """What a sweep varies; every combination of the axes' values is a cell."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    preset: str = "paper"
    """The named run that every cell starts from."""
    settings: dict[str, Value] = {}
    """What every cell has in common, beneath what its place on the axes says."""
    axes: dict[str, list[bool | int | float | str] | dict[str, dict[str, Value]]] = Field(min_length=1)
    """By name: values of the setting of that name, or named places, each with settings of its own."""
    latency: list[Literal["135M", "360M", "1.7B", "tiny"]] = []
    """Shapes of SmolLM to be timed on random weights when the cells are done, for the paper's Table 3."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """What tells it from the other cells."""
    group: str
    """The same without the seed: cells of one group are repetitions."""
    config: RunConfig

    @property
    def command(self) -> str:
        """The command that runs this cell alone."""
        return command_of(self.config)


def _shared(clients: int, rule: Mapping[str, Value]) -> dict[str, Value]:
    """So many clients, two of whom train two steps in a round."""
    return {"federation.clients": clients, "federation.fraction": 2 / clients, **rule}


def _alone(share: int, rule: Mapping[str, Value]) -> dict[str, Value]:
    """One of ten clients, which trains as many steps by itself."""
    return {**_ONE, **rule, "partition.only": share, "partition.of": 10}


_ONE: dict[str, Value] = {"federation.clients": 1, "federation.fraction": 1.0, "training.steps": 4}
_ALIKE: dict[str, Value] = {"partition.kind": "iid"}
_BY_KIND: dict[str, Value] = {"partition.kind": "dirichlet", "partition.concentration": 0.1}
_BY_TIME: dict[str, Value] = {"partition.kind": "time"}
_SITES: dict[str, dict[str, Value]] = {
    "centralized": _ONE,
    **{f"{clients} alike": _shared(clients, _ALIKE) for clients in (2, 10, 50)},
    **{f"{clients} by kind": _shared(clients, _BY_KIND) for clients in (2, 10, 50)},
    **{f"{clients} by time": _shared(clients, _BY_TIME) for clients in (2, 10, 50)},
    **{f"alone by kind {share}": _alone(share, _BY_KIND) for share in (0, 5)},
    **{f"alone by time {share}": _alone(share, _BY_TIME) for share in (0, 9)},
}
"""Sites that differ, between one that has all logs and sites that train alone; the same steps in all."""


def _adapter(kind: str, codec: str = "none", rank: int = 8, **bases: str) -> dict[str, Value]:
    """A kind of adapter, and how clients send it."""
    more = {f"tuning.{name}": value for name, value in bases.items()}
    return {"tuning.kind": kind, "tuning.rank": rank, "federation.codec": codec, **more}


_LORA_8_TOP: dict[str, Value] = {**_adapter("lora", "topk"), "federation.topk_share": 0.01}
_SENT: dict[str, dict[str, Value]] = {
    "LoRA 8": _adapter("lora"),
    "LoRA 8 float16": _adapter("lora", "float16"),
    "LoRA 8 int8": _adapter("lora", "int8"),
    "LoRA 8 int4": _adapter("lora", "int4"),
    "LoRA 8 int4 down int8": {**_adapter("lora", "int4"), "federation.downlink_codec": "int8"},
    "LoRA 8 sign": {**_adapter("lora", "sign"), "federation.codec_block": 256},
    "LoRA 2 sign": {**_adapter("lora", "sign", rank=2), "federation.codec_block": 256},
    # As strong a push as rank 8's, alpha 16: at alpha 4 a rank of 2 learns too slowly to tell what its codec costs.
    "LoRA 2 alpha 16 sign": {**_adapter("lora", "sign", rank=2), "tuning.alpha": 16, "federation.codec_block": 256},
    "LoRA 8 topk 1 %": _LORA_8_TOP,
    "LoRA 8 topk 1 % without feedback": {**_LORA_8_TOP, "federation.error_feedback": False},
    "FFA-LoRA 8": _adapter("ffa"),
    "FFA-LoRA 2 int4": _adapter("ffa", "int4", rank=2),
    "RoLoRA 8": _adapter("rolora"),
    "square 8 of the gradient int8": _adapter("sb", "int8"),
    "square 8 of the weights int8": _adapter("sb", "int8", bases="weights"),
    "square 8 at random int8": _adapter("sb", "int8", bases="random"),
}
"""Adapters and codecs, from what sends all to what sends little."""

_TUNINGS: dict[str, dict[str, Value]] = {
    "PT": {"tuning.kind": "none"},
    **{f"R={rank}": {"tuning.rank": rank} for rank in (2, 8, 32, 128)},
    "FFT": {"tuning.kind": "full"},
}
"""The paper's: untouched, LoRA of four ranks, and full fine-tuning (section 4.2)."""

_SMALL: dict[str, Value] = {
    "dataset.limit": 1500,
    "split.train": 0.65,
    "split.validation": 0.05,
    "federation.rounds": 3,
    "training.steps": 2,
    "training.batch_size": 4,
    "scoring.scored_rounds": "last",
}
"""What the grids for two cores have in common."""

GRIDS: dict[str, Grid] = {
    # Figures 3 to 5 and all tables: three sizes of SmolLM, every tuning, 50 rounds each; for GPUs.
    "paper": Grid(
        preset="paper",
        axes={
            "model": {size: {"model.name": f"HuggingFaceTB/SmolLM-{size}"} for size in ("135M", "360M", "1.7B")},
            "tuning": _TUNINGS,
            SEED: [0, 1, 2],
        },
        latency=["135M", "360M", "1.7B"],
    ),
    # For two cores: the first windows of a real log, few and small steps at a high rate. The 12 steps of a cell compute
    # 20,000 tokens, an adapter's judged windows 57,000 (the untouched model's once a seed), 130 and 350 a second on two
    # slow cores; a minute goes to everything else, and once a seed another to the learned baselines.
    "small": Grid(
        preset="hdfs-2pct",
        settings=_SMALL,
        axes={
            # All weights at the adapters' rate diverge within a few steps; this is a usual rate for all weights.
            "tuning": {**_TUNINGS, "FFT": {**_TUNINGS["FFT"], "learning_rate_max": 2e-4, "learning_rate_min": 2e-5}},
            SEED: [0, 1],
        },
    ),
    "sites": Grid(preset="hdfs-2pct", settings=_SMALL, axes={"sites": _SITES, SEED: [0]}),
    # Both clients take part in every round, so that what a codec lost has five rounds to be made good in.
    "codecs": Grid(
        preset="hdfs-2pct",
        settings={
            **_SMALL,
            **_shared(2, _ALIKE),
            "federation.rounds": 6,
            "training.steps": 1,
            "training.batch_size": 8,
        },
        axes={"sends": _SENT, SEED: [0]},
    ),
}
"""`paper`: 54 cells for GPUs; `small`: 12 cells for two cores, `atalaia sweep small source=HDFS_1.tar.gz`, which
took 75 minutes; like them 14 cells `sites`, of sites that differ, and 16 `codecs`, of what is sent."""


def read_grid(name: str) -> Grid:
    """The grid of that name, or the one that a .toml file describes; raises ConfigError where there is none."""
    if name in GRIDS:
        return GRIDS[name]
    path = Path(name).expanduser()
    if path.suffix != ".toml":
        raise ConfigError(f"There is no grid {name!r}; give {' or '.join(GRIDS)}, or the path of a .toml file.")
    try:
        return Grid.model_validate(tomllib.loads(path.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The grid {name} cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The grid {name} is not TOML: {error}.") from error
    except ValidationError as error:
        raise ConfigError(_fault(name, error)) from error


def _fault(name: str, error: ValidationError) -> str:
    """The first thing wrong with a grid's file, and what is allowed."""
    faults = error.errors()
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    where = ".".join(str(part) for part in fault["loc"][:2])
    if fault["type"] == "extra_forbidden":
        return f"The grid {name} has {where!r}; it takes {', '.join(Grid.model_fields)}."
    if where.startswith("axes."):
        return (
            f"The grid {name} has {where} = {fault['input']!r}; an axis is a list of values, "
            "or a table of named places with their settings."
        )
    return f"The grid {name}: {where}: {fault['msg']}."


def cells_of(grid: Grid, settings: list[str]) -> list[Cell]:
    """Every cell of a grid, in order; raises ConfigError for the first that cannot be run.

    `settings` are `key=value` as for a run and hold for all cells; one that names an axis takes only these of its
    values, as in tuning=PT,R=8 seed=0,1.
    """
    if grid.preset not in PRESETS:
        raise ConfigError(f"There is no preset {grid.preset!r}; presets are {', '.join(PRESETS)}.")
    grid, common = _with_settings(grid, settings)
    places = [[(axis, *place) for place in _places(axis, values)] for axis, values in grid.axes.items()]
    if empty := [axis for axis, values in grid.axes.items() if not values]:
        raise ConfigError(f"The axis {empty[0]} is empty; give it values, or leave it out.")
    return [_cell(grid.preset, _typed(grid.settings) + common, chosen) for chosen in itertools.product(*places)]


Place = tuple[str, str, Mapping[str, Any]]
"""An axis, what the cell is called for its place on it, and the settings there."""


def _places(axis: str, values: Any) -> list[tuple[str, Mapping[str, Any]]]:  # noqa: ANN401
    if isinstance(values, dict):
        return list(values.items())
    separator = " " if axis == SEED else "="
    return [(f"{axis}{separator}{value}", {axis: value}) for value in values]


def _cell(preset: str, common: list[str], places: tuple[Place, ...]) -> Cell:
    own = [setting for _, _, settings in places for setting in _typed(settings)]
    names = {axis: label for axis, label, _ in places}
    group = ", ".join(label for axis, label in names.items() if axis != SEED)
    return Cell(", ".join(names.values()), group or preset, run_config(preset, common + own))


def _typed(settings: Mapping[str, Value]) -> list[str]:
    """Settings as a person would type them."""
    return [
        f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}" for key, value in settings.items()
    ]


def _with_settings(grid: Grid, settings: list[str]) -> tuple[Grid, list[str]]:
    """The grid with only the places that were asked for, and the settings that hold for all cells."""
    axes, common = dict(grid.axes), []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if equals and key in axes:
            axes[key] = _chosen(key, axes[key], [item.strip() for item in value.split(",") if item.strip()])
        else:
            common.append(setting)
    return grid.model_copy(update={"axes": axes}), common


def _chosen(axis: str, values: Any, wanted: list[str]) -> Any:  # noqa: ANN401
    if not wanted:
        raise ConfigError(f"{axis} is an axis of the grid; give some of its values, as in {axis}=A,B.")
    if isinstance(values, list):
        return wanted
    if unknown := [name for name in wanted if name not in values]:
        raise ConfigError(f"The axis {axis} has no {unknown[0]!r}; it has {', '.join(values)}.")
    return {name: values[name] for name in wanted}
