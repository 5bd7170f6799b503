"""What views show that follows from models' shapes alone, without weights."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import polars as pl

from storage.paper_views import Computed

if TYPE_CHECKING:
    from fl.hyperparameters import Tuning


def table_2_from_shapes() -> pl.DataFrame:
    """The paper's Table 2 computed on the meta device, and what the same messages take as Flower serializes them."""
    from fl.costs import table_2

    with _without_advice():
        found = table_2()
    rows = [
        {
            "size": row["model"],
            "tuning": row["tuning"],
            "computed_mb": row["megabytes"],
            "computed_parameters_m": row["parameters_m"],
        }
        for row in found
    ]
    plain = _message_bytes(_paper_tunings(), ["none"]).select(
        "size", "tuning", flower_bytes_up="bytes_up", flower_bytes_down="bytes_down"
    )
    return pl.DataFrame(rows).join(plain, on=["size", "tuning"], how="left", maintain_order="left")


def message_bytes() -> pl.DataFrame:
    """Bytes up and down a client and round, under each codec: of every tuning of Table 2, then of smaller adapters."""
    from fl.message_sizes import CODECS, TUNINGS

    return _message_bytes(_paper_tunings() | TUNINGS, CODECS)


def _paper_tunings() -> "dict[str, Tuning]":
    """Those of Table 2 by their names there."""
    from fl.costs import FULL, RANKS
    from fl.hyperparameters import Tuning

    return {f"R={rank}": Tuning(rank=rank) for rank in RANKS} | {FULL: Tuning(kind="full")}


def _message_bytes(tunings: "Mapping[str, Tuning]", codecs: Iterable[str]) -> pl.DataFrame:
    from fl.costs import SMOLLM
    from fl.message_sizes import CODECS, codec_table

    chosen = {name: CODECS[name] for name in codecs}
    with _without_advice():
        return pl.DataFrame(codec_table(SMOLLM, tunings, chosen)).rename({"model": "size"})


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep off the terminal what libraries say of kernels and names when they build models that never run."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


COMPUTED: Computed = {"table2": table_2_from_shapes, "codecs": message_bytes}
"""By view."""
