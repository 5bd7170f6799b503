"""fl/federation.py: what a job is, and which clients a round draws."""

import json
import random
from pathlib import Path

import pytest
from federated_jobs import small_job

from fl.errors import FederationError
from fl.federation import Federation, draw_clients, load_job


def test_a_round_draws_a_tenth_of_the_clients_by_default_as_the_paper_does() -> None:
    drawn = draw_clients(Federation(), 1)
    assert len(drawn) == 5
    assert len(set(drawn)) == 5
    assert set(drawn) <= set(range(50))


def test_draws_depend_on_seed_and_round_only() -> None:
    federation = Federation(seed=3)
    first = [draw_clients(federation, number) for number in range(1, 6)]
    random.seed(99)  # the global generator, which Flower's own sampling uses
    random.random()
    again = [draw_clients(federation, number) for number in reversed(range(1, 6))]
    assert again[::-1] == first
    assert len({tuple(drawn) for drawn in first}) > 1
    assert first != [draw_clients(Federation(seed=4), number) for number in range(1, 6)]


def test_every_client_is_drawn_equally_often_in_the_long_run() -> None:
    federation = Federation(clients=10, fraction=0.2)
    counts = [0] * 10
    for number in range(1, 2001):
        for partition in draw_clients(federation, number):
            counts[partition] += 1
    # Binomial(2000, 0.2): mean 400, standard deviation 18.
    assert all(abs(count - 400) < 5 * 18 for count in counts)


def test_at_least_one_client_is_drawn() -> None:
    assert len(draw_clients(Federation(clients=3, fraction=0.01), 1)) == 1


def test_a_round_bears_as_many_absent_clients_whatever_it_draws_and_needs_no_more_than_the_configured_replies() -> None:
    federation = Federation(clients=50, fraction=0.1, min_replies=3)  # 5 a round, of whom 2 may be absent
    assert [federation.replies_needed(drawn) for drawn in range(9)] == [0, 0, 0, 1, 2, 3, 3, 3, 3]
    assert [Federation(fraction=0.1).replies_needed(drawn) for drawn in range(9)] == list(range(9))
    strict = Federation(clients=50, fraction=0.1, min_replies=5)
    assert [strict.replies_needed(drawn) for drawn in range(7)] == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rounds": -1}, "rounds is -1"),
        ({"clients": 0}, "clients is 0"),
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": float("nan")}, "fraction is nan"),
        ({"strategy": "fedsgd"}, "give one of bulyan, fedadagrad"),
        ({"strategy": "fedadam", "strategy_options": {"mu": 1.0}}, "it takes beta_1, beta_2, eta, tau"),
        ({"strategy": "fedprox"}, "needs strategy_options.proximal_mu"),
        ({"min_replies": 6}, "from 1 to 5"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"norm_bound": 0.0}, "norm_bound is 0.0"),
        ({"norm_bound": float("nan")}, "norm_bound is nan"),
        ({"max_examples": 0}, "max_examples is 0"),
    ],
)
def test_values_that_cannot_work_are_told_in_one_line(values: dict[str, object], told: str) -> None:
    with pytest.raises(FederationError, match=told) as error:
        Federation(**values)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_job_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    job = small_job(
        tmp_path / "run", tmp_path / "model", tmp_path / "shares", strategy="fedadam", strategy_options={"eta": 0.5}
    )
    assert load_job(tmp_path / "run") == job
    assert json.loads((tmp_path / "run" / "job.json").read_text())["federation"]["strategy_options"] == {"eta": 0.5}


def test_the_fingerprint_follows_what_decides_the_result_and_nothing_else(tmp_path: Path) -> None:
    def fingerprint(run: str, **federation: object) -> str:
        return small_job(tmp_path / run, tmp_path / "model", tmp_path / "shares", **federation).fingerprint()

    assert fingerprint("one") == fingerprint("two")
    assert fingerprint("one") != fingerprint("one", seed=8)
    assert fingerprint("one") != fingerprint("one", rounds=4)


def test_a_folder_without_a_job_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="There is no training job"):
        load_job(tmp_path)
    (tmp_path / "job.json").write_text('{"run_id": "x"')
    with pytest.raises(FederationError, match="cannot be read"):
        load_job(tmp_path)
