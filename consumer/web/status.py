"""The /status document: the engine's snapshot as JSON. Version 1; within a version fields are only added.

The ledger in it adds up: ``read = delivered + duplicate + filtered + dead_lettered + open``, in all and for each
partition. Times are in seconds, sizes in bytes, lags in records. The figures themselves define the fields
(`figures.definitions`), from which the table in docs/status.md is made as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from consumer.engine.figures import quality
from consumer.engine.figures.definitions import derived, figure, figures_of, snapshot
from consumer.engine.figures.statistics import Statistics

VERSION = 1
_RUNBOOK = "docs/runbook.md"


@snapshot
class Process:
    """The process's part of /status."""

    version: str = figure("Of pinstream.")
    started: int = figure("Seconds since 1970.")
    group: str = figure("The consumer group.")
    topics: Sequence[str] = figure("The topics or patterns that it reads.", path="topics[]")
    sends_to: str = figure("The URL of the API.")
    test_mode: bool = figure("Nothing is recorded by the platform.")
    fast_path: str = figure(
        "How records are read.",
        status_note="`compiled`; `python`: built without a C compiler, at about twelve times the cost; "
        "`off`: there is a `PINSTREAM_TRANSFORM`.",
    )
    transform: str | None = figure("The function of `PINSTREAM_TRANSFORM`.")


@snapshot
class Document:
    """What /status consists of; the rest of it is `Statistics`."""

    version: int = figure("1. Within a version fields are only added.")
    statistics: Statistics = figure(path=".")

    @derived("outside_ledger[]")
    def outside_ledger(self) -> tuple[str, ...]:
        """What is outside the ledger, in words: never read, or received by another destination."""
        seen, counts = self.statistics, self.statistics.counters
        recreated, several = ", ".join(counts.topics_made_anew), len(counts.topics_made_anew) > 1
        sentences = {
            f"Kafka removed up to {_many(counts.removed_unread, 'record')} before they were read: raise the topic's "
            f"retention ({_RUNBOOK}#records-were-removed-unread).": counts.removed_unread,
            f"{recreated} {'were' if several else 'was'} deleted and created again, and read from the beginning. "
            f"Records that were unread before are lost ({_RUNBOOK}#a-topic-was-recreated).": recreated,
            f"The position went back {_many(counts.positions_went_back, 'time')}: a log was truncated, or a topic "
            f"created again ({_RUNBOOK}#a-log-was-cut).": counts.positions_went_back,
            f"{_many(seen.other_destination, 'partition')} began at an offset that the group had committed for "
            "another destination: earlier records are not sent to this one "
            f"({_RUNBOOK}#another-destination).": seen.other_destination,
        }
        return tuple(sentence for sentence, applies in sentences.items() if applies)

    @derived("members_differ_in_words[]")
    def members_differ_in_words(self) -> tuple[str, ...]:
        """What `members_differ` means: normal during a rollout, and wrong after it."""
        names = self.statistics.members_differ
        own = ", ".join(name for name in names if name != "destination")
        sentences = {
            f"Other members of the group send by another {own}: normal while an update is rolled out. After it, give "
            "all the same.": own,
            "Members that share the key store send to another URL for the same ad account: each has a quota and a "
            "memory of its own. Give all the same, or see PINSTREAM_DESTINATION.": "destination" in names,
            f"See {_RUNBOOK}#members-differ.": names,
        }
        return tuple(sentence for sentence, applies in sentences.items() if applies)

    @derived(
        "event_quality.gaps[]", status_note="Of a whole group and day only: see [platform.md](platform.md)."
    )
    def gaps(self) -> tuple[str, ...]:
        """Of which events Pinterest sees much less or more of a component than was sent, and the probable cause."""
        return quality.gaps(self.statistics.event_quality, self.statistics.coverage)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def status_document(statistics: Statistics, info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document; `info`: what the process says of itself (version, topics, URL of the API, key store)."""
    # The figures come last, so that nothing in `info` can replace them.
    return {**info, **document_of(Document(VERSION, statistics))}


def document_of(owner: object) -> dict[str, Any]:
    """Return the figures of a snapshot, or of a part of it, under their names in /status."""
    document: dict[str, Any] = {}
    for attribute in figures_of(type(owner)):
        show = attribute.figure.show or _plain
        if attribute.path == ".":
            document |= show(getattr(owner, attribute.name))
        elif attribute.path:
            # `[]` and `{…}` are for the table in docs/status.md: a list or a mapping is shown as what it is.
            *outer, last = attribute.path.removesuffix("[]").partition(".{")[0].split(".")
            inner = document
            # Objects without a snapshot of their own, which group figures for the reader.
            for name in outer:
                inner = inner.setdefault(name, {})
            inner[last] = show(getattr(owner, attribute.name))
    return document


def _plain(value: object) -> Any:
    """Return a value as JSON has it."""
    if figures_of(type(value)):
        return document_of(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, Mapping):
        nested: dict[str, Any] = {}
        for names, one in sorted(value.items()):
            if isinstance(names, tuple):  # what stands under two names: first by the one, then by the other
                nested.setdefault(names[0], {})[names[1]] = _plain(one)
            else:
                nested[names] = _plain(one)
        return nested
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
