"""Tables of what benchmarks.gpu_privacy measured, with epsilons: `python -m benchmarks.privacy_tables [FOLDER ...]`.

Without a folder, only epsilon by noise multiplier. Prints Markdown.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from fl.accounting import Accountant
from fl.federation import Federation
from fl.privacy import Privacy

_DELTA = 1e-3
_MULTIPLIERS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
Figures = dict[str, Any]
Draws = Literal["fixed", "poisson"]


def epsilon(multiplier: float, clients: int, drawn: int, rounds: int, draws: Draws, known: bool = False) -> float:
    """Of all rounds, central noise, delta 1e-3; `known`: for a site that is drawn every time, for all to see."""
    federation = Federation(clients=clients, fraction=drawn / clients, rounds=rounds, draws=draws)
    accountant = Accountant(Privacy("central", multiplier, delta=_DELTA), federation)
    return accountant.epsilon_known(rounds) if known else accountant.epsilon(rounds)


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None or math.isnan(value) else "no bound" if value == math.inf else f"{value:{form}}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def epsilon_table(clients: int = 50, drawn: int = 5, rounds: int = 20) -> str:
    """Epsilon by noise multiplier and by how clients are drawn."""
    rows = []
    for multiplier in _MULTIPLIERS:
        sizes = (multiplier, clients, drawn, rounds)
        told = [epsilon(*sizes, "fixed"), epsilon(*sizes, "poisson"), epsilon(*sizes, "poisson", known=True)]
        rows.append([f"{multiplier:g}", *(_number(value, ",.3g" if value < 1000 else ",.0f") for value in told)])
    return _table(["z", "fixed draws", "Poisson draws", "Poisson, drawn every time and all know"], rows)


def _test(line: Figures, kind: str, name: str, score: str = "mean_token") -> float | None:
    rows = [row for row in line.get("test", []) if (row["score"], row["threshold_kind"]) == (score, kind)]
    return rows[0][name] if rows else None


def quality_table(lines: Sequence[Figures]) -> str:
    """Loss and detection by noise."""
    rows = []
    for line in lines:
        privacy, sizes = line["privacy"], (line["clients"], line["drawn"], line["rounds"])
        multiplier = privacy["noise_multiplier"]
        told = (
            [_number(epsilon(multiplier, *sizes, draws), ",.3g") for draws in ("fixed", "poisson")]
            if privacy["noise"] != "none"
            else ["no bound", "no bound"]
        )
        last = line["update_norms"][-1] if line["update_norms"] else None
        rows.append(
            [line["name"], *told, f"{line['trained_values']:,}", _number(last), *_judged(line)],
        )
    columns = ["experiment", "epsilon, fixed draws", "epsilon, Poisson", "trained values", "last round's median norm"]
    return _table([*columns, *_JUDGED], rows)


_JUDGED = ("loss", "AUROC", "label-free F1", "validated F1", "oracle F1", "max. surprise: AUROC", "its label-free F1")


def _judged(line: Figures) -> list[str]:
    if line["broken"]:
        return [line["broken"].replace("|", "/")[:60], *["–"] * (len(_JUDGED) - 1)]
    f1 = [_test(line, kind, "f1") for kind in ("label_free", "validated", "oracle")]
    highest = [_test(line, "label_free", name, "max_token") for name in ("auroc", "f1")]
    values = [line["calibration_loss"], _test(line, "label_free", "auroc"), *f1, *highest]
    return [_number(value) for value in values]


def poisoned_table(lines: Sequence[Figures]) -> str:
    """Loss, AUROC and label-free F1 by attack and by how replies are combined."""
    rows = [
        [line["combination"], line["attack"], str(line["hostile"]), *_judged(line)]
        for line in sorted(lines, key=lambda line: (line["attack"] != "none", line["attack"], -line["hostile"]))
    ]
    return _table(["combined by", "attack", "hostile of 8", *_JUDGED], rows)


def audit_table(lines: Sequence[Figures]) -> str:
    """What each attack finds, by noise."""
    rows = []
    for line in lines:
        for name, found in line.get("attacks", {}).items():
            rates = [_number(found[f"tpr_at_{rate:g}"]) for rate in (0.01, 0.05)]
            sizes = f"{found['inside']} / {found['outside']}"
            rows.append([line["name"], name.replace("_", " "), sizes, _number(found["auc"]), *rates])
    return _table(["experiment", "attack", "members / others", "AUC", "TPR at 1 % FPR", "TPR at 5 % FPR"], rows)


def _read(folders: Sequence[Path]) -> Iterator[Figures]:
    for folder in folders:
        for text in (folder / "privacy.jsonl").read_text().splitlines():
            yield json.loads(text)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="results of benchmarks.gpu_privacy")
    lines = list(_read(parser.parse_args().folders))
    print(f"Epsilon of 20 rounds of 5 of 50 clients, delta {_DELTA:g}\n\n{epsilon_table()}")
    for part, make in (("quality", quality_table), ("poisoned", poisoned_table), ("audit", audit_table)):
        if chosen := [line for line in lines if line["name"].split()[0] == part]:
            print(f"## {part.capitalize()}\n\n{make(chosen)}")


if __name__ == "__main__":
    main()
