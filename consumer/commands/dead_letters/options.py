"""Options of the dead-letter commands: filters that select letters, and places of records."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import click

from consumer.adapters.kafka.letters import DeadRecord, Place
from consumer.commands.base import parse_time, repeatable
from consumer.commands.parsing import parsed_option, topics_option
from consumer.engine.model import Stage
from consumer.errors import UsageError

# ``TOPIC[:PARTITION[:OFFSET]]``, with Kafka's longest topic name and its largest numbers.
_RECORDS: Final = re.compile(r"([A-Za-z0-9._-]{1,249})(?::([0-9]{1,10})(?::([0-9]{1,19}))?)?")
_STAGE: Final = click.Choice([stage.value for stage in Stage])


class Filters(NamedTuple):
    """Conditions on letters, by the names of the options. An empty condition, or None, holds for all letters."""

    stages: Collection[str] = ()
    codes: Collection[str] = ()
    # The records died at or after `since`, and before `until` (milliseconds since 1970).
    since: int | None = None
    until: int | None = None
    # Prefixes of a `Place`: a topic, one of its partitions, or a single record.
    origins: Sequence[tuple[str | int, ...]] = ()

    def hold(self, letter: DeadRecord) -> bool:
        """Return True if the letter matches."""
        return (
            (not self.stages or letter.stage.value in self.stages)
            and (not self.codes or letter.code in self.codes)
            and (self.since is None or letter.at_ms >= self.since)
            and (self.until is None or letter.at_ms < self.until)
            and (not self.origins or any(letter.origin[: len(one)] == one for one in self.origins))
        )


@dataclass(frozen=True, slots=True)
class RedriveOptions:
    """The options of `redrive` on the command line. `rate` is in events per second."""

    topics: tuple[str, ...]
    filters: Filters
    maximum: int | None
    rate: float | None
    max_trips: int
    dry_run: bool
    as_json: bool


def parse_origin(text: str) -> tuple[str | int, ...]:
    """Parse ``TOPIC[:PARTITION[:OFFSET]]`` for `Filters.origins`. Raises `UsageError`."""
    found = _RECORDS.fullmatch(text)
    if found is None:
        raise UsageError(
            f"--origin {text[:300]!r} is no origin: write TOPIC, TOPIC:PARTITION or TOPIC:PARTITION:OFFSET"
        )
    # A `Place` is a tuple too, so its beginning can be compared.
    topic, *numbers = found.groups()
    return topic, *(int(one) for one in numbers if one is not None)


def parse_place(text: str) -> Place:
    """Parse ``TOPIC:PARTITION:OFFSET``. Raises `UsageError`."""
    found = _RECORDS.fullmatch(text)
    if found is None or found[3] is None:
        raise UsageError(f"{text[:300]!r} is no place of a record: write TOPIC:PARTITION:OFFSET")
    return Place(found[1], int(found[2]), int(found[3]))


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that select letters. The command is called with `topics` and `filters`."""

    @topics_option(
        help="Letters of this topic (or: on this dead-letter topic); may be repeated. Default: KAFKA_TOPICS."
    )
    @repeatable("--stage", "stages", type=_STAGE, help="Only letters of this stage; may be repeated.")
    @repeatable("--code", "codes", metavar="C", help="Only letters of this reason; may be repeated.")
    @parsed_option(
        "--since", parse_time, metavar="TIME", help="Only letters written at or after this time (ISO 8601)."
    )
    @parsed_option("--until", parse_time, metavar="TIME", help="Only letters written before this time.")
    @repeatable(
        "--origin",
        "origins",
        type=parse_origin,
        metavar="TOPIC[:PARTITION[:OFFSET]]",
        help="Only letters of records from here; may be repeated.",
    )
    @functools.wraps(command)
    def with_filters(**given: Any) -> None:
        filters = Filters(**{name: given.pop(name) for name in Filters._fields})
        # Such a range would match nothing, and look as if there were no letters.
        if filters.since is not None and filters.until is not None and filters.since >= filters.until:
            raise UsageError("--since must be before --until: no letter can match")
        command(filters=filters, **given)

    return with_filters
