"""How far a named replay has come, kept in a consumer group of its own.

Each partition's commit carries, before the engine's offset map, the whole plan as far as that partition goes: its
range, when the replay began, a digest of the arguments, and a digest of all partitions' ranges. So a replay that goes
on keeps the ends that it began with, however much the topic has grown, and needs no file.

Nothing here keeps two replays of one name apart: they would do the same work, and the later commit counts.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from confluent_kafka import KafkaException

from consumer.adapters.kafka.client_errors import GROUP_IN_USE, PASSING, cause_of
from consumer.adapters.kafka.cluster import cluster_id
from consumer.adapters.kafka.commits import commit_done, raw_partition, read_commit_answer
from consumer.adapters.kafka.configuration import Config, time_left
from consumer.adapters.kafka.groups import GroupOffsets
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.topic_ids import ask_once
from consumer.adapters.thread import in_own_thread, run_blocking
from consumer.engine.messages import CommitDone
from consumer.engine.model import METADATA_BYTES, Position, TopicPartition
from consumer.engine.records import offset_map
from consumer.errors import KafkaError, UsageError

_COMMIT_TIMEOUT: Final = 10.0
# Seconds that a question gets even if less time is left.
_LEAST: Final = 1.0
# Seconds between two tries while the coordinator starts or moves.
_PAUSE: Final = 0.1
# Seconds after which a commit repeats the positions of all other partitions; far less than the time for which brokers
# keep offsets: a week, in old versions a day.
_REFRESH: Final = 3600.0

_LARGEST: Final = (1 << 63) - 1
_LATEST: Final = 253_402_300_799
"""The last second that a `datetime` can hold."""
_NUMBER = r"([0-9]{1,19})"
_TIME = r"(-?[0-9]{1,15})?"
_PREFIX: Final = re.compile(
    rf"pinstream\.replay:1:([0-9a-f]{{16}}):([0-9]{{1,7}}):([0-9a-f]{{16}}):{_NUMBER}:{_NUMBER}:{_NUMBER}:"
    rf"{_TIME}:{_TIME};"
)


class Entry(NamedTuple):
    """What the commit of one partition holds: its part of the plan, and how far the replay has come there.

    `plan`: digest of the whole, `partitions`: their number, `begun`: unix seconds. `range`: with its start, whose
    metadata is the engine's offset map, without the plan.
    """

    plan: str
    partitions: int
    fingerprint: str
    begun: int
    range: Range


def write_entry(entry: Entry) -> str:
    """Return the prefix of the metadata: ASCII, of bounded length."""
    plan, partitions, fingerprint, begun, (_, _, begin, end, *times, _) = entry
    since, until = ("" if one is None else str(one) for one in times)
    return f"pinstream.replay:1:{plan}:{partitions}:{fingerprint}:{begun}:{begin}:{end}:{since}:{until};"


def read_entry(committed: Position) -> Entry | None:
    """Return the entry that was committed as this position; None if another program wrote it."""
    found = _PREFIX.match(committed.metadata)
    if found is None:
        return None
    plan, partitions, fingerprint, begun, begin, end, *times = found.groups()
    since, until = (None if one is None else int(one) for one in times)
    start = committed._replace(metadata=committed.metadata[found.end() :])
    planned = Range(committed.topic, committed.partition, int(begin), int(end), since, until, start)
    entry = Entry(plan, int(partitions), fingerprint, int(begun), planned)
    # The numbers must be exactly as we write them: `007` is from another program, and offsets have limits.
    if (
        write_entry(entry) != found[0]
        or not planned.begin <= planned.end <= _LARGEST
        or entry.begun > _LATEST
    ):
        return None
    return entry


_LONGEST: Final = Entry(
    "f" * 16, 10**7 - 1, "f" * 16, _LATEST,
    Range("", 0, _LARGEST, _LARGEST, -(10**15) + 1, -(10**15) + 1),
)  # fmt: skip
MAX_METADATA: Final = METADATA_BYTES - len(write_entry(_LONGEST))
"""Bytes that are left for the engine's offset map beside the plan: `Policy.map_bytes` of a named replay."""


class ReplayPlan(NamedTuple):
    """What a replay reads. `begun`: unix seconds. `resumed`: begun by an earlier run.

    `progress` is for `BoundedSource`, which closes it; None if the replay has no name.
    """

    ranges: Sequence[Range]
    begun: int
    resumed: bool
    progress: NamedProgress | None

    def left(self) -> dict[TopicPartition, tuple[int, int]]:
        """Return the offsets [begin, end) that are left to read of each partition."""
        return {one.name: (one.first.next_offset, one.end) for one in self.ranges}


async def open_plan(
    config: Config,
    group: str,
    fingerprint: str,
    resolve: Callable[[], Awaitable[Sequence[Range]]],
    now: float,
    timeout: float,
) -> ReplayPlan:
    """Return the plan that is committed in `group`, or else a new one from `resolve`, which is committed at once.

    `fingerprint`: any text of the arguments that make the replay what it is. Raises `UsageError` where the group
    holds a plan with another fingerprint or offsets of another client, and `KafkaError` if the brokers do not answer.
    """
    # Brokers that refuse the login never answer a question about a group. A first contact ends at once, and says why.
    await cluster_id(config, timeout)
    progress, digest = NamedProgress(config, group, timeout), _digest(fingerprint)
    try:
        entries = _find_plan((await progress.positions(())).values(), group, digest)
        resumed = bool(entries)
        if not resumed:
            ranges = await resolve()
            topics = {one.topic for one in ranges}
            ids = await run_blocking("pinstream-kafka-ids", ask_once, config, topics, timeout)
            entries = _new_plan(ranges, digest, int(now), ids)
        # Commit all of it before anything is read: a part of a plan could not be distinguished from a shorter plan. A
        # resumed plan is committed, too: this shows at once if commits fail.
        await progress.begin(entries)
    except BaseException:
        await progress.close()
        raise
    begun = entries[0].begun if entries else int(now)  # a new topic may have no partition yet
    return ReplayPlan([one.range for one in entries], begun, resumed, progress)


def _new_plan(ranges: Sequence[Range], fingerprint: str, begun: int, ids: Mapping[str, str]) -> list[Entry]:
    plan = _digest_plan(ranges, fingerprint, begun)
    entries = []
    for one in ranges:
        # The first commit also records the ids of the topics: a topic that is created again has another id.
        text = offset_map.write_map(one.name, one.begin, (), None, topic_id=ids.get(one.topic))
        start = Position(*one.name, one.begin, None, text)
        entries.append(Entry(plan, len(ranges), fingerprint, begun, one._replace(start=start)))
    return entries


class NamedProgress(GroupOffsets):
    """The offsets of a named replay's group: commits positions, each with its part of the plan.

    `timeout`: seconds for each question and for `begin`.
    """

    def __init__(self, config: Config, group: str, timeout: float) -> None:
        super().__init__(config, group, timeout)
        self._prefixes: dict[tuple[str, int], str] = {}
        self._last: dict[tuple[str, int], Position] = {}
        """The last committed position of each partition, without the prefix."""
        self._refresh_due = 0.0
        self._closed = False

    @in_own_thread
    def begin(self, entries: Sequence[Entry]) -> None:
        """Commit the whole plan. Raises `KafkaError`."""
        self._prefixes = {one.range[:2]: write_entry(one) for one in entries}
        deadline = time.monotonic() + self._timeout
        while True:
            result = self._commit([one.range.first for one in entries], time_left(deadline, _LEAST))
            # A coordinator that starts or moves answers within seconds.
            if result.failure not in PASSING or time.monotonic() >= deadline:
                break
            time.sleep(_PAUSE)
        # Commits by a client that is no member: brokers refuse them while the group has members.
        if result.failure in GROUP_IN_USE:
            raise KafkaError(
                f"Kafka: the group {self._group} has members, so no replay can keep its progress there: stop them, "
                f"or give another --name ({result.failure})"
            )
        if result.failure is not None:
            raise KafkaError(
                f"Kafka: the plan of the replay cannot be kept in the group {self._group}: grant READ on it and check "
                f"the brokers, or replay without --name ({result.failure})"
            )

    async def commit(self, positions: Sequence[Position]) -> CommitDone:
        """Commit positions, each with its part of the plan: one try, within the time limit. Never raises."""
        if self._closed:
            # librdkafka's code for a closed client: the thread has ended and would not answer.
            return commit_done((), "_DESTROY")
        return await self._thread.run(self._commit, positions, _COMMIT_TIMEOUT)

    async def close(self) -> None:
        """End the client, after the call that is under way. A second call does nothing."""
        if not self._closed:
            self._closed = True
            # In the thread, not on the event loop: destroying a client waits for its own threads.
            await self._thread.end(self._client.close, timeout=_COMMIT_TIMEOUT)

    def _commit(self, positions: Sequence[Position], timeout: float) -> CommitDone:
        ours = [one for one in positions if one[:2] in self._prefixes]
        omitted = None if len(ours) == len(positions) else "_UNKNOWN_PARTITION"
        # Also if this commit fails: settled records stay settled, and the next refresh may commit the positions.
        self._last.update({one[:2]: one for one in ours})
        # All offsets are committed again from time to time: the brokers delete offsets that are not committed again.
        refresh = time.monotonic() >= self._refresh_due
        sent = list(self._last.values()) if refresh else ours
        if not sent:
            return commit_done((), omitted)
        whole = [raw_partition(*one[:4], self._prefixes[one[:2]] + one.metadata) for one in sent]
        try:
            answered = self._alter(whole, timeout)
        except KafkaException as error:
            return commit_done((), cause_of(error).name())
        if refresh:
            self._refresh_due = time.monotonic() + _REFRESH
        return read_commit_answer(None, answered, ours, omitted)


def _find_plan(committed: Iterable[Position], group: str, fingerprint: str) -> list[Entry]:
    """Return the complete plan that is committed; empty if there is none, or only a part of one."""
    # By all that the entries of one plan have in common.
    plans: defaultdict[tuple[str, int, str, int], list[Entry]] = defaultdict(list)
    for one in committed:
        entry = read_entry(one)
        # What another client committed is never overwritten.
        if entry is None or not entry.range.begin <= one.next_offset <= entry.range.end:
            raise UsageError(
                f"the group {group} holds offsets that no replay wrote ({one.topic}[{one.partition}]): "
                "give another --name, or delete the group"
            )
        plans[entry[:4]].append(entry)
    whole: list[list[Entry]] = []
    rests: list[Entry] = []
    for (plan, partitions, made_by, begun), parts in plans.items():
        digest = _digest_plan([one.range for one in parts], made_by, begun)
        if len(parts) == partitions and plan == digest:
            whole.append(sorted(parts, key=lambda one: one.range[:2]))
        else:
            rests += parts
    # If nothing is settled, only the first commit was cut short: the replay starts again. Otherwise the brokers have
    # deleted offsets, which they do one by one, `offsets.retention.minutes` after the commit: to guess the missing ones
    # would make a shorter replay look complete.
    if len(whole) > 1 or any(map(_has_settled, rests)):
        raise UsageError(
            f"the progress of the replay in the group {group} is incomplete (brokers delete it after "
            f"offsets.retention.minutes): give another --name"
        )
    if whole and whole[0][0].fingerprint != fingerprint:
        moment = datetime.fromtimestamp(whole[0][0].begun, UTC)
        raise UsageError(
            f"the replay in the group {group} was begun at {moment:%Y-%m-%dT%H:%M:%SZ} with other arguments: "
            "give the same, or another --name"
        )
    return whole[0] if whole else []


def _has_settled(entry: Entry) -> bool:
    """Return whether any record of this partition is settled."""
    position = entry.range.first
    if position.next_offset > entry.range.begin:
        return True
    said = offset_map.read_map(position)
    # Metadata that cannot be read may have been a map.
    return bool(position.metadata) if said is offset_map.NOTHING_SAID else said.settled is not None


def _digest_plan(ranges: Iterable[Range], fingerprint: str, begun: int) -> str:
    # The digest is of the text of these values, which must not change: an interrupted replay may go on with a newer
    # version. The starts do not count: they move.
    return _digest(repr((fingerprint, begun, sorted(one[:6] for one in ranges))))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
