"""What the words of a name mean, in the languages that schemas are written in.

Theory of operation. A name is cut into words (``strEmailAddr``, ``kunden_nummer``, ``orderid``), and each word means
*concepts* (``words.toml``): general notions such as ``EMAIL`` or ``ORDER``. The rules of `roles` speak of concepts
alone, so they know no language and no schema. A documentation is read the same way: what stands before its first
preposition is the thing itself ("total **of** the order"), what follows says whose it is.

A word that is not known is kept, in lower case: it makes every rule that does not expect it less sure.

The same words say what kind of event a value, or the name of a record type, means, and where it happened. A word
without a clear meaning has none: the user decides, and until then such records are refused, not lost.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from consumer.conversion.hints import event_of

_FILE: Final = tomllib.loads(files(__package__).joinpath("words.toml").read_text("utf-8"))
_CONCEPTS: Final = {
    word: tuple(key.split()) for key, words in _FILE["concepts"].items() for word in words.split()
}
_PHRASES: Final = [(re.compile(pattern, re.IGNORECASE), words) for pattern, words in _FILE["phrases"].items()]
EVENT_WORDS: Final[Mapping[str, str]] = _FILE["events"]
CHANNEL_WORDS: Final[Mapping[str, str]] = {
    word: source for source, words in _FILE["action_sources"].items() for word in words.split()
}
GENDER_WORDS: Final[Mapping[str, str]] = {
    word: gender for gender, words in _FILE["genders"].items() for word in words.split()
}
# In the order in which one of several words for a checkout is taken: the same order must not count twice.
_FIRST_DONE: Final = ("placed", "purchase", "completed", "paid", "confirmed")
# The short words that end a name written as one: orderid, kundennr.
_ENDS: Final = frozenset({"id", "nr", "no", "ip", "ts", "at", "url"})
_LEAST: Final = 3  # letters of another word within a name written as one
# Prefixes that say the type of a variable.
_HUNGARIAN: Final = re.compile(
    r"tbl|str|sz|int|lng|[lnibdomfscvue]|bln|dbl|dec|cur|dt|dte|dtm|arr|lst|obj|txt|enm|rec|map|fk|pk"
)
_WORD: Final = re.compile(r"[^\W\d_]+\d{0,3}(?=$|[\W_])|[^\W\d_]+|\d+")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9à-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-Z])(?=[A-Z][a-z])")
# What ends the thing itself in a documentation.
_CUT: Final = re.compile(
    r"[.,;:()\[\]/–—-](?=\s|$)|[(;]|\b(?:of|for|from|by|when|where|which|who|whom|that|as|incl\w*|excl\w*|without|plus|at|in|"
    r"on|to|with|used|if|before|after|per|der|des|dem|von|vom|für|bei|zum|zur|mit|ohne|inkl\w*|zzgl\w*|als|im|de|du|d['’]|"
    r"pour|par|sans|avec|en|dans|del|di|van|voor)\b",
    re.IGNORECASE,
)


class Concepts(NamedTuple):
    """The concepts of a name or a documentation: of the thing itself, and of what is said around it."""

    own: tuple[str, ...]
    around: frozenset[str] = frozenset()


@cache
def concepts_of(name: str) -> tuple[str, ...]:
    """Return the concepts in a name, in order; words that are not known are in lower case."""
    words = [word for part in _CAMEL.sub(" ", name).split() for word in _WORD.findall(part)]
    if len(words) > 1 and _HUNGARIAN.fullmatch(words[0].lower()):
        words = words[1:]
    found: list[str] = []
    for word in words:
        plain = "".join(
            one for one in unicodedata.normalize("NFKD", word.replace("ß", "ss").lower()) if one.isalnum()
        )
        if not plain.isdigit():
            known = _known(plain)
            found += (plain,) if known is None else known
    # "totalInclVat" is gross.
    for word, meant in (("INCL", "GROSS"), ("EXCL", "NET")):
        if {word, "TAX"} <= {*found}:
            found = [one for one in found if one not in (word, "TAX")] + [meant]
    return tuple(dict.fromkeys(found))


def _known(word: str) -> tuple[str, ...] | None:
    """Return the concepts of a word, or of the words that it is written of; None: it is not known."""
    for one in (word, word.removesuffix("s"), word.removesuffix("n"), word.rstrip("0123456789")):
        if one in _CONCEPTS:
            return _CONCEPTS[one]
    # The longest first: "order" before "or". German joins words with an s or an n.
    for at in range(len(word) - 2, _LEAST - 1, -1):
        if word[:at] in _CONCEPTS and _CONCEPTS[word[:at]] != ():
            for rest in (word[at:], word[at:].removeprefix("s"), word[at:].removeprefix("n")):
                if rest in _ENDS or len(rest) >= _LEAST:
                    end = _known(rest)
                    if end:
                        return (*_CONCEPTS[word[:at]], *end)
    return None


@cache
def meaning_of(doc: str) -> Concepts:
    """Return what a documentation says, by its first sentence."""
    for phrase, words in _PHRASES:
        doc = phrase.sub(words, doc)
    sentence = re.split(r"(?<=[a-zß)])\.(?:\s|$)", doc.strip(), maxsplit=1)[0]
    head, *rest = _CUT.split(sentence, maxsplit=1)
    own = concepts_of(head.replace("'s", " ").replace("’s", " "))
    # Nothing is said before "Of the order: the total".
    if not own and rest:
        return Concepts(concepts_of(rest[0]))
    # What is shown to the customer is not the customer's: without a thing nothing is said of whose it is.
    return Concepts(
        own, frozenset(concepts_of(" ".join(rest))) if any(map(str.isupper, own)) else frozenset()
    )


def event_for(word: str, context: Collection[str] = ()) -> str:
    """Return the conversion's name that an event type, or the name of a record type, means; empty: it is not clear.

    `context`: concepts that the path of the value says already.
    """
    # The state of an order is no event's common word: "open" is not the start of an app.
    if "ORDER" not in context and (found := event_of(word) or event_of(word.rpartition(".")[2])):
        return found
    said = concepts_of(word)
    concepts, last = {*said}, next((one for one in reversed(said) if one != "EVENT"), "")
    for known in (concepts, concepts.union(context)):
        for wanted, event in EVENT_WORDS.items():
            words = {*wanted.removeprefix("=").split()}
            # What the path says already is not enough.
            if words <= known and concepts & words and (wanted[0] != "=" or last in words):
                return event
    return ""


def events_of(words: Iterable[str], context: Collection[str]) -> dict[str, str]:
    """Return the event of each word; only one word is a checkout, since an order has several states."""
    found = {word: event_for(word, context) for word in words}
    done = [word for word, event in found.items() if event == "checkout"]

    def rank(word: str) -> tuple[bool, int]:
        named = [number for number, one in enumerate(_FIRST_DONE) if one in word.lower()]
        return "DONE" not in concepts_of(word), min(named, default=len(_FIRST_DONE))

    return found | dict.fromkeys(sorted(done, key=rank)[1:], "")


def source_for(channel: str) -> str:
    """Return the action source that a channel means; empty: it is not clear."""
    words = re.split(r"[\W_]+", channel.lower())
    found = CHANNEL_WORDS.get("".join(words)) or {
        CHANNEL_WORDS[word] for word in words if word in CHANNEL_WORDS
    }
    return found if isinstance(found, str) else found.pop() if len(found) == 1 else ""


def gender_for(word: str) -> str:
    """Return the gender that a word means; empty: it is not clear."""
    return GENDER_WORDS.get(word.lower().strip(" .").replace("ä", "a").replace("é", "e"), "")
