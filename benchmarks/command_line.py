"""What every benchmark is asked with, and how it tells its figures."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

Amount = int | Sequence[int]


class Size(NamedTuple):
    """A number, or several, that a benchmark's time depends on."""

    full: Amount
    quick: Amount
    """What `--quick` takes, to see a benchmark work."""
    meaning: str


def options(doc: str | None, **sizes: Size) -> argparse.ArgumentParser:
    """A parser for the log, the model, the reference and a benchmark's own sizes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "archive", type=Path, nargs="?", help="HDFS_1.tar.gz, whole or sampled; without it a simulated log"
    )
    parser.add_argument("--model", help="a local folder or a Hugging Face id; without it the embedded model")
    parser.add_argument("--reference", type=Path, help="a checkout of FL-LLM-AD; without it that comparison is skipped")
    parser.add_argument("--quick", action="store_true", help="sizes that show that it works, and nothing more")
    for name, size in sizes.items():
        many = None if isinstance(size.full, int) else "+"
        text = f"{size.meaning}; default {size.full}, quick {size.quick}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, nargs=many, help=text)
    parser.set_defaults(sizes=sizes)
    return parser


def given_options(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options as given, with each size that was not given from the full or the quick ones."""
    given = parser.parse_args(arguments)
    if given.archive and not given.archive.is_file():
        parser.error(f"there is no archive {given.archive}")
    if given.reference and not (given.reference / "federated_evaluation.py").is_file():
        parser.error(f"{given.reference} is no checkout of FL-LLM-AD: it has no federated_evaluation.py")
    for name, size in given.sizes.items():
        if getattr(given, name) is None:
            setattr(given, name, size.quick if given.quick else size.full)
    return given


def model_folder(name: str | None) -> Path:
    """The folder of the named, or the embedded, model; torch is not loaded before it is asked for."""
    from fl.model import EMBEDDED, prepare_model
    from storage.layout import current

    return prepare_model(name or EMBEDDED, current().models)


def tell(figures: dict[str, Any]) -> None:
    """Print the figures as JSON."""
    print(json.dumps(figures, indent=1))


SKIPPED = "skipped: name a checkout of GabrielTalasso/FL-LLM-AD by --reference FOLDER (make bench REFERENCE=FOLDER)"
"""What stands in the place of a comparison with the reference's code where there is none."""
