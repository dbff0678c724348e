"""What the core counts, and the frozen snapshot that page, metrics, /status and tests all read.

Theory of operation. `Counters` only ever grow; each family is a dict over a closed (or capped) set of names, so
that nothing a shop or the API sends can grow it without bound. `Statistics` is taken by `Pipeline.statistics` in one
go, between two inputs, so its figures agree.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from consumer.engine.assignment import Totals
from consumer.engine.coverage import NO_COVERAGE, OTHER, CoverageSnapshot
from consumer.engine.freshness import FreshnessSnapshot
from consumer.engine.interface import DeadLetter
from consumer.engine.model import Problem, Rejection, Stage, TopicPartition, Warned

_MOST_NAMES = 64
PROBLEMS_MOST = 10
LETTERS_MOST = 20
SCHEMAS_MOST = 20
"""Schemas that a snapshot names."""


CALL_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)
"""Seconds."""
OUTCOMES = ("verdict", "refused", "throttled", "no_verdict", "no_answer")
"""How calls end: with an outcome for the events, a refusal of us, a 429, an answer that says nothing, or none."""


class Counters:
    """Everything counted, by name. `bump` on a capped family counts further names as ``other``."""

    def __init__(self) -> None:
        self.rejections: Counter[tuple[str, str]] = Counter()
        """By stage and code."""
        self.filtered: Counter[str] = Counter()
        self.delivered_by_name: Counter[str] = Counter()
        self.convert_warnings: Counter[tuple[str, str]] = Counter()
        """By code and conversion field: both closed sets, as each warning is a constant of the converter."""
        self.api_warnings: Counter[str] = Counter()
        self.api_errors: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        """By HTTP status, or by why no answer came."""
        self.no_verdicts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """Inner ones: key store, dead letters, commits, registry."""
        self.topics_made_anew: Counter[str] = Counter()
        """By topic, how often it was found to be deleted and made anew."""
        self.calls = 0
        self.bytes_sent = 0
        self.events_sent = 0
        self.bisected = 0
        self.retried_batches = 0
        self.followers = 0
        self.unclear_repeats = 0
        """Events sent again though an earlier call with them may have arrived, offline or over an hour old by then: the
        platform does not deduplicate those."""
        self.unclear_offline = 0
        """Those of them that happened offline."""
        self.processed_with_error = 0
        """Processed, yet with an error message: delivered, and worth an alert."""
        self.call_buckets: Counter[tuple[str, float]] = Counter()
        """Calls that ended, by outcome and by the bound of seconds that theirs are within (`CALL_BOUNDS`)."""
        self.call_milliseconds: Counter[str] = Counter()
        """Their times together, by outcome."""
        self.in_two_steps = 0
        """Records that were read the slow way (`consumer.engine.intake.Reading`)."""
        self.removed_unread = 0
        """Records, at most, that were removed from their log before they were read: retention, delete-records."""
        self.positions_went_back = 0
        """Times that a position went back: a log was cut, or a topic made anew."""
        self.keys_forgotten_early = 0
        """Keys that the key store, being full, forgot before their window was over."""
        self.delivered_after_release = 0
        """Delivered for a partition that was no longer ours when the answer came."""

    def copy(self) -> Counters:
        """The counts of now, which go on changing here and not there."""
        taken = Counters()
        for name, value in vars(self).items():
            setattr(taken, name, value.copy() if isinstance(value, Counter) else value)
        return taken

    def call_ended(self, outcome: str, seconds: float) -> None:
        """A call came back, one way or another."""
        self.call_buckets[outcome, CALL_BOUNDS[bisect_left(CALL_BOUNDS, seconds)]] += 1
        self.call_milliseconds[outcome] += round(seconds * 1000)

    @staticmethod
    def bump(family: Counter[str], name: str, by: int = 1) -> None:
        """Count `name`, or ``other`` once the family has its most names."""
        family[name if name in family or len(family) < _MOST_NAMES else OTHER] += by


class StoredLetter(NamedTuple):
    """A dead letter that is stored: when (unix seconds) its record was given up, where that stands, and why."""

    at: float
    topic: str
    partition: int
    offset: int
    stage: Stage
    code: str
    message: str


class SamplesSnapshot(NamedTuple):
    """The latest message of each kind: rejections by stage and code, warnings of the conversion by code and field."""

    rejections: Mapping[tuple[str, str], str]
    warnings: Mapping[tuple[str, str], str]


NO_SAMPLES = SamplesSnapshot({}, {})


class Samples:
    """Single cases of what is otherwise only counted: the first problems, the latest dead letters, a message of each
    kind. Bounded, as codes are a closed set."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        """The first records that could not be delivered."""
        self._letters: deque[StoredLetter] = deque(maxlen=LETTERS_MOST)
        self._rejections: dict[tuple[str, str], str] = {}
        self._warnings: dict[tuple[str, str], str] = {}

    def rejected(self, tp: TopicPartition, offset: int, rejection: Rejection) -> None:
        """A record cannot be delivered."""
        self._rejections[rejection.stage.value, rejection.code] = rejection.message
        if len(self.problems) < PROBLEMS_MOST:
            self.problems.append(Problem(tp.topic, tp.partition, offset, *rejection))

    def warned(self, warning: Warned) -> None:
        """A deliverable event lacks something."""
        self._warnings[warning.code, warning.field] = warning.message

    def stored(self, letter: DeadLetter) -> None:
        """A dead letter is stored."""
        place = (letter.topic, letter.partition, letter.record.offset)
        self._letters.append(StoredLetter(letter.at_ms / 1000, *place, *letter.rejection))

    def letters(self) -> tuple[StoredLetter, ...]:
        """The latest dead letters, newest first."""
        return tuple(reversed(self._letters))

    def snapshot(self) -> SamplesSnapshot:
        """The messages of now."""
        return SamplesSnapshot(dict(self._rejections), dict(self._warnings))


class WaitsFor(Enum):
    """What an open record waits for."""

    SCHEMA = "schema"
    """Its writer's schema, from the registry."""
    CLOCK = "clock"
    """Its time, which lies ahead, or certainty of what time it is."""
    ROOM = "room"
    """Room in the budget of open events, now that its schema is known."""
    KEY_STORE = "key_store"
    """The key store: to tell whether it was delivered before, or to remember that it is."""
    BATCH = "batch"
    """Its batch, which has not gone yet: it fills until it is full, or has lingered."""
    QUOTA = "quota"
    """Its account's gate, which is throttled or paced."""
    RETRY = "retry"
    """The next attempt, after one that brought no verdict."""
    PLATFORM = "platform"
    """The platform's answer, to its call or to those before it."""
    HALT = "halt"
    """A token or an account that the platform accepts."""
    DUPLICATE = "duplicate"
    """Another open record with the same key."""
    DEAD_LETTER = "dead_letter"
    """Its dead letter, which is being written."""
    GUARD = "guard"
    """The dead-letter guard, which has stopped intake."""


class OldestOpen(NamedTuple):
    """The oldest record that is open; `age` in seconds by its Kafka timestamp, None if it has none."""

    topic: str
    partition: int
    offset: int
    age: float | None
    waits_for: WaitsFor
    account: str | None


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    """One assigned partition; ``committed <= position <= end``. `lag` in records from the committed position to the
    end; None while the end is not known.

    `lag_seconds`: the age of the first record that is not settled, by its Kafka timestamp, and 0 where `lag` is; None
    while that is not known. With nothing open, what is left is not read or not committed yet, and has no timestamp
    that is known: the age of the last record read stands for it.
    """

    topic: str
    partition: int
    epoch: int
    committed: int | None
    position: int | None
    end: int | None
    lag: int | None
    totals: Totals
    lag_seconds: float | None = None
    unreadable_at: int | None = None
    """From where it cannot be read now, since what the broker sends is damaged; None: it can."""


@dataclass(frozen=True, slots=True)
class AccountStatistics:
    """One ad account's gate and queue. Times are seconds from now."""

    account: str
    state: str
    reason: str | None
    queued: int
    in_flight: int
    throttled_for: float | None
    halted_for: float | None
    next_probe_in: float | None
    unreachable_for: float | None = None
    """Since the first call of those that have brought no verdict."""


class SchemaWait(NamedTuple):
    """One schema that `records` wait for, the first of them for `seconds`.

    `denied_seconds`: for how long the registry has been saying that there is none; None: it does not say so.
    """

    kind: str
    value: str
    records: int
    seconds: float
    denied_seconds: float | None


class ClockStatistics(NamedTuple):
    """Seconds by which our clock is behind others' (ahead, if negative), and how many events wait for it."""

    platform: float | None
    """The platform's, at least; None: it has not said what time it is."""
    records: float
    """The timestamps of the records fetched of late."""
    corrected: float
    """What is added to our clock."""
    early: int
    """Open events that lie ahead of it."""


NO_CLOCK = ClockStatistics(None, 0.0, 0.0, 0)


class Cause(Enum):
    """What most of the records that trip the guard fail for."""

    SCHEMA = "schema"
    """They cannot be decoded."""
    MAPPING = "mapping"
    """They cannot be converted."""
    CLOCK = "clock"
    """They lie in the future, or too far back."""
    DESTINATION = "destination"
    """The platform refuses them."""


_EXPIRED = "convert expired"
_BY_STAGE: Final = {
    Stage.DECODE: Cause.SCHEMA,
    Stage.CONVERT: Cause.MAPPING,
    Stage.DELIVER: Cause.DESTINATION,
}
_BY_TIME: Final = frozenset({"future_event_time", "expired"})
_REMEDIES: Final = {
    Cause.SCHEMA: "correct the schema (at the producer, in the registry or in PINSTREAM_SCHEMAS_DIR)",
    Cause.MAPPING: "correct the mapping or the producer",
    Cause.CLOCK: "compare the producers' clocks with this machine's, set the wrong one right (far in the future: see "
    "whether time_unit is right)",
    Cause.DESTINATION: "find out why Pinterest refuses these events (its words are in the log: events_refused), "
    "have that corrected",
}
_TOO_OLD = (
    "see whether time_unit is right; if so, raise PINSTREAM_MAX_EVENT_AGE, or move the group past them (pinstream "
    "offsets set)"
)
"""No clock makes an event younger; but a time in another unit may lie in 1970."""


def cause_of(stage: Stage, code: str) -> Cause:
    """What a rejection says is wrong."""
    return Cause.CLOCK if stage is Stage.CONVERT and code in _BY_TIME else _BY_STAGE[stage]


class GuardStatistics(NamedTuple):
    """The guard has tripped: of `of` records of `topic` that were read one after the other, `rejected` would be dead
    letters."""

    topic: str
    rejected: int
    of: int
    mostly: str
    """The most frequent reason of the cause: stage and code."""
    cause: Cause
    """What most of them fail for."""

    @property
    def remedy(self) -> str:
        """What to do before a new start."""
        return _TOO_OLD if self.mostly == _EXPIRED else _REMEDIES[self.cause]


class MetadataLeft(Enum):
    """What of their metadata the broker takes with commits."""

    MAPS = "maps"
    """All of it: offset maps, topic ids, the destination."""
    IDS = "ids"
    """Topic ids and the destination."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Statistics:
    """One snapshot of the core; the ledger in it adds up."""

    totals: Totals
    partitions: Sequence[PartitionStatistics]
    accounts: Sequence[AccountStatistics]
    open_bytes: int
    held: int
    """Records fetched and not read yet: they wait for room in bytes."""
    passed: int
    """Records passed over: settled before the assignment they came with."""
    room: int
    claims: int
    waiting_for_schema: int
    oldest_open_ms: int | None
    """Kafka timestamp (milliseconds) of the oldest open record."""
    seconds_since_progress: float
    """Since something settled, or since nothing was left to settle."""
    freshness: FreshnessSnapshot
    counters: Counters
    stopping: bool
    joined: bool = False
    """Whether the group has said what is ours, nothing included."""
    stalled_for: float | None = None
    """There is work, and nothing was settled for this many seconds; None: not for too long."""
    key_store_fails: bool = False
    """The latest look-up or write of the key store failed."""
    waiting_for_start: int = 0
    """Partitions that are ours and not read yet: the brokers have not said where to start."""
    guard: GuardStatistics | None = None
    """Where too many records would be dead letters: intake has stopped."""
    oldest_open: OldestOpen | None = None
    coverage: CoverageSnapshot = NO_COVERAGE
    letters: Sequence[StoredLetter] = ()
    """The latest dead letters, newest first."""
    samples: SamplesSnapshot = NO_SAMPLES
    commit_metadata: MetadataLeft = MetadataLeft.MAPS
    elsewhere: int = 0
    """Partitions that begin where the group committed for another destination: what lies before is not sent again."""
    mismatch: int = 0
    """Records entered in the ledger that are neither settled nor open nor released: 0, or a bug."""
    schemas: Sequence[SchemaWait] = ()
    """Schemas that records wait for, the longest first; of many only some."""
    clock: ClockStatistics = NO_CLOCK

    @property
    def destination(self) -> str:
        """The worst state of any account, for one word on the page."""
        return worst_state(account.state for account in self.accounts)


STATES = ("open", "throttled", "unreachable", "halted")
"""Of a gate, the worst last."""


def worst_state(states: Iterable[str]) -> str:
    """The worst of these states of gates."""
    return max(states, key=STATES.index, default="open")


def by_name(counts: Mapping[str, int]) -> dict[str, int]:
    """A counter family in a stable order."""
    return dict(sorted(counts.items()))
