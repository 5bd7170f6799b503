"""Messages as another version of a program might have written them, with the same meaning.

After the synthetic unstable log events of LogRobust (Zhang et al., ESEC/FSE 2019, doi 10.1145/3338906.3338931), which
adds, removes and replaces words of templates: words give way to synonyms, a word is added, dropped or trades places
with its neighbour, and fields (masked values) come or go. The table below holds words that many systems log and none
of a certain system's templates, so every log has something to change.
"""

import hashlib
import re

import numpy as np

from storage.masks import FIELD

_SYNONYMS = (
    "added appended inserted",
    "adding appending inserting",
    "allocated assigned reserved",
    "allocate assign reserve",
    "changed modified altered",
    "changing modifying altering",
    "closed shut ended",
    "connected attached joined",
    "connection link session",
    "corrected repaired fixed",
    "created made built",
    "deleted removed erased",
    "deleting removing erasing",
    "detected noticed observed",
    "directory folder",
    "does did",
    "empty blank",
    "error fault failure",
    "errors faults failures",
    "exception problem fault",
    "excessive many numerous",
    "failed broke",
    "finished completed done",
    "found located seen",
    "generated produced created",
    "generating producing creating",
    "interrupted aborted stopped",
    "invalid illegal bad",
    "loading reading fetching",
    "missing absent lacking",
    "performing doing executing",
    "reading fetching loading",
    "ready prepared set",
    "received got accepted",
    "receiving getting accepting",
    "redundant superfluous repeated",
    "replacing exchanging",
    "request call demand",
    "reset dropped cut",
    "running executing working",
    "sending transmitting forwarding",
    "sent transmitted forwarded",
    "served provided delivered",
    "serving providing delivering",
    "size length bytes",
    "started began launched",
    "starting beginning launching",
    "stopped ended halted",
    "stopping ending halting",
    "succeeded passed worked",
    "terminated ended stopped",
    "terminating ending stopping",
    "thread worker",
    "timeout expiry",
    "total sum",
    "transfer copy move",
    "transmitted sent copied",
    "trying attempting wanting",
    "unexpected unforeseen strange",
    "updated refreshed renewed",
    "updating refreshing renewing",
    "verification check test",
    "waiting pending idle",
    "warning notice",
    "while during when",
    "writing storing saving",
)
_FILLERS = ("now", "just", "already", "again", "currently", "then")
_FIELDS = ("tid", "user", "host", "time", "seq", "version", "code")
_LEADS = frozenset(["of", "to", "from", "on", "at", "for", "in", "by", "with", "is", "into"])
_WORD = re.compile(r"[A-Za-z]+")
_SYNONYMS_OF = {group.split()[0]: tuple(group.split()[1:]) for group in _SYNONYMS}
_REPLACED = 0.5
"""Chance of each further word that has synonyms to be replaced, after the first."""


def generator_of(text: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on a message's text and a seed, so that a message changes alike wherever it stands."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return np.random.default_rng((seed, int.from_bytes(digest, "little")))


def reworded(text: str, seed: int) -> str:
    """A message in other words, never the same: synonyms, and every other time a word more, less or elsewhere."""
    random = generator_of(text, seed)
    words = text.split(" ")
    changed = _with_synonyms(words, random)
    if changed == words or random.random() < 0.5:
        changed = _with_a_word_moved(changed, random)
    if " ".join(changed) == text:
        changed = _with_filler(changed, random)
    return " ".join(changed)


def with_other_fields(text: str, seed: int) -> str:
    """A message with a field more or, every other time where it has one that can go, a field less."""
    random = generator_of(text, seed)
    words = text.split(" ")
    fields = [place for place, word in enumerate(words) if FIELD in word]
    if fields and len(words) > 2 and random.random() < 0.5:
        return " ".join(_without(words, int(random.choice(fields))))
    added = f"{random.choice(_FIELDS)}={FIELD}"
    return " ".join([added, *words] if random.random() < 0.5 else [*words, added])


def _without(words: list[str], place: int) -> list[str]:
    """The words without the field at `place`, nor what leads to it: a preposition, or a name that ends with a colon."""
    before = words[place - 1].lower() if place else ""
    leads = before in _LEADS or (before.endswith((":", "=")) and FIELD not in before)
    start = place - 1 if leads and len(words) > 3 else place
    return words[:start] + words[place + 1 :]


def _with_synonyms(words: list[str], random: np.random.Generator) -> list[str]:
    places = [place for place, word in enumerate(words) if _core(word).lower() in _SYNONYMS_OF]
    if not places:
        return list(words)
    chosen = {int(random.choice(places)), *(place for place in places if random.random() < _REPLACED)}
    return [_synonym(word, random) if place in chosen else word for place, word in enumerate(words)]


def _core(word: str) -> str:
    """The letters of a word with nothing but punctuation around them, else nothing."""
    found = _WORD.findall(word)
    return found[0] if len(found) == 1 and FIELD not in word else ""


def _synonym(word: str, random: np.random.Generator) -> str:
    core = _core(word)
    other = str(random.choice(_SYNONYMS_OF[core.lower()]))
    if core.isupper() and len(core) > 1:
        other = other.upper()
    elif core[0].isupper():
        other = other.capitalize()
    return word.replace(core, other)


def _with_a_word_moved(words: list[str], random: np.random.Generator) -> list[str]:
    """A plain word is dropped, or trades places with the next one; or a filler is added."""
    plain = [place for place, word in enumerate(words) if _core(word)]
    how = random.choice(["drop", "trade", "add"])
    if how == "drop" and len(plain) > 1:
        place = int(random.choice(plain))
        return words[:place] + words[place + 1 :]
    pairs = [place for place in plain if place + 1 in plain and words[place] != words[place + 1]]
    if how == "trade" and pairs:
        place = int(random.choice(pairs))
        return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]
    return _with_filler(words, random)


def _with_filler(words: list[str], random: np.random.Generator) -> list[str]:
    place = int(random.integers(0, len(words) + 1))
    return [*words[:place], str(random.choice(_FILLERS)), *words[place:]]
