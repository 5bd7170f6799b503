"""What operators of links and sites see."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from fl.declared import ADMIT, JUDGE, NUMBERS, ONLY_SOMETIMES, TRAIN
from flows.config import derived_of
from flows.site_rules import SiteRules
from storage.site_numbers import worst_site

_WIDTH = 120
_BASES = "once, bases of the adapter, from a gradient of windows of the site that is number 0"
_REPLIES = {
    ADMIT: "each time it joins, numbers",
    TRAIN: "after each round it trains in, the adapter's trained weights and numbers",
    JUDGE: "after each round that is judged, numbers",
}


def _page() -> Console:
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=_WIDTH)


def show_rules(rules: SiteRules, digest: str, changed: Sequence[str], number: int | None, link: str) -> None:
    """The rules, so that a person can agree to them, and what leaves a site that does."""
    page = _page()
    page.print(
        f"The rules of the federation at {link}{'' if number is None else f' (this site is number {number})'}:\n"
    )
    for name, value in rules.model_dump(mode="json").items():
        if isinstance(value, dict):
            facts = ", ".join(f"{key}={each}" for key, each in value.items() if each not in (None, [], {}))
            page.print(f"  {name:<17} {facts}", soft_wrap=True)
        else:
            page.print(f"  {name:<17} {value}", soft_wrap=True)
    for name, words in derived_of(rules.federation, rules.privacy).items():
        page.print(f"  {name:<17} {words}", soft_wrap=True)
    page.print("\nWhat leaves the site, and nothing else:")
    if rules.tuning.takes_gradient:
        page.print(f"  {_BASES}")
    for kind, title in _REPLIES.items():
        page.print(f"  {title}:")
        for name, words in (NUMBERS[kind] | ONLY_SOMETIMES.get(kind, {})).items():
            page.print(f"    {name:<20} {words}", soft_wrap=True)
    page.print("What never does: log lines, masked or not, tokens, hashes of windows.\n")
    if changed:
        page.print("Changed since they were last agreed to:")
        for line in changed:
            page.print(f"  {line}", soft_wrap=True)
        page.print("")
    page.print(f"SHA-256 of the rules: {digest}", soft_wrap=True)


def sites_table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], number: int) -> list[str]:
    """How the sites did in a round, one line a site, the worst named last."""
    told = [row for row in rows if row["round"] == number]
    lines = [
        f"{'site':<16} {'loss':>7} {'median':>7} {'99 %':>7} {'threshold':>9} {'held out':>9} {'flagged':>8}  alerts"
    ]
    for row in told:
        alerts = "-" if row["alerts"] < 0 else f"{row['alerts']:.0f}"
        lines.append(
            f"{names[row['partition']]:<16} {row['loss']:>7.3f} {row['surprise_50']:>7.3f} {row['surprise_99']:>7.3f} "
            f"{row['threshold']:>9.3f} {row['held_out_windows']:>9.0f} {row['flagged_windows']:>8.0f}  {alerts}"
        )
    if (worst := worst_site(rows, number)) is not None:
        lines.append(f"Worst: {names[worst['partition']]}, loss {worst['loss']:.3f} on its own calibration windows.")
    if missing := [name for partition, name in enumerate(names) if partition not in {r["partition"] for r in told}]:
        lines.append(f"Nothing was told by {', '.join(missing)}.")
    return lines


def sites_report(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """All judged rounds as Markdown: the file `sites.md` of a run."""
    lines = ["# The sites, round by round", ""]
    lines += ["Numbers that the sites tell of their own windows; the link has seen none of them.", ""]
    lines += ["| round | site | loss | median surprise | 99 % | threshold | held out | flagged | alerts |"]
    lines += ["| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        alerts = "" if row["alerts"] < 0 else f"{row['alerts']:.0f}"
        cells = [f"{row[name]:.3f}" for name in ("loss", "surprise_50", "surprise_99", "threshold")]
        cells += [f"{row['held_out_windows']:.0f}", f"{row['flagged_windows']:.0f}", alerts]
        lines.append(f"| {row['round']} | {names[row['partition']]} | {' | '.join(cells)} |")
    if rows and (worst := worst_site(rows, rows[-1]["round"])) is not None:
        lines += [
            "",
            f"Worst site after round {worst['round']}: **{names[worst['partition']]}**, loss {worst['loss']:.3f}.",
        ]
    return "\n".join(lines) + "\n"


def event_words(event: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """What a server's event means for people; None for those that say nothing new."""
    words = {
        "joined": "{site} takes part with {examples} windows",
        "refused": "{site} does not take part yet: {reason}",
        "round": "round {round}: {drawn}",
        "committed": "round {round} of {of} committed: {loss}{epsilon}",
        "without": "goes on without {sites}, which do not take part",
        "unjudged": "{site} could not judge the adapter: {reason}",
        "judged": "round {round}: judged by {sites} sites",
        "denied": "the link denies {site} what no site needs ({times} times): {reason}",
    }.get(event["event"])
    if words is None:
        return None
    facts: dict[str, Any] = dict(event)
    if event["event"] == "round":
        facts["drawn"] = ", ".join(names[partition] for partition in event["clients"]) or "no site is drawn"
    if event["event"] == "without":
        facts["sites"] = ", ".join(event["sites"])
    if event["event"] == "committed":
        facts["loss"] = "nothing was trained" if event["loss"] is None else f"loss {event['loss']:.3f}"
        spent = event.get("epsilon")
        bound = "no bound" if spent is None else f"epsilon {spent:.3g} spent"
        facts["epsilon"] = f", {bound}" if "epsilon" in event else ""
    return words.format(**facts)
