"""The experiments, in order of value: where a language model should win, and what it costs to send less."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.experiment_data import AS_IT_IS
from fl.federation import CodecName, Federation
from fl.hyperparameters import LocalTraining, Tuning

SHARES = (0.05, 0.1, 0.2)
"""Shares of changed windows or messages."""
CHANGES = (
    *(f"{kind} windows {share}" for kind in ("reworded", "fields", "duplicated", "shuffled") for share in SHARES),
    *(f"{kind} messages {share}" for kind in ("reworded", "fields") for share in SHARES),
)
"""Orders of changed test windows, as storage/instability.py makes them."""
FEW = (50, 200, 1000)
CONTAMINATIONS = (0.001, 0.01, 0.03)

_RATES = {"learning_rate_max": 5e-3, "learning_rate_min": 5e-4, "batch_size": 32}
LONG = LocalTraining(steps=5, **_RATES)
SHORT = LocalTraining(steps=2, **_RATES)
CLIENTS_A_ROUND = 4
"""With 10 rounds 200 (`LONG`) or 80 (`SHORT`) steps in all, whatever the number of clients."""
ROUNDS = 10
_LORA, _EIGHT = Tuning(), Federation(rounds=ROUNDS, clients=8, fraction=0.5)


@dataclass(frozen=True)
class Test:
    """Windows that are judged: a log, its split, and what is changed in its test windows."""

    corpus: str
    split: str = "default"
    order: str = AS_IT_IS

    @property
    def name(self) -> str:
        """How its results are called."""
        return f"{self.corpus}, {self.split} split, {self.order}"


@dataclass(frozen=True)
class Experiment:
    """What is trained on which windows, and what is judged by it."""

    name: str
    corpus: str = "hdfs"
    split: str = "default"
    partition: str = "iid 8"
    tuning: Tuning = _LORA
    training: LocalTraining = SHORT
    federation: Federation = _EIGHT
    only: int | None = None
    """Only this client trains, alone."""
    adapter_of: str | None = None
    """Nothing is trained; the kept adapter of another experiment is judged."""
    keep: bool = False
    """Keep the adapter, and how each token of every window was predicted."""
    tests: tuple[Test, ...] = ()
    """None: the windows of the same log and split."""

    @property
    def judged(self) -> tuple[Test, ...]:
        """What is judged."""
        return self.tests or (Test(self.corpus, self.split),)


def _dealt(experiment: Experiment, partition: str) -> Experiment:
    """The same with other shares, and the same number of steps."""
    clients = int(partition.split()[-1])
    drawn = min(clients, CLIENTS_A_ROUND)
    steps = experiment.training.steps * CLIENTS_A_ROUND // drawn
    return replace(
        experiment,
        partition=partition,
        training=replace(experiment.training, steps=steps),
        federation=replace(experiment.federation, clients=clients, fraction=drawn / clients),
    )


def _sending(name: str, tuning: Tuning, codec: CodecName = "none", **options: object) -> Experiment:
    federation = Federation(rounds=ROUNDS, clients=8, fraction=0.5, codec=codec, **options)  # type: ignore[arg-type]
    return Experiment(f"sends {name}", tuning=tuning, federation=federation)


def _changed(corpus: str) -> tuple[Test, ...]:
    return tuple(Test(corpus, "default", change) for change in CHANGES)


def _sent() -> Iterator[Experiment]:
    """Adapters and codecs; the goal is at most 26.9 kB up, 20,000 times below full fine-tuning."""
    sign = {"codec": "sign", "codec_block": 256}
    yield _sending("LoRA 8", Tuning())
    yield _sending("LoRA 8, topk 1 %", Tuning(), "topk", topk_share=0.01)
    yield _sending("square 8 of the gradient, int8", Tuning(kind="sb"), "int8")
    yield _sending("FFA-LoRA 2, int4", Tuning(kind="ffa", rank=2), "int4")
    yield _sending("square 16 of the weights, int8", Tuning(kind="sb", rank=16, bases="weights"), "int8")
    yield _sending("LoRA 8, int8", Tuning(), "int8")
    yield _sending("LoRA 8, int4", Tuning(), "int4")
    yield _sending("LoRA 8, sign", Tuning(), **sign)  # type: ignore[arg-type]
    yield _sending("RoLoRA 8, topk 5 %", Tuning(kind="rolora"), "topk", topk_share=0.05)
    yield _sending("LoRA 8, topk 1 %, no feedback", Tuning(), "topk", topk_share=0.01, error_feedback=False)
    yield _sending("LoRA 8, int4, download int8", Tuning(), "int4", downlink_codec="int8")
    yield _sending("FFA-LoRA 8", Tuning(kind="ffa"))
    yield _sending("LoRA 8, float16", Tuning(), "float16")
    yield _sending("RoLoRA 8", Tuning(kind="rolora"))
    yield _sending("LoRA 8, topk 0.3 %", Tuning(), "topk", topk_share=0.003)
    yield _sending("square 8 at random, int8", Tuning(kind="sb", bases="random"), "int8")


def _sites() -> Iterator[Experiment]:
    """Sites that differ, with local-only and centralized training as the two ends."""
    short = Experiment("")
    central = _dealt(short, "iid 1")
    yield replace(central, name="centralized")
    for partition in ("dirichlet-0.1 10", "time 10", "dirichlet-0.1 50", "iid 50"):
        yield replace(_dealt(short, partition), name=f"sites {partition}")
    for client in (0, 5):
        alone = replace(central, partition="dirichlet-0.1 10", only=client)
        yield replace(alone, name=f"alone dirichlet-0.1 10, client {client}")
    for partition in ("time 50", "iid 2", "dirichlet-0.1 2", "dirichlet-1.0 10", "time 2"):
        yield replace(_dealt(short, partition), name=f"sites {partition}")
    for client in (0, 9):
        yield replace(central, partition="time 10", only=client, name=f"alone time 10, client {client}")


def plan() -> list[Experiment]:
    """All experiments."""
    long = Experiment("headline", training=LONG, keep=True)
    bgl = replace(long, name="bgl", corpus="bgl", training=SHORT)
    sent = list(_sent())
    seeds = [
        replace(long, name=f"seed {seed}", keep=False, federation=replace(long.federation, seed=seed))
        for seed in (1, 2)
    ]
    untouched = replace(
        long, name="untouched", tuning=Tuning(kind="none"), federation=replace(long.federation, rounds=0)
    )
    return [
        long,
        untouched,
        Experiment("unstable", adapter_of="headline", tests=_changed("hdfs")),
        replace(long, name="large", split="large"),
        bgl,
        Experiment("hdfs to bgl", adapter_of="headline", tests=(Test("bgl"),)),
        Experiment("bgl to hdfs", adapter_of="bgl", tests=(Test("hdfs"),)),
        replace(untouched, name="bgl untouched", corpus="bgl", keep=False),
        *sent[:5],
        *(Experiment(f"few {count}", split=f"few-{count}") for count in FEW),
        *(Experiment(f"contaminated {share}", split=f"contaminated-{share}") for share in CONTAMINATIONS),
        *sent[5:8],
        *list(_sites())[:7],
        *seeds,
        Experiment("bgl by 10 s", corpus="bgl-10s"),
        replace(_dealt(replace(bgl, keep=False), "site 10"), name="bgl sites site 10"),
        replace(_dealt(replace(bgl, keep=False), "time 10"), name="bgl sites time 10"),
        Experiment("bgl unstable", adapter_of="bgl", tests=_changed("bgl")),
        *sent[8:],
        *list(_sites())[7:],
        Experiment("chronological", split="chronological"),
        Experiment("grouped", split="grouped"),
    ]
