"""What is worth knowing before a replay begins: which of its events the platform could get twice.

Two things can double events, and neither can be seen from a single record. What was delivered longer ago than the
dedup window is no longer known to be. And what the live group has not read yet it may be sending at this moment,
beside us. Both are told in records, as far as the brokers say; a question that they do not answer is no reason not to
replay.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from consumer.adapters.kafka import Bound, resolve_ranges
from consumer.adapters.kafka.groups import committed
from consumer.app.replay.options import ReplayOptions
from consumer.app.replay.parts import Reading
from consumer.core.model import TopicPartition
from consumer.errors import PinstreamError
from consumer.settings import Settings

_TIMEOUT = 15.0


async def beforehand(options: ReplayOptions, settings: Settings, plan: Reading) -> list[str]:
    """One line for each thing to know."""
    told = []
    if not options.ignore_dedup:
        told += await _forgotten(settings, plan)
    told += await _unread(settings, plan)
    return told


async def _forgotten(settings: Settings, plan: Reading) -> list[str]:
    if settings.pinstream.key_store.get_secret_value() == "memory:":
        return [
            "PINSTREAM_KEY_STORE=memory: knows nothing of what was delivered: all of it is sent again; name the "
            "store of the service"
        ]
    begin = Bound("time", int((time.time() - settings.pinstream.dedup_window) * 1000))
    try:
        known = await resolve_ranges(
            settings.kafka.client_properties(), _topics(plan), (), begin, Bound("end"), _TIMEOUT
        )
    except PinstreamError:
        return []
    since = {TopicPartition(one.topic, one.partition): one.begin for one in known}
    older = _count(plan, lambda tp, begin, end: (begin, min(end, since.get(tp, begin))))
    if not older:
        return []
    days = settings.pinstream.dedup_window / 86400
    return [
        f"up to {older:,} of these records are older than PINSTREAM_DEDUP_WINDOW ({days:g} d): what was delivered of "
        "them is no longer known, and is sent again"
    ]


async def _unread(settings: Settings, plan: Reading) -> list[str]:
    group = settings.kafka.group_id
    try:
        read_to = await committed(settings.kafka.client_properties(), group, _topics(plan), _TIMEOUT)
    except PinstreamError:
        return []
    unread = _count(plan, lambda tp, begin, end: (max(begin, read_to.get(tp, end)), end))
    if not unread:
        return []
    return [
        f"the group {group} has not settled up to {unread:,} of these records yet: while it runs, both may send them; "
        "end the replay before its position (`pinstream offsets show`), or stop it first"
    ]


def _topics(plan: Reading) -> list[str]:
    return list(dict.fromkeys(one.topic for one in plan.ranges))


def _count(plan: Reading, part: Callable[[TopicPartition, int, int], tuple[int, int]]) -> int:
    """Offsets in the part that `part` takes of each partition, given what is left of it."""
    parts = (part(name, *bounds) for name, bounds in plan.left().items())
    return sum(max(0, end - begin) for begin, end in parts)
