"""Which dead-letter topics are asked for: by ``--topic`` (an origin or a dead-letter topic), or by KAFKA_TOPICS.

A letter belongs here only if its origin is one of the topics asked for. With a dead-letter topic for each origin that
also tells letters that were carried in from another cluster under another name; with one for all, those of others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from consumer.adapters.kafka import dead_letter_pattern, dead_letter_topic, nearest_topic
from consumer.errors import SettingsError, UsageError
from consumer.settings import Settings

_MARK = "{topic}"


class DeadLetterTopic(NamedTuple):
    """A dead-letter topic; of its letters those of `origins` are ours (None: all)."""

    name: str
    origins: frozenset[str] | None
    there: bool
    """Whether it exists: without a dead letter so far it may not."""


def chosen(settings: Settings, topics: Sequence[str], known: Mapping[str, int]) -> list[DeadLetterTopic]:
    """The dead-letter topics that are asked for, by name. `known`: the topics that exist.

    Raises `UsageError` for a ``--topic`` that is neither an origin nor a dead-letter topic.
    """
    template = settings.pinstream.dead_letter_topic
    if not topics and not settings.kafka.topics:
        raise UsageError("which dead letters? Name their topic with --topic, or set KAFKA_TOPICS")
    for topic in topics:
        _refuse_unknown(topic, template, known)
    origins: dict[str, set[str] | None] = {}
    for topic in topics or settings.kafka.topics:
        for name, origin in _meant(topic, template, known):
            found = origins.setdefault(name, set())
            if origin is None:
                origins[name] = None
            elif found is not None:
                found.add(origin)
    return [
        DeadLetterTopic(name, None if found is None else frozenset(found), name in known)
        for name, found in sorted(origins.items())
    ]


def _meant(topic: str, template: str, known: Mapping[str, int]) -> Iterator[tuple[str, str | None]]:
    """Pairs of dead-letter topic and origin (None: all that it holds)."""
    if topic.startswith("^"):
        for origin in _matching(topic, template, known):
            yield dead_letter_topic(template, origin), origin
    elif re.match(dead_letter_pattern(template), topic):
        yield topic, _origin_of(topic, template)
    else:
        yield dead_letter_topic(template, topic), topic


def _matching(pattern: str, template: str, known: Mapping[str, int]) -> Iterator[str]:
    """Origins that a pattern matches: topics that there are, and those of which only the letters are left."""
    try:
        matches = re.compile(pattern).search
    except re.error as error:
        raise SettingsError(f"KAFKA_TOPICS: the pattern {pattern} cannot be read: {error}") from error
    dead = re.compile(dead_letter_pattern(template))
    for name in known:
        origin = _origin_of(name, template) if dead.match(name) else name
        if origin is not None and matches(origin):
            yield origin


def _origin_of(name: str, template: str) -> str | None:
    """Whose letters lie on the dead-letter topic `name`; None if its name does not tell."""
    before, mark, after = template.partition(_MARK)
    return name[len(before) : len(name) - len(after)] if mark else None


def _refuse_unknown(topic: str, template: str, known: Mapping[str, int]) -> None:
    if topic.startswith("^") or topic in known or dead_letter_topic(template, topic) in known:
        return
    origin = _origin_of(topic, template) if re.match(dead_letter_pattern(template), topic) else None
    if origin in known:
        return
    hint = nearest_topic(topic, known)
    raise UsageError(f"--topic {topic}: there is no such topic, and none for its dead letters{hint}")
