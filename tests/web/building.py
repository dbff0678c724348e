"""Builders of snapshots for the web tests, and of a running server: name what matters, the rest is quiet.

`partition` counts its own `read`, so a built ledger always adds up; `statistics` sums its partitions up, as the core
does. The scenes (`busy`, `halted`, …) are what a person may see on the page.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from consumer.core.ledger import Totals
from consumer.core.statistics import (
    AccountStatistics,
    Counters,
    Freshness,
    GuardStatistics,
    PartitionStatistics,
    Statistics,
)
from consumer.web.server import WebServer

TOPIC = "orders"
ACCOUNT = "549755885175"
OTHER_ACCOUNT = "549755885176"
UNIX = 1_700_000_000
STALL_AFTER = 120.0
INFO: Mapping[str, Any] = {
    "process": {
        "version": "0.1.0",
        "started": UNIX,
        "group": "pinstream",
        "topics": ["orders", "^shop\\..*"],
        "sends_to": "https://api.pinterest.com/v5",
        "test_mode": False,
    },
    "key_store": {"keys": 1_204_511, "bytes": 96_360_880, "buckets": 49, "evicted_early": 0},
}


def totals(
    delivered: int = 0,
    duplicate: int = 0,
    filtered: int = 0,
    dead_lettered: int = 0,
    open: int = 0,
    released: int = 0,
) -> Totals:
    """A ledger that adds up."""
    read = delivered + duplicate + filtered + dead_lettered + open
    return Totals(read, delivered, duplicate, filtered, dead_lettered, open, released)


def partition(
    number: int = 0, *, lag: int | None = 0, committed: int | None = 0, topic: str = TOPIC, **counts: int
) -> PartitionStatistics:
    """An assigned partition; `counts` as in `totals`."""
    end = None if lag is None else (committed or 0) + lag
    own = totals(**counts)
    return PartitionStatistics(topic, number, 1, committed, (committed or 0) + own.open, end, lag, own)


def account(
    name: str = ACCOUNT,
    state: str = "open",
    *,
    reason: str | None = None,
    queued: int = 0,
    in_flight: int = 0,
    seconds: float = 12.5,
) -> AccountStatistics:
    """An ad account's gate; `seconds` goes into the times that its state has."""
    halted = state == "halted"
    return AccountStatistics(
        account=name,
        state=state,
        reason=reason or ("the access token is refused (HTTP 401, code 2)" if halted else None),
        queued=queued,
        in_flight=in_flight,
        throttled_for=seconds if state == "throttled" else None,
        halted_for=seconds if halted else None,
        next_probe_in=seconds if halted else None,
    )


def statistics(
    *partitions: PartitionStatistics,
    accounts: Sequence[AccountStatistics] = (),
    ended: Totals | None = None,
    ages: Iterable[float] = (),
    counters: Counters | None = None,
    stopping: bool = False,
    **others: Any,
) -> Statistics:
    """A snapshot. `ended`: what partitions that are ours no more left behind; `ages` of delivered events, seconds."""
    all_totals = [one.totals for one in partitions] + ([ended] if ended is not None else [])
    names = ("read", "delivered", "duplicate", "filtered", "dead_lettered", "open", "released")
    freshness = Freshness()
    freshness.add([UNIX - int(one) for one in ages], UNIX)
    values: dict[str, Any] = {
        "open_bytes": 0,
        "held": 0,
        "passed": 0,
        "room": 1000,
        "claims": 0,
        "waiting_for_schema": 0,
        "oldest_open_ms": None,
        "seconds_since_progress": 0.0,
    }
    return Statistics(
        totals=Totals(*(sum(getattr(one, name) for one in all_totals) for name in names)),
        partitions=partitions,
        accounts=accounts,
        freshness=freshness.snapshot(),
        counters=counters or Counters(),
        stopping=stopping,
        **(values | others),
    )


def full_counters() -> Counters:
    """Counters with something different in each of them."""
    counters = Counters()
    counters.rejections.update({("decode", "malformed"): 3, ("convert", "no_identity"): 41})
    counters.rejections.update({("convert", "expired"): 7, ("deliver", "refused"): 5})
    counters.filtered.update({"event_name": 210, "tombstone": 4})
    counters.delivered_by_name.update({"checkout": 31_000, "page_visit": 870_000})
    counters.convert_warnings.update({"value_zero": 12, "em_malformed": 77})
    counters.api_warnings.update({"'currency' is recommended": 8})
    counters.api_errors.update({"'em' is not hashed": 9})
    counters.answers.update({"200": 1_000, "429": 6, "timeout": 2})
    counters.no_verdicts.update({"timeout": 2, "server_error": 10})
    counters.failures.update({"commit": 1})
    singles = ("calls", "bytes_sent", "events_sent", "bisected", "retried_batches", "followers")
    for value, name in enumerate((*singles, "unclear_offline", "processed_with_error"), start=1_001):
        setattr(counters, name, value)
    counters.delivered_after_release = 13
    return counters


# -- scenes


def busy() -> Statistics:
    """All is well, and there is much to do; a partition has moved away meanwhile."""
    return statistics(
        *(
            partition(
                number,
                lag=1_650 + 4_211 * number,
                committed=1_200_345 + number,
                delivered=1_180_000,
                duplicate=12_001,
                filtered=8_300,
                dead_lettered=44,
                open=1_650,
            )
            for number in range(4)
        ),
        accounts=[account(queued=4_211, in_flight=7), account(OTHER_ACCOUNT, queued=12)],
        ended=totals(delivered=400_000, released=812),
        ages=[3] * 900 + [45] * 60 + [4_000] * 40,
        counters=full_counters(),
        oldest_open_ms=UNIX * 1000,
        claims=6_600,
    )


def halted() -> Statistics:
    """The token is refused: intake has stopped."""
    return statistics(
        partition(0, lag=52_011, committed=88_000, delivered=88_000, open=20_000),
        accounts=[account(state="halted", queued=20_000, seconds=754.2)],
        ages=[20] * 10,
        room=0,
        seconds_since_progress=754.2,
    )


def guarded() -> Statistics:
    """Too many records would be dead letters: intake has stopped."""
    return statistics(
        partition(0, lag=52_011, committed=88_000, delivered=88_000, open=640),
        accounts=[account()],
        ages=[20] * 10,
        room=0,
        seconds_since_progress=754.2,
        guard=GuardStatistics(TOPIC, 1_640, 2_000, "convert no_identity"),
    )


def throttled() -> Statistics:
    """A 429 closed the gate."""
    return statistics(
        partition(0, lag=1_011, committed=88_000, delivered=88_000, open=1_000),
        accounts=[account(state="throttled", queued=1_000, seconds=37.0)],
        ages=[4_000] * 10,
    )


def empty() -> Statistics:
    """Just started: no partitions, nothing read."""
    return statistics()


def idle() -> Statistics:
    """All that there was is delivered."""
    return statistics(
        partition(0, committed=5_000, delivered=5_000), accounts=[account()], ages=[700_000] + [5] * 99
    )


# -- a running server


@dataclass(slots=True)
class Served:
    """A running server whose snapshot, clock and last fetch the test sets."""

    url: str
    server: WebServer
    session: aiohttp.ClientSession
    shown: Shown

    async def get(self, path: str, method: str = "GET") -> tuple[int, Mapping[str, str], str]:
        """Status, headers and text of an answer."""
        async with self.session.request(method, self.url.rstrip("/") + path) as answer:
            return answer.status, answer.headers, await answer.text()


@dataclass(slots=True)
class Shown:
    """What the server sees. `looks` counts the snapshots it took, `asked` the /status documents."""

    statistics: Statistics
    now: float = 5_000.0
    fetched_at: float | None = None
    looks: int = 0
    info: Mapping[str, Any] = field(default_factory=lambda: INFO)
    broken: Exception | None = None
    asked: int = 0
    answers_most: int = 1_000_000

    def tell(self) -> Mapping[str, Any]:
        """`info`, for so many /status documents at most; there is none after that."""
        self.asked += 1
        if self.asked > self.answers_most:
            raise RuntimeError("no more answers")
        return self.info

    def snapshot(self) -> Statistics:
        """The scene of now."""
        self.looks += 1
        if self.broken is not None:
            raise self.broken
        return self.statistics


def make_server(
    shown: Shown, *, host: str = "127.0.0.1", port: int = 0, stall_after: float = STALL_AFTER
) -> WebServer:
    """A server over `shown`, not started."""
    return WebServer(
        shown.snapshot,
        shown.tell,
        host=host,
        port=port,
        stall_after=stall_after,
        clock=lambda: shown.now,
        fetched_at=lambda: shown.fetched_at,
    )


@contextlib.asynccontextmanager
async def serving(
    scene: Callable[[], Statistics], *, host: str = "127.0.0.1", stall_after: float = STALL_AFTER
) -> AsyncIterator[Served]:
    """A server on loopback, on a free port."""
    shown = Shown(scene())
    server = make_server(shown, host=host, stall_after=stall_after)
    url = await server.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            yield Served(url, server, session, shown)
    finally:
        await server.stop()
