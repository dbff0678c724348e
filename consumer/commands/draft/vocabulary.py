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
from collections.abc import Collection, Iterable
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

from consumer.conversion.hints import event_of

_FILE: Final = tomllib.loads(files(__package__).joinpath("words.toml").read_text("utf-8"))
_CONCEPTS, _CHANNELS, GENDERS = (
    {word: meant for meant, words in _FILE[group].items() for word in words.split()}
    for group in ("concepts", "action_sources", "genders")
)
_PHRASES: Final = [(re.compile(pattern, re.IGNORECASE), words) for pattern, words in _FILE["phrases"].items()]
# The short words that end a name written as one: orderid, kundennr.
_ENDS: Final = frozenset({"id", "nr", "no", "ip", "ts", "at", "url"})
_LEAST: Final = 3  # letters of another word within a name written as one
_WORD: Final = re.compile(r"[^\W\d_]+\d{0,3}(?=$|[\W_])|[^\W\d_]+|\d+")
CAMEL: Final = re.compile(r"(?<=[a-z0-9à-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-Z])(?=[A-Z][a-z])")
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
    plain_name = unicodedata.normalize("NFC", name).replace("ß", "ss")
    found: list[str] = []
    for word in (word for part in CAMEL.sub(" ", plain_name).split() for word in _WORD.findall(part)):
        # Without accents.
        plain = "".join(filter(str.isalnum, unicodedata.normalize("NFKD", word.lower())))
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
            return tuple(_CONCEPTS[one].split())
    # The longest first: "order" before "or". German joins words with an s or an n.
    for at in range(len(word) - 2, _LEAST - 1, -1):
        if start := _CONCEPTS.get(word[:at]):
            for rest in (word[at:], word[at:].removeprefix("s"), word[at:].removeprefix("n")):
                if (rest in _ENDS or len(rest) >= _LEAST) and (end := _known(rest)):
                    return (*start.split(), *end)
    return None


@cache
def meaning_of(doc: str) -> Concepts:
    """Return what a documentation says, by its first sentence."""
    for phrase, words in _PHRASES:
        doc = phrase.sub(words, doc)
    sentence = re.split(r"(?<=[a-zß)])\.(?:\s|$)", doc.strip(), maxsplit=1)[0]
    head, *rest = _CUT.split(sentence, maxsplit=1)
    own = concepts_of(head.replace("'s", " ").replace("’s", " "))
    # What is shown to the customer is not the customer's: without a thing nothing is said of whose it is.
    return Concepts(own, frozenset(concepts_of(" ".join(rest)) if any(map(str.isupper, own)) else ()))


def event_for(word: str, context: Collection[str] = ()) -> str:
    """Return the conversion's name that an event type, or the name of a record type, means; empty: it is not clear.

    `context`: concepts that the path of the value says already.
    """
    # The state of an order is no event's common word: "open" is not the start of an app.
    if "ORDER" not in context and (found := event_of(word) or event_of(word.rpartition(".")[2])):
        return found
    said = concepts_of(word)
    last = next((one for one in reversed(said) if one != "EVENT"), "")
    for known in ({*said}, {*said, *context}):
        for wanted, event in _FILE["events"].items():
            words = {*wanted.removeprefix("=").split()}
            # What the path says already is not enough.
            if words <= known and words.intersection(said) and (wanted[0] != "=" or last in words):
                return str(event)
    return ""


def events_of(words: Iterable[str], context: Collection[str] = ()) -> dict[str, str]:
    """Return the event of each word; only one word is a checkout, since an order has several states."""
    found = {word: event_for(word, context) for word in words}
    done = [word for word, event in found.items() if event == "checkout"]
    # "paid" rather than "new".
    return found | dict.fromkeys(sorted(done, key=lambda word: "DONE" not in concepts_of(word))[1:], "")


def source_for(channel: str) -> str:
    """Return the action source that a channel means; empty: it is not clear."""
    words = re.split(r"[\W_]+", channel.lower())
    found = {_CHANNELS[word] for word in ("".join(words), *words) if word in _CHANNELS}
    return found.pop() if len(found) == 1 else ""
