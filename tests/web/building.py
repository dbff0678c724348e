"""Builders of snapshots for the web tests, and of a running server: name what matters, the rest is quiet.

`partition` counts its own `read`, so a built ledger always adds up; `statistics` sums its partitions up, as the core
does. The scenes (`busy`, `halted`, …) are what a person may see on the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from consumer.engine.figures.counters import Counters, KeyStoreStatistics, Samples, StoredLetter
from consumer.engine.figures.definitions import merged
from consumer.engine.figures.delivered import PARAMETERS, CoverageSnapshot, Covered, Freshness
from consumer.engine.figures.latency import CallLatency, Latency
from consumer.engine.figures.outside import (
    BrokerStatistics,
    CertificateStatistics,
    DriftedSection,
    SchemaWait,
    silence_of_brokers,
    silence_of_coordinator,
)
from consumer.engine.figures.quality import AccountQuality, ComponentCoverage, EventQuality, QualityScore
from consumer.engine.figures.statistics import (
    AccountStatistics,
    Cause,
    ClockStatistics,
    GuardStatistics,
    PartitionStatistics,
    SlowTransform,
    Statistics,
    Totals,
)
from consumer.engine.figures.value import ValueSnapshot, Worth
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.engine.model import Instant, Stage
from consumer.web.health import why_unhealthy
from consumer.web.server import WebServer
from consumer.workers.merging import NO_WORKER

TOPIC = "orders"
ACCOUNT = "549755885175"
OTHER_ACCOUNT = "549755885176"
UNIX = 1_700_000_000
_TWO_HOURS = 7200.0
INFO: Mapping[str, Any] = {
    "process": {
        "version": "0.1.0",
        "started": UNIX,
        "group": "pinstream",
        "topics": ["orders", "^shop\\..*"],
        "sends_to": "https://api.pinterest.com/v5",
        "test_mode": False,
        "fast_path": "compiled",
        "transform": None,
    },
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
    number: int = 0,
    *,
    lag: int | None = 0,
    committed: int | None = 0,
    topic: str = TOPIC,
    lag_seconds: float | None = None,
    **counts: int,
) -> PartitionStatistics:
    """An assigned partition; `counts` as in `totals`. Without `lag` its `lag_seconds` are 0."""
    end = None if lag is None else (committed or 0) + lag
    own = totals(**counts)
    seconds = 0.0 if lag == 0 and not own.open else lag_seconds
    return PartitionStatistics(
        topic, number, 1, committed, (committed or 0) + own.open, end, lag, own, seconds
    )


_REASONS = {
    "halted": "the access token is refused (HTTP 401, code 2)",
    "unreachable": "no verdict on any event; the latest call: HTTP 403 (squid/5.7: Access denied)",
}


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
        reason=reason or _REASONS.get(state),
        queued=queued,
        in_flight=in_flight,
        throttled_for=seconds if state == "throttled" else None,
        halted_for=seconds if halted else None,
        next_probe_in=seconds if halted else None,
        unreachable_for=seconds if state == "unreachable" else None,
    )


def statistics(
    *partitions: PartitionStatistics,
    accounts: Sequence[AccountStatistics] = (),
    ended: Totals | None = None,
    ages: Iterable[float] = (),
    earlier: Iterable[float] = (),
    counters: Counters | None = None,
    stopping: bool = False,
    **others: Any,
) -> Statistics:
    """A snapshot. `ended`: what partitions that are ours no more left behind; `ages` of delivered events, seconds:
    in the last hour, and `earlier`, two hours before."""
    all_totals = [one.totals for one in partitions] + ([ended] if ended is not None else [])
    freshness = Freshness()
    freshness.add([UNIX - int(one) for one in earlier], Instant(0.0, UNIX))
    freshness.add([UNIX - int(one) for one in ages], Instant(_TWO_HOURS, UNIX))
    quiet: dict[str, Any] = {
        "room": 1000,
        "joined": bool(partitions),
        "key_store": KeyStoreStatistics(1_204_511, 96_360_880, 49),
    }
    return replace(
        NO_WORKER,
        totals=merged(Totals, all_totals),
        partitions=partitions,
        accounts=accounts,
        freshness=freshness.snapshot(_TWO_HOURS),
        counters=counters or Counters(),
        stopping=stopping,
        oldest=tuple(filter(None, [others.get("oldest_open")])),
        **(quiet | others),
    )


def call_latency(*seconds: float) -> CallLatency:
    """Return the figures of calls that took so long and ended together."""
    counted = Latency()
    for one in seconds:
        counted.add(one, 0.0)
    return counted.snapshot(0.0)


def delivered_value() -> ValueSnapshot:
    """Orders in two currencies, one of which had none within the hour."""
    euros = {
        ("checkout", "EUR"): Worth(1_310, 1_310 * 59_9000),
        ("add_to_cart", "EUR"): Worth(40, 1_999_9900),
    }
    return ValueSnapshot(euros | {("checkout", "JPY"): Worth(12, 72_000_0000)}, euros, euros)


def full_counters() -> Counters:
    """Counters with something different in each of them."""
    counters = Counters()
    counters.topics_made_anew["orders"] = 1
    counters.rejections.update({("decode", "malformed"): 3, ("convert", "no_identity"): 41})
    counters.rejections.update({("convert", "expired"): 7, ("deliver", "refused"): 5})
    counters.call_buckets.update({("verdict", 0.25): 700, ("verdict", 0.5): 290, ("no_answer", 30.0): 4})
    counters.call_milliseconds.update({"verdict": 231_500, "no_answer": 118_000})
    counters.filtered.update({"event_name": 210, "tombstone": 4})
    counters.by_section.update({("com.shop.Order", "delivered"): 31_000, ("com.shop.Click", "filtered"): 210})
    counters.delivered_by_name.update({"checkout": 31_000, "page_visit": 870_000})
    counters.convert_warnings.update(
        {
            ("zero_value", "custom_data.value"): 12,
            ("malformed", "user_data.em"): 77,
            ("malformed", "user_data.ph"): 5,
        }
    )
    counters.api_warnings.update({"'currency' is recommended": 8})
    counters.api_errors.update({"'em' is not hashed": 9})
    counters.answers.update({"200": 1_000, "429": 6, "timeout": 2})
    counters.no_verdicts.update({"timeout": 2, "server_error": 10})
    counters.failures.update({"commit": 1})
    singles = ("calls", "bytes_sent", "events_sent", "bisected", "retried_batches", "followers")
    for value, name in enumerate(
        (*singles, "unclear_repeats", "unclear_offline", "processed_with_error"), start=1_001
    ):
        setattr(counters, name, value)
    counters.calls_answered, counters.events_answered, counters.bytes_answered = 990, 997, 996
    counters.events_processed = 985
    counters.delivered_after_release = 13
    counters.in_two_steps = 17
    return counters


def covered(events: int, **shares: float) -> Covered:
    """Coverage of an event name: about this share of its events carried each parameter, by id; else none did."""
    return Covered(events, tuple(round(events * shares.get(one.id, 0.0)) for one in PARAMETERS))


def coverage() -> CoverageSnapshot:
    """A shop that sends e-mail addresses with its orders, and no click ids."""
    order = {one.id: 1.0 for one in PARAMETERS} | {
        "em": 0.97,
        "ph": 0.41,
        "click_id": 0.0,
        "external_id": 0.88,
    }
    visit = {
        "em": 0.18, "external_id": 0.18, "client_ip_address": 0.999, "client_user_agent": 0.999,
        "event_source_url": 1.0, "content_ids": 0.71,
    }  # fmt: skip
    search = {"client_ip_address": 1.0, "event_source_url": 1.0}

    def window(checkout: int, page_visit: int, searches: int) -> dict[str, Covered]:
        return {
            "checkout": covered(checkout, **order),
            "page_visit": covered(page_visit, **visit),
            "search": covered(searches, **search),
        }

    day = window(31_000, 870_000, 260) | {"signup": covered(12, em=1.0, client_ip_address=1.0)}
    return CoverageSnapshot(window(1_310, 36_000, 7), day)


def samples() -> Samples:
    """A message of each kind that `full_counters` has."""
    return Samples(
        rejections={
            ("decode", "malformed"): "the record ends in the middle of field total_amount",
            (
                "convert",
                "no_identity",
            ): "no e-mail address, no advertising id, not IP address and user agent both",
            ("convert", "expired"): "the event is 9 days old; at most 7 days are accepted",
            ("deliver", "refused"): "'currency' *** is not a valid currency code",
        },
        warnings={
            ("zero_value", "custom_data.value"): "custom_data.value is zero",
            ("malformed", "user_data.em"): "user_data.em is not an e-mail address: omitted",
            ("malformed", "user_data.ph"): "user_data.ph is not a phone number: omitted",
        },
    )


def letters() -> tuple[StoredLetter, ...]:
    """The latest dead letters, newest first."""
    reasons = [(Stage(stage), code, message) for (stage, code), message in samples().rejections.items()]
    return tuple(
        StoredLetter(UNIX - 40.0 * n, TOPIC, n % 4, 1_200_344 - 911 * n, *reasons[n % len(reasons)])
        for n in range(20)
    )


# -- scenes


def compared() -> Statistics:
    """Pinterest has said what it sees of the events of a day, in which this process was all of its group."""
    seen = (
        ComponentCoverage(61.2, None, ("<b>Few</b> have it.",)),
        ComponentCoverage(97.0, None, ()),
        ComponentCoverage(100.0, 37.5, ()),
    )
    names = ("hashed_email", "checkout"), ("hashed_email", "signup"), ("external_event_id", "checkout")
    ours = QualityScore("WEB", "CONVERSIONS_API", "FAIR", dict(zip(names, seen, strict=True)))
    answer = AccountQuality(ACCOUNT, UNIX, None, (ours, QualityScore("WEB", "TAG", None, {})))
    return statistics(partition(), coverage=coverage(), event_quality=EventQuality((answer,), 90_000.0))


def unasked() -> Statistics:
    """Pinterest refuses the token that may read."""
    answer = AccountQuality(ACCOUNT, None, "the token is refused (HTTP 401)", ())
    return statistics(partition(), event_quality=EventQuality((answer,)))


def busy() -> Statistics:
    """Everything works, and there is much to do; a partition has moved away meanwhile."""
    return statistics(
        *(
            partition(
                number,
                lag=1_650 + 4_211 * number,
                lag_seconds=2.4 + 1.1 * number,
                committed=1_200_345 + number,
                delivered=1_180_000,
                duplicate=12_001,
                filtered=8_300,
                dead_lettered=44,
                open=1_650,
            )
            for number in range(4)
        ),
        members_differ=("mapping",),
        schema_drift=(
            DriftedSection(
                "shop.Order",
                "id 7",
                ("customer.emails (user_data.em)",),
                ("user_data.ph from customer.phone",),
            ),
        ),
        certificates=[CertificateStatistics("KAFKA_SSL_CERTIFICATE_LOCATION", UNIX + 86_400 * 90)],
        accounts=[account(queued=4_211, in_flight=7), account(OTHER_ACCOUNT, queued=12)],
        ended=totals(delivered=400_000, released=812),
        ages=[3] * 900 + [45] * 60 + [4_000] * 40,
        earlier=[3] * 500 + [9_000] * 500,
        counters=full_counters(),
        oldest_open_ms=UNIX * 1000 - 5_700,
        oldest_open=OldestOpen(TOPIC, 3, 1_200_348, 5.7, WaitsFor.PLATFORM, ACCOUNT),
        coverage=coverage(),
        letters=letters(),
        samples=samples(),
        waiting_for_schema=3,
        schemas=(
            SchemaWait("id", "17", 2, 4.2, 3.9),
            SchemaWait("fingerprint", "63dd24e7cc258f8a", 1, 0.4, None),
        ),
        clock=ClockStatistics(1.2, 0.0, 0.0, 0),
        claims=6_600,
        value=delivered_value(),
        latency=call_latency(*[0.12] * 240, *[0.9] * 12, 2.4),
        brokers=(
            BrokerStatistics("consumer", "2", 0.09, 0.12, 4.5),
            BrokerStatistics("consumer", "coordinator", 0.002, 0.01, 0.0),
            BrokerStatistics("producer", "2", None, None, 0.25),
        ),
    )


def _stopped(seconds: float, waits_for: WaitsFor, open: int = 20_000, **more: Any) -> Statistics:
    """Nothing has settled for so long: the oldest of the open records waits for this."""
    oldest = OldestOpen(
        TOPIC, 0, 88_000, seconds, waits_for, None if waits_for is WaitsFor.GUARD else ACCOUNT
    )
    return statistics(
        partition(0, lag=52_011, lag_seconds=seconds, committed=88_000, delivered=88_000, open=open),
        oldest_open_ms=UNIX * 1000 - int(seconds * 1000),
        oldest_open=oldest,
        ages=[20] * 10,
        room=0,
        seconds_since_progress=754.2,
        **more,
    )


def halted() -> Statistics:
    """The token is refused: intake has stopped."""
    return _stopped(756.0, WaitsFor.HALT, accounts=[account(state="halted", queued=20_000, seconds=754.2)])


def unreachable() -> Statistics:
    """A middleman answers in the platform's place: the budget is full, and all of it waits."""
    away = account(state="unreachable", queued=19_000, in_flight=1, seconds=754.2)
    return _stopped(756.0, WaitsFor.RETRY, accounts=[away])


def guarded() -> Statistics:
    """Too many records would be dead letters: intake has stopped."""
    guard = GuardStatistics(TOPIC, 1_640, 2_000, "convert no_identity", Cause.MAPPING)
    return _stopped(760.0, WaitsFor.GUARD, open=640, accounts=[account()], guard=guard)


def throttled() -> Statistics:
    """A 429 closed the gate."""
    return statistics(
        partition(0, lag=1_011, lag_seconds=4_000.0, committed=88_000, delivered=88_000, open=1_000),
        accounts=[account(state="throttled", queued=1_000, seconds=37.0)],
        oldest_open_ms=UNIX * 1000 - 4_000_000,
        oldest_open=OldestOpen(TOPIC, 0, 88_000, 4_000.0, WaitsFor.QUOTA, ACCOUNT),
        ages=[4_000] * 10,
    )


def empty() -> Statistics:
    """Just started: no partitions, nothing read."""
    return statistics()


def silent() -> Statistics:
    """No broker answers: the session has not ended yet, and what was read before is still sent."""
    return statistics(
        partition(0, lag=None, lag_seconds=31.0, committed=88_000, delivered=88_000, open=640),
        partition(1, lag=None, committed=5_000, delivered=5_000),
        accounts=[account(queued=640)],
        brokers_silent=silence_of_brokers("kafka:9092, connection refused", 12.4),
        certificates=[CertificateStatistics("KAFKA_SSL_CERTIFICATE_LOCATION", UNIX + 86_400)],
        key_store_fails=True,
        key_store_trouble="the key store cannot use /keys (No space left on device): free space on that disk",
    )


def uncoordinated() -> Statistics:
    """No coordinator answers: nothing is committed, and what is read is still delivered."""
    return statistics(
        partition(0, lag=700, committed=88_000, delivered=88_000, open=640),
        coordinator_silent=silence_of_coordinator(12.4),
    )


def hanging() -> Statistics:
    """The user's function does not return."""
    return statistics(
        partition(0, lag=911, lag_seconds=95.0, committed=5_000, delivered=5_000),
        accounts=[account()],
        slow_transform=SlowTransform("shop.events:clean", TOPIC, 0, 5_017, 94.0),
    )


def idle() -> Statistics:
    """Everything is delivered."""
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
    """What the server sees. `checks` counts the snapshots it took, `asked` the /status documents."""

    statistics: Statistics
    now: float = 5_000.0
    fetched_at: float | None = None
    checks: int = 0
    info: Mapping[str, Any] = field(default_factory=lambda: INFO)
    broken: Exception | None = None
    asked: int = 0
    max_answers: int = 1_000_000

    def report(self) -> Mapping[str, Any]:
        """`info`, for at most `max_answers` documents of /status; then an error."""
        self.asked += 1
        if self.asked > self.max_answers:
            raise RuntimeError("no more answers")
        return self.info

    def snapshot(self) -> Statistics:
        """The scene of now."""
        self.checks += 1
        if self.broken is not None:
            raise self.broken
        return self.statistics


async def group() -> Mapping[str, Any]:
    """What Kafka says of the group, by Kafka that says nothing."""
    return {"state": None, "members": [], "problem": "Kafka: the brokers do not answer"}


def make_server(shown: Shown, **more: Any) -> WebServer:
    """A server over `shown` on a free port of loopback, not started; `more` as `WebServer` takes it."""
    own: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "group": group,
        "clock": lambda: shown.now,
        "unhealthy": lambda statistics: why_unhealthy(statistics, shown.now, shown.fetched_at),
    }
    return WebServer(shown.snapshot, shown.report, **(own | more))
