"""Dead letters as they lie on their topic: what their headers say, what they were, and which of them are done.

Theory of operation. A *letter* is a record of a dead-letter topic with all the headers that
docs/dead-letters.md lists; what lacks one, or holds something there that we never write, is left alone. A *mark*
is a record of the same partition, further on, that says of letters that they are done: settled by a redrive. It lies
on the topic itself, so that it lives as long as the letters, moves with them, and can be written in one transaction
with the letters of what died again. What is done is kept as runs of offsets: memory grows with runs, not letters.
A mirror to another cluster gives letters other offsets, and copies marks as they are: so a mark says where it was
written, and is believed nowhere else.

Anything that a producer writes into its headers arrives here too: reading never raises. Of several headers with one
name the last counts, which is ours (`restored` removes all of that name).
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from consumer.engine.masking import mask
from consumer.engine.model import Record, Stage
from consumer.engine.offset_map import are_different_lives

HEADER_PREFIX: Final = "pinstream."
STAGE: Final = "pinstream.stage"
CODE: Final = "pinstream.code"
MESSAGE: Final = "pinstream.message"
TOPIC: Final = "pinstream.topic"
PARTITION: Final = "pinstream.partition"
OFFSET: Final = "pinstream.offset"
TIMESTAMP: Final = "pinstream.timestamp"
ATTEMPTS: Final = "pinstream.attempts"
AT: Final = "pinstream.at"
LETTER_HEADERS: Final = (STAGE, CODE, MESSAGE, TOPIC, PARTITION, OFFSET, TIMESTAMP, ATTEMPTS, AT)
"""Every letter has these nine."""

VALUE, HEADERS, KEY = "value", "headers", "key"
PARTS: Final = (VALUE, HEADERS, KEY)
"""What can be left out of a letter that its topic finds too large; a header ``pinstream.value`` … says so."""

TRIPS: Final = "pinstream.trips"
"""On a letter that was redriven and died again: how often its record was redriven."""
REDRIVEN: Final = "pinstream.redriven"
"""On a letter that was redriven and died again: the letter before it, as ``TOPIC:PARTITION:OFFSET``."""
DONE: Final = "pinstream.done"
"""On a mark: which offsets of its partition are done, as ``17-30,45``."""
MARKED_AT: Final = "pinstream.marked-at"
"""On a mark: the partition that its offsets are of, as ``TOPIC:PARTITION@CLUSTER``."""
MARKED_TOPIC_ID: Final = "pinstream.marked-topic-id"
"""On a mark: the id of that topic. A topic that is created again under its name has another id."""

_OURS: Final = frozenset({*LETTER_HEADERS, *(HEADER_PREFIX + part for part in PARTS), TRIPS, REDRIVEN})
_TRAVELS: Final = frozenset({TRIPS, REDRIVEN})
_LONGEST_TRAVEL: Final = 300
"""``TOPIC:PARTITION:OFFSET`` at its longest."""
_TOPIC_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGITS: Final = re.compile(r"[0-9]{1,19}")
_RUN: Final = re.compile(r"([0-9]{1,19})(?:-([0-9]{1,19}))?")
_HOME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}:[0-9]{1,10}@(?s:.{0,999})")
_OMITTED: Final = re.compile(r"omitted: ([0-9]{1,10}) bytes\b")
_MOST_PARTITION: Final = 2**31 - 1
_MOST_OFFSET: Final = 2**63 - 1
_LONGEST_MARK: Final = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_STAGES: Final[Mapping[str, Stage]] = {stage.value: stage for stage in Stage}

Headers = tuple[tuple[str, bytes | None], ...]
Run = tuple[int, int]
"""Offsets [begin, end)."""


class Place(NamedTuple):
    """Where a record lies."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """``TOPIC:PARTITION:OFFSET``, as the command line takes it."""
        return f"{self.topic}:{self.partition}:{self.offset}"


class DeadRecord(NamedTuple):
    """A letter on a dead-letter topic."""

    place: Place
    origin: Place
    stage: Stage
    code: str
    reason: str
    """``pinstream.message`` as it is; to be shown there is `message`."""
    timestamp: int
    """Kafka's of the record at its origin, milliseconds since 1970; -1 for none."""
    attempts: int
    at_ms: int
    """When it died, milliseconds since 1970."""
    trips: int
    omitted: Mapping[str, int]
    """Of `PARTS` those that are left out, with their size in bytes."""
    record: Record
    """As it lies there."""

    @property
    def message(self) -> str:
        """Why it died, on one line and without what looks personal: any producer may have written it."""
        return mask(self.reason)


# -------------------------------------------------------------------------------------------------- letters


def read_letter(topic: str, partition: int, record: Record) -> DeadRecord | None:
    """The letter that `record` of a dead-letter topic is; None if it is not one of ours."""
    texts = _texts(record.headers)
    stage = _STAGES.get(texts.get(STAGE, ""))
    code = texts.get(CODE, "")
    reason = texts.get(MESSAGE)
    origin = _origin(texts)
    timestamp = -1 if texts.get(TIMESTAMP) == "-1" else _number(texts.get(TIMESTAMP))
    attempts, at_ms = _number(texts.get(ATTEMPTS)), _moment(texts.get(AT, ""))
    if stage is None or reason is None or origin is None or not _CODE.fullmatch(code):
        return None
    if timestamp is None or attempts is None or at_ms is None:
        return None
    return DeadRecord(
        place=Place(topic, partition, record.offset),
        origin=origin,
        stage=stage,
        code=code,
        reason=reason,
        timestamp=timestamp,
        attempts=attempts,
        at_ms=at_ms,
        trips=_trips(record.headers, texts),
        omitted=_omitted(texts),
        record=record,
    )


def restored(letter: DeadRecord) -> Record:
    """What the letter was at its origin, as far as it is in the letter: key, value, own headers, timestamp.

    The offset stays that of the letter.
    """
    return letter.record._replace(timestamp=letter.timestamp, headers=own_headers(letter.record.headers))


def own_headers(headers: Headers) -> Headers:
    """Those that we did not add."""
    return tuple(header for header in headers if header[0] not in _OURS)


def travelling(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers that count a record's trips: they stay on a letter even if its other headers are left out."""
    return [
        header for header in headers if header[0] in _TRAVELS and len(header[1] or b"") <= _LONGEST_TRAVEL
    ]


def next_trip(own: Headers, letter: DeadRecord) -> Headers:
    """The headers of a redriven record that dies again: its own, and how often it was redriven by now."""
    trips = (TRIPS, str(min(letter.trips + 1, _MOST_OFFSET)).encode())
    return (*own, trips, (REDRIVEN, str(letter.place).encode()))


def is_original(letter: DeadRecord, record: Record) -> bool:
    """Whether `record`, found at the letter's origin, is the one that died: a topic may have been created again."""
    here = letter.record
    return (
        record.timestamp == letter.timestamp
        and _same_bytes(record.value, here.value, letter.omitted.get(VALUE))
        and _same_bytes(record.key, here.key, letter.omitted.get(KEY))
        and (HEADERS in letter.omitted or own_headers(record.headers) == own_headers(here.headers))
    )


def _same_bytes(there: bytes | None, here: bytes | None, omitted: int | None) -> bool:
    """Of a part that was left out only the size is known."""
    return there == here if omitted is None else len(there or b"") == omitted


def omitted_text(size: int) -> bytes:
    """The value of the header that says that a part is left out."""
    return f"omitted: {size} bytes, too large for this topic; read it at its origin".encode()


def _texts(headers: Headers) -> dict[str, str]:
    """Our headers as text, of each name the last; what is not UTF-8 counts as not there."""
    texts: dict[str, str] = {}
    for name, value in headers:
        if not name.startswith(HEADER_PREFIX):
            continue
        texts.pop(name, None)
        if value is not None:
            try:
                texts[name] = value.decode()
            except UnicodeDecodeError:
                continue
    return texts


def _origin(texts: Mapping[str, str]) -> Place | None:
    topic = texts.get(TOPIC, "")
    partition, offset = _number(texts.get(PARTITION), _MOST_PARTITION), _number(texts.get(OFFSET))
    if partition is None or offset is None or not _TOPIC_NAME.fullmatch(topic):
        return None
    return Place(topic, partition, offset)


def _number(text: str | None, most: int = _MOST_OFFSET) -> int | None:
    if text is None or not _DIGITS.fullmatch(text):
        return None
    number = int(text)
    return number if number <= most else None


def _trips(headers: Headers, texts: Mapping[str, str]) -> int:
    """How often it was redriven. A count that cannot be read counts as too often: nothing else ends a circle."""
    if all(name != TRIPS for name, _ in headers):
        return 0
    trips = _number(texts.get(TRIPS))
    return _MOST_OFFSET if trips is None else trips


def _moment(text: str) -> int | None:
    """Milliseconds since 1970 of an ISO 8601 time with its zone."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment - _EPOCH) // _MILLISECOND if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _omitted(texts: Mapping[str, str]) -> dict[str, int]:
    found = {part: _OMITTED.match(texts.get(HEADER_PREFIX + part, "")) for part in PARTS}
    return {part: int(match[1]) for part, match in found.items() if match is not None}


# ---------------------------------------------------------------------------------------------------- marks


class Home(NamedTuple):
    """A partition in the one cluster where its offsets mean what they say."""

    cluster: str
    """The id that the brokers give themselves."""
    topic: str
    partition: int
    topic_id: str | None = None
    """None: the brokers do not give it."""

    def __str__(self) -> str:
        """``TOPIC:PARTITION@CLUSTER``, as marks have it."""
        return f"{self.topic}:{self.partition}@{self.cluster}"


def mark_headers(runs: Iterable[Run], home: Home) -> Headers:
    """The headers of a mark: the offsets of its own partition that are done, and which partition that is."""
    headers = (DONE, done_text(runs).encode()), (MARKED_AT, str(home).encode())
    return headers if home.topic_id is None else (*headers, (MARKED_TOPIC_ID, home.topic_id.encode()))


def done_text(runs: Iterable[Run]) -> str:
    """``17-30,45``: both ends are included."""
    return ",".join(f"{begin}-{end - 1}" if end - begin > 1 else str(begin) for begin, end in runs)


def read_done(text: str) -> list[Run] | None:
    """What `done_text` wrote; None for anything else."""
    if len(text) > _LONGEST_MARK:
        return None
    runs: list[Run] = []
    for part in text.split(","):
        match = _RUN.fullmatch(part)
        if match is None:
            return None
        begin, last = int(match[1]), int(match[2] or match[1])
        if last < begin:
            return None
        runs.append((begin, last + 1))
    return runs


class Mark(NamedTuple):
    """A mark as it lies there."""

    runs: Sequence[Run]
    """What is done; empty if the mark was written elsewhere."""
    at_home: bool
    """Whether it was written for what lies here: not if a mirror or a copy carried it in, or the topic was created
    again while a redrive went on."""


def read_mark(record: Record, home: Home) -> Mark | None:
    """The mark that `record`, which lies at `home`, is; None if it is no mark of ours.

    A mark speaks of what lies before it. A letter is never a mark, whatever headers its producer gave it.
    """
    texts = _texts(record.headers)
    if DONE not in texts or STAGE in texts or not _HOME.fullmatch(texts.get(MARKED_AT, "")):
        return None
    runs = read_done(texts[DONE])
    if runs is None:
        return None
    if texts[MARKED_AT] != str(home) or are_different_lives(texts.get(MARKED_TOPIC_ID), home.topic_id):
        return Mark((), at_home=False)
    return None if any(end > record.offset for _, end in runs) else Mark(runs, at_home=True)


class Done:
    """Which offsets of one partition are done."""

    __slots__ = ("_bounds",)

    def __init__(self) -> None:
        self._bounds: list[int] = []
        """Rising: begin and end of each run, alternating."""

    def __contains__(self, offset: object) -> bool:
        return isinstance(offset, int) and bisect_right(self._bounds, offset) % 2 == 1

    def __len__(self) -> int:
        """How many runs."""
        return len(self._bounds) // 2

    def add(self, runs: Iterable[Run]) -> None:
        """Add these, in any order, overlapping or not."""
        for begin, end in runs:
            low, high = bisect_left(self._bounds, begin), bisect_right(self._bounds, end)
            first = [] if low % 2 else [begin]
            self._bounds[low:high] = first if high % 2 else [*first, end]

    def common(self, other: Done) -> int:
        """How many offsets are in both."""
        mine, others = list(self.runs()), list(other.runs())
        total = at = there = 0
        while at < len(mine) and there < len(others):
            (begin, end), (low, high) = mine[at], others[there]
            total += max(0, min(end, high) - max(begin, low))
            if end <= high:
                at += 1
            else:
                there += 1
        return total

    def runs(self) -> Iterator[Run]:
        """As [begin, end), rising, apart from each other."""
        return zip(self._bounds[::2], self._bounds[1::2], strict=True)


class Runs:
    """Runs of what becomes done, from a partition read in order.

    What lies between two letters that follow each other (marks, markers of transactions, compacted records) is no
    letter and never becomes one: it joins their runs, so that marks stay short.
    """

    __slots__ = ("_joins", "_runs")

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._joins = False

    def add(self, offset: int) -> None:
        """The next letter becomes done."""
        if self._joins:
            self._runs[-1] = (self._runs[-1][0], offset + 1)
        else:
            self._runs.append((offset, offset + 1))
        self._joins = True

    def skip(self) -> None:
        """The next record stays as it is."""
        self._joins = False

    def take(self) -> list[Run]:
        """Take the runs so far and start again."""
        runs, self._runs, self._joins = self._runs, [], False
        return runs


# -------------------------------------------------------------------------------------------------- filters


class OriginFilter(NamedTuple):
    """``TOPIC[:PARTITION[:OFFSET]]``; None: any."""

    topic: str
    partition: int | None = None
    offset: int | None = None

    def holds(self, origin: Place) -> bool:
        """Whether a record from `origin` matches."""
        return (
            origin.topic == self.topic
            and self.partition in (None, origin.partition)
            and self.offset in (None, origin.offset)
        )


class Filters(NamedTuple):
    """Which letters match; what is empty or None matches all."""

    stages: frozenset[Stage] = frozenset()
    codes: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    """When they died: since, and before until."""
    origins: tuple[OriginFilter, ...] = ()

    def hold(self, letter: DeadRecord) -> bool:
        """Whether this letter matches."""
        return (
            (not self.stages or letter.stage in self.stages)
            and (not self.codes or letter.code in self.codes)
            and (self.since_ms is None or letter.at_ms >= self.since_ms)
            and (self.until_ms is None or letter.at_ms < self.until_ms)
            and (not self.origins or any(one.holds(letter.origin) for one in self.origins))
        )


def parse_origin(text: str) -> OriginFilter:
    """``TOPIC[:PARTITION[:OFFSET]]``. Raises `ValueError` saying what it should look like."""
    topic, *numbers = text.split(":")
    found = _numbers(numbers)
    if not _TOPIC_NAME.fullmatch(topic) or len(numbers) > 2 or None in found:
        raise ValueError(
            f"{text[:300]!r} is no origin: write TOPIC, TOPIC:PARTITION or TOPIC:PARTITION:OFFSET"
        )
    return OriginFilter(topic, *found)


def parse_place(text: str) -> Place:
    """``TOPIC:PARTITION:OFFSET``. Raises `ValueError` saying what it should look like."""
    topic, *numbers = text.split(":")
    found = _numbers(numbers)
    if not _TOPIC_NAME.fullmatch(topic) or len(numbers) != 2 or found[0] is None or found[1] is None:
        raise ValueError(f"{text[:300]!r} is no place of a record: write TOPIC:PARTITION:OFFSET")
    return Place(topic, found[0], found[1])


def _numbers(texts: Sequence[str]) -> list[int | None]:
    mosts = (_MOST_PARTITION, _MOST_OFFSET)
    return [_number(text, most) for text, most in zip(texts, mosts, strict=False)]
