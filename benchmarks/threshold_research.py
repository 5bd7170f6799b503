"""Label-free thresholds beside the calibration quantile: `python -m benchmarks.threshold_research RESULTS FILE.npz`.

RESULTS is the folder of benchmarks.gpu_experiments, FILE.npz what that read. Each is judged on the validation split,
which chooses, and on the test split, which tells what the choice is worth; also on test windows with changed logs
(mean and lowest F1). Prints a table for each log and score.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import genpareto, norm

from benchmarks.experiment_data import AS_IT_IS, Arrays, Corpus, load_corpora
from benchmarks.experiment_judging import FALSE_ALARM_RATE
from benchmarks.experiment_plan import CHANGES
from fl.thresholds import label_free_threshold, rank

Floats = npt.NDArray[np.float64]
Threshold = Callable[[Floats, npt.NDArray[np.bool_]], float]
"""From calibration scores, and which of them belong to sequences that training saw, to a threshold."""
SCORES = ("mean_token", "mean_message", "max_message")
CASES = {"hdfs": ("headline", "seed 1", "seed 2"), "bgl": ("bgl", "bgl sites site 10", "bgl sites time 10")}
REST: dict[str, tuple[str, ...]] = {
    "hdfs": ("sends LoRA 8", "few 50", "contaminated 0.01", "contaminated 0.03"),
    "bgl": (),
}


def tail_threshold(scores: Floats, rate: float, body: float, *, shaped: bool) -> float:
    """The score that a share `rate` exceeds by a generalized Pareto tail over the `body` quantile (Siffer et al., KDD
    2017, equation 1), or by an exponential one where not `shaped`."""
    start = float(np.quantile(scores, body))
    over = scores[scores > start] - start
    if not over.size:
        return start
    share = rate * scores.size / over.size
    if not shaped:
        return start - float(over.mean()) * float(np.log(share))
    shape, _, scale = genpareto.fit(over, floc=0)
    if abs(shape) < 1e-8:
        return start - scale * float(np.log(share))
    return start + scale / shape * float(share**-shape - 1)


def _distinct(scores: Floats, seen: npt.NDArray[np.bool_]) -> float:
    # Windows of one sequence share a score, so distinct scores stand for distinct sequences.
    return label_free_threshold(np.unique(scores), FALSE_ALARM_RATE)


def _spread(scores: Floats, seen: npt.NDArray[np.bool_]) -> float:
    logs = np.log(np.maximum(scores, 1e-9))
    middle = float(np.median(logs))
    deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
    return float(np.exp(middle + norm.isf(FALSE_ALARM_RATE) * deviation))


def thresholds() -> Iterator[tuple[str, Threshold]]:
    """All candidates by name."""
    yield "quantile, 0.2 % (the default)", lambda scores, _: label_free_threshold(scores, FALSE_ALARM_RATE)
    for rate in (0.005, 0.01, 0.02):
        yield f"quantile, {rate:.1%}", lambda scores, _, rate=rate: label_free_threshold(scores, rate)  # type: ignore[misc]
    yield "quantile of distinct sequences", _distinct
    yield (
        "quantile of sequences seen in training",
        lambda scores, seen: label_free_threshold(scores[seen], FALSE_ALARM_RATE),
    )
    for body in (0.9, 0.95, 0.98):
        for shaped, word in ((True, "Pareto"), (False, "exponential")):
            yield (
                f"{word} tail over {body:.0%}",
                lambda scores, _, body=body, shaped=shaped: tail_threshold(  # type: ignore[misc]
                    scores, FALSE_ALARM_RATE, body, shaped=shaped
                ),
            )
    yield "log-normal by median and deviation", _spread


def judged(
    corpus: Corpus, split: str, values: Floats, threshold: Threshold, change: str = AS_IT_IS
) -> list[tuple[float, float]]:
    """F1 and false alarms on validation and test."""
    part, sequence = corpus.split(split), corpus.orders[change]
    calibration = sequence[part == "calibration"]
    seen = np.isin(calibration, sequence[part == "train"])
    found = []
    limit = threshold(values[calibration], seen)
    for judging in ("validation", "test"):
        mine = part == judging
        detection = rank(values[sequence[mine]], (~corpus.normal[mine]).astype(int)).at(limit)
        found.append((detection.f1, detection.false_alarm_rate))
    return found


def main() -> None:
    """Judge all candidates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of benchmarks.gpu_experiments")
    parser.add_argument("windows", type=Path, help="file of benchmarks.gpu_experiment_windows")
    given = parser.parse_args()
    with np.load(given.results / "scores.npz", allow_pickle=False) as file:
        kept = dict(file)
    for log, corpus in load_corpora(given.windows).items():
        for score in SCORES if log in CASES else ():
            others = " | ".join(REST[log])
            print(f"\n## {log}, {score}\n")
            print(f"| threshold | validation F1, false alarms | test | changed windows | {others} |")
            print(f"| --- | ---: | ---: | ---: |{' --- |' * len(REST[log])}")
            for name, threshold in thresholds():
                print(f"| {name} | {' | '.join(_told(corpus, kept, log, score, threshold))} |", flush=True)


def _told(corpus: Corpus, kept: Arrays, log: str, score: str, threshold: Threshold) -> Iterator[str]:
    columns = [_column(corpus, kept, f"{experiment}, {log}", score) for experiment in CASES[log]]
    (f1, alarms), (test, test_alarms) = np.mean(
        [judged(corpus, "default", each, threshold) for each in columns], axis=0
    )
    yield f"{f1:.3f}, {alarms:.2%}"
    yield f"{test:.3f}, {test_alarms:.2%}"
    unstable = _column(corpus, kept, f"{CASES[log][0].replace('headline', '')} unstable, {log}".strip(), score)
    both = np.where(np.isnan(columns[0]), unstable, columns[0])
    changed = [judged(corpus, "default", both, threshold, change)[1][0] for change in CHANGES]
    yield f"{np.mean(changed):.3f}, {np.min(changed):.3f}"
    for experiment in REST[log]:
        split = experiment.replace(" ", "-") if experiment.startswith(("few", "contaminated")) else "default"
        values = _column(corpus, kept, f"{experiment}, {log}", score)
        yield f"{judged(corpus, split, values, threshold)[1][0]:.3f}"


def _column(corpus: Corpus, kept: Arrays, name: str, score: str) -> Floats:
    values = np.full(len(corpus.token_ids), np.nan)
    values[kept[f"{name}.rows"]] = kept[f"{name}.values"][:, kept[f"{name}.columns"].tolist().index(score)]
    return values


if __name__ == "__main__":
    main()
