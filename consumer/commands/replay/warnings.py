"""What is worth knowing before a replay begins: what of it the platform could get twice, and what is not in it.

What could be doubled cannot be seen from a single record: what was delivered longer ago than the dedup window, or is
not in this key store, is not known to be delivered; and what the live group has not read yet, or another replay reads,
may be sent at this moment beside us. All is told in records, as far as the brokers say; a question that they do not
answer is no reason not to replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from consumer.adapters.kafka import Bound, behind_transactions, committed, group_members, resolve_ranges
from consumer.commands.replay.options import ReplayOptions
from consumer.commands.replay.parts import ReplayScope, holds_keys
from consumer.engine.model import TopicPartition
from consumer.errors import PinstreamError
from consumer.settings import Settings

_TIMEOUT = 15.0
DOUBLED = (
    "what happened more than an hour before it arrives counts as offline, and the platform does not drop doubles of "
    "that: each is a second conversion"
)
"""Why sending again what was delivered is not harmless: the platform's one-hour rule."""


async def beforehand(options: ReplayOptions, settings: Settings, plan: ReplayScope) -> list[str]:
    """One line for each thing to know."""
    told = []
    if any(begin < end for begin, end in plan.left().values()):
        settled = await _settled(settings, plan)
        if options.ignore_dedup:
            told.append(f"--ignore-dedup: what was delivered of these records is sent again; {DOUBLED}")
        else:
            told += _unknown(settings, plan, settled) or await _forgotten(settings, plan)
        told += _unread(settings, plan, settled)
    if options.stop.kind != "offset" and not plan.resumed:
        told += await _behind(settings, plan)
    return told


def _unknown(settings: Settings, plan: ReplayScope, settled: Mapping[TopicPartition, int]) -> list[str]:
    """Where the key store cannot know what was delivered."""
    if settings.pinstream.key_store.get_secret_value() == "memory:":
        return [
            "PINSTREAM_KEY_STORE=memory: knows nothing of what was delivered: all of it is sent again; name the "
            f"store of the service ({DOUBLED})"
        ]
    done = _count(plan, lambda name, begin, end: (begin, min(end, settled.get(name, begin))))
    if holds_keys(settings) or not done:
        return []
    return [
        f"there is no key store here, but the group {settings.kafka.group_id} has settled up to {done:,} of these "
        "records: all of them are sent again; run it where the service's PINSTREAM_STATE_DIR is "
        f"({DOUBLED})"
    ]


async def _forgotten(settings: Settings, plan: ReplayScope) -> list[str]:
    begin = Bound("time", int((time.time() - settings.pinstream.dedup_window) * 1000))
    try:
        known = await resolve_ranges(
            settings.kafka.client_properties(), _topics(plan), (), begin, Bound("end"), _TIMEOUT
        )
    except PinstreamError:
        return []
    since = {TopicPartition(one.topic, one.partition): one.begin for one in known}
    older = _count(plan, lambda name, begin, end: (begin, min(end, since.get(name, begin))))
    if not older:
        return []
    days = settings.pinstream.dedup_window / 86400
    return [
        f"up to {older:,} of these records are older than PINSTREAM_DEDUP_WINDOW ({days:g} d): what was delivered of "
        f"them is no longer known, and is sent again: {DOUBLED}"
    ]


async def _settled(settings: Settings, plan: ReplayScope) -> Mapping[TopicPartition, int]:
    """Up to where the live group has settled; what it has not begun at all counts from its beginning if it runs."""
    config, group = settings.kafka.client_properties(), settings.kafka.group_id
    try:
        found = await committed(config, group, _topics(plan), _TIMEOUT)
        running = (await group_members(config, group, _TIMEOUT)).active
    except PinstreamError:
        return {}
    return {**({name: begin for name, (begin, _) in plan.left().items()} if running else {}), **found}


def _unread(settings: Settings, plan: ReplayScope, settled: Mapping[TopicPartition, int]) -> list[str]:
    unread = _count(plan, lambda name, begin, end: (max(begin, settled.get(name, end)), end))
    if not unread:
        return []
    return [
        f"the group {settings.kafka.group_id} has not settled up to {unread:,} of these records yet: while it runs, "
        "both may send them; end the replay before its position (`pinstream offsets show`), or stop it first "
        f"({DOUBLED})"
    ]


async def _behind(settings: Settings, plan: ReplayScope) -> list[str]:
    names = [TopicPartition(one.topic, one.partition) for one in plan.ranges]
    try:
        behind = await behind_transactions(settings.kafka.client_properties(), names, _TIMEOUT)
    except PinstreamError:
        return []
    if not behind:
        return []
    where = ", ".join(str(name) for name in sorted(behind)[:3])
    return [
        f"up to {sum(behind.values()):,} records at the end ({where}) lie behind an open transaction and are not in "
        "this range: nobody can read them before it is over"
    ]


def _topics(plan: ReplayScope) -> list[str]:
    return list(dict.fromkeys(one.topic for one in plan.ranges))


def _count(plan: ReplayScope, part: Callable[[TopicPartition, int, int], tuple[int, int]]) -> int:
    """Offsets in the part that `part` takes of each partition, given what is left of it."""
    parts = (part(name, *bounds) for name, bounds in plan.left().items())
    return sum(max(0, end - begin) for begin, end in parts)
