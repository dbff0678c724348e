"""The ranges of a replay, and warnings before it begins: events that could be sent twice, records not in the range.

Warnings count offsets, so their numbers are "up to".
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from functools import partial

from consumer.adapters.kafka.cluster import behind_transactions
from consumer.adapters.kafka.configuration import Config
from consumer.adapters.kafka.groups import GroupOffsets
from consumer.adapters.kafka.ranges import Bound, resolve_ranges
from consumer.adapters.kafka.replay_progress import ReplayPlan, open_plan
from consumer.commands.replay.bounded_run import DOUBLED
from consumer.commands.replay.fakes import holds_keys
from consumer.commands.replay.options import ReplayOptions
from consumer.engine.model import TopicPartition
from consumer.errors import PinstreamError, first_of
from consumer.settings import Settings

# Seconds for the brokers to answer where ranges begin and end; and for a question that only a warning needs.
_TIMEOUT = 30.0
_WARNING_TIMEOUT = 15.0


async def make_plan(options: ReplayOptions, settings: Settings) -> ReplayPlan:
    """Find where each partition begins and ends; for a named replay, as it was when that began.

    Raises `UsageError` for what does not exist, `KafkaError` if the brokers do not answer.
    """
    config, bounds = settings.kafka.client_properties(), (options.start, options.stop)
    resolve = partial(resolve_ranges, config, options.topics, options.partitions, *bounds, _TIMEOUT)
    # The key store counts in whole seconds: keys that are stored from the next second on are of this replay.
    begun = math.floor(time.time()) + 1
    if options.name is None:
        plan = ReplayPlan(await resolve(), begun, resumed=False, progress=None)
    else:
        # A group of its own, so that the service's group does not move.
        group = f"{settings.kafka.group_id}.replay.{options.name}"
        plan = await open_plan(config, group, options.fingerprint(), resolve, begun, _TIMEOUT)
    if options.ignore_dedup:
        # Nothing may be delivered in the second before: its keys would count as delivered earlier, and be sent twice.
        await asyncio.sleep(max(0.0, plan.begun - time.time()))
    return plan


async def beforehand(options: ReplayOptions, settings: Settings, plan: ReplayPlan) -> AsyncIterator[str]:
    """Yield the warnings, one line each."""
    config, group, left = settings.kafka.client_properties(), settings.kafka.group_id, plan.left()
    topics = sorted({name.topic for name in left})

    def count_below(ends: Mapping[TopicPartition, int]) -> int:
        return sum(max(0, min(end, ends.get(name, begin)) - begin) for name, (begin, end) in left.items())

    if any(begin < end for begin, end in left.values()):
        settled = await _or_nothing(_settled(config, group, left))
        window = settings.pinstream.dedup_window
        # Can the key store have keys of delivered events? A store in this process's memory begins empty.
        if options.ignore_dedup:
            yield f"--ignore-dedup: what was delivered of these records is sent again; {DOUBLED}"
        elif settings.pinstream.key_store.get_secret_value() == "memory:":
            yield (
                "PINSTREAM_KEY_STORE=memory: knows nothing of what was delivered: all of it is sent again; name the "
                f"store of the service ({DOUBLED})"
            )
        elif (done := count_below(settled)) and not holds_keys(settings):
            yield (
                f"there is no key store here, but the group {group} has settled up to {done:,} of these "
                "records: all of them are sent again; run it where the service's PINSTREAM_STATE_DIR is "
                f"({DOUBLED})"
            )
        elif older := count_below(await _or_nothing(_begins(config, topics, time.time() - window))):
            yield (
                f"up to {older:,} of these records are older than PINSTREAM_DEDUP_WINDOW ({window / 86400:g} d): what "
                f"was delivered of them is no longer known, and is sent again: {DOUBLED}"
            )
        # The live group may send records that it has not read yet at the same time as this replay.
        unread = sum(max(0, end - max(begin, settled.get(name, end))) for name, (begin, end) in left.items())
        if unread:
            yield (
                f"the group {group} has not settled up to {unread:,} of these records yet: while it runs, both may "
                "send them; end the replay before its position (`pinstream offsets show`), or stop it first "
                f"({DOUBLED})"
            )
    # A user who names an offset knows the range, and a named replay keeps the end that it began with.
    if options.stop.kind == "offset" or plan.resumed:
        return
    behind = await _or_nothing(behind_transactions(config, list(left), _WARNING_TIMEOUT))
    if behind:
        places = first_of([str(one) for one in sorted(behind)])
        yield (
            f"up to {sum(behind.values()):,} records at the end ({places}) lie behind an open transaction and "
            "are not in this range: they can be read once it has ended"
        )


async def _or_nothing(question: Awaitable[Mapping[TopicPartition, int]]) -> Mapping[TopicPartition, int]:
    """Return the answer; empty if the brokers give none: a replay goes on without the warning."""
    try:
        return await question
    except PinstreamError:
        return {}


async def _settled(
    config: Config, group: str, left: Mapping[TopicPartition, tuple[int, int]]
) -> Mapping[TopicPartition, int]:
    """Return the next offset of the live group in each partition; a partition without one starts here if it runs."""
    # The group may not exist, or this user may not describe it: then the question fails.
    async with GroupOffsets(config, group, _WARNING_TIMEOUT) as offsets:
        positions = await offsets.positions(list(left))
        running = (await offsets.view()).active
    found = {name: one.next_offset for name, one in positions.items() if name in left}
    return {**({name: begin for name, (begin, _) in left.items()} if running else {}), **found}


async def _begins(config: Config, topics: Sequence[str], since: float) -> Mapping[TopicPartition, int]:
    """Return for each partition the first offset whose record is not older than `since` (unix seconds).

    Kafka's timestamps count: it is not known when each record was delivered.
    """
    begin, end = Bound("time", int(since * 1000)), Bound("end")
    ranges = await resolve_ranges(config, topics, (), begin, end, _WARNING_TIMEOUT)
    return {one.name: one.begin for one in ranges}
