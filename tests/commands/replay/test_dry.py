"""What stands in for the outside in a dry run."""

from __future__ import annotations

import asyncio
import time
from email.utils import parsedate_to_datetime

from consumer.commands.replay.dry import AcceptsAll
from consumer.engine import messages as m
from consumer.engine.model import Chunk, Record
from tests.engine.building import START, UNIX, Core, event


def test_what_lies_ahead_is_not_waited_for_one_a_second() -> None:
    """The answers say what time it is by this machine's clock: events ahead of it, and their records' times, too, are
    judged with the first of them."""
    answer = asyncio.run(AcceptsAll().send(m.Send(1, "1", b"{}", 1)))
    said = parsedate_to_datetime(answer.headers["date"]).timestamp()
    assert abs(said - time.time()) < 5
    core = Core(linger=0.0)
    core.clock_off = said - UNIX
    core.assign()
    hour = core.instant().unix + 3600
    core.fetch(event("right"))
    stamped = [
        Chunk("shop", 0, 1, 7, [Record(1 + n, int(hour * 1000), None, event(f"{n}", time=hour), ())])
        for n in range(3)
    ]
    core.feed(m.Fetched(stamped))
    assert core.statistics().clock.early == 3
    core.look_up()
    send = core.take(m.Send)
    body = asyncio.run(AcceptsAll().send(send))
    core.feed(body)
    assert core.statistics().clock.early == 0
    assert core.now == START
