"""How the default score was chosen: `python -m benchmarks.rarity_research RESULTS FILE.npz [HOME]`.

RESULTS is the folder of benchmarks.gpu_experiments, FILE.npz what that read; HOME holds the runs of a sweep, such as
`atalaia sweep small`. Each candidate is judged, at its label-free threshold, on the validation windows of every model
and on every other test window of the changed logs (to choose), and on the test windows and the other half of the
changed ones (to tell). The halves hold many equal windows: they are two counts of one log, not two logs. The last
tables deal the windows that training never saw anew, to calibrate and to test: drawn, and by stretches of the log.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.experiment_data import AS_IT_IS, Corpus, load_corpora
from benchmarks.experiment_judging import FALSE_ALARM_RATE
from benchmarks.score_research import CASES, kept_predictions
from benchmarks.window_scores import kept_surprises, packed_messages
from fl.calibration import ThresholdRule, calibrated_threshold
from fl.rarity import ROUNDING, rarity
from fl.thresholds import metrics_at
from fl.usual_messages import EXCESS, MessageSurprises, message_surprises, usual_messages

Scores = dict[str, tuple[np.ndarray, np.ndarray]]
"""By candidate: the score of each distinct window, and its score where it is a calibration window."""
WEIGHTS = (0, 0.5, 0.75, 1, 1.5, 2, 3, 8)
"""How many windows the assumption weighs that a message is new; fl/usual_messages.py takes 1."""
DEALS = 20


@dataclass(frozen=True)
class Case:
    """A model's distinct windows with their surprises, and the windows that are judged."""

    group: str
    found: MessageSurprises
    mean: np.ndarray
    sequence: np.ndarray
    """The distinct window of each window."""
    part: np.ndarray
    anomalous: np.ndarray

    @property
    def calibration(self) -> np.ndarray:
        """The distinct window of each calibration window."""
        return self.sequence[self.part == "calibration"]


def candidates(case: Case) -> Scores:
    """Every score that is compared."""
    times = np.bincount(case.calibration, minlength=len(case.mean))
    columns = {"mean surprise": case.mean}
    ends = np.cumsum(case.found.lengths)
    columns["highest message"] = np.maximum.reduceat(case.found.surprises, ends - case.found.lengths)
    columns["end's surprise"] = case.found.surprises[ends - 1]
    excess = {w: usual_messages(case.found, times, w).excess(case.found) for w in WEIGHTS}
    columns |= {f"highest excess, {w} new": values for w, values in excess.items()}
    for weight in WEIGHTS:
        name = f"highest excess, {weight} new"
        columns[f"the rarer of mean and excess, {weight} new"] = _rarest(case, columns, "mean surprise", name)
    name = "highest excess, 1 new"
    columns["the rarer of end and excess, 1 new"] = _rarest(case, columns, "end's surprise", name)
    three = ("mean surprise", "highest message", name)
    columns["the rarest of mean, highest message and excess, 1 new"] = _rarest(case, columns, *three)
    scores = {name: (values, values) for name, values in columns.items()}
    return scores | {"highest excess, 0 new, each left out": (excess[0], left_out(case.found, times))}


def _rarest(case: Case, columns: dict[str, np.ndarray], *names: str) -> np.ndarray:
    rounding = [ROUNDING["mean_token" if name == "mean surprise" else EXCESS] for name in names]
    known = [np.sort(columns[name][case.calibration]) for name in names]
    return np.max([rarity(columns[name], *how) for name, *how in zip(names, known, rounding, strict=True)], axis=0)


def left_out(found: MessageSurprises, times: np.ndarray) -> np.ndarray:
    """The highest excess of each window with one window of its kind left out of what is usual."""
    excess = np.zeros(len(found.lengths))
    starts = np.cumsum(found.lengths) - found.lengths
    for number in np.flatnonzero(times):
        rest = times.copy()
        rest[number] -= 1
        own = slice(starts[number], starts[number] + found.lengths[number])
        alone = MessageSurprises(found.messages[own], found.surprises[own], found.lengths[number : number + 1])
        excess[number] = usual_messages(found, rest, 0).excess(alone)[0]
    return excess


def model_cases(results: Path, corpora: dict[str, Corpus]) -> Iterator[Case]:
    """The models of the GPU experiments on their logs as these are, and changed."""
    kept = kept_surprises(results)
    for experiment, log, split, order in CASES:
        found = kept_predictions(kept, experiment, log, order) if log in corpora else None
        if found is None:
            continue
        corpus, part = corpora[log], corpora[log].split(split)
        place = np.where(part == "test", corpus.orders[order], corpus.orders[AS_IT_IS])
        judged = np.isin(part, ("calibration", "validation", "test"))
        distinct, sequence = np.unique(place[judged], return_inverse=True)
        numbers = distinct.tolist()
        group = f"{experiment} {log}" if order == AS_IT_IS else f"{log} changed"
        mean = np.array([found.surprise[number].mean() for number in numbers])
        packed = packed_messages(corpus, numbers, found)
        yield Case(group, packed, mean, sequence, part[judged], ~corpus.normal[judged])


def run_cases(home: Path) -> Iterator[Case]:
    """The models of finished runs: each one's last round, and the untouched model once for each seed."""
    tokenized = sorted(home.glob("stages/tokenize/*/sequences.parquet"))
    told = [pl.read_parquet(path, columns=["sequence_hash", "message_ids"]) for path in tokenized]
    texts, seen = pl.concat(told).unique("sequence_hash", maintain_order=True), set()
    for path in sorted(home.glob("runs/*/run.json")):
        run = json.loads(path.read_text())
        cell = run["tuning"], run["rank"], run["seed"]
        if run["status"] != "finished" or cell in seen:
            continue
        seen.add(cell)
        [*_, last] = sorted((path.parent / "rounds").glob("round-*/round.parquet"))
        adapter = pl.read_parquet(last)["adapter_hash"].item()
        scores = pl.read_parquet(path.parent / "scores" / f"{adapter}.parquet")
        scores = scores.join(texts, on="sequence_hash", maintain_order="left")  # sums in the same order each time
        numbered = scores.select("sequence_hash").with_row_index("place")
        windows = pl.read_parquet(path.parent / "window_scores.parquet").join(numbered, on="sequence_hash")
        windows = windows.filter(pl.col("split").is_in(["calibration", "validation", "test"])).sort("window_id")
        messages = [ids.to_numpy().astype(np.uint64) + np.uint64(1) for ids in scores["message_ids"]]
        yield Case(
            "runs untouched" if run["tuning"] == "none" else "runs trained",
            message_surprises(messages, [each.to_numpy() for each in scores["message_surprise"]]),
            scores["mean_token"].to_numpy(),
            windows["place"].to_numpy().astype(np.int64),
            windows["split"].to_numpy().astype(np.str_),
            (windows["label"].fill_null(0) == 1).to_numpy(),
        )


def judged(case: Case, score: np.ndarray, calibration: np.ndarray, rule: ThresholdRule) -> dict[str, float]:
    """Label-free F1 and false-alarm rate of the windows to choose by and of those that tell."""
    threshold = calibrated_threshold(calibration[case.calibration], FALSE_ALARM_RATE, rule)
    test, half = case.part == "test", np.arange(len(case.part)) % 2 == 0
    changed = case.group.endswith("changed")
    chosen = test & half if changed else case.part == "validation"
    told = test & ~half if changed else test
    found = {}
    for name, rows in (("choose", chosen), ("tell", told)):
        if case.anomalous[rows].any():
            at = metrics_at(score[case.sequence[rows]], case.anomalous[rows].astype(int), threshold)
            found |= {name: at.f1, f"{name} alarms": at.false_alarm_rate}
    return found


def table(cases: list[Case], rule: ThresholdRule) -> list[str]:
    """Each candidate's mean over the groups to choose by, then F1 (false alarms) of each group, as Markdown."""
    groups = list(dict.fromkeys(case.group for case in cases))
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    for case in cases:
        for name, (score, calibration) in candidates(case).items():
            by_group = rows.setdefault(name, {group: [] for group in groups})
            by_group[case.group].append(judged(case, score, calibration, rule))
    lines = ["| score | to choose | " + " | ".join(groups) + " |", "| --- |" + " ---: |" * (1 + len(groups))]
    for name, by_group in rows.items():
        mean = np.mean([_mean(found, "choose") for found in by_group.values()])
        cells = [f"{_mean(found, 'tell'):.3f} ({_mean(found, 'tell alarms'):.2%})" for found in by_group.values()]
        lines.append(f"| {name} | {mean:.3f} | {' | '.join(cells)} |")
    return lines


def drawn_anew(case: Case, deal: int) -> Case:
    """As many calibration windows as before, drawn from all normal windows of the case; all others are to be tested."""
    return _dealt(case, np.random.default_rng(deal).permutation(np.flatnonzero(~case.anomalous)))


def stretch_anew(case: Case, deal: int) -> Case:
    """As many as before, one stretch of the log's normal windows, from its beginning (0) to its end (`DEALS` - 1)."""
    normal = np.flatnonzero(~case.anomalous)
    return _dealt(case, normal[round(deal * (len(normal) - len(case.calibration)) / (DEALS - 1)) :])


def _dealt(case: Case, normal: np.ndarray) -> Case:
    part = np.full(len(case.part), "test", dtype=object)
    part[normal[: len(case.calibration)]] = "calibration"
    return replace(case, part=part.astype(np.str_))


def deals_table(cases: list[Case], rule: ThresholdRule, deal_anew: Callable[[Case, int], Case]) -> list[str]:
    """F1 over many deals of the windows of each model: mean, lowest, mean false alarms; as Markdown."""
    lines = ["| score | " + " | ".join(case.group for case in cases) + " |", "| --- |" + " ---: |" * len(cases)]
    rows: dict[str, list[str]] = {}
    for case in cases:
        found: dict[str, list[dict[str, float]]] = {}
        for deal in range(DEALS):
            dealt = deal_anew(case, deal)
            for name, (score, calibration) in candidates(dealt).items():
                found.setdefault(name, []).append(judged(dealt, score, calibration, rule))
        for name, each in found.items():
            lowest = min(one["tell"] for one in each)
            rows.setdefault(name, []).append(
                f"{_mean(each, 'tell'):.3f}, {lowest:.3f} ({_mean(each, 'tell alarms'):.2%})"
            )
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def _mean(found: list[dict[str, float]], name: str) -> float:
    return float(np.mean([each[name] for each in found if name in each]))


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of benchmarks.gpu_experiments")
    parser.add_argument("windows", type=Path, help="file of benchmarks.gpu_experiment_windows")
    parser.add_argument("home", type=Path, nargs="?", help="ATALAIA_HOME of a sweep")
    given = parser.parse_args()
    cases = list(model_cases(given.results, load_corpora(given.windows)))
    as_they_are = [case for case in cases if not case.group.endswith("changed")]
    cases += list(run_cases(given.home)) if given.home else []
    tables = {
        "99.8 % quantile": table(cases, "quantile"),
        "exponential tail": table(cases, "tail"),
        "quantile, drawn anew: mean, lowest": deals_table(as_they_are, "quantile", drawn_anew),
        "quantile, another stretch: mean, lowest": deals_table(as_they_are, "quantile", stretch_anew),
    }
    for title, lines in tables.items():
        sys.stdout.write("\n".join([f"Threshold: {title}. F1 (false alarms).", "", *lines, "", ""]))


if __name__ == "__main__":
    main()
