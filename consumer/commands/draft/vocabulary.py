"""What the words of a name mean, in the languages that schemas are written in.

Theory of operation. A name is cut into words (``strEmailAddr``, ``kunden_nummer``, ``orderid``), and each word means
*concepts* (``words.toml``): general notions such as ``EMAIL`` or ``ORDER``. The rules of `roles` speak of concepts
alone, so they know no language and no schema. A documentation is read the same way: what stands before its first
preposition is the thing itself ("total **of** the order"), what follows says whose it is.

A word that is not known is kept, in lower case: it makes every rule less sure.

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
from typing import Final

from consumer.conversion.hints import event_of

VOCABULARY: Final = tomllib.loads(files(__package__).joinpath("words.toml").read_text("utf-8"))
_CONCEPTS, _CHANNELS, GENDERS = (
    {word: meant for meant, words in VOCABULARY[group].items() for word in words.split()}
    for group in ("concepts", "action_sources", "genders")
)
_PHRASES: Final = [(re.compile(pattern), words) for pattern, words in VOCABULARY["phrases"].items()]
_CAMEL: Final = re.compile(r"(?<=[a-z0-9à-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD: Final = re.compile(r"[a-z]+\d{0,3}(?![a-z\d])|[^\W\d_]+")
_ENDING: Final = re.compile(r"(?:e[nrm]|[aeioun])?s?$")
_LEAST: Final = 3  # letters of another word within a name written as one
# The short words that end a name written as one: orderid, kundennr.
_ENDS: Final = frozenset({"id", "nr", "no", "ip", "ts", "at", "url"})
# What ends the thing itself in a documentation.
_CUT: Final = re.compile(rf"[.,;:()\[\]/–—-](?=\s|$)|[(;]|\b(?:{VOCABULARY['prepositions']})\b")


def _stem(word: str) -> str:
    """Return a word without the ending of its number, gender or case."""
    return word if len(word) < 4 else _ENDING.sub("", word, 1)


_STEMS: Final = {_stem(word): meant for word, meant in reversed(_CONCEPTS.items()) if meant}


def _consonants(word: str) -> str:
    """Return how a word is abbreviated: "qnty", "crncy", "frst"."""
    return re.sub(r"(.)\1+", r"\1", word[0] + re.sub("[aeiou]", "", word[1:]))


_SHORT: Final[dict[str, str | None]] = {}
for _word, _meant in _CONCEPTS.items():
    # Only where one meaning is abbreviated so.
    _one = _consonants(_word)
    _SHORT[_one] = _meant if len(_one) >= _LEAST and _SHORT.get(_one, _meant) == _meant else None


def spaced(text: str) -> str:
    """Return a name or a documentation as words in lower case without accents; what several mean together is one."""
    apart = unicodedata.normalize("NFKD", _CAMEL.sub(" ", text.replace("ß", "ss")).replace("_", " "))
    plain = "".join(one for one in apart if not unicodedata.combining(one)).lower()
    for phrase, words in _PHRASES:
        plain = phrase.sub(words, plain)
    return plain


@cache
def concepts_of(text: str) -> tuple[str, ...]:
    """Return the concepts of a name or of a text, in order; words that are not known are in lower case."""
    words, found = _WORD.findall(spaced(text)), list[str]()
    while words:
        word = words.pop(0)
        # "post code" is a "postcode".
        if len(word) > 1 and words and word + words[0] in _CONCEPTS:
            word += words.pop(0)
        known = _known(word)
        found += (word,) if known is None else known
    return tuple(dict.fromkeys(found))


def _known(word: str) -> tuple[str, ...] | None:
    """Return the concepts of a word, or of the words that it is written of; None: it is not known."""
    bare = word.rstrip("0123456789")
    for meant in (_CONCEPTS.get(word), _CONCEPTS.get(bare), _STEMS.get(_stem(bare)), _SHORT.get(word)):
        if meant is not None:
            return tuple(meant.split())
    # The longest first: "order" before "or". German joins words with an s or an n.
    for at in range(len(word) - 2, _LEAST - 1, -1):
        if start := _CONCEPTS.get(word[:at]):
            for rest in (word[at:], word[at:].removeprefix("s"), word[at:].removeprefix("n")):
                if (rest in _ENDS or len(rest) >= _LEAST) and (end := _known(rest)):
                    return (*start.split(), *end)
    return None


def meaning_of(doc: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return what the first sentence of a documentation says: the thing itself, and what is said around it."""
    sentence = re.split(r"(?<=[a-z)])\.(?:\s|$)", spaced(doc).strip(), maxsplit=1)[0]
    head, *rest = _CUT.split(sentence, maxsplit=1)
    own = concepts_of(re.sub("['’]s", " ", head))
    # What is shown to the customer is not the customer's: without a thing nothing is said of whose it is.
    return own, frozenset(concepts_of(" ".join(rest)) if any(map(str.isupper, own)) else ())


def event_for(word: str, context: Collection[str] = ()) -> str:
    """Return the conversion's name that an event type, or the name of a record type, means; empty: it is not clear.

    `context`: concepts that the path of the value says already.
    """
    # The state of an order is no event's common word: "open" is not the start of an app.
    if "ORDER" not in context and (found := event_of(word) or event_of(word.rpartition(".")[2])):
        return found
    # Two letters may be of a product's name: "af_purchase".
    parts = (concepts_of(part) for part in (word, word.rpartition(".")[2]))
    ways = [{one for one in part if len(one) > 2} - {"EVENT"} for part in parts]
    for said, known in ((one, one.union(more)) for one in ways for more in ((), context)):
        for pattern, event in VOCABULARY["events"].items():
            wanted = {*pattern.removeprefix("=").split()}
            # What the path says already is not enough.
            if wanted <= known and said & wanted and (pattern[0] != "=" or said == wanted):
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
