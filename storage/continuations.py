"""How the base and the tuned model go on from the same beginning of a log, in masked text."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class Continuation(BaseModel):
    """One beginning, what followed it in the log, and what each model writes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    prefix: str
    """Masked messages with their separators; both models go on from here."""
    followed: str | None
    """What really came next; null: not known."""
    base: str
    """What the untouched model writes."""
    tuned: str
    """What the tuned model writes."""
    base_ended: bool
    """Whether it ended the window itself."""
    tuned_ended: bool
    """Whether it ended the window itself."""
    base_nats: float | None
    """Mean surprise at a token of what followed; null: not known."""
    tuned_nats: float | None
    """Mean surprise at a token of what followed; null: not known."""

    def sides(self) -> list[tuple[str, str, float | None]]:
        """What is shown side by side: who, the text with its end, and the surprise."""
        shown = [("in the log", f"{self.followed} [end]", None)] if self.followed is not None else []
        base = ("base model", self.base + _end(self.base_ended), self.base_nats)
        return [*shown, base, ("tuned model", self.tuned + _end(self.tuned_ended), self.tuned_nats)]


def _end(ended: bool) -> str:
    return " [end]" if ended else " …"


def messages_of(text: str, separator: str) -> list[str]:
    """The messages of a text, one a line; the last may be cut off."""
    return [part.strip() for part in text.split(separator.strip()) if part.strip()]


def continuation_note(continuations: Sequence[Continuation]) -> str:
    """What the reader sees, in a sentence."""
    known = [each for each in continuations if each.base_nats is not None and each.tuned_nats is not None]
    if not known:
        return "Both models go on from the same beginning; … where they were cut off."
    base = sum(each.base_nats or 0.0 for each in known) / len(known)
    tuned = sum(each.tuned_nats or 0.0 for each in known) / len(known)
    return (
        "Both models go on from the same beginning; … where they were cut off. A token of what really followed "
        f"surprises the base model by {base:.2f} nats on average, the tuned one by {tuned:.2f}."
    )
