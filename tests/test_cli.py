"""The command line: what can be set, what errors look like, and what stays quick."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fl.federation import Federation
from fl.strategies import Reply, aggregate
from flows.config import RunConfig
from flows.presets import PRESETS
from flows.settings import ConfigError, command_of, run_config

ROOT = Path(__file__).resolve().parent.parent


def atalaia(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, far from the repository."""
    code = "from flows.cli import main; main()"
    environment = {"PATH": "/usr/bin:/bin", "ATALAIA_HOME": str(home), "HOME": str(home), "COLUMNS": "120"}
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=home, env=environment, capture_output=True, text=True, check=False
    )


def test_a_setting_is_named_by_its_path_or_by_its_last_name() -> None:
    assert run_config("demo", ["federation.rounds=7"]) == run_config("demo", ["rounds=7"])
    assert run_config("paper", ["rank=32"]).tuning.rank == 32


def test_a_preset_stands_where_no_value_is_given() -> None:
    config = run_config("hdfs-2pct", ["rounds=9"])
    assert (config.federation.rounds, config.federation.clients, config.training.batch_size) == (9, 8, 16)


def test_the_defaults_are_the_papers() -> None:
    config = run_config("paper", [])
    federation, training = config.federation, config.training
    assert (federation.rounds, federation.clients, federation.fraction) == (50, 50, 0.1)
    assert (training.steps, training.batch_size, training.learning_rate_max) == (10, 32, 1e-3)
    assert (config.tuning.scale_numerator, config.tuning.dropout, config.tokens.max_tokens) == (16, 0.1, 1024)


def test_one_seed_feeds_every_part_without_its_own() -> None:
    config = run_config("demo", ["seed=5", "split.seed=2"])
    assert (config.dataset.seed, config.partition.seed, config.federation.seed, config.split.seed) == (5, 5, 5, 2)


def test_clients_are_given_once_for_federation_and_partition() -> None:
    assert run_config("demo", ["clients=3"]).partition.clients == 3
    with pytest.raises(ConfigError, match="give clients only once"):
        run_config("demo", ["clients=3", "partition.clients=4"])


@pytest.mark.parametrize("strategy", ["fedmedian", "geomedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"])
@pytest.mark.parametrize("malicious", [0, 1])
def test_a_strategy_that_a_hostile_reply_can_steer_is_told_of(strategy: str, malicious: int) -> None:
    counted = strategy in {"krum", "multikrum", "bulyan"}
    options = [f"federation.strategy_options.num_malicious_nodes={malicious}"] if counted else []
    noted = []
    for clients in (1, 2, 3, 5, 7, 8):
        config = run_config("paper", [f"strategy={strategy}", f"clients={clients}", "fraction=1", *options])
        noted.append("strategy" in config.derived())
        if strategy == "bulyan" and clients < 4 * malicious + 3:
            continue  # ends the run
        steered = any(_steered(config.federation, hostile) for hostile in range(clients))
        assert not steered or noted[-1]
        if strategy in {"fedmedian", "geomedian", "fedtrimmedavg"}:
            assert steered == noted[-1]
    assert noted[:2] == [True, True]
    assert noted[-2:] == ([True, True] if counted and not malicious else [False, False])


def _steered(federation: Federation, hostile: int) -> bool:
    """Whether one reply far away takes the adapter outside the others' values."""
    values = np.random.default_rng(0).normal(size=(federation.clients, 4)).astype(np.float32)
    values[hostile] += 1e4
    replies = [Reply(number, {"w": value}, 10, 1.0) for number, value in enumerate(values)]
    arrays, _ = aggregate(federation, 1, {"w": values[0]}, replies, {}, 1e-3)
    return bool(np.abs(arrays["w"]).max() > 100)


def test_means_promise_nothing_against_hostile_sites() -> None:
    assert "strategy" not in run_config("demo", []).derived()


def test_lists_and_options_can_be_typed() -> None:
    config = run_config("paper", ["targets=q_proj,k_proj", "ks=1,5"])
    assert (config.tuning.targets, config.scoring.ks) == (("q_proj", "k_proj"), (1, 5))
    federation = run_config("paper", ["strategy=fedavgm", "federation.strategy_options.server_momentum=0.5"]).federation
    assert federation.strategy_options == {"server_momentum": 0.5}


def test_the_command_of_a_run_starts_the_same_run() -> None:
    config = run_config("demo", ["rounds=2", "seed=3", "targets=q_proj,k_proj", "limit=40"])
    preset, *settings = command_of(config).split()[2:]
    assert run_config(preset, settings) == config


def test_a_run_survives_being_kept_as_json() -> None:
    config = run_config("demo", ["seed=3"])
    assert RunConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("rouds=3", "federation.rounds"),
        ("federation.rnds=3", "federation.rounds, federation.clients"),
        ("kind=iid", "split.kind or partition.kind"),
        ("split.kind=sorted", "'random', 'chronological' or 'grouped'"),
        ("fraction=3", "above 0 and up to 1"),
        ("rounds", "key=value"),
        ("clients=many", "integer"),
        ("dataset.name=hdsf", "hdfs, bgl, hdfs-sim"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_what_is_allowed(setting: str, allowed: str) -> None:
    from fl.errors import LearningError

    with pytest.raises((ConfigError, LearningError)) as caught:
        run_config("demo", [setting])
    assert allowed in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "dmo"),
        ("sweep", "smal"),
        ("sweep", "small", "tuning=R=3"),
        ("report", "no-such-run", "nor-this"),
        ("run", "demo", "rouds=3"),
        ("report",),
        ("report", "no-such-run"),
        ("query", "SELECT nothing FROM nowhere"),
        ("query",),
        ("fly",),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = atalaia(*arguments, home=tmp_path / "home")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("atalaia: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_runs_as_json_is_nothing_but_a_list(tmp_path: Path) -> None:
    done = atalaia("runs", "--json", home=tmp_path / "home")
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, [], "")


def test_help_loads_no_heavy_library() -> None:
    heavy = {"torch", "prefect", "mlflow", "polars", "transformers", "flwr"}
    code = f"import sys; import flows.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("flow", ["experiment", "nightly", "detect", "sweep"])
def test_a_flow_whose_stages_are_all_reused_loads_no_library_of_training(flow: str) -> None:
    heavy = {"torch", "mlflow", "transformers", "flwr", "ray", "sklearn", "matplotlib", "pandas"}
    code = f"import sys; import flows.{flow}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_run_and_lists_only_what_differs(preset: str) -> None:
    config = run_config(preset, [])
    default = RunConfig()
    for part, values in PRESETS[preset].items():
        for name, value in values.items():
            assert getattr(getattr(config, part), name) == value
            assert getattr(getattr(default, part), name) != value, f"{preset} repeats the default {part}.{name}"
