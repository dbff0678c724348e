"""The basic types of pinstream: records, conversion events, dispositions, positions, and the frozen policy.

A *record* is what Kafka holds. Decoded it is a *commerce event* (a plain ``dict`` in the shape of the reader
schema). Converted it is a *conversion event*: one item of the API's ``data``. Each record ends in exactly one
*disposition*.

Hot objects are slotted classes or named tuples, not frozen dataclasses, which cost a microsecond each to make. `Policy`
holds the limits, intervals and patience that the engine goes by; times are in seconds, sizes in bytes.

*The destination tag.* A delivered key and a committed offset mean nothing for another destination. A destination is the
address of the API, and whether its test mode is on. Differences that lead to the same place do not change the tag:
credentials, query, fragment, a slash at the end, the case of scheme and host, the scheme's own port written out. (RFC
3986, 6.2.2 and 6.2.3; the case of a path does matter there.) Ad accounts are not part of it. The tag is a digest, so
that neither the metadata of commits nor a key shows an address.

*Trace parents.* Producers that trace give each record the span it was written in (W3C ``traceparent``). A batch has
many, so our spans link to some of them. Only a well-formed header counts. A span that its producer keeps is preferred
to one that it does not keep, because a link to the latter leads nowhere.
"""

from __future__ import annotations

import hashlib
import math
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

CommerceEvent = dict[str, Any]
"""A decoded record in the shape of the reader schema; times are ``int`` in the schema's own unit."""


class SectionEvent(CommerceEvent):
    """A commerce event where the mapping has sections: `section` is the number of its section, from 1."""

    __slots__ = ("section",)
    section: int

    @classmethod
    def of(cls, section: int, event: CommerceEvent) -> SectionEvent:
        """Return a copy of the event with this section."""
        made = cls(event)
        made.section = section
        return made


def section_of(event: CommerceEvent) -> int:
    """Return the number of an event's section. Without sections every event is of the first, which is the only one."""
    return event.section if isinstance(event, SectionEvent) else 1


class MetadataLevel(Enum):
    """Which metadata the broker still accepts with commits."""

    # Everything: offset maps, topic ids, the destination.
    MAPS = "maps"
    # Topic ids and the destination.
    IDS = "ids"
    NOTHING = "nothing"


class GateState(Enum):
    """State of a destination, worst last."""

    OPEN = "open"
    THROTTLED = "throttled"
    UNREACHABLE = "unreachable"
    HALTED = "halted"


class Disposition(Enum):
    """How a record finally ended: always exactly one of these."""

    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    FILTERED = "filtered"
    DEAD_LETTERED = "dead_lettered"


class Stage(Enum):
    """Where a record was rejected; the dead letter's ``pinstream.stage``."""

    DECODE = "decode"
    CONVERT = "convert"
    DELIVER = "deliver"


class Instant(NamedTuple):
    """A moment on both clocks, in seconds. Deadlines use `monotonic`; event times are compared with `unix`."""

    monotonic: float
    unix: float

    @property
    def ahead(self) -> float:
        """How far the wall clock is ahead of the monotonic one."""
        return self.unix - self.monotonic

    def since(self, before: Instant) -> float:
        """Return the seconds since `before`, by the clock that shows more: the monotonic one stops while the machine is
        suspended."""
        return max(self.monotonic - before.monotonic, self.unix - before.unix)


class TopicPartition(NamedTuple):
    """A partition's name."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class Position(NamedTuple):
    """What a commit names: the next offset to read, and the leader epoch of the record before it.

    `metadata`: the offset map of what is settled above it (`consumer.engine.records.offset_map`).
    """

    topic: str
    partition: int
    next_offset: int
    leader_epoch: int | None
    metadata: str = ""


class Record(NamedTuple):
    """One Kafka record as it was fetched: the original bytes."""

    offset: int
    # Milliseconds since 1970 as Kafka has it; -1 when it has none.
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class Note(NamedTuple):
    """An answer of the platform that one member received and all that share its key store should know
    (`consumer.engine.sending.halts`)."""

    # The tag of the API (`Policy.destination`).
    destination: str
    # Empty: all accounts.
    account: str
    # HTTP status: 429, or that of a refusal.
    status: int
    code: int | None
    # Seconds for which it still holds.
    seconds: float
    # Its identity among notes; given by the store.
    name: str = ""


THROTTLED: Final = 429
"""The status of a `Note` of a throttle."""


class Announcement(NamedTuple):
    """What a member tells the others that share its key store about its settings."""

    # A digest of the group's name: members of other groups may have other mappings.
    group: str
    # See `Policy.fingerprint`.
    fingerprint: str
    # The tag of the API (`Policy.destination`).
    destination: str
    accounts: tuple[str, ...]


class TraceParent(NamedTuple):
    """The span that a record was written in, as its ``traceparent`` header says (W3C Trace Context)."""

    trace_id: int
    span_id: int
    flags: int


# Placeholder for headers of a record that the client cannot read; it goes into the dead letter.
UNREADABLE_HEADERS: Final = (
    (
        "pinstream.headers",
        b"unreadable: the name of a header is not UTF-8; all of them are omitted here, read them at the origin",
    ),
)


class Chunk(NamedTuple):
    """Records of one partition under one assignment epoch and one leader epoch, in offset order.

    `log_start`: where the log began when the chunk was handed out. Looked up only where offsets are missing before or
    within it; otherwise, and where it is not known, -1. `waited`: for how many seconds the first record of its fetch
    has waited for the others.
    """

    topic: str
    partition: int
    epoch: int
    leader_epoch: int | None
    records: list[Record]
    log_start: int = -1
    waited: float = 0.0


class SchemaRef(NamedTuple):
    """How a record names its writer's schema.

    `kind` is ``"id"`` (Confluent schema id, decimal text), ``"guid"`` (Confluent header, 36-character UUID),
    ``"fingerprint"`` (single-object encoding: 16 hex digits of CRC-64-AVRO as on the wire, little-endian) or ``"glue"``
    (AWS Glue's header: the UUID of the schema version, 36 characters).
    """

    kind: str
    value: str


class SchemaDrift(NamedTuple):
    """How a writer's schema differs from what the mapping reads. `section`: the mapping's section, or its record type.

    `lacks`: paths that the mapping reads and the writer lacks, each with its fields: defaults are read in their place.
    `could_fill`: recommended parameters that have no other source, each with a path of the writer's.
    """

    section: str
    lacks: tuple[str, ...] = ()
    could_fill: tuple[str, ...] = ()


class Rejection(NamedTuple):
    """Why a record cannot be delivered. `code` is from a closed set; `message` holds no personal data."""

    stage: Stage
    code: str
    message: str


class Untimely(Rejection):
    """The refusal of an event that lies ahead (of `since`) or is too old (after `until`), in unix seconds.

    Whether the event is refused or waits depends on which clock is right (`consumer.engine.clock`).
    """

    # When it happened, and until when it may be sent.
    since: float
    until: float
    # The verdict on it if it is refused.
    verdict: Rejection | Filtered

    @classmethod
    def of(cls, rejection: Rejection, since: float, until: float) -> Untimely:
        """Return the refusal `rejection` of an event that happens at `since`."""
        untimely = cls(*rejection)
        untimely.since, untimely.until, untimely.verdict = since, until, rejection
        return untimely


class Later(NamedTuple):
    """An event that lies ahead, or is too old, by a clock that may be wrong: it is judged again once its `time` (unix
    seconds; infinite if it is too old) comes, or more is known of the clock."""

    time: float


class Problem(NamedTuple):
    """A record that cannot be delivered, and why: a `Rejection` with its place."""

    topic: str
    partition: int
    offset: int
    stage: Stage
    code: str
    message: str


class Warned(NamedTuple):
    """Something a deliverable event lacks or lost on the way; `field` is the conversion field's dotted name."""

    code: str
    message: str
    field: str


@dataclass(eq=False, slots=True)
class ConversionEvent:
    """One item of the API's ``data``, with what the pipeline needs to know of it."""

    account: str
    name: str
    event_id: str
    # What identifies the event within account and name: ``event_id`` unless the mapping says otherwise.
    dedup_id: str
    # ``event_time``, in whole seconds.
    time: int
    action_source: str
    # The JSON object to send.
    payload: dict[str, Any]
    # The mask of the recommended parameters in it (`figures.delivered`).
    written: int
    warnings: tuple[Warned, ...]


class Filtered(NamedTuple):
    """Not to be sent, on purpose; `code` says which rule did it (``event_name``, ``consent``, ``transform``,
    ``tombstone``)."""

    code: str


class NotSelected(Filtered):
    """Not among what a replay selects: that says nothing of the record, which gets no receipt of it."""

    __slots__ = ()


Converted = ConversionEvent | Filtered | Rejection

# Codes of records that the function of ``PINSTREAM_TRANSFORM`` has failed on.
TRANSFORM_FAILED: Final = "transform_failed"
TRANSFORM_MISFIT: Final = "transform_misfit"


# Seconds. Far below every session time-out; a false alarm costs a commit, and calls that had not begun are made later.
AWAY = 2.0

# Bytes of metadata that a broker takes by default, less the NUL that librdkafka adds; the text is ASCII.
METADATA_BYTES: Final = 4095


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full-jitter exponential backoff: uniform between 0 and ``min(cap, base * 2**attempt)``.

    Full jitter spreads a herd best (AWS Architecture Blog, "Exponential Backoff And Jitter").
    """

    base: float = 0.5
    cap: float = 30.0

    def delay(self, failures: int, jitter: float = 1.0) -> float:
        """Return the delay after this many failures in a row (1 is the first); `jitter`: a uniform random number from
        0 to 1, or 1 for the longest delay."""
        # Beyond 32 doublings every cap is reached; without a limit the power would become too large for a float.
        return float(min(self.cap, self.base * 2 ** min(failures - 1, 32))) * jitter


@dataclass(frozen=True, slots=True)
class Policy:
    """All settings of the pipeline; times are in seconds."""

    # How many ad accounts are configured.
    accounts: int = 1
    # Each account has an access token of its own: a refused one halts its account alone.
    token_by_account: bool = False
    batch_events: int = 1000
    batch_bytes: int = 4 * 1024 * 1024
    linger: float = 0.1
    concurrency: int = 8
    calls_per_minute: int = 5000
    # By how many members of the group these calls are divided until the brokers say how many there are. 0: the calls
    # are not divided, because a shared key store counts those of all members, or there is no group.
    quota_members: int = 0
    max_open_events: int = 20_000
    max_open_bytes: int = 128 * 1024 * 1024
    commit_interval: float = 1.0
    # Seconds for which the destination may refuse an account before the process gives up; 0: indefinitely.
    halt_patience: float = 900.0
    # Seconds without a verdict on any call after which the destination counts as unreachable.
    unreachable_after: float = 30.0
    # Seconds for which the registry must say "no such schema" before that is final for a record that waits; 0: never.
    schema_patience: float = 300.0
    # Questions to the schema registry at once.
    registry_concurrency: int = 8
    registry_calls_per_second: float = 20.0
    # Seconds without a settled record, although there is work, after which a stall is reported.
    stall_after: float = 120.0
    # Seconds for which a Retry-After or x-ratelimit-reset is obeyed at most: a header must not stop us for a day.
    throttle_cap: float = 300.0
    # Bytes of a commit's metadata at most: what brokers accept by default.
    map_bytes: int = METADATA_BYTES
    # The tag of the destination (`consumer.engine.model`), for keys and commits; None: not known.
    destination: str | None = None
    # The tag that it had before it was declared to be the platform; keys and commits under it count, too.
    earlier_destination: str | None = None
    # Seconds for which the key store remembers a key.
    dedup_window: float = 172_800.0
    # Digests of what decides what is sent (`settings_digests`); None: not known.
    fingerprint: str | None = None
    # What it announces to members that share the key store; None: nothing.
    announcement: Announcement | None = None
    # Seconds without an input after which a process first proves that its partitions are still its own; a call that was
    # decided longer ago does not begin. Shorter than any session time-out; an idle process looks at the clock twice as
    # often.
    away: float = AWAY
    # Intake stops when more than this share of a topic's latest records would be dead letters; 1: it never does.
    dead_letter_share: float = 1.0
    # Successive records of a topic of which the share is taken; never of fewer.
    dead_letter_sample: int = 1000
    # A replay's pace, not counting filtered events and duplicates.
    events_per_second: float = math.inf
    # A replay's limit: at most this many records are read, not counting filtered ones (``--where`` included).
    max_records: int | None = None
    # Seconds for which claims in a shared key store hold without a renewal; 0: the key store is not shared.
    lease: float = 0.0
    # Seconds that a call may take at most.
    call_timeout: float = 30.0
    # The user's function through which decoded records go (``PINSTREAM_TRANSFORM``); empty: there is none.
    transform: str = ""
    # Each outcome has a receipt, which is stored before the outcome settles its record (``PINSTREAM_RECEIPTS_TOPIC``).
    receipts: bool = False
    # Trace parents that a `Send` has at most; 0: none.
    trace_links: int = 0
    delivery_backoff: Backoff = Backoff()
    # For the key store, the dead-letter topic and the registry: they are near, and all events need them.
    inner_backoff: Backoff = Backoff(base=0.1, cap=10.0)
    probe_backoff: Backoff = Backoff(base=2.0, cap=30.0)


_PORTS: Final = {"http": 80, "https": 443}
_DIGEST_BYTES: Final = 6


def destination_tag(url: str, test_mode: bool) -> str:
    """Return the tag of the API at `url`, in test mode or not: eight characters of A-Z, a-z, 0-9, ``-`` and ``_``.

    Raises `ValueError` for a URL that cannot be read.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or _PORTS.get(scheme, 0)
    identity = "\n".join((scheme, host, str(port), parts.path.rstrip("/"), "test" if test_mode else "live"))
    return urlsafe_b64encode(hashlib.sha256(identity.encode()).digest()[:_DIGEST_BYTES]).decode()


FINGERPRINTED: Final = ("mapping", "schemas", "function")
"""What a fingerprint distinguishes, in its order. (The destination has a tag of its own.)"""
FINGERPRINT_BYTES: Final = 9
# base64 of three bytes.
_PART: Final = 4


def settings_digests(mapping: str, schemas: str, function: str) -> str:
    """Return digests of these texts, one after the other: members that send the same have the same."""
    parts = (hashlib.sha256(text.encode()).digest()[:3] for text in (mapping, schemas, function))
    return urlsafe_b64encode(b"".join(parts)).decode()


def differing(ours: str | None, theirs: str | None) -> tuple[str, ...]:
    """Return the names of `FINGERPRINTED` in which two fingerprints differ; none if one is not known."""
    if ours is None or theirs is None or len(theirs) != len(ours):
        return ()
    places = enumerate(FINGERPRINTED)
    return tuple(name for n, name in places if ours[_PART * n :][:_PART] != theirs[_PART * n :][:_PART])


# The platform itself, in live mode: the destination of everything written before destinations had tags.
PLATFORM_URL: Final = "https://api.pinterest.com/v5"
REAL_API: Final = destination_tag(PLATFORM_URL, test_mode=False)


# A value is counted in these parts of its currency's unit. It is packed into one number with the currency, which is in
# the lowest bits: five for each letter (`reading.packed_value`).
VALUE_PARTS: Final = 10_000
CURRENCY_BITS: Final = 15


HEADER = "traceparent"
_FORM = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_SAMPLED = 1
# Where the digit stands whose lowest bit is `_SAMPLED`, in every version.
_FLAG = slice(54, 55)
_ODD = b"13579bdf"


def trace_parents(records: Iterable[Record | None], maximum: int) -> tuple[TraceParent, ...]:
    """Return at most `maximum` different trace parents of records, first those whose span is kept.

    None stands for a record that is settled and dropped.
    """
    kept: dict[TraceParent, None] = {}
    others: dict[TraceParent, None] = {}
    for record in records:
        text = None
        for name, value in record.headers if record is not None else ():
            # Of several headers the last one counts, as with Kafka's own clients.
            text = value if name == HEADER else text
        if text is None or (len(others) >= maximum and text[_FLAG] not in _ODD):
            # Most producers keep one trace in a hundred: those they do not keep must cost next to nothing.
            continue
        found = _FORM.fullmatch(text)
        # Version 00 ends with the flags; later ones may have more behind them.
        if found is None or (found[1] == b"00" and found[5] is not None):
            continue
        parent = TraceParent(int(found[2], 16), int(found[3], 16), int(found[4], 16))
        if parent.flags & _SAMPLED:
            kept[parent] = None
            if len(kept) >= maximum:
                break
        else:
            others[parent] = None
    return (*kept, *others)[:maximum]
