"""The frozen snapshot that page, metrics, /status and tests all read.

Theory of operation. `Statistics` is taken by `Pipeline.statistics` in one go, between two inputs, so its figures
agree. What each figure is stands with it, in its annotation (`consumer.engine.figures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Final, NamedTuple

from consumer.engine.counters import NO_SAMPLES, Counters, SamplesSnapshot, StoredLetter
from consumer.engine.coverage import NO_COVERAGE, CoverageSnapshot
from consumer.engine.figures import Figure, every, first, furthest, least, most
from consumer.engine.freshness import FreshnessSnapshot
from consumer.engine.model import Disposition, GateState, MetadataLeft, Stage

SCHEMAS_MOST = 20
"""Schemas that a snapshot names."""


@dataclass(frozen=True, slots=True)
class Totals:
    """The ledger's figures; they add up."""

    read: Annotated[int, Figure("read", "Records read: the sum of the five below.")]
    delivered: Annotated[
        int, Figure("delivered", "The platform said processed, and the event's key is remembered.")
    ]
    duplicate: Annotated[
        int, Figure("duplicate", "The same event was delivered within the deduplication window.")
    ]
    filtered: Annotated[
        int, Figure("filtered", "Not to be sent, on purpose: the mapping says so, or it is a tombstone.")
    ]
    dead_lettered: Annotated[
        int, Figure("dead_lettered", "Undeliverable, and stored on the dead-letter topic.")
    ]
    open: Annotated[int, Figure("open", "None of these yet. No offset is committed past an open record.")]
    released: Annotated[int, Figure()] = 0
    """Fetched, and released unsettled: someone reads it again."""


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
    """The oldest record that is open."""

    topic: Annotated[str, Figure("topic")]
    partition: Annotated[int, Figure("partition")]
    offset: Annotated[int, Figure("offset")]
    age: Annotated[
        float | None,
        Figure("age_seconds", "Its age, by its Kafka timestamp.", status_note="null: it has none."),
    ]
    waits_for: Annotated[WaitsFor, Figure("waits_for", "What it waits for: see below.")]
    account: Annotated[
        str | None, Figure("account", "The ad account that it goes to, as far as that is known.")
    ]


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    """One assigned partition; ``committed <= position <= end``."""

    topic: Annotated[str, Figure("topic", is_label=True)]
    partition: Annotated[int, Figure("partition", is_label=True)]
    epoch: int
    committed: Annotated[
        int | None,
        Figure(
            "committed",
            "The committed offset.",
            "pinstream_partition_committed_offset",
            status_note="null before the first commit, and when the log was cut below it.",
        ),
    ]
    position: Annotated[int | None, Figure("position", "The offset after the last record read.")]
    end: Annotated[
        int | None,
        Figure(
            "end",
            "The offset after the last record of the log: as last heard, or as far as we have fetched, if that is "
            "further.",
            status_note="null while nothing was heard.",
        ),
    ]
    lag: Annotated[
        int | None,
        Figure(
            "lag",
            "Records from the committed offset to the end (before the first commit, from where reading began); "
            "0 once all are read, settled and committed.",
            "pinstream_partition_lag_records",
            status_note="null while the end is not known.",
        ),
    ]
    totals: Annotated[Totals, Figure("ledger", "As `ledger`, of this partition since it was assigned:")]
    lag_seconds: Annotated[
        float | None,
        Figure(
            "lag_seconds",
            "Age of a partition's first record that is not settled, by its Kafka timestamp; 0: no lag.",
            "pinstream_lag_seconds",
            status_note="0 exactly where `lag` is 0 (and where a timestamp lies ahead). With nothing open, what is "
            "left is not read or not committed yet: the age of the last record read. null while it is not known.",
        ),
    ] = None
    unreadable_at: Annotated[
        int | None,
        Figure(
            "unreadable_at",
            "From this offset on it cannot be read now, since what the broker sends is damaged: it is asked for again.",
            status_note="null: it can be read.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class AccountStatistics:
    """One ad account's gate and queue. Times are seconds from now."""

    account: Annotated[str, Figure("account", "The ad account's id.", is_label=True)]
    state: Annotated[
        str,
        Figure(
            "state",
            "The state of the ad account.",
            "pinstream_destination_state",
            status_note="`open`; `throttled`: by a 429 or by the calls of the last minute; `unreachable`: for 30 "
            "seconds no call has brought a verdict; `halted`: the token or the account is refused.",
            labels=("state",),
            metric_note="1: it is in this one.",
            number=lambda state: {one.value: one.value == state for one in GateState},
        ),
    ]
    reason: Annotated[
        str | None,
        Figure(
            "reason",
            "Why it is halted or unreachable: what is refused, or what the latest call met and who answered it.",
        ),
    ]
    queued: Annotated[
        int, Figure("queued", "Events that wait to be sent, by ad account.", "pinstream_queued_events")
    ]
    in_flight: Annotated[
        int, Figure("in_flight", "Calls under way, by ad account.", "pinstream_calls_in_flight")
    ]
    throttled_for: Annotated[float | None, Figure("throttled_for", "Seconds until the throttle ends.")]
    halted_for: Annotated[float | None, Figure("halted_for", "Seconds since the halt began.")]
    next_probe_in: Annotated[
        float | None, Figure("next_probe_in", "Seconds until the refused token or account is tried again.")
    ]
    unreachable_for: Annotated[
        float | None,
        Figure("unreachable_for", "Seconds since the first of the calls that have brought no verdict."),
    ] = None


class SchemaWait(NamedTuple):
    """One schema that records wait for."""

    kind: Annotated[
        str,
        Figure(
            "kind",
            "How records name a schema that they wait for.",
            status_note="`id`, `guid` or `fingerprint`. The longest wait is first; there are at most 20.",
        ),
    ]
    value: Annotated[str, Figure("value", "That id, GUID or fingerprint.")]
    records: Annotated[int, Figure("records", "How many records wait for it.")]
    seconds: Annotated[float, Figure("seconds", "How long the first of them has waited.")]
    denied_seconds: Annotated[
        float | None,
        Figure(
            "denied_seconds",
            "For how long the registry has been saying that there is none.",
            status_note="null: it does not say so.",
        ),
    ]


class ClockStatistics(NamedTuple):
    """Seconds by which our clock is behind others' (ahead, if negative), and how many events wait for it."""

    platform: Annotated[
        float | None,
        Figure(
            "behind_platform",
            "Seconds that our clock is behind the platform's, at least, as the Date of its answers says; ahead, if "
            "negative.",
            status_note="null: it has not said, or so far only in one or two answers that neither our clock nor the "
            "records' timestamps bear out.",
            merge=furthest,
        ),
    ]
    records: Annotated[
        float,
        Figure(
            "behind_records",
            "Seconds that the records fetched in the last ten minutes were stamped ahead of our clock (median); 0: "
            "they were not.",
            merge=lambda values: max(values, default=0.0),
        ),
    ]
    corrected: Annotated[
        float,
        Figure(
            "corrected",
            "Seconds that are added to our clock.",
            status_note="`behind_platform` where that is a minute or more, else 0.",
            merge=lambda values: furthest(values) or 0.0,
        ),
    ]
    early: Annotated[
        int, Figure("early", "Open events that lie ahead of our clock, and wait.", "pinstream_early_records")
    ]

    @property
    def behind(
        self,
    ) -> Annotated[
        Mapping[str, float | None],
        Figure(
            sentence="Time that our clock is behind the platform's, or the timestamps of records; ahead, if negative.",
            metric="pinstream_clock_behind_seconds",
            labels=("by",),
        ),
    ]:
        """Behind whom by how much."""
        return {"platform": self.platform, "records": self.records}


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
    """The guard has tripped: too many records of a topic that were read one after the other would be dead letters."""

    topic: Annotated[str, Figure("topic", "Where too many records would be dead letters.")]
    rejected: Annotated[int, Figure("rejected", "How many of its latest records would be.")]
    of: Annotated[int, Figure("of", "How many of its latest records that is out of.")]
    mostly: Annotated[str, Figure("mostly", "The most frequent reason of the cause: stage and code.")]
    cause: Annotated[
        Cause,
        Figure(
            "cause",
            "What most of them fail for.",
            status_note="`mapping`, `schema`, `clock` or `destination`.",
        ),
    ]

    @property
    def remedy(self) -> str:
        """What to do before a new start."""
        return _TOO_OLD if self.mostly == _EXPIRED else _REMEDIES[self.cause]

    @property
    def advice(self) -> Annotated[str, Figure("advice", "What to do about that.")]:
        """What to do."""
        return f"{self.remedy} and start again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """One snapshot of the core; the ledger in it adds up."""

    totals: Annotated[Totals, Figure("ledger")]
    mismatch: Annotated[
        int,
        Figure(
            "ledger_mismatch",
            "By how many records the ledger, or that of a partition, does not add up: anything but 0 is a bug.",
            "pinstream_ledger_mismatch_records",
            merge=lambda values: furthest(values) or 0,
        ),
    ] = 0
    passed: Annotated[
        int,
        Figure(
            "passed_over",
            "Records passed over: they were settled before the partition came here (offset map).",
            "pinstream_records_passed_over_total",
        ),
    ]
    joined: Annotated[
        bool,
        Figure(
            "joined",
            "Whether the group has said which partitions are ours, nothing included.",
            "pinstream_joined",
            merge=any,
        ),
    ] = False
    stalled_for: Annotated[
        float | None,
        Figure(
            "stalled_for",
            "Seconds for which nothing was settled though there is work.",
            "pinstream_stalled_seconds",
            status_note="null: less than `PINSTREAM_STALL_AFTER`, or the cause has a name of its own (a stop, the "
            "guard, a destination that is halted, unreachable or throttled).",
            metric_note="0: not for too long.",
            number=lambda seconds: seconds or 0,
            merge=most,
        ),
    ] = None
    key_store_fails: Annotated[
        bool,
        Figure(
            "key_store_fails",
            "Whether the latest look-up or write of the key store failed; it is tried again.",
            "pinstream_key_store_failing",
            merge=any,
        ),
    ] = False
    waiting_for_start: Annotated[
        int,
        Figure(
            "waiting_for_start",
            "Partitions that are ours and not read yet: the brokers have not said where to start.",
            "pinstream_waiting_for_start_partitions",
            status_note="They are not among `partitions`.",
        ),
    ] = 0
    commit_metadata: Annotated[
        MetadataLeft,
        Figure(
            "commit_metadata",
            "What the brokers take with commits.",
            "pinstream_commit_metadata_refused",
            status_note="`maps` (all), `ids` (topic ids and destination, no offset maps), `nothing`. See the "
            "[runbook](runbook.md#commits-without-offset-maps).",
            metric_note="1: no offset maps, so what settles behind an open record may be sent again.",
            number=lambda left: left is not MetadataLeft.MAPS,
            merge=lambda values: max(values, key=list(MetadataLeft).index, default=MetadataLeft.MAPS),
        ),
    ] = MetadataLeft.MAPS
    elsewhere: Annotated[
        int,
        Figure(
            "committed_elsewhere",
            "Partitions that began where the group had committed for another destination: what lies before is not sent "
            "to this one.",
            "pinstream_committed_elsewhere_partitions",
            status_note="See the [runbook](runbook.md#another-destination).",
        ),
    ] = 0
    partitions: Annotated[
        Sequence[PartitionStatistics],
        Figure(
            "partitions[]", "Partitions that this process reads.", "pinstream_assigned_partitions", number=len
        ),
    ]
    accounts: Annotated[Sequence[AccountStatistics], Figure("destination.accounts[]")]
    guard: Annotated[
        GuardStatistics | None,
        Figure(
            "guard",
            "The dead-letter guard has stopped intake, since too many records would be dead letters.",
            "pinstream_dead_letter_guard",
            status_note="null: it has not.",
            metric_note="1: it has, 0: it has not.",
            number=lambda guard: guard is not None,
            merge=first,
        ),
    ] = None
    freshness: Annotated[FreshnessSnapshot, Figure("freshness")]
    open_bytes: Annotated[int, Figure("open.bytes", "Bytes held by open records.", "pinstream_open_bytes")]
    oldest_open_ms: Annotated[
        int | None,
        Figure(
            "open.oldest_record_ms",
            "Kafka timestamp of the oldest open record, milliseconds since 1970.",
            merge=least,
        ),
    ]
    held: Annotated[
        int, Figure("open.held", "Records fetched, and not read for want of room.", "pinstream_held_records")
    ]
    waiting_for_schema: Annotated[
        int,
        Figure(
            "open.waiting_for_schema",
            "Open records whose schema is not known yet.",
            "pinstream_waiting_for_schema_records",
        ),
    ]
    schemas: Annotated[
        Sequence[SchemaWait],
        Figure(
            "open.schemas[]",
            "How long the record that has waited longest for its schema has waited.",
            "pinstream_schema_wait_seconds",
            metric_note="0: none waits.",
            number=lambda waits: max((one.seconds for one in waits), default=0),
        ),
    ] = ()
    claims: Annotated[int, Figure("open.claims", "Event keys that open events hold.", "pinstream_claims")]
    clock: Annotated[ClockStatistics, Figure("clock")] = NO_CLOCK
    oldest_open: Annotated[
        OldestOpen | None,
        Figure(
            "oldest_open",
            "The oldest open record, by its Kafka timestamp.",
            "pinstream_oldest_open_seconds",
            status_note="null: none is open.",
            metric_note="Its age; 0: none is open.",
            number=lambda one: 0 if one is None else one.age,
            merge=lambda values: max(
                (one for one in values if one is not None),
                # One without an age only where all are without, as in the core.
                key=lambda one: -1.0 if one.age is None else one.age,
                default=None,
            ),
        ),
    ] = None
    coverage: Annotated[CoverageSnapshot, Figure("coverage")] = NO_COVERAGE
    letters: Annotated[Sequence[StoredLetter], Figure("latest_dead_letters[]")] = ()
    """Newest first."""
    samples: Annotated[SamplesSnapshot, Figure("samples")] = NO_SAMPLES
    room: Annotated[
        int,
        Figure(
            "room",
            "Records that intake would take now; 0: it has stopped, or all room is used.",
            "pinstream_room_records",
        ),
    ]
    seconds_since_progress: Annotated[
        float,
        Figure(
            "seconds_since_progress",
            "Time since something settled, or since nothing was left to settle.",
            "pinstream_since_progress_seconds",
            merge=lambda values: max(values, default=0.0),
        ),
    ]
    stopping: Annotated[bool, Figure("stopping", "The process was told to stop.", merge=every)]
    counters: Annotated[Counters, Figure("counts")]

    @property
    def destination(
        self,
    ) -> Annotated[
        str,
        Figure(
            "destination.state",
            "The worst state of the ad accounts.",
            status_note="In this order: `open`, `throttled`, `unreachable`, `halted`.",
        ),
    ]:
        """The worst state of any account, for one word on the page."""
        return worst_state(account.state for account in self.accounts)

    @property
    def released(
        self,
    ) -> Annotated[
        int,
        Figure(
            "released",
            "Records released unsettled: whoever has the partition now reads them again.",
            "pinstream_records_released_total",
            status_note="They are not in `ledger.read`.",
        ),
    ]:
        """Fetched, and released unsettled."""
        return self.totals.released

    @property
    def read_ever(
        self,
    ) -> Annotated[
        int,
        Figure(
            sentence="Records read, those released again included.", metric="pinstream_records_read_total"
        ),
    ]:
        """What never falls: `read` of the ledger does, when open records are released."""
        return self.totals.read + self.totals.released

    @property
    def settled(
        self,
    ) -> Annotated[
        Mapping[str, int],
        Figure(
            sentence="Records settled, by disposition.",
            metric="pinstream_records_settled_total",
            labels=("disposition",),
        ),
    ]:
        """By disposition."""
        return {one.value: getattr(self.totals, one.value) for one in Disposition}

    @property
    def open(
        self,
    ) -> Annotated[
        int, Figure(sentence="Records read and not yet settled.", metric="pinstream_records_open")
    ]:
        """Not settled yet."""
        return self.totals.open

    @property
    def unreadable(
        self,
    ) -> Annotated[
        int,
        Figure(
            sentence="Partitions that stand still, since what the broker sends of them is damaged.",
            metric="pinstream_unreadable_partitions",
        ),
    ]:
        """How many partitions cannot be read now."""
        return sum(one.unreadable_at is not None for one in self.partitions)


def worst_state(states: Iterable[str]) -> str:
    """Return the most severe of these states of gates."""
    return max(map(GateState, states), key=list(GateState).index, default=GateState.OPEN).value
