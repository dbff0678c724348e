"""Dead letters and marks on their topic: how they are written, what they say, and which letters are done.

A *letter* is a dead-lettered record with all the headers that docs/dead-letters.md lists. A record with one of
these headers missing or malformed is ignored. A letter that is larger than its topic takes is written without its
value, then also without its own headers, then also without its key: `forms` yields these forms in this order. For each
part that is omitted a header says so, and the headers about the origin say where to read it.

A *mark* is a record of the same partition, further on, that lists the letters that are done: settled by a redrive. It
is on the topic itself, so that it lives as long as the letters, is copied with them, and can be written in one
transaction with the letters of records that died again.
"""

from __future__ import annotations

import contextlib
import heapq
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from consumer.engine.messages import DeadLetter
from consumer.engine.model import UNREADABLE_HEADERS, Record, Stage
from consumer.engine.records.offset_map import are_different_topics
from consumer.engine.sending.masking import mask

STAGE: Final = "pinstream.stage"
CODE: Final = "pinstream.code"
MESSAGE: Final = "pinstream.message"
TOPIC: Final = "pinstream.topic"
PARTITION: Final = "pinstream.partition"
OFFSET: Final = "pinstream.offset"
TIMESTAMP: Final = "pinstream.timestamp"
ATTEMPTS: Final = "pinstream.attempts"
AT: Final = "pinstream.at"
# Every letter has these nine headers.
LETTER_HEADERS: Final = (STAGE, CODE, MESSAGE, TOPIC, PARTITION, OFFSET, TIMESTAMP, ATTEMPTS, AT)

VALUE, HEADERS, KEY = "value", "headers", "key"
# The parts that can be omitted from a letter, in this order, and for each the header that says so.
_OMITTED_BY: Final = {part: f"pinstream.{part}" for part in (VALUE, HEADERS, KEY)}

# On a letter that was redriven and died again: how often its record was redriven.
TRIPS: Final = "pinstream.trips"
# On a letter that was redriven and died again: the letter before it, as ``TOPIC:PARTITION:OFFSET``.
REDRIVEN: Final = "pinstream.redriven"
# On a mark: the offsets of its partition that are done, as ``17-30,45``.
DONE: Final = "pinstream.done"
# On a mark: the partition that its offsets are of, as ``TOPIC:PARTITION@CLUSTER``.
MARKED_AT: Final = "pinstream.marked-at"
# On a mark: the id of that topic. A topic that is created again under its name has another id.
MARKED_TOPIC_ID: Final = "pinstream.marked-topic-id"
# On a mark: the highest leader epoch that was read before it was written. A letter with a later one is another: the log
# was cut, after the letter that was done had been read.
MARKED_EPOCH: Final = "pinstream.marked-epoch"

_OF_ONE_DEATH: Final = frozenset({*LETTER_HEADERS, *_OMITTED_BY.values()})
_TRAVELS: Final = frozenset({TRIPS, REDRIVEN})
_OURS: Final = _OF_ONE_DEATH | _TRAVELS
# A longer value of a header that is redriven with its record is not ours, and may be what makes the letter too large.
_LONGEST_TRAVEL: Final = 300
# Any producer may write any header. A value that does not fit these patterns and limits is not ours.
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGITS: Final = re.compile(r"[0-9]{1,19}")
_RUN: Final = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?")
_HOME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}:[0-9]{1,10}@(?s:.{0,999})")
_OMITTED: Final = re.compile(r"omitted: ([0-9]{1,10}) bytes\b")
_MAX_PARTITION: Final = 2**31 - 1
_MAX_OFFSET: Final = 2**63 - 1
_LONGEST_MARK: Final = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

Headers = tuple[tuple[str, bytes | None], ...]
# Offsets [begin, end).
OffsetRange = tuple[int, int]
# Leader epochs of a partition, in rising order, each with its first offset.
Epochs = Sequence[tuple[int, int]]


class NewRecord(NamedTuple):
    """A record to write."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    # The parts of the record that this letter lacks.
    omitted: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """Return the record as arguments of `confluent_kafka.Producer.produce`."""
        record = {"topic": self.topic, "partition": self.partition, "key": self.key, "value": self.value}
        # The client refuses a tuple.
        return {**record, "headers": list(self.headers)}


# -------------------------------------------------------------------------------------- letters that are written


def forms(letter: DeadLetter, topic: str, partitions: int) -> Iterator[NewRecord]:
    """Yield the forms in which a letter can be written to a dead-letter topic: whole, then with fewer and fewer parts.

    A part that the record does not have, or that is empty, is not omitted: the letter would not become smaller.
    """
    record = letter.record

    def without(*omitted: str) -> NewRecord:
        return NewRecord(
            topic,
            # The partition of the origin, if the dead-letter topic has as many.
            letter.partition % partitions,
            None if KEY in omitted else record.key,
            None if VALUE in omitted else record.value,
            letter_headers(letter, omitted),
            omitted,
        )

    yield without()
    there = [part for part, size in part_sizes(record).items() if size]
    for count in range(len(there)):
        yield without(*there[: count + 1])


def letter_headers(letter: DeadLetter, omitted: Collection[str] = ()) -> Headers:
    """Return the record's own headers, then ours, which replace those of an earlier letter of a redriven record.

    Ours are UTF-8 text: numbers in decimal, ``pinstream.timestamp`` in milliseconds, ``pinstream.at`` ISO 8601 in UTC.
    """
    record = letter.record
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    texts = {
        STAGE: letter.rejection.stage.value,
        CODE: letter.rejection.code,
        MESSAGE: letter.rejection.message,
        TOPIC: letter.topic,
        PARTITION: str(letter.partition),
        OFFSET: str(record.offset),
        TIMESTAMP: str(record.timestamp),
        ATTEMPTS: str(letter.attempts),
        AT: at.replace("+00:00", "Z"),
    }
    for part in omitted:
        size = part_sizes(record)[part]
        texts[_OMITTED_BY[part]] = f"omitted: {size} bytes, too large for this topic; read it at its origin"
    own = record.headers
    if HEADERS in omitted:
        # These headers stay: only the count of redrives ends an endless loop of them.
        own = tuple(one for one in own if one[0] in _TRAVELS and len(one[1] or b"") <= _LONGEST_TRAVEL)
    elif own != UNREADABLE_HEADERS:  # the header for unreadable headers has one of our names, and stays
        own = tuple(one for one in own if one[0] not in _OF_ONE_DEATH)
    return (*own, *((name, text.encode()) for name, text in texts.items()))


def part_sizes(record: Record) -> dict[str, int]:
    """Return the size in bytes of each part that a letter may lack, in the order in which they are omitted."""
    headers = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return {VALUE: len(record.value or b""), HEADERS: headers, KEY: len(record.key or b"")}


# ----------------------------------------------------------------------------------------- letters that are read


class Place(NamedTuple):
    """Where a record is, or was, in Kafka."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """Return ``TOPIC:PARTITION:OFFSET``, as the command line takes it."""
        return f"{self.topic}:{self.partition}:{self.offset}"


class DeadRecord(NamedTuple):
    """A letter on a dead-letter topic."""

    place: Place
    origin: Place
    stage: Stage
    code: str
    # ``pinstream.message`` as it is; `message` is the form to show.
    reason: str
    # Kafka's timestamp of the record at its origin, milliseconds since 1970; -1 for none.
    timestamp: int
    attempts: int
    # When the record died, milliseconds since 1970.
    at_ms: int
    trips: int
    # The parts of the record that are omitted, with their size in bytes.
    omitted: Mapping[str, int]
    # The letter as it is on the topic.
    record: Record

    @property
    def message(self) -> str:
        """Return why the record died, on one line and without what looks personal: any producer may have written it."""
        return mask(self.reason)


def read_letter(lies_on: str, partition: int, record: Record) -> DeadRecord | None:
    """Return the letter that `record` of the dead-letter topic `lies_on` is; None if it is not one of ours."""
    texts = _texts(record.headers)
    trips = 0
    if TRIPS in dict(record.headers):
        text = texts.get(TRIPS, "")
        # A count that cannot be read counts as too many: nothing else ends an endless loop of redrives.
        trips = min(int(text), _MAX_OFFSET) if _DIGITS.fullmatch(text) else _MAX_OFFSET
    sizes = {part: _OMITTED.match(texts.get(name, "")) for part, name in _OMITTED_BY.items()}
    try:
        topic, code, at = texts[TOPIC], texts[CODE], datetime.fromisoformat(texts[AT])
        # We never write a time without a zone.
        if not _TOPIC_NAME.fullmatch(topic) or not _CODE.fullmatch(code) or at.tzinfo is None:
            return None
        return DeadRecord(
            place=Place(lies_on, partition, record.offset),
            origin=Place(topic, _number(texts[PARTITION], _MAX_PARTITION), _number(texts[OFFSET])),
            stage=Stage(texts[STAGE]),
            code=code,
            reason=texts[MESSAGE],
            # A record without a timestamp has -1; no other number is negative.
            timestamp=-1 if texts[TIMESTAMP] == "-1" else _number(texts[TIMESTAMP]),
            attempts=_number(texts[ATTEMPTS]),
            at_ms=(at - _EPOCH) // _MILLISECOND,
            trips=trips,
            omitted={part: int(match[1]) for part, match in sizes.items() if match is not None},
            record=record,
        )
    except (KeyError, ValueError, OverflowError):  # a header is missing or has a value that we never write
        return None


def restored(letter: DeadRecord) -> Record:
    """Return the record as it was at its origin, as far as the letter has it: key, value, own headers, timestamp.

    The offset stays that of the letter.
    """
    return letter.record._replace(timestamp=letter.timestamp, headers=own_headers(letter.record.headers))


def origin_place(record: Record, here: Place) -> Place:
    """Return where a redriven record was when it died, by its headers; else `here`, where it is."""
    texts = _texts(record.headers)
    try:
        return Place(texts[TOPIC], _number(texts[PARTITION], _MAX_PARTITION), _number(texts[OFFSET]))
    except (KeyError, ValueError):
        return here


def own_headers(headers: Headers) -> Headers:
    """Return the headers that we did not add."""
    # All headers of such a name: a producer's header of that name was hidden by ours.
    return tuple(header for header in headers if header[0] not in _OURS)


def next_trip(own: Headers, letter: DeadRecord) -> Headers:
    """Return the headers of a redriven record that dies again: its own, and how often it was redriven by now."""
    trips = (TRIPS, str(min(letter.trips + 1, _MAX_OFFSET)).encode())
    return (*own, trips, (REDRIVEN, str(letter.place).encode()))


def is_original(letter: DeadRecord, record: Record) -> bool:
    """Return whether `record`, found at the letter's origin, is the one that died: a topic may have been created
    again."""
    here = letter.record
    for part, there, mine in ((VALUE, record.value, here.value), (KEY, record.key, here.key)):
        # Only the size of a part that was omitted is known.
        size = letter.omitted.get(part)
        if there != mine if size is None else len(there or b"") != size:
            return False
    same_headers = HEADERS in letter.omitted or own_headers(record.headers) == own_headers(here.headers)
    return same_headers and record.timestamp == letter.timestamp


def _texts(headers: Headers) -> dict[str, str]:
    """Return our headers as text, the last one of each name; one that is not UTF-8 counts as absent."""
    texts: dict[str, str] = {}
    for name, value in dict(headers).items():  # ours come after the headers that a producer wrote
        if name.startswith("pinstream.") and value is not None:
            with contextlib.suppress(UnicodeDecodeError):
                texts[name] = value.decode()
    return texts


def _number(text: str, maximum: int = _MAX_OFFSET) -> int:
    """Read a decimal number up to `maximum`. Raises `ValueError` for anything else; `int` takes signs, spaces and
    more."""
    if not _DIGITS.fullmatch(text) or int(text) > maximum:
        raise ValueError(text)
    return int(text)


# ---------------------------------------------------------------------------------------------------- marks


class Home(NamedTuple):
    """A partition in the cluster and under the id of the topic that its offsets belong to."""

    # The brokers' id of their cluster.
    cluster: str
    topic: str
    partition: int
    # None: the brokers do not report it.
    topic_id: str | None = None

    def __str__(self) -> str:
        """Return ``TOPIC:PARTITION@CLUSTER``, the form in marks."""
        return f"{self.topic}:{self.partition}@{self.cluster}"


def mark_headers(runs: Iterable[OffsetRange], home: Home, leader_epoch: int | None = None) -> Headers:
    """Return the headers of a mark: its own partition, and the offsets of that partition that are done.

    `leader_epoch`: see `MARKED_EPOCH`; None: the brokers do not report it.
    """
    # ``17-30,45``: both ends are included.
    done = ",".join(f"{begin}-{end - 1}" if end - begin > 1 else str(begin) for begin, end in runs)
    headers: Headers = (DONE, done.encode()), (MARKED_AT, str(home).encode())
    if home.topic_id is not None:
        headers = *headers, (MARKED_TOPIC_ID, home.topic_id.encode())
    return headers if leader_epoch is None else (*headers, (MARKED_EPOCH, str(leader_epoch).encode()))


def read_done(text: str) -> list[OffsetRange] | None:
    """Return the offsets that `mark_headers` wrote; None for any other text."""
    if len(text) > _LONGEST_MARK:
        return None
    runs: list[OffsetRange] = []
    for part in text.split(","):
        match = _RUN.fullmatch(part)
        if match is None:
            return None
        begin, last = int(match[1]), int(match[2] or match[1])
        if last < begin:
            return None
        runs.append((begin, last + 1))
    return runs


def read_mark(record: Record, home: Home, epochs: Epochs = ()) -> list[OffsetRange] | None:
    """Return the offsets that `record` at `home` marks as done; None if it is no mark of ours.

    The list is empty if the mark is about other letters: it was mirrored or copied to this topic, or the topic was
    created again, or its log cut, during a redrive. `epochs`: those of the records before it.
    """
    texts = _texts(record.headers)
    # A letter is never a mark, even if its producer gave it the headers of one.
    if DONE not in texts or STAGE in texts or not _HOME.fullmatch(texts.get(MARKED_AT, "")):
        return None
    runs = read_done(texts[DONE])
    if runs is None:
        return None
    # Mirroring to another cluster gives letters other offsets and copies marks unchanged.
    if texts[MARKED_AT] != str(home) or are_different_topics(texts.get(MARKED_TOPIC_ID), home.topic_id):
        return []
    # A mark is about letters before it.
    if any(end > record.offset for _, end in runs):
        return None
    known = texts.get(MARKED_EPOCH, "")
    later = (first for epoch, first in epochs if _DIGITS.fullmatch(known) and epoch > int(known))
    limit = next(later, record.offset)
    return [(begin, min(end, limit)) for begin, end in runs if begin < limit]


@dataclass(slots=True)
class Done:
    """The offsets of one partition that are done. Memory grows with runs, not with letters."""

    # Begin and end of each run, alternating, in rising order.
    _bounds: list[int] = field(default_factory=list)

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and bisect_right(self._bounds, offset) % 2 == 1

    def add(self, runs: Iterable[OffsetRange]) -> None:
        """Add these runs, in any order, overlapping or not."""
        for begin, end in runs:
            low, high = bisect_left(self._bounds, begin), bisect_right(self._bounds, end)
            # An odd index lies inside of a run, which then keeps its own begin or end.
            first = [] if low % 2 else [begin]
            self._bounds[low:high] = first if high % 2 else [*first, end]

    def count(self) -> int:
        """Return the number of offsets."""
        return sum(self._bounds[1::2]) - sum(self._bounds[::2])

    def common(self, other: Done) -> int:
        """Return the number of offsets that are in both."""
        either = Done()
        # In rising order, so that each run is added at the end: there may be as many runs as letters.
        either.add(heapq.merge(self.runs(), other.runs()))
        return self.count() + other.count() - either.count()

    def runs(self) -> Iterator[OffsetRange]:
        """Return the runs as [begin, end), in rising order, with gaps between them."""
        return zip(self._bounds[::2], self._bounds[1::2], strict=True)
