"""All messages between engine and shell: inputs in the past tense, commands in the imperative.

The shell feeds one input at a time to `consumer.engine.pipeline.Pipeline.handle` and performs the commands that it
returns. The shell tries a command once, and the engine decides what a failure means. An `Attempt` is answered by
exactly one input, success or failure, with three exceptions: `ReleaseKeys` and `ShareNote` are answered only if they
fail; `Assigned` answers `RestartPartitions`; and before its answer a `Transform` may report, more than once, that it is
slow. Numbers (``number``) tie the answer to its command, where several commands of a kind may be under way; they are
unique in a process.

Messages are named tuples. Those with bodies or events are dataclasses, which leave them out of their repr, since a repr
may be logged; so are those without fields, because an empty tuple is false.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from math import inf
from typing import Any, Final, NamedTuple

from consumer.engine.model import (
    Announcement,
    Chunk,
    CommerceEvent,
    Filtered,
    Note,
    Position,
    Record,
    Rejection,
    SchemaRef,
    TopicPartition,
    TraceParent,
)
from consumer.engine.receipts import Receipts


class Assignment(NamedTuple):
    """A partition given to us. `epoch` never repeats in a process; `start` is the first offset; None is the beginning.

    `commit_start`: commit `start` at once, so that a crash before the first settlement cannot skip records
    (a new group that begins at the end of a topic). `leader_epoch` and `metadata`: as committed with `start`.
    `topic_id`: the topic's id, which says which topic of this name it is; None: the brokers have none. `void`: an
    offset that was committed in a topic that was recreated since and means nothing in this one, nor does its metadata.
    `beginning`: where the log begins, if reading starts there; None: it does not, or the brokers do not say it.
    """

    topic: str
    partition: int
    epoch: int
    start: int | None
    commit_start: bool
    leader_epoch: int | None = None
    metadata: str = ""
    topic_id: str | None = None
    void: int | None = None
    beginning: int | None = None


class TopicRecreated(NamedTuple):
    """A partition whose topic was deleted and created again while we held it under `epoch`."""

    topic: str
    partition: int
    epoch: int
    topic_id: str


class BrokerTimes(NamedTuple):
    """What one client of ours measured of one broker, in seconds.

    `broker`: its id, or ``coordinator``. `round_trip` and `round_trip_p99`: from request to answer, on average and for
    99 of 100, since the last report; None: there was no request. `throttled`: for how long the broker has delayed
    answers because of a quota, since the start.
    """

    broker: str
    round_trip: float | None
    round_trip_p99: float | None
    throttled: float


class DeadLetter(NamedTuple):
    """A record on its way to the dead-letter topic, with its reason. `at_ms`: milliseconds since 1970."""

    topic: str
    partition: int
    record: Record
    rejection: Rejection
    attempts: int
    at_ms: int


# ---------------------------------------------------------------------------------------------- inputs

# -- from the consumer group. Partitions come and go at any time, also while calls with their events are in flight.


class Assigned(NamedTuple):
    """The group assigned partitions to us."""

    assignments: Sequence[Assignment]


class Revoked(NamedTuple):
    """The group revokes partitions, in order: drain them, then `Release`. `grace`: seconds until the deadline."""

    partitions: Sequence[TopicPartition]
    number: int
    grace: float


class Lost(NamedTuple):
    """The partitions belong to another member already: drop them, commit nothing."""

    partitions: Sequence[TopicPartition]


class GroupSize(NamedTuple):
    """How many members of the group hold partitions, this one included."""

    members: int


GroupSaid = Assigned | Revoked | Lost | GroupSize

# -- from the schema registry and the user's function. "Not now" and "no" are two answers: only the second is final.


class SchemaFound(NamedTuple):
    """Answers `FetchSchema`: the writer's schema, as Avro JSON if `kind` is ``AVRO``."""

    ref: SchemaRef
    schema: str | Mapping[str, Any]
    kind: str = "AVRO"
    unanswered: SchemaUnavailable | None = None
    """Why the registry gave no answer; the schema is then its earlier answer. None: it answered."""

    def is_same(self, other: SchemaFound) -> bool:
        """Return True if both bring the same schema: as text, or as JSON."""
        if (self.ref, self.kind) != (other.ref, other.kind):
            return False
        try:
            one, two = (json.loads(x) if isinstance(x, str) else x for x in (self.schema, other.schema))
            return bool(one == two)
        except (ValueError, RecursionError):  # not JSON, or nested too deeply to compare
            return self.schema == other.schema


class SchemaMissing(NamedTuple):
    """Answers `FetchSchema`: the registry says that there is no such schema (yet)."""

    ref: SchemaRef


class SchemaUnavailable(NamedTuple):
    """Answers `FetchSchema`: no verdict; the records that need it wait."""

    ref: SchemaRef
    reason: str
    refused: bool = False
    """True if the registry answers but refuses access: that does not heal by itself."""


@dataclass(frozen=True, slots=True)
class Transformed:
    """Answers `Transform`: the function's results for the next of its records, as many as there are results.

    The function is not called for the others: a later `Transform` has those that are still wanted.
    """

    number: int
    results: Sequence[CommerceEvent | Filtered | Rejection] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TransformIsSlow:
    """The user's function has worked for `seconds` on record `row` of a `Transform`, and has not returned.

    `results`: its results for the records before that one, as far as they were not reported yet.
    """

    number: int
    row: int
    seconds: float
    results: Sequence[CommerceEvent | Filtered | Rejection] = field(default=(), repr=False)


SchemaAnswer = SchemaFound | SchemaMissing | SchemaUnavailable
FunctionSaid = Transformed | TransformIsSlow

# -- from the key store. A failure is an answer as well, so that nothing waits for an answer that never comes.


class Found(IntEnum):
    """What a key store has found of a key. The scripts of a shared one have these names, too (`shared.server`)."""

    NEW = 0  # not delivered within the window; in a shared key store our session has claimed it
    DELIVERED = 1
    CLAIMED_BY_OTHER = 2  # another member has it in flight


class Stored(IntEnum):
    """What became of the key of a delivered event."""

    TAKEN_OVER = 0  # not stored: our lease had ended, and another member has claimed it
    DURABLE = 1
    DELIVERED_TWICE = 2  # durable; another member had claimed and delivered it, too


class KeysLookedUp(NamedTuple):
    """Answers `LookUpKeys`. `found`: a `Found` for each key. `session`: our session in a shared key store, which has
    claimed the new keys; 0: the store is not shared."""

    number: int
    found: Sequence[int]
    session: int = 0


class KeysStored(NamedTuple):
    """Answers `StoreKeys`. `stored`: a `Stored` for each key; None: all are durable."""

    number: int
    stored: Sequence[int] | None = None


class LeaseRenewed(NamedTuple):
    """Answers `RenewLease`: our claims hold for another lease. `session`: our session that has them; if it
    differs from the one before, earlier claims are void. `notes`: other members' notes that still hold; `others`: what
    they announce."""

    number: int
    session: int
    notes: Sequence[Note] = ()
    others: Sequence[Announcement] = ()


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """An answer of a shared key store says that our claims no longer hold."""


class PermitsGranted(NamedTuple):
    """Answers `AcquirePermits`: `calls` calls may be made. 0: the account's quota is used up for `wait` more
    seconds."""

    number: int
    account: str
    calls: int
    wait: float


class KeyStoreFailed(NamedTuple):
    """Answers `command`: the key store did not answer, so it may or may not have done what was asked. `reason`: why,
    and what to do."""

    command: KeyStoreCommand
    reason: str = ""


KeyStoreSaid = KeysLookedUp | KeysStored | LeaseRenewed | LeaseLost | PermitsGranted | KeyStoreFailed

# -- from the API, or a server that answers in its place. Bodies echo events: no repr has them, as a repr may be logged.


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers `Send`: the API answered. `headers` are lower-cased."""

    number: int
    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


# The reason of a call that the shell did not begin (`Send.start_deadline`).
START_EXPIRED: Final = "too_late"


@dataclass(frozen=True, slots=True)
class Unanswered:
    """Answers `Send`: no whole answer came. `reason` is ``timeout``, ``connection``, ``dns``, ``tls``, ``proxy``, ... .

    `headers` are lower-cased; those received of an answer that broke off. `said`: details beyond the reason, and what
    to do; it may name the API and the proxy.
    """

    number: int
    reason: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    said: str | None = field(default=None, compare=False)


class TokenRead(NamedTuple):
    """Answers `ReadToken`. `changed`: it differs from the one used before."""

    changed: bool


class TimeAsked(NamedTuple):
    """Answers `AskTime`: with the answer to the call, or with its failure."""

    answer: Answered | Unanswered


ApiAnswer = Answered | Unanswered | TokenRead | TimeAsked

# -- from Kafka


class Fetched(NamedTuple):
    """Records were fetched."""

    chunks: Sequence[Chunk]


class DeadLettersStored(NamedTuple):
    """Answers `StoreDeadLetters`. `stored`, for each letter in its order: whether the broker acknowledged it."""

    number: int
    stored: Sequence[bool]


class ReceiptsStored(NamedTuple):
    """Answers `StoreReceipts`. `stored`, for each of its `Receipts` in order: whether the broker acknowledged all of
    them. `reason`: why it did not, and what to do."""

    number: int
    stored: Sequence[bool]
    reason: str = ""


class CommitError(Enum):
    """Kind of reason for which a commit was refused."""

    # The group is between two generations, its coordinator moves, or the partition belongs to another member by now:
    # the next commit, or the partition's next owner, makes up for it.
    PASSING = "passing"
    # The broker accepts only less metadata with a commit, or with all commits together.
    METADATA = "metadata"
    OTHER = "other"


class CommitDone(NamedTuple):
    """Answers `Commit`: which positions the broker accepted, and why it refused the others.

    `failure`: the reason in the adapter's words, for the log; None: it accepted all. `error`: the kind of reason.
    """

    committed: Sequence[Position]
    failure: str | None = None
    error: CommitError = CommitError.OTHER


@dataclass(frozen=True, slots=True)
class EndOffsets:
    """Where partitions end (high watermarks), as the broker last said, for lag.

    `reached`: up to where everything was read, markers and aborted transactions included, which are no records.
    `waiting_for_start`: how many of our partitions are not announced as assigned yet, because the brokers have not said
    where to start. `unreadable`: partitions that are not read from this offset on, because the data is damaged.
    `begins`: where logs begin, as last reported.
    `joined`: True once the group has said which partitions are ours, even if none is.
    `coordinator_silent`: for how many seconds no coordinator of the group has answered; None: it answers.
    """

    ends: Mapping[TopicPartition, int]
    reached: Mapping[TopicPartition, int] = field(default_factory=dict)
    waiting_for_start: int = 0
    unreadable: Mapping[TopicPartition, int] = field(default_factory=dict)
    begins: Mapping[TopicPartition, int] = field(default_factory=dict)
    joined: bool = False
    coordinator_silent: float | None = None


class TopicIds(NamedTuple):
    """The ids that topics have now. A topic without an id is omitted."""

    ids: Mapping[str, str]


class BrokerStats(NamedTuple):
    """What `client` (``consumer``, ``producer``) has measured of its brokers."""

    client: str
    brokers: Sequence[BrokerTimes]


class BrokersSilent(NamedTuple):
    """No broker has answered for `seconds`; `why`: ``host:port, connection refused``. None: one answers (again)."""

    why: str | None
    seconds: float = 0.0


KafkaStored = DeadLettersStored | ReceiptsStored | CommitDone
KafkaSaid = Fetched | KafkaStored | EndOffsets | TopicIds | BrokerStats | BrokersSilent


class StopRequested(NamedTuple):
    """Read no more, drain all records within `grace` seconds, then `Stop`."""

    grace: float


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of `next_deadline()` has come."""


Input = GroupSaid | SchemaAnswer | FunctionSaid | KeyStoreSaid | ApiAnswer | KafkaSaid | StopRequested | Tick

# -------------------------------------------------------------------------------------------- commands


class FetchSchema(NamedTuple):
    """Ask the registry (or the folder) for this writer's schema."""

    ref: SchemaRef


@dataclass(frozen=True, slots=True)
class Transform:
    """Call the user's function for each of the decoded records, one after the other; see `Transformed`."""

    number: int
    events: Sequence[CommerceEvent] = field(repr=False)


class LookUpKeys(NamedTuple):
    """Ask the key store which keys were delivered within the window; a shared store claims the others for us.

    `keys`: one after the other, 16 bytes each. `earlier`: keys under which the same events may have been delivered, too
    (empty: there are none).
    """

    number: int
    keys: bytes
    earlier: bytes = b""


class StoreKeys(NamedTuple):
    """Remember keys as delivered, durably; this ends our claims. `keys`: one after the other, 16 bytes each."""

    number: int
    keys: bytes


class ReleaseKeys(NamedTuple):
    """End our claims on keys in a shared key store, because we will not deliver their events. Only a failure is
    answered: then the store begins another session for us, and the claims of the session before end with its
    lease."""

    keys: bytes


class RenewLease(NamedTuple):
    """Prolong the lease on our claims in a shared key store, or begin a session there."""

    number: int


class AcquirePermits(NamedTuple):
    """Ask a shared key store for calls to an account, from the quota that all members have together.

    The calls begin within `seconds` from now, or not at all. `destination`: the API's tag (`Policy.destination`).
    """

    number: int
    destination: str
    account: str
    calls: int
    per_minute: int
    seconds: float


class ShareNote(NamedTuple):
    """Tell a note to the other members that share the key store. Only a failure is answered; the others
    then meet the error themselves."""

    note: Note


@dataclass(frozen=True, slots=True)
class Send:
    """Make one call: POST the body (JSON) to the account's endpoint.

    `parts`: the body, piece by piece; not joined, because it may be megabytes and a socket can send the pieces as they
    are. `attempt`: 1 the first time. `parents`: the trace parents of some of its records, if traces are wanted.
    `start_deadline`: when the call must have begun (monotonic), because after that its partitions, or its claims in a
    shared key store, are not known to be ours.
    """

    number: int
    account: str
    parts: Sequence[bytes | memoryview] = field(repr=False)
    events: int
    attempt: int = 1
    parents: Sequence[TraceParent] = ()
    start_deadline: float = inf

    @property
    def body(self) -> bytes:
        """The body in one piece."""
        return b"".join(self.parts)


class StoreDeadLetters(NamedTuple):
    """Write letters to their dead-letter topics and wait for the broker's acknowledgement."""

    number: int
    letters: Sequence[DeadLetter]


class StoreReceipts(NamedTuple):
    """Write receipts to the receipts topic, each as a record, and wait for the broker's acknowledgement."""

    number: int
    receipts: Sequence[Receipts]


class Commit(NamedTuple):
    """Commit positions of live assignments. One commit is under way at a time."""

    positions: Sequence[Position]


class Release(NamedTuple):
    """Answers `Revoked`: commit the positions within the rebalance, then give the partitions up."""

    number: int
    positions: Sequence[Position]


class Stop(NamedTuple):
    """Answers `StopRequested`: all is drained, or the deadline came; commit the positions and leave the group."""

    positions: Sequence[Position]
    drained: bool


class RestartPartitions(NamedTuple):
    """Read partitions from the beginning, if still held under their epoch: `Assigned` answers, with a new epoch."""

    partitions: Sequence[TopicRecreated]


@dataclass(frozen=True, slots=True)
class ReadToken:
    """Read the access token again from its source."""


@dataclass(frozen=True, slots=True)
class AskTime:
    """Make a call without an event: its answer has the API's ``Date``."""


class GiveUp(NamedTuple):
    """The destination refused us for longer than the patience: end with the exit code for that."""

    reason: str


class Report(NamedTuple):
    """A line for the log. `event` is from a closed set; `fields` hold no personal data."""

    level: str
    event: str
    fields: Mapping[str, str | int | float | None]


# Each is tried once and answered by one input: `RestartPartitions` by `Assigned`; `ReleaseKeys` and `ShareNote` only
# where they fail.
KeyStoreCommand = LookUpKeys | StoreKeys | ReleaseKeys | RenewLease | AcquirePermits | ShareNote
Attempt = (
    FetchSchema
    | Transform
    | KeyStoreCommand
    | Send
    | StoreDeadLetters
    | StoreReceipts
    | Commit
    | RestartPartitions
    | ReadToken
    | AskTime
)
Command = Attempt | Release | Stop | GiveUp | Report
