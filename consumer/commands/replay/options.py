"""The options of a replay, checked before anything is opened; and the selection of events by ``--where``.

`Selecting` omits events that do not match. `LeavingOut`, around all of the reading, omits events that are too
old, and with ``--where`` records that were refused before they could be matched (`WithoutMissing`: because their schema
does not exist). All of these become `Filtered`, so that the ledger adds up and none of them is sent or dead-lettered.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import orjson

from consumer.adapters.kafka.ranges import Bound
from consumer.commands.parsing import check_order
from consumer.conversion.hints import event_meant
from consumer.engine.model import (
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    NotSelected,
    Rejection,
    SchemaRef,
    Untimely,
)
from consumer.engine.reading import NOT_UNICODE, Columns, Converting, Reading, Records, SchemaLearner
from consumer.errors import UsageError

# Filter code of events that are too old; the same as the code of the rejection (`consumer.conversion.decisions`).
EXPIRED: Final = "expired"
# The event does not match `--where`; or it was refused before it had the fields that `--where` asks for.
NOT_MATCHED: Final = "where"
UNJUDGED: Final = "where_unjudged"
# Filter codes of records that ``--where`` omitted.
NOT_SELECTED: Final = frozenset({NOT_MATCHED, UNJUDGED})

# An event that is too old is no dead letter in a replay: last month's topic would write last month's dead letters
# again.
_EXPIRED = Filtered(EXPIRED)
_NOT_MATCHED = NotSelected(NOT_MATCHED)
_UNJUDGED = NotSelected(UNJUDGED)

# A channel as people call it -> the platform's ``action_source`` (docs/conversion.md).
CHANNELS: Final[Mapping[str, frozenset[str]]] = {
    **{one: frozenset({one}) for one in ("web", "app_android", "app_ios", "offline")},
    "app": frozenset({"app_android", "app_ios"}),
    "store": frozenset({"offline"}),
}


FIELDS: Final[Mapping[str, Callable[[ConversionEvent], str]]] = {
    "event_name": lambda event: event.name,
    "channel": lambda event: event.action_source,
    "ad_account": lambda event: event.account,
    "event_id": lambda event: event.event_id,
}


class WhereCondition(NamedTuple):
    """``field=value`` or ``field!=value``."""

    field: str
    values: frozenset[str]
    equal: bool


def parse_where(texts: Sequence[str]) -> tuple[WhereCondition, ...]:
    """Parse the conditions of ``--where``: values of one field are alternatives, all fields must match.

    Raises `UsageError`.
    """
    found: defaultdict[tuple[str, bool], set[str]] = defaultdict(set)
    for text in texts:
        # Split at the first sign, because an event id may contain more of them.
        left, sign, value = text.partition("=")
        equal = not left.endswith("!")
        field, value = left.removesuffix("!").strip(), value.strip()
        if not sign or not value:
            raise UsageError(f"--where {text!r} is no condition: write field=value or field!=value")
        if field not in FIELDS:
            raise UsageError(f"--where {field!r} cannot be asked for: use {', '.join(FIELDS)}")
        # A value that no event can have would select nothing, and look like an empty range.
        if field == "ad_account" and not value.isdigit():
            raise UsageError("--where ad_account=… takes the digits of an ad account")
        if field == "channel" and value.lower() not in CHANNELS:
            raise UsageError(f"--where {value!r} is no channel: use {', '.join(CHANNELS)}")
        found[field, equal] |= CHANNELS[value.lower()] if field == "channel" else {value}
    return tuple(WhereCondition(field, frozenset(values), equal) for (field, equal), values in found.items())


def check_values(where: Sequence[WhereCondition], known: frozenset[str], accounts: Sequence[str]) -> None:
    """Raise `UsageError` for a condition that no event can match. `known`: the event names of the mapping."""
    for field, value in sorted((one.field, value) for one in where for value in one.values):
        if field == "ad_account" and value not in accounts:
            raise UsageError(
                f"--where ad_account={value}: not one of PINTEREST_AD_ACCOUNT_ID and PINTEREST_EXTRA_AD_ACCOUNT_IDS; "
                "events go to no other"
            )
        if field == "event_name" and value not in known:
            # Many people type the event type of their records, which the mapping renames.
            raise UsageError(
                f"--where event_name={value}: the mapping sends no event of this name; {event_meant(value, known)} "
                "(it is the platform's name that is asked for, not the record's event type)"
            )


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options of a replay. `rate` is in events per second, `max_age` the text of a duration.

    Raises `UsageError` for options that contradict each other.
    """

    topics: tuple[str, ...]
    partitions: tuple[str, ...]
    start: Bound
    stop: Bound
    where: tuple[WhereCondition, ...]
    name: str | None
    dry_run: bool
    ignore_dedup: bool
    rate: float | None
    limit: int | None
    max_age: str | None
    as_json: bool
    against: str | None = None

    def __post_init__(self) -> None:
        check_order(self.start, self.stop)
        if self.name is not None and self.dry_run:
            raise UsageError("--name and --dry-run: a dry run keeps no progress; omit one of them")
        if self.against is not None and not self.dry_run:
            raise UsageError("--against compares two mappings and sends nothing: add --dry-run")
        # The name becomes part of the name of a group and of a file.
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", self.name):
            raise UsageError(
                f"--name {self.name[:60]!r} cannot be: use up to 100 letters, digits, dots, dashes, underscores"
            )

    def fingerprint(self) -> str:
        """Return a digest of the options that select records. Under one name it must stay the same."""
        meant = [
            # As sets, because their order on the command line has no meaning, and a repetition neither.
            sorted({*self.topics}),
            sorted({*self.partitions}),
            # The bounds as they were typed, not their offsets: a named replay keeps the ends that it began with.
            str(self.start),
            str(self.stop),
            sorted((one.field, one.equal, sorted(one.values)) for one in self.where),
            self.ignore_dedup,
            self.max_age,
        ]
        return hashlib.blake2b(orjson.dumps(meant), digest_size=8).hexdigest()


class Selecting:
    """A converter that omits events that do not meet all `conditions`."""

    def __init__(self, converter: Converting, conditions: Sequence[WhereCondition]) -> None:
        self._converter = converter
        self._tests = [(FIELDS[one.field], one.values, one.equal) for one in conditions]

    def convert(self, event: CommerceEvent, now: float) -> Converted:
        """See `consumer.engine.reading.Converting`."""
        one = self._converter.convert(event, now)
        # Records that the mapping filters or refuses have no fields to check: see `LeavingOut`.
        is_filtered = isinstance(one, ConversionEvent) and any(
            (read(one) in values) is not equal for read, values, equal in self._tests
        )
        return _NOT_MATCHED if is_filtered else one


@dataclass(frozen=True, slots=True)
class LeavingOut:
    """A reading that omits events that are too old, and with `where` records that are refused before they can
    be matched."""

    reading: Reading
    where: bool

    @property
    def in_two_steps(self) -> int:
        """See `consumer.engine.reading.Reading`."""
        # A property, because it counts up.
        return self.reading.in_two_steps

    def read(self, records: Records, now: float, columns: Columns, topic: str, partition: int) -> None:
        """See `consumer.engine.reading.Reading`."""
        self.reading.read(records, now, columns, topic, partition)
        for row, verdict in columns.verdicts.items():
            # An event whose text cannot be sent was judged: it is a dead letter, as in any run.
            if not isinstance(verdict, Rejection) or verdict is NOT_UNICODE:
                continue
            if verdict.code != EXPIRED and not self.where:
                continue
            filtered = _EXPIRED if verdict.code == EXPIRED else _UNJUDGED
            # What waits until the clock can be trusted keeps its type. Then it is omitted.
            if isinstance(verdict, Untimely):
                verdict.verdict = filtered
            else:  # only the value of an existing key is replaced, which is allowed during the iteration
                columns.verdicts[row] = filtered


class WithoutMissing:
    """A decoder that omits a record whose schema does not exist: it cannot be matched with ``--where``."""

    def __init__(self, decoder: SchemaLearner) -> None:
        self.decode, self.section_of = decoder.decode, decoder.section_of
        self.add_schema, self.doubt, self.forget = decoder.add_schema, decoder.doubt, decoder.forget
        self.drift = decoder.drift

    def missing(self, ref: SchemaRef) -> Filtered:
        """See `consumer.engine.reading.SchemaLearner`."""
        return _UNJUDGED
