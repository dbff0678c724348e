"""The frozen snapshot that page, metrics, /status and tests all read.

Theory of operation. `Pipeline.statistics` takes it between two inputs, so its figures agree with each other. Each
field says what it is on the page, in /status and on /metrics (`figures.definitions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from heapq import nlargest, nsmallest
from itertools import chain
from operator import attrgetter

from consumer.engine.figures import outside, quality
from consumer.engine.figures.counters import MAX_LETTERS, Counters, KeyStoreStatistics, Samples, StoredLetter
from consumer.engine.figures.definitions import (
    by_label,
    derived,
    figure,
    first,
    furthest,
    items,
    joined_lists,
    least,
    maximum,
    merged,
    snapshot,
)
from consumer.engine.figures.delivered import CoverageSnapshot, FreshnessSnapshot
from consumer.engine.figures.latency import CallLatency
from consumer.engine.figures.value import ValueSnapshot
from consumer.engine.figures.waits import MAX_OLDEST, OldestOpen, oldest_first
from consumer.engine.model import Disposition, GateState, MetadataLevel

# Schemas that a snapshot names.
MAX_SCHEMAS = 20


@snapshot
class Totals:
    """The ledger's figures; they add up."""

    read: int = figure("Records read: the sum of the five below.")
    delivered: int = figure("The platform said processed, and the event's key is remembered.")
    duplicate: int = figure("The same event was delivered within the deduplication window.")
    filtered: int = figure("Not sent on purpose: the mapping says so, or the record is a tombstone.")
    dead_lettered: int = figure("Undeliverable, and stored on the dead-letter topic.")
    open: int = figure("Not settled yet. No offset is committed past an open record.")
    # Fetched and released unsettled: the next owner of the partition reads them again.
    released: int = figure(path="", default=0)


@snapshot
class PartitionStatistics:
    """One assigned partition; ``committed <= position <= end``."""

    topic: str = figure(is_label=True)
    partition: int = figure(is_label=True)
    epoch: int
    # What the group knows, not what may be committed: Kafka's own tools must show the same.
    committed: int | None = figure(
        "The committed offset.",
        "pinstream_partition_committed_offset",
        status_note="null before the first commit, and when the log was cut below.",
    )
    position: int | None = figure("The offset after the last record read.")
    end: int | None = figure(
        "The offset after the log's last record, as last heard or fetched.",
    )
    lag: int | None = figure(
        "Records from the committed offset (before the first commit: from where reading began) to the end.",
        "pinstream_partition_lag_records",
        status_note="null: the end is not known, or no broker answers.",
    )
    totals: Totals = figure("As `ledger`, of this partition since it was assigned.", path="ledger")
    lag_seconds: float | None = figure(
        "Age of a partition's first record that is not settled, by its Kafka timestamp; 0: no lag.",
        "pinstream_lag_seconds",
        status_note="With nothing open: the age of the last record read.",
        default=None,
    )
    unreadable_at: int | None = figure(
        "From this offset on the broker sends damaged data, which is requested again.",
        default=None,
    )

    @staticmethod
    def of_workers(lists: Sequence[Sequence[PartitionStatistics]]) -> Sequence[PartitionStatistics]:
        """Return the partitions of all workers, in order."""
        # One that was handed over may be in two snapshots. The newer one, which comes later, replaces the other.
        latest = [seen[-1] for seen in by_label(PartitionStatistics, lists)]
        return tuple(sorted(latest, key=attrgetter("topic", "partition")))


@snapshot
class AccountStatistics:
    """One ad account's gate and queue. Times are seconds from now."""

    account: str = figure("The ad account's id.", is_label=True)
    state: str = figure(
        "The state of the ad account.",
        "pinstream_destination_state",
        status_note="`open`; `throttled`: by a 429 or by the calls of the last minute; `unreachable`: for 30 "
        "seconds no call has brought a verdict; `halted`: the token or the account is refused.",
        labels=("state",),
        metric_note="1: it is in this one.",
        number=lambda state: {one.value: one.value == state for one in GateState},
        # All that are merged are in the same state (`of_workers`).
        merge=first,
    )
    reason: str | None = figure(
        "Why it is halted or unreachable, and who answered.",
        merge=first,
    )
    queued: int = figure("Events that wait to be sent, by ad account.", "pinstream_queued_events")
    in_flight: int = figure("Calls under way, by ad account.", "pinstream_calls_in_flight")
    throttled_for: float | None = figure("Seconds until the throttle ends.", merge=maximum)
    halted_for: float | None = figure("Seconds since the halt began.", merge=maximum)
    next_probe_in: float | None = figure(
        "Seconds until the refused token or account is tried again.", merge=least
    )
    unreachable_for: float | None = figure(
        "Seconds since the first of the calls that have brought no verdict.", default=None, merge=maximum
    )
    by_member: bool = figure(
        "Whether another member reported the throttle or the refusal, through the shared key store.",
        path="told_by_member",
        default=False,
        merge=any,
    )

    @staticmethod
    def of_workers(lists: Sequence[Sequence[AccountStatistics]]) -> Sequence[AccountStatistics]:
        """Return the worst state of any worker's gate, and the sum of the queues; in the order of the settings."""
        accounts = []
        for gates in by_label(AccountStatistics, lists):
            state = worst_state(one.state for one in gates)
            # Reason and times belong to a state: those of other states would contradict it.
            worst = merged(AccountStatistics, [one for one in gates if one.state == state])
            queued, in_flight = (sum(map(attrgetter(name), gates)) for name in ("queued", "in_flight"))
            accounts.append(replace(worst, queued=queued, in_flight=in_flight))
        return tuple(accounts)


@snapshot
class ClockStatistics:
    """Seconds by which our clock is behind others' (ahead, if negative), and how many events wait for it."""

    platform: float | None = figure(
        "Seconds that our clock is behind the platform's, at least, by the Date of its answers; ahead, if negative.",
        path="behind_platform",
        status_note="null: it has not said, or nothing confirms it.",
        merge=furthest,
    )
    records: float = figure(
        "Median of the seconds that the last ten minutes' records were stamped ahead of our clock.",
        path="behind_records",
        merge=lambda values: max(values, default=0.0),
    )
    corrected: float = figure(
        "Seconds that are added to our clock.",
        status_note="`behind_platform` where that is a minute or more, else 0.",
        merge=lambda values: furthest(values) or 0.0,
    )
    future_dated: int = figure(
        "Open events ahead of our clock, or too old by it, which wait because it may be wrong.",
        "pinstream_early_records",
        path="early",
    )
    jumps: int = figure(
        "Times that our clock was set, or the machine suspended.",
        "pinstream_clock_jumps_total",
        default=0,
    )
    remembers_longer: float | None = figure(
        "Seconds for which keys are remembered beyond the window, because a clock jumped.",
        status_note="null: our clock is not confirmed, so no key is forgotten.",
        merge=maximum, default=None,
    )  # fmt: skip

    @derived(metric="pinstream_clock_behind_seconds", labels=("by",))
    def behind(self) -> Mapping[str, float | None]:
        """Time that our clock is behind the platform's, or the timestamps of records; ahead, if negative."""
        return {"platform": self.platform, "records": self.records}


@snapshot
class SlowTransform:
    """The user's function, which has worked on one record for more than a second."""

    function: str = figure("The function that `PINSTREAM_TRANSFORM` names.")
    topic: str = figure("The record's topic.")
    partition: int = figure()
    offset: int = figure()
    seconds: float = figure("For how long it has worked on the record.")


class Cause(Enum):
    """Why most of the records fail that trip the guard: the name in /status, what the page says of the records, and
    what to do. The log, /status, /readyz, replay and redrive have the same words, and add how to go on."""

    SCHEMA = (
        "schema",
        "records cannot be decoded: the schema, or the data in them, is wrong.",
        "correct the schema (at the producer, in the registry or in PINSTREAM_SCHEMAS_DIR)",
    )
    MAPPING = (
        "mapping",
        "records cannot be converted: the mapping, or the data from the producer, is wrong.",
        "correct the mapping or the producer",
    )
    TRANSFORM = (
        "transform",
        "the function of PINSTREAM_TRANSFORM raises, or returns what does not fit the schema.",
        "correct the function of PINSTREAM_TRANSFORM (pinstream.message of the dead letters says where)",
    )
    CLOCK = (
        "clock",
        "event times are in the future: a clock, or the unit of the times, is wrong.",
        "compare the producers' clocks with this machine's, set the wrong one right (far in the future: see whether "
        "time_unit is right)",
    )
    DESTINATION = (
        "destination",
        "Pinterest refuses the events.",
        "find out why Pinterest refuses these events (its words are in the log: events_refused), have that corrected",
    )

    words: tuple[str, str]

    def __new__(cls, value: str, why: str, remedy: str) -> Cause:
        """Make a member: its value is the name in /status."""
        made = object.__new__(cls)
        made._value_, made.words = value, (why, remedy)
        return made


_EXPIRED = "convert expired"
# No clock makes an event younger, but a time in the wrong unit may be in 1970.
_TOO_OLD = (
    "events are older than PINSTREAM_MAX_EVENT_AGE, or the unit of their times is wrong.",
    "see whether time_unit is right; if so, raise PINSTREAM_MAX_EVENT_AGE, or move the group past them (pinstream "
    "offsets set)",
)


@snapshot
class GuardStatistics:
    """The guard has tripped: too many successive records of a topic would be dead letters."""

    topic: str = figure("The topic of these records.")
    rejected: int = figure("How many of its latest records would be dead letters.")
    of: int = figure("How many latest records were looked at.")
    mostly: str = figure("The most frequent reason of the cause: stage and code.")
    cause: Cause = figure(
        "Why most of them fail.",
        status_note="`mapping`, `schema`, `transform`, `clock` or `destination`.",
    )
    section: str = figure("The section that most records of that reason belong to; empty: none.", default="")

    @property
    def reason(self) -> str:
        """The most frequent reason, and the section where the mapping has some."""
        return f"{self.mostly} of {self.section}" if self.section else self.mostly

    @property
    def remedy(self) -> str:
        """What to do before a new start."""
        return self._words[1]

    @derived("why")
    def why(self) -> str:
        """The cause in words."""
        return self._words[0]

    @derived("advice")
    def advice(self) -> str:
        """What to do about that."""
        return f"{self.remedy} and start again"

    @property
    def _words(self) -> tuple[str, str]:
        return _TOO_OLD if self.mostly == _EXPIRED else self.cause.words


@snapshot
class Statistics:
    """One snapshot of the engine; the ledger in it adds up."""

    totals: Totals = figure(path="ledger")
    mismatch: int = figure(
        "By how many records the ledger, or that of a partition, does not add up; if any, a bug.",
        "pinstream_ledger_mismatch_records",
        path="ledger_mismatch",
        merge=lambda values: furthest(values) or 0,
    )
    passed: int = figure(
        "Records passed over: they were settled before the partition came here (offset map).",
        "pinstream_records_passed_over_total",
        path="passed_over",
    )
    joined: bool = figure(
        "Whether the group has assigned partitions, or none, to this process.",
        "pinstream_joined",
        # A worker that starts again, and has not joined yet, does not make the process unready.
        merge=any,
    )
    stalled_for: float | None = figure(
        "Seconds for which nothing was settled though there is work.",
        "pinstream_stalled_seconds",
        status_note="null: less than two minutes, or another figure names the cause (a stop, the guard, a "
        "function that does not return, the destination).",
        metric_note="0: not for too long.",
        number=lambda seconds: seconds or 0,
        merge=maximum,
    )
    key_store_fails: bool = figure(
        "Whether the key store's latest look-up or write failed; it is tried again.",
        "pinstream_key_store_failing",
        merge=any,
    )
    waiting_for_start: int = figure(
        "Assigned partitions not read yet: the brokers have not said where to start.",
        "pinstream_waiting_for_start_partitions",
        status_note="They are not among `partitions`.",
    )
    commit_metadata: MetadataLevel = figure(
        "What the brokers take with commits.",
        "pinstream_commit_metadata_refused",
        status_note="`maps` (all), `ids` (topic ids and destination, no offset maps), `nothing`. "
        "[Runbook](runbook.md#commits-without-offset-maps).",
        metric_note="1: no offset maps, so what settles behind an open record may be sent again.",
        number=lambda left: left is not MetadataLevel.MAPS,
        # The least that any worker's commits may carry.
        merge=lambda values: max(values, key=list(MetadataLevel).index, default=MetadataLevel.MAPS),
    )
    other_destination: int = figure(
        "Partitions that began where the group had committed for another destination: what lies before is not sent "
        "to this one.",
        "pinstream_committed_elsewhere_partitions",
        path="committed_elsewhere",
        status_note="[Runbook](runbook.md#another-destination).",
    )
    members_differ: tuple[str, ...] = figure(
        "Settings in which other members differ, seen in the last ten minutes.",
        "pinstream_members_differ",
        path="members_differ[]",
        labels=("what",),
        status_note="`mapping`, `schemas`, `function`, `destination`. [Runbook](runbook.md#members-differ).",
        metric_note="1: it differs.",
        number=lambda names: dict.fromkeys(names, 1),
        merge=lambda values: tuple(dict.fromkeys(chain.from_iterable(values))),
    )
    partitions: Sequence[PartitionStatistics] = figure(
        "Partitions that this process reads.",
        "pinstream_assigned_partitions",
        path="partitions[]",
        number=len,
        merge=PartitionStatistics.of_workers,
    )
    accounts: Sequence[AccountStatistics] = figure(
        path="destination.accounts[]", merge=AccountStatistics.of_workers
    )
    latency: CallLatency = figure(path="destination.latency")
    guard: GuardStatistics | None = figure(
        "The dead-letter guard has stopped intake, because too many records would be dead letters.",
        "pinstream_dead_letter_guard",
        metric_note="1: it has, 0: it has not.",
        number=lambda guard: guard is not None,
        merge=first,
    )
    # Delivered events only, as of coverage: the platform has no others.
    freshness: FreshnessSnapshot = figure()
    value: ValueSnapshot = figure(path="delivered_value")
    open_bytes: int = figure("Bytes held by open records.", "pinstream_open_bytes", path="open.bytes")
    # The age of the same record is in `oldest_open`; this is to find it by.
    oldest_open_ms: int | None = figure(
        "Kafka timestamp of the oldest open record, milliseconds since 1970.",
        path="open.oldest_record_ms",
        merge=least,
    )
    held: int = figure(
        "Records fetched and not read yet, because there is no room.",
        "pinstream_held_records",
        path="open.held",
    )
    waiting_for_schema: int = figure(
        "Open records whose schema is not known yet.",
        "pinstream_waiting_for_schema_records",
        path="open.waiting_for_schema",
    )
    schemas: Sequence[outside.SchemaWait] = figure(
        "Longest time that a record has waited for its schema.",
        "pinstream_schema_wait_seconds",
        path="open.schemas[]",
        metric_note="0: none waits.",
        number=lambda waits: max((one.seconds for one in waits), default=0),
        merge=lambda lists: tuple(
            nlargest(MAX_SCHEMAS, joined_lists(outside.SchemaWait, lists), key=attrgetter("seconds"))
        ),
    )
    claims: int = figure("Event keys that open events hold.", "pinstream_claims", path="open.claims")
    clock: ClockStatistics = figure()
    oldest_open: OldestOpen | None = figure(
        "The oldest open record, by its Kafka timestamp.",
        "pinstream_oldest_open_seconds",
        metric_note="Its age; 0: none is open.",
        number=lambda one: 0 if one is None else one.age,
        merge=lambda values: min(filter(None, values), key=oldest_first, default=None),
    )
    oldest: Sequence[OldestOpen] = figure(
        "The oldest open record of each partition, the oldest first, at most 20.",
        path="open.oldest[]",
        merge=lambda lists: tuple(nsmallest(MAX_OLDEST, chain.from_iterable(lists), key=oldest_first)),
    )
    coverage: CoverageSnapshot = figure()
    # Newest first.
    letters: Sequence[StoredLetter] = figure(
        path="latest_dead_letters[]",
        merge=lambda lists: tuple(nlargest(MAX_LETTERS, chain.from_iterable(lists), key=attrgetter("at"))),
    )
    samples: Samples = figure()
    room: int = figure(
        "Records that intake would take now; 0: it has stopped, or all room is used.",
        "pinstream_room_records",
    )
    seconds_since_progress: float = figure(
        "Time since something settled, or since nothing was left to settle.",
        "pinstream_since_progress_seconds",
        # The longest: the progress of the others must not hide a worker that stands still.
        merge=lambda values: max(values, default=0.0),
    )
    stopping: bool = figure(
        "The process was asked to stop.", merge=lambda values: bool(values) and all(values)
    )
    counters: Counters = figure(path="counts")
    slow_transform: SlowTransform | None = figure(
        "The user's function works on one record for more than a second. Nothing else is read until it is done.",
        "pinstream_transform_slow_seconds",
        default=None,
        metric_note="For how long; 0: none does.",
        number=lambda slow: 0 if slow is None else slow.seconds,
        merge=first,
    )
    claimed_elsewhere: int = figure(
        "Open events that another member has in flight (shared key store).",
        "pinstream_claimed_elsewhere_events",
        default=0,
    )
    lease_left: float | None = figure(
        "Seconds for which our claims in the shared key store hold: no call begins that may take longer.",
        "pinstream_lease_seconds",
        path="lease_seconds_left",
        default=None,
        number=lambda seconds: seconds or 0,
        # Each worker has a lease of its own: the one that ends first.
        merge=least,
    )
    schemas_from_disk: int = figure(
        "Schemas read from the state folder, because the registry does not answer.",
        "pinstream_schemas_from_disk",
        default=0,
        status_note="[Runbook](runbook.md#registry-down).",
        # Workers read the same schemas: a sum would count each of them several times.
        merge=lambda values: max(values, default=0),
    )
    quota_members: int = figure(
        "Members of the group by which PINSTREAM_CALLS_PER_MINUTE is divided: the largest number that held partitions "
        "within the last minute.",
        "pinstream_quota_members",
        path="destination.quota_divided_by",
        default=1,
        status_note="1 with a shared key store.",
        # Each worker counts the members of the whole group.
        merge=lambda values: max(values, default=1),
    )
    # The engine does not know it: while the process starts, its shell adds it.
    starting: str | None = figure(
        "What the process waits for before it joins its group.",
        default=None,
        merge=first,
    )
    # The service adds these two, because the engine has no key store and no log of its own.
    key_store: KeyStoreStatistics = figure(default=KeyStoreStatistics())
    log_lines_dropped: int = figure(
        "Lines of the log that could not be written.",
        "pinstream_log_lines_dropped_total",
        path="counts.log_lines_dropped",
        default=0,
    )
    brokers: Sequence[outside.BrokerStatistics] = items("brokers[]", outside.BrokerStatistics)
    key_store_trouble: str | None = figure(
        "Why the key store failed, and what to do.",
        default=None,
        merge=first,
    )
    receipts_error: str | None = figure(
        "Why receipts cannot be written, and what to do. Nothing settles without its receipt.",
        "pinstream_receipts_failing",
        default=None,
        metric_note="1: they cannot, 0: they can, or none are wanted.",
        number=lambda error: error is not None,
        merge=first,
    )
    certificates: Sequence[outside.CertificateStatistics] = items(
        "certificates[]", outside.CertificateStatistics
    )
    schema_drift: Sequence[outside.DriftedSection] = items("schema_drift[]", outside.DriftedSection)
    event_quality: quality.EventQuality = figure(default=quality.EventQuality())
    brokers_silent: outside.Silence | None = outside.silence(
        "No broker answers: nothing can be read or committed.",
        "pinstream_brokers_silent_seconds",
        otherwise="a broker answers, or none was asked",
        runbook="the-brokers-do-not-answer",
    )
    coordinator_silent: outside.Silence | None = outside.silence(
        "Brokers answer, and no coordinator of the group does: no member can join or commit.",
        "pinstream_coordinator_silent_seconds",
        otherwise="one answers, or no broker does",
        runbook="no-coordinator-of-the-group",
    )

    @derived("destination.state", status_note="In this order: `open`, `throttled`, `unreachable`, `halted`.")
    def destination(self) -> str:
        """The worst state of the ad accounts."""
        return worst_state(account.state for account in self.accounts)

    @derived(
        "released", metric="pinstream_records_released_total", status_note="They are not in `ledger.read`."
    )
    def released(self) -> int:
        """Records released unsettled: the next owner of the partition reads them again."""
        return self.totals.released

    @derived(metric="pinstream_records_read_total")
    def read_ever(self) -> int:
        """Records read, those released again included."""
        # A counter must not fall, and `read` of the ledger falls when open records are released.
        return self.totals.read + self.totals.released

    @derived(metric="pinstream_records_settled_total", labels=("disposition",))
    def settled(self) -> Mapping[str, int]:
        """Records settled, by disposition."""
        return {one.value: getattr(self.totals, one.value) for one in Disposition}

    @derived(metric="pinstream_records_open")
    def open(self) -> int:
        """Records read and not yet settled."""
        return self.totals.open

    @derived("counts.keys_lost", metric="pinstream_keys_lost_total")
    def keys_lost(self) -> int:
        """Keys of delivered events that the shared key store lost: a replica lacked them, or it was flushed or
        restored. Such an event, read again, is sent again."""
        return self.key_store.lost

    @derived("counts.keys_forgotten_early", metric="pinstream_keys_forgotten_early_total")
    def keys_forgotten_early(self) -> int:
        """Keys of delivered events forgotten before their window ended: the key store was full, or its folder
        deleted."""
        return self.key_store.evicted_early

    @derived(metric="pinstream_unreadable_partitions")
    def unreadable(self) -> int:
        """Partitions that cannot be read on, because the broker sends damaged data."""
        return sum(one.unreadable_at is not None for one in self.partitions)


def worst_state(states: Iterable[str]) -> str:
    """Return the most severe of these states of gates."""
    return max(map(GateState, states), key=list(GateState).index, default=GateState.OPEN).value
