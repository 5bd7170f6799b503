"""fl/privacy.py and the rounds that use it: what is clipped and hidden, and that a resumed run hides it alike."""

import json
import math
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from federated_jobs import LocalGrid, small_job, write_shares
from flwr.app import Context, Message
from flwr.supercore.differential_privacy import compute_adaptive_noise_params, compute_clip_model_update, compute_stdv
from scipy import stats

from fl import client_app
from fl.adapter import Tuning
from fl.errors import FederationError
from fl.federation import Federation, TrainingJob, check_privacy, draw_clients, load_job
from fl.noise import seed_key
from fl.privacy import Privacy, PrivateMean, clipped_update, hidden_update, next_clipping_norm
from fl.server_app import train_federation
from fl.simulation import run_job
from storage.adapters import committed_rounds
from storage.errors import StorageError

Arrays = dict[str, np.ndarray]
SHAPES = {"layer.A": (20, 60), "layer.B": (50, 20)}


def _arrays(seed: int, scale: float = 1.0) -> Arrays:
    draw = np.random.default_rng(seed)
    return {name: (scale * draw.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def _norm(arrays: Arrays, start: Arrays) -> float:
    return math.sqrt(sum(float(np.square(arrays[name].astype(np.float64) - start[name]).sum()) for name in arrays))


def test_clipping_is_flowers_and_leaves_short_updates_as_they_are() -> None:
    start, arrays = _arrays(0), _arrays(1)
    clipped, is_whole = clipped_update(arrays, start, 0.5)
    theirs = [arrays[name].copy() for name in SHAPES]
    compute_clip_model_update(theirs, [start[name] for name in SHAPES], 0.5)
    for name, array in zip(SHAPES, theirs, strict=True):
        np.testing.assert_allclose(clipped[name], array, rtol=1e-5, atol=1e-6)
    assert not is_whole and _norm(clipped, start) == pytest.approx(0.5, rel=1e-5)
    kept, is_whole = clipped_update(arrays, start, 1e6)
    assert is_whole and all(kept[name].tobytes() == arrays[name].tobytes() for name in SHAPES)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e30])
def test_no_client_moves_the_sum_by_more_than_the_clipping_norm(scale: float) -> None:
    start = _arrays(0)
    others = [_arrays(seed) for seed in range(1, 5)]

    def total(clients: list[Arrays]) -> dict[str, list[int]]:
        mean = PrivateMean(start, 0.5)
        for client in clients:
            mean.add(client)
        # In whole units, which is what the noise is added to: nothing is rounded in this comparison.
        return {name: sums.ravel().tolist() for name, sums in mean._sums.items()}

    with_client, without = total([*others, _arrays(9, scale)]), total(others)
    unit = PrivateMean(start, 0.5)._unit
    moved = math.isqrt(
        sum((one - other) ** 2 for name in SHAPES for one, other in zip(with_client[name], without[name], strict=True))
    )
    assert moved * unit <= 0.5


def test_the_noise_on_the_mean_is_the_notebooks() -> None:
    # Multiplier 0.02, norm 0.5, 4 clients: Flower logs "central DP noise with 0.0025 stdev added".
    start = {"x": np.zeros(100_000, np.float32)}
    mean = PrivateMean(start, 0.5)
    for _ in range(4):
        mean.add(start)
    noise = mean.mean(0.02, 4, seed_key(0), 1)["x"]
    assert compute_stdv(0.02, 0.5, 4) == 0.0025
    assert stats.kstest(noise / 0.0025, "norm").pvalue > 1e-3


def test_the_mean_is_divided_by_the_clients_drawn_and_not_by_those_that_replied() -> None:
    start, arrays = _arrays(0), _arrays(1, 1e-3)
    mean = PrivateMean(start, 1e6)
    mean.add(arrays)
    found = mean.mean(0.0, 4, b"", 1)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], start[name] + (arrays[name] - start[name]) / 4, rtol=1e-5, atol=1e-5)


def test_the_order_of_clients_does_not_change_a_bit_and_another_sum_gets_other_noise() -> None:
    start, clients = _arrays(0), [_arrays(seed) for seed in range(1, 6)]

    def mean(clients: list[Arrays], key: bytes = b"k", number: int = 1) -> np.ndarray:
        running = PrivateMean(start, 0.5)
        for client in clients:
            running.add(client)
        return running.mean(1.0, 5, key, number)["layer.A"]

    assert mean(clients).tobytes() == mean(clients[::-1]).tobytes()
    noise = mean(clients) - start["layer.A"]
    for other in (mean(clients[:-1]), mean(clients, b"l"), mean(clients, number=2)):
        assert abs(np.corrcoef(noise.ravel(), (other - start["layer.A"]).ravel())[0, 1]) < 0.2


def test_local_noise_is_of_one_client_and_follows_from_its_key() -> None:
    start = {"x": np.zeros(100_000, np.float32)}
    sent = hidden_update(start, start, 0.5, 2.0, b"key of the site", "run 1 0")["x"]
    assert stats.kstest(sent, "norm").pvalue > 1e-3  # 2.0 * 0.5
    assert sent.tobytes() == hidden_update(start, start, 0.5, 2.0, b"key of the site", "run 1 0")["x"].tobytes()
    other = hidden_update(start, start, 0.5, 2.0, b"key of the site", "run 2 0")["x"]
    assert abs(np.corrcoef(sent, other)[0, 1]) < 0.02


def test_the_clipping_norm_finds_the_quantile_it_is_told() -> None:
    # Norms of clients: 1 to 100. The 80 % quantile is 80, from below and from above.
    for first in (0.1, 1e4):
        privacy = Privacy("central", 0.0, clipping_norm=first, clipping="adaptive", clipping_quantile=0.8)
        norm = first
        for number in range(1, 200):
            unclipped = [size <= norm for size in range(1, 101)]
            norm = next_clipping_norm(privacy, norm, unclipped, 100, b"", number)
        assert norm == pytest.approx(80, rel=0.05)


def test_the_count_takes_its_share_of_the_noise_as_in_flower() -> None:
    privacy = Privacy("central", 0.8, clipping="adaptive")
    deviation, multiplier = compute_adaptive_noise_params(0.8, 40, None)
    assert privacy.count_deviation(40) == deviation
    assert privacy.update_multiplier(40) == pytest.approx(multiplier, rel=1e-12)
    with pytest.raises(FederationError, match="takes all of noise_multiplier"):
        privacy.update_multiplier(5)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"noise_multiplier": -1.0}, "give 0 or more"),
        ({"noise_multiplier": math.nan}, "give 0 or more"),
        ({"clipping_norm": 0.0}, "above 0"),
        ({"delta": 1.0}, "between 0 and 1"),
        ({"epsilon_budget": 3.0}, "needs noise"),
        ({"noise": "local", "clipping": "adaptive"}, "cannot hide whether it was clipped"),
    ],
)
def test_values_that_cannot_work_are_told_in_one_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(FederationError, match=told) as error:
        Privacy(**values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("privacy", "tuning", "federation", "told"),
    [
        ({}, {}, {"draws": "poisson"}, "poisson is for central noise"),
        ({"noise": "central"}, {"kind": "full"}, {}, "not for tuning.kind=full"),
        ({"noise": "central"}, {"kind": "sb"}, {}, "one client's gradient"),
        ({"noise": "central"}, {}, {"strategy": "fedmedian"}, "no mean of clipped updates"),
        ({"noise": "central"}, {}, {"norm_bound": 1.0}, "the server clips already"),
        ({"noise": "central", "delta": 0.02}, {}, {}, "give 0.002 or less"),
    ],
)
def test_what_noise_would_not_protect_is_refused(
    privacy: dict[str, Any], tuning: dict[str, Any], federation: dict[str, Any], told: str
) -> None:
    with pytest.raises(FederationError, match=told):
        check_privacy(Privacy(**privacy), Tuning(**tuning), Federation(**federation))


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shares(tmp_path_factory.mktemp("partition") / "shares")


def _job(folder: Path, model: Path, shares: Path, privacy: Privacy, **federation: Any) -> TrainingJob:  # noqa: ANN401
    job = small_job(folder, model, shares, privacy=privacy, **federation)
    assert load_job(folder) == job
    return job


def _trained(job: TrainingJob, seed: int = 0) -> list[bytes]:
    train_federation(LocalGrid(job, client_app.app, seed), job)  # type: ignore[arg-type]
    return [found.adapter.read_bytes() for found in committed_rounds(job.run_folder)]


CENTRAL = Privacy("central", 0.5, clipping_norm=0.01, delta=1e-3)


@pytest.mark.parametrize(
    ("privacy", "federation"),
    [
        (CENTRAL, {}),
        (replace(CENTRAL, clipping="adaptive", count_noise=1.0), {"strategy": "fedadam"}),
        (CENTRAL, {"draws": "poisson", "fraction": 0.4}),
        (replace(CENTRAL, noise="local"), {"codec": "int8"}),
    ],
)
def test_a_private_run_that_is_resumed_ends_with_the_bytes_of_an_undisturbed_one(
    privacy: Privacy, federation: dict[str, Any], tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    job = _job(tmp_path / "run", tiny_model, shares, privacy, **federation)
    # Stopped after round 2, when the key of the noise is still there.
    one_more = _StoppingGrid(job, client_app.app, after=2)
    with pytest.raises(KeyboardInterrupt):
        train_federation(one_more, job)  # type: ignore[arg-type]
    early = [found.adapter.read_bytes() for found in committed_rounds(job.run_folder)]
    shutil.copytree(job.run_folder, tmp_path / "copy")
    copy = replace(job, run_folder=tmp_path / "copy")
    ended = _trained(job, seed=1)
    shutil.rmtree(tmp_path / "copy" / "rounds" / f"round-{len(early) - 1:04d}")
    assert _trained(copy, seed=2) == ended
    assert ended[: len(early)] == early and len(set(ended)) == 4


class _StoppingGrid(LocalGrid):
    def __init__(self, job: TrainingJob, client: Any, after: int) -> None:  # noqa: ANN401
        super().__init__(job, client)
        self._left, self._folder = after, job.run_folder

    def push_messages(self, messages: Any) -> list[str]:  # noqa: ANN401
        if len(committed_rounds(self._folder)) > self._left:
            raise KeyboardInterrupt
        return super().push_messages(messages)


def test_secret_noise_differs_from_run_to_run_and_seeded_noise_does_not(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    secret = [_trained(_job(tmp_path / name, tiny_model, shares, CENTRAL, rounds=1)) for name in ("one", "two")]
    seeded = replace(CENTRAL, noise_source="seed")
    known = [_trained(_job(tmp_path / name, tiny_model, shares, seeded, rounds=1)) for name in ("three", "four")]
    assert secret[0][0] == secret[1][0] and secret[0][1] != secret[1][1]
    assert known[0] == known[1]


def test_the_key_is_for_its_owner_only_and_gone_when_the_run_has_ended(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    job = _job(tmp_path / "run", tiny_model, shares, CENTRAL)
    with pytest.raises(KeyboardInterrupt):
        train_federation(_StoppingGrid(job, client_app.app, after=1), job)  # type: ignore[arg-type]
    key = job.run_folder / "noise.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    told = [path.read_bytes() for path in job.run_folder.rglob("*") if path.is_file() and path != key]
    assert not any(key.read_bytes() in each or key.read_bytes().hex().encode() in each for each in told)
    kept = key.read_bytes()
    key.unlink()
    with pytest.raises(StorageError, match="start a new run"):
        _trained(job)
    key.write_bytes(kept)
    _trained(job)
    assert not key.exists()
    key.write_bytes(kept)  # of a job that was killed after its last round
    run_job(job)
    assert not key.exists()


def test_no_client_sends_more_than_the_clipping_norm_and_only_trained_arrays_get_noise(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    job = small_job(tmp_path / "run", tiny_model, shares, Tuning(kind="rolora", rank=2), CENTRAL)
    grid = LocalGrid(job, client_app.app)
    train_federation(grid, job)  # type: ignore[arg-type]
    rounds = [found.arrays() for found in committed_rounds(job.run_folder)]
    replies = [message.content for message in grid.messages if "metrics" in message.content]
    trained = [reply for reply in replies if "arrays" in reply and "round" in reply["metrics"]]
    assert len(trained) == 6
    for reply in trained:
        start = rounds[int(reply["metrics"]["round"]) - 1]
        sent = {name: array.numpy() for name, array in reply["arrays"].items()}
        assert _norm(sent, start) <= 0.01 * (1 + 1e-3)
    for number in (1, 2, 3):
        moved = {name for name, array in rounds[number].items() if (array != rounds[number - 1][name]).any()}
        assert moved == {name for name in rounds[0] if ("lora_B" if number % 2 else "lora_A") in name}


def test_rounds_tell_what_they_spent_and_the_budget_ends_the_run(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    plenty = _job(tmp_path / "plenty", tiny_model, shares, replace(CENTRAL, noise_source="seed"))
    _trained(plenty)
    spent = [found.facts["privacy"]["epsilon"] for found in committed_rounds(plenty.run_folder)[1:]]
    assert 0 < spent[0] < spent[1] < spent[2]
    assert spent == [_row(plenty, number)["epsilon"] for number in (1, 2, 3)]
    assert _row(plenty, 0)["epsilon"] is None
    budget = (spent[1] + spent[2]) / 2
    short = _job(tmp_path / "short", tiny_model, shares, replace(CENTRAL, noise_source="seed", epsilon_budget=budget))
    assert len(_trained(short)) == 3
    assert _trained(short) == [found.adapter.read_bytes() for found in committed_rounds(plenty.run_folder)[:3]]
    nothing = _job(tmp_path / "none", tiny_model, shares, replace(CENTRAL, epsilon_budget=spent[0] / 2))
    with pytest.raises(FederationError, match="allows no round"):
        _trained(nothing)


def _row(job: TrainingJob, number: int) -> dict[str, Any]:
    return pl.read_parquet(committed_rounds(job.run_folder)[number].folder / "round.parquet").row(0, named=True)


def test_poisson_draws_take_each_client_by_itself_and_may_take_none() -> None:
    federation = Federation(clients=40, fraction=0.05, draws="poisson", seed=3)
    sizes = [len(draw_clients(federation, number)) for number in range(1, 3001)]
    counts = np.bincount(sizes, minlength=41)
    expected = stats.binom.pmf(np.arange(41), 40, 0.05) * 3000
    common = expected > 5
    assert stats.chisquare(counts[common], expected[common] * counts[common].sum() / expected[common].sum()).pvalue > (
        1e-3
    )
    assert counts[0] > 0
    assert draw_clients(federation, 1, b"secret") == draw_clients(federation, 1, b"secret")
    assert any(draw_clients(federation, n) != draw_clients(federation, n, b"secret") for n in range(1, 20))


def test_a_round_that_draws_nobody_is_noise_alone(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    seed = next(
        seed
        for seed in range(1000)
        if not draw_clients(Federation(clients=4, fraction=0.3, draws="poisson", seed=seed), 1)
    )
    privacy = replace(CENTRAL, noise_source="seed")
    job = _job(tmp_path / "run", tiny_model, shares, privacy, rounds=1, fraction=0.3, draws="poisson", seed=seed)
    before, after = _trained(job)
    assert before != after
    row = _row(job, 1)
    assert (row["clients"], row["loss"]) == (0, None)


def test_a_poisson_round_that_draws_only_an_absent_client_goes_on_where_one_may_be_absent(
    tmp_path: Path, tiny_model: Path, shares: Path
) -> None:
    poisson = {"fraction": 0.5, "draws": "poisson", "min_replies": 1}  # two a round, of whom one may be absent
    seed = next(seed for seed in range(1000) if len(draw_clients(Federation(clients=4, **poisson, seed=seed), 1)) == 1)
    privacy = replace(CENTRAL, noise_source="seed")
    job = _job(tmp_path / "run", tiny_model, shares, privacy, rounds=1, seed=seed, **poisson)

    def absent(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "train":
            raise ValueError("gone")
        return client_app.app(message, context)

    train_federation(LocalGrid(job, absent), job)  # type: ignore[arg-type]
    assert _row(job, 1)["clients"] == 0


def test_what_a_client_is_told_holds_no_secret(tmp_path: Path, tiny_model: Path, shares: Path) -> None:
    job = _job(tmp_path / "run", tiny_model, shares, CENTRAL, rounds=1)
    grid = LocalGrid(job, client_app.app)
    train_federation(grid, job)  # type: ignore[arg-type]
    asked = [message.content["config"] for message in grid.messages if "config" in message.content]
    told = [json.loads(config["privacy"]) for config in asked if "privacy" in config]
    assert told and all(set(each) == set(vars(CENTRAL)) for each in told)
