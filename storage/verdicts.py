"""What a run found, in plain words: the headline, win or lose, and what the model adds to the simple rules."""

from typing import Any

from storage.report_tables import prevalence_words


def headline(findings: dict[str, Any]) -> str:
    """The result in plain words, win or lose: label-free F1 with its interval, and the difference to the best rule."""
    found, free = findings["headline"], findings["label_free"]
    if found is None:
        return _headline_without_f1(findings)
    interval, difference, rule = found["f1"]["label_free"], found["difference"], findings["best_rule"]
    verdict = {
        "better": "The model is better than the best simple rule.",
        "worse": "The simple rule is better than the model.",
        "unclear": "These windows cannot tell which of the two is better.",
    }[found["verdict"]]
    return (
        f"Label-free F1 {free['f1']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}] {prevalence_words(findings)} "
        f"({findings['anomalies']:,} of {findings['windows']:,} test windows are anomalous). The best simple rule, "
        f"{rule['name']}, has {rule['f1']:.3f}: a difference of {difference['estimate']:+.3f} "
        f"[{difference['low']:+.3f}, {difference['high']:+.3f}]. {verdict}"
    )


def who_catches(findings: dict[str, Any]) -> str:
    """What the model adds to the best rule, and what not, in counted windows; empty where it cannot be told."""
    caught = (findings["headline"] or {}).get("caught")
    if caught is None:
        return ""
    alone = f"the model alone {caught['model_only']:,}, the rule alone {caught['rule_only']:,}"
    return (
        f"Of {findings['anomalies']:,} anomalous test windows both catch {caught['both']:,}, {alone}, neither "
        f"{caught['neither']:,}; false alarms: {caught['model_false_alarms']:,} of the model, "
        f"{caught['rule_false_alarms']:,} of the rule."
    )


def with_few_windows(findings: dict[str, Any]) -> str:
    """The best rule that saw as little as the model; empty where there is none."""
    few = findings.get("rules_with_few_windows")
    if not few:
        return ""
    best = max(few["rules"], key=lambda row: row["f1"])
    return (
        f"The rules are fitted on all {findings['splits']['train']['windows']:,} training windows. Fitted on "
        f"{few['windows']:,}, as many as the model was trained on, the best is {best['rule']} with {best['f1']:.3f}."
    )


def verdicts(findings: dict[str, Any]) -> list[str]:
    """All there is to say, the headline first."""
    return [text for text in (headline(findings), who_catches(findings), with_few_windows(findings)) if text]


def _headline_without_f1(findings: dict[str, Any]) -> str:
    free, windows = findings["label_free"], findings["windows"]
    if free is None:
        return "There are no test windows to judge."
    why = "The test windows have no labels" if findings["anomalies"] is None else "No test window is anomalous"
    return (
        f"{why}, so F1 cannot be told. The label-free threshold flags {free['flagged']:,} of {windows:,} test windows."
    )
