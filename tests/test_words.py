"""The words: one name has one meaning, and it is the field's word. The left column of `WORDS` is not used any more.

It holds for identifiers and file names of the whole repository (code and tests), and for the prose that people read:
comments, docstrings and messages of consumer/ and benchmarks/, the pages, and what deploy/ and examples/ say. Names
that others read (log events, /status, metrics, exported JSON) stay: `STAYS` has each with its reason.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PYTHON, CYTHON = {".py", ".pyi"}, {".pyx", ".pxi"}
OTHER_CODE = {".js", ".lua", ".c", ".h"}
PAGES = {".md", ".yml", ".yaml", ".tpl", ".html", ".toml", ".css"}
YARDSTICK = tuple(f"benchmarks/rivals/{name}.py" for name in ("plain", "conversion", "mapped"))
"""The plain consumer stays as it is to the byte: all ratios over the versions are of it."""
READ_BY_PEOPLE = (
    "consumer/",
    "benchmarks/",
    "docs/",
    "deploy/",
    "examples/",
    "schemas/",
    ".ci/",
    "hatch_build.py",
)
"""Folders whose comments, docstrings and messages count; of tests/ the identifiers alone do."""


class Word(NamedTuple):
    """A word that is not used: as part of an identifier (between `_` or capitals), and in prose. None: it may be."""

    name: str | None
    prose: str | None
    instead: str


WORDS = (
    Word(
        "anew|new_?li(fe|ves)|(topic|different)_li(fe|ves)|lives",
        r"anew|(earlier|new|another|old|next|each) li(fe|ves) of (a|the|its) \w+",
        "recreated",
    ),
    Word("told|tell|tells|telling|teller|untold", "told", "report, say, distinguish"),
    Word("(un)?troubled?|troubles|troubleless", r"troubles?|troubled", "error, fault, problem"),
    Word("MOST|[a-z]+_most|most_[a-z_]+|most", None, "MAX_…, max_…, maximum"),
    Word("^_?goes_on$", None, "a command returns nothing; a predicate does nothing"),
    Word("keep_little", "keeps? little", "compact"),
    Word("(_|^)pass_on|heirs?", "heirs?|pass(es|ed)? it on", "transfer, next claimant"),
    Word("stand_?ins?", "stand-ins?", "cached schema, fake, sandbox"),
    Word(
        "^_?early$|early_(events?|records?)|pilots?",
        "pilots?|early (events?|records?)",
        "future-dated records; probe",
    ),
    Word("allowance|ask_calls|calls_given", "allowances?", "permits"),
    Word(
        "left_?at|metadata_?left|left_?out|leaves?_out",
        "left out|leaves? out|leaving out",
        "LastPosition, MetadataLevel, filtered, omitted",
    ),
    Word("begin_by|too_?late", None, "start deadline, expired"),
    Word(
        "look|looks|looked|looking",
        r"(each|every|two|last|late|next|all) looks?(?!-)",
        "poll, refresh, check",
    ),
    Word("hurry|hurried", "hurry|hurried", "expire the cache"),
    Word("unstarted|part_with", "unstarted", "pending partitions; hand back"),
    Word("givers?|takers?", "givers?|takers?", "to_python, from_python"),
    Word(
        "usual",
        r"usual (spellings?|forms?|text|numbers?|values?|way)|(is|are|not) usual",
        "canonical form; fast path; default",
    ),
    Word("elsewhere", "elsewhere", "claimed by another member; other destination; other cluster"),
    Word(
        "outlook|rehears(e|ed|al)|spoken|^_?standing$",
        "outlook|rehears(e|ed|al)|spoken",
        "planned exports, dry run, formatted, group position",
    ),
    Word(
        "for_?ever|meanwhile|once_more|nearly_always",
        "for ever|meanwhile|once more|nearly always",
        "indefinitely, since, again, fast path",
    ),
)
"""As identifiers are compared: in lower case with `_` between words, so that `StandIn` is `stand_in`."""

STAYS: dict[str, str] = {
    "kafka_trouble": "a log event",
    "key_store_trouble": "a log event, and a field of /status",
    "token_trouble": "a log event",
    "topic_made_anew": "a log event",
    "time_not_told": "a log event",
    "PinstreamTopicMadeAnew": "an alert",
    "topics_made_anew": "a field of /status",
    "claimed_elsewhere": "a field of /status",
    "committed_elsewhere": "a field of /status",
    "told_by_member": "a field of /status",
    "early": "a field of /status (`clock.early`)",
    "unstarted": "a state that the page shows",
    "left_out": "a field of the JSON of explain, and of a dead letter that is shown",
    "elsewhere": "a field of the JSON of the commands for dead letters",
    "at_most": "a field of a log line",
    "most_common": "a method of Counter",
    "run_forever": "a method of asyncio's loops",
    "serve_forever": "a method of http.server",
}
"""Names that stay, with the reason."""


def parts(name: str) -> str:
    """An identifier in lower case, with `_` between its words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


# `look up` is the field's word, and "looks like" says how a text is spelled.
_LOOK_UP = re.compile(r"look(s|ed|ing)?_?ups?|lookups?|looks?_(like|personal|well|too)")


def has(name: str, word: Word) -> bool:
    """Whether the word is one of the identifier's parts."""
    if word.name is None:
        return False
    if word.name.startswith("MOST"):
        return bool(
            re.search(r"^_?(MOST(_\w+)?|[A-Z0-9_]+_MOST(_\w+)?|most(_\w+)?|[a-z_]+_most)$", name)
        ) and not name.startswith("test_")
    return bool(re.search(rf"(?<![a-z0-9])({word.name})(?![a-z0-9])", _LOOK_UP.sub("", parts(name))))


@cache
def files() -> tuple[Path, ...]:
    """The files of the repository, without those that are not committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    paths = (Path(one) for one in listed.split("\0") if one)
    return tuple(
        one
        for one in paths
        if one.name not in ("test_words.py", "CHANGELOG.md")
        and str(one) not in YARDSTICK
        and (ROOT / one).is_file()
    )


STRING = r'"""(?:\\.|[^\\])*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
PROSE = {
    **dict.fromkeys(PYTHON | CYTHON, re.compile(rf"{STRING}|#[^\n]*", re.DOTALL)),
    **dict.fromkeys(
        OTHER_CODE, re.compile(rf"{STRING}|`(?:\\.|[^`\\])*`|/\*.*?\*/|(?:#|//|--)[^\n]*", re.DOTALL)
    ),
}
"""Comments, and the text of strings, by a source's suffix."""


def split(text: str, suffix: str) -> tuple[set[str], str]:
    """The identifiers of a source, and its prose."""
    if (prose := PROSE.get(suffix)) is None:
        return set(), text
    return set(re.findall(r"[^\W\d]\w*", prose.sub(" ", text))), "\n".join(prose.findall(text))


@cache
def of_file(path: Path) -> tuple[set[str], str]:
    """The same of a file."""
    return split((ROOT / path).read_text("utf-8"), path.suffix)


@cache
def word_for(name: str) -> str | None:
    """What to write instead of an identifier that has a word of the list."""
    return next((word.instead for word in WORDS if name not in STAYS and has(name, word)), None)


def wrong_names(names: set[str]) -> Iterator[str]:
    """The identifiers that have a word of the list, and what to write."""
    yield from (f"{name}: {word_for(name)}" for name in sorted(names) if word_for(name))


def wrong_prose(text: str) -> Iterator[str]:
    """The words of the list in prose, with what stands around them."""
    flat = re.sub(r"\s*\n\s*(?:#|--|//|\*)?\s*", " ", text)
    flat = re.sub(r"""(["'])(\w+)\1""", lambda match: "" if match[2] in STAYS else match[0], flat)
    flat = re.sub(r"`[^`\n]*`|https?://\S+|\]\([^)]*\)|\w*\.\w+\[?", " ", flat)
    for word in WORDS:
        if word.prose is None:
            continue
        for match in re.finditer(rf"(?<![\w-])({word.prose})(?![\w-])", flat, re.IGNORECASE):
            around = flat[max(0, match.start() - 60) : match.end() + 50]
            yield f"{match[0]}: {word.instead} (…{around}…)"


def test_identifiers_are_the_fields_words() -> None:
    """No identifier and no name of a file has a word of the list."""
    wrong: list[str] = []
    for path in files():
        names = set(re.findall(r"\w+", str(path)))
        if path.suffix in PROSE:
            names |= of_file(path)[0]
        wrong += [f"{path}: {one}" for one in wrong_names(names)]
    assert wrong == []


def test_prose_is_plain() -> None:
    """No comment, docstring or message of the code, and no page, has a word of the list."""
    wrong: list[str] = []
    for path in files():
        is_read = str(path).startswith(READ_BY_PEOPLE) or len(path.parts) == 1
        if is_read and path.suffix in PAGES | PROSE.keys():
            wrong += [f"{path}: {one}" for one in wrong_prose(of_file(path)[1])]
    assert wrong == []


TWINS = {
    *("At", "CompiledField", "Writing"),  # of the plain executor and of the compiled one
    *("Builder", "KeyTable", "Merger", "Segment"),  # compiled, and the same in Python
    "Record",  # CONTRIBUTING.md has the reasons
}
"""Classes of consumer/ that are defined twice, for one meaning."""


def test_a_class_name_has_one_meaning() -> None:
    """No class of consumer/, compiled or not, has the name of another."""
    defined: dict[str, set[Path]] = {}
    for path in files():
        if path.parts[0] == "consumer" and path.suffix in PYTHON - {".pyi"} | CYTHON:
            text = (ROOT / path).read_text("utf-8")
            for name in re.findall(r"^\s*(?:cdef )?class (\w+)", text, re.MULTILINE):
                defined.setdefault(name, set()).add(path)
    assert {name for name, paths in defined.items() if len(paths) > 1} == TWINS


def test_each_exception_is_still_one() -> None:
    """Each name of `STAYS` has a word of the list, and is somewhere in the repository."""
    listing = subprocess.run(
        ["git", "grep", "-howI", *(part for name in STAYS for part in ("-e", name)), "--", ":!tests/test_words.py"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    )  # fmt: skip
    found = set(listing.stdout.split())
    for name in STAYS:
        assert name in found, name
        assert any(has(name, word) for word in WORDS), name


@pytest.mark.parametrize(
    "name",
    [
        "NewLife",
        "on_trouble",
        "TopicIdsTold",
        "IDS_MOST",
        "_most_bytes",
        "MOST_RECORDS",
        "goes_on",
        "StandIn",
        "stand_ins",
    ],
)
def test_a_word_put_back_is_found(name: str) -> None:
    """An identifier with a word of the list is found, whichever way it is written."""
    names, _ = split(f"def f({name}): return {name}\n", ".py")
    assert list(wrong_names(names))


@pytest.mark.parametrize(
    "text",
    [
        "It is told once\nmore.",
        "# for\n# ever",
        "a stand-in for the API",
        "trouble with the disk",
        "Fields are left out.",
    ],
)
def test_prose_put_back_is_found(text: str) -> None:
    """A word of the list in prose is found, also across a line end."""
    assert list(wrong_prose(text))


@pytest.mark.parametrize("text", ["see `kafka_trouble` in the log", "a look-up", "it looks like a token"])
def test_wire_names_and_plain_words_stay(text: str) -> None:
    """What the wire or the field calls so is not found."""
    assert not list(wrong_prose(text))
