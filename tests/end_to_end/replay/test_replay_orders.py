"""Ranges of 30,000 orders, by offset and by time, interrupted and resumed: the API has exactly what was asked for.

The orders are of 1997 and 1998 and lie on the topic in the order of customers, each with its own time as Kafka's
timestamp: so times are far out of order, as producers may write them.
"""

from __future__ import annotations

import functools
import random
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.end_to_end.api import Api, Loop
from tests.end_to_end.crashes.aftermath import until_heard
from tests.end_to_end.processes import Process, last_error
from tests.end_to_end.records import committed_offsets
from tests.end_to_end.replay.replaying import Placed, ReplayShop
from tests.support.kafka.harness import Kafka, create_topic
from tests.support.orders import make_orders, sum_of
from tests.support.switches import switched

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(300)]

ORDERS = make_orders()
PARTITIONS = 3
SETTINGS = {
    **switched(commit_interval=0.1),
    "PINSTREAM_BATCH_EVENTS": "250",
    "PINSTREAM_CONCURRENCY": "4",
}
AT_RISK = 250 * 4


@pytest.fixture(scope="module")
def stocked(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> ReplayShop:
    """The orders on a topic; each test sends them to another destination."""
    nowhere = Api.__new__(Api)
    nowhere.url = "http://127.0.0.1:9/v5"
    shop = ReplayShop(kafka, nowhere, tmp_path_factory.mktemp("orders"), partitions=PARTITIONS, **SETTINGS)
    # Events of 1997 are to be kept; and they may come in any order.
    shop.topic = create_topic(
        kafka, PARTITIONS, retention_ms="-1", message_timestamp_before_max_ms="9223372036854775807"
    )
    events = [order.event for order in ORDERS]
    shop.place(events, timestamps=[event["occurred_at"] for event in events])
    return shop


@pytest.fixture
def shop(stocked: ReplayShop, servers: Loop, tmp_path: Path) -> Iterator[ReplayShop]:
    """The topic of orders, an API that accepts old events and has none yet, and a state folder without keys."""
    with Api(servers, check_age=False) as api:
        env = {
            **stocked.env,
            "PINTEREST_API_URL": api.url,
            "PINSTREAM_STATE_DIR": str(tmp_path / "state"),
            "PINSTREAM_MAX_EVENT_AGE": "0",
            "KAFKA_GROUP_ID": tmp_path.name,
        }
        own = ReplayShop.__new__(ReplayShop)
        own.__dict__.update(stocked.__dict__, api=api, env=env, folder=tmp_path)
        yield own


@pytest.mark.parametrize("seed", range(3))
def test_any_range_of_offsets(shop: ReplayShop, seed: int) -> None:
    """One partition, from any offset to any other: exactly these orders, each once."""
    dice = random.Random(seed)
    partition = dice.randrange(PARTITIONS)
    here = {one.offset: one.event_id for one in shop.placed if one.partition == partition}
    begin, end = sorted(dice.sample(range(len(here) + 1), 2))
    replayed = shop.replayed("--partition", str(partition), start=f"offset:{begin}", stop=f"offset:{end}")
    assert shop.accepted() == Counter(here[offset] for offset in range(begin, end))
    assert replayed.ledger["delivered"] == end - begin


@pytest.mark.parametrize("month", [(1997, 3), (1997, 12)], ids=["1997-03", "1997-12"])
def test_any_range_of_time(shop: ReplayShop, month: tuple[int, int]) -> None:
    """Every order of a month, wherever it lies, to the millisecond at both ends."""
    since = datetime(*month, 1, tzinfo=UTC)
    until = datetime(month[0] + month[1] // 12, month[1] % 12 + 1, 1, tzinfo=UTC)
    replayed = shop.replayed(start=since.isoformat(), stop=until.isoformat())
    meant = {one.event_id for one in shop.placed if _in(one, since, until)}
    assert set(shop.accepted()) == meant
    assert set(shop.accepted().values()) == {1}
    assert replayed.ledger["read"] == len(meant) > 1000
    assert sum(one["read_to"] for one in replayed.document["ranges"]) == len(shop.placed)


def _in(one: Placed, since: datetime, until: datetime) -> bool:
    return since.timestamp() * 1000 <= one.timestamp < until.timestamp() * 1000


def test_stopped_and_killed_again_and_again(shop: ReplayShop, tmp_path: Path) -> None:
    """What a stopped replay has sent is never sent again; a killed one repeats at most what was in flight. In
    the end all orders are there, to the cent, and the last ledger has only the rest."""
    arguments = shop.line("--name", "orders")
    dice, kills, stops, sent = random.Random(7), 0, 0, _Sent(shop)
    while (before := sum(shop.accepted().values())) < 24_000:
        how = signal.SIGKILL if (kills + stops) % 2 else signal.SIGINT
        with Process(tmp_path, *arguments, "--rate", "6000/s", env=shop.env) as process:
            aim = before + dice.randrange(1_500, 6_500)
            process.until(functools.partial(_has, shop, aim), "its share")
            if how is signal.SIGKILL:
                process.kill()
                kills += 1
            else:
                code, _ = process.stop(how)
                stops += 1
                if code:
                    assert "goes on where it stopped" in last_error(process.stderr)
        sent.check(in_order=how is signal.SIGINT)
    assert kills
    assert stops
    rest = shop.replayed("--name", "orders")
    counts = shop.api.counts()
    assert counts.distinct_event_ids == len(ORDERS)
    assert str(counts.value_sum) == sum_of(ORDERS)
    sent.check(in_order=True)
    assert _repeated(shop) <= kills * AT_RISK
    assert 0 < rest.ledger["read"] < len(ORDERS) - 17_000
    assert shop.replayed("--name", "orders").ledger["read"] == 0
    assert set(committed_offsets(shop.kafka, shop.env["KAFKA_GROUP_ID"], shop.topic, PARTITIONS)) == {0}


class _Sent:
    """What the processes have sent so far."""

    def __init__(self, shop: ReplayShop) -> None:
        self._shop = shop
        self._before: Counter[str] = Counter()
        self._for_good: set[str] = set()
        """Sent by processes that ended in order, so no later process may send it again."""

    def check(self, *, in_order: bool) -> None:
        """Check what a process sent that has ended, by itself or by a kill."""
        until_heard(self._shop.api)
        now = self._shop.accepted()
        more = now - self._before
        assert set(more.values()) <= {1}
        assert not more.keys() & self._for_good
        if in_order:
            self._for_good |= more.keys()
        self._before = now


def _has(shop: ReplayShop, count: int) -> bool:
    return shop.accepted().total() >= count


def _repeated(shop: ReplayShop) -> int:
    accepted = shop.accepted()
    return accepted.total() - len(accepted)
