"""Network trouble on the way to the API: nothing is lost, memory stays in its budget, all heals without a restart.

Each test runs one process through an outage: what can be open is open, intake pauses, nothing is committed past;
then the network comes back, and the same process delivers every event under the event id it always had.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from consumer.engine.model import CommerceEvent
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.faults.outages import Budget, Watch, failed
from tests.end_to_end.faults.proxy import Mode, Proxy
from tests.end_to_end.processes import TOKEN, Process
from tests.end_to_end.records import commerce_event
from tests.end_to_end.shop import NewShop, Shop, once
from tests.support.certificates import Authority
from tests.support.switches import switched

BATCH, CONCURRENCY = 20, 4
TIGHT_IN_EVENTS = Budget(events=100, bytes=1 << 20)
TIGHT_IN_BYTES = Budget(events=5000, bytes=64 * 1024)


@pytest.fixture
def proxy(servers: Loop, api: Api) -> Iterator[Proxy]:
    """The proxy between process and API."""
    with Proxy(servers, api.url) as server:
        yield server


def orders(count: int, prefix: str) -> list[CommerceEvent]:
    """Events that the API must accept."""
    return [commerce_event(f"{prefix}-{number}") for number in range(count)]


@pytest.fixture
def new_shop(new_shop: NewShop, proxy: Proxy) -> NewShop:
    """Shops with a budget, small batches, short time limits for calls, and the proxy before their API."""

    def make(budget: Budget, **settings: str) -> Shop:
        return new_shop(
            PINSTREAM_BATCH_EVENTS=str(BATCH),
            PINSTREAM_CONCURRENCY=str(CONCURRENCY),
            # Short for a test, and long for a call that is answered, also on a machine that has much to do.
            **{"PINSTREAM_REQUEST_TIMEOUT": "2s", "PINTEREST_API_URL": proxy.url, **settings},
            **budget.settings,
            **switched(longest_wait=2.0),
        )

    return make


def was_logged(process: Process, reason: str) -> bool:
    """Whether the log says that a call had no verdict for this reason."""
    return any(line["event"] == "no_verdict" and line["reason"] == reason for line in process.log)


ERRORS = [
    pytest.param(Mode.HALF_OPEN, "timeout", id="half-open"),
    pytest.param(Mode.REFUSE, "connect", id="refused"),
]


@pytest.mark.parametrize(("mode", "reason"), ERRORS)
def test_the_way_to_the_api_is_cut(new_shop: NewShop, proxy: Proxy, mode: Mode, reason: str) -> None:
    """In the middle of work calls fail and are repeated under the same ids, intake pauses, and delivery
    continues by itself."""
    shop = new_shop(TIGHT_IN_EVENTS)
    before, during = orders(60, "before"), orders(400, "during")
    shop.write(*before)
    with shop.run() as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_settled(len(before))
        proxy.set(mode)
        shop.write(*during)

        full = watch.until_full(TIGHT_IN_EVENTS.events)
        assert full["ledger"]["read"] == len(before) + TIGHT_IN_EVENTS.events
        watch.stands_still(3, reason)
        assert shop.committed == len(before)
        assert shop.api.accepted() == once(before)
        assert was_logged(process, reason)

        proxy.set(Mode.FORWARD)
        healed = watch.until_settled(len(before + during))
        assert healed["ledger"]["delivered"] == len(before + during)
    assert shop.api.accepted() == once(before + during), "all of them, once: none had arrived"
    if mode is Mode.HALF_OPEN:
        again = sent_again(proxy)
        assert again, "what went into the void was sent again"
        assert again <= once(during).keys()


def sent_again(proxy: Proxy) -> set[str]:
    """Event ids that the proxy received more than once."""
    heard = Counter(re.findall(rb'"event_id":"([^"]+)"', bytes(proxy.heard)))
    return {name.decode() for name, times in heard.items() if times > 1}


def test_kept_connections_that_died_unnoticed(new_shop: NewShop, proxy: Proxy) -> None:
    """A router has forgotten the idle connections: each costs at most one time-out, then new ones are made."""
    shop = new_shop(TIGHT_IN_EVENTS)
    expected = shop.write_orders(200, "before")
    with shop.run() as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_settled(200)
        kept = proxy.links
        assert 1 <= kept <= CONCURRENCY
        proxy.set(Mode.HALF_OPEN)
        proxy.set(Mode.FORWARD)
        expected |= shop.write_orders(200, "after")
        assert 1 <= failed(watch.until_settled(400), "timeout") <= kept
    assert shop.api.accepted() == expected


def test_answers_that_never_arrive(new_shop: NewShop, proxy: Proxy) -> None:
    """The API accepts the events and the answers are lost: the events stay open, are sent again unchanged, and
    settle once."""
    shop = new_shop(TIGHT_IN_EVENTS, PINSTREAM_REQUEST_TIMEOUT="700ms")
    expected = shop.write_orders(300)
    proxy.set(Mode.MUTE)
    with shop.run() as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_full(TIGHT_IN_EVENTS.events)
        watch.stands_still(4, "timeout")
        watch.until(lambda _: max(shop.api.accepted().values()) > 1, "an event that the API took twice")
        assert len(shop.api.accepted()) <= TIGHT_IN_EVENTS.events
        assert shop.committed == 0

        proxy.set(Mode.FORWARD)
        assert watch.until_settled(300)["ledger"]["delivered"] == 300
    assert shop.api.accepted().keys() == expected.keys(), "the same ids, so that the platform can tell"


def test_certificates_that_cannot_be_trusted(
    new_shop: NewShop, servers: Loop, api: Api, tmp_path: Path
) -> None:
    """No TLS, or a certificate of a stranger, an expired one, or another host's: no byte of ours is sent; with
    the right certificate delivery continues."""
    ours, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    untrusted = [
        stranger.server(),
        ours.server(age=timedelta(days=30)),
        ours.server(host="elsewhere.example"),
    ]
    with Proxy(servers, api.url) as proxy:
        url = proxy.url.replace("http://", "https://")
        shop = new_shop(TIGHT_IN_BYTES, PINTEREST_API_URL=url, SSL_CERT_FILE=str(ours.file))
        expected = shop.write_orders(300)
        with shop.run() as process:
            watch = Watch(process, TIGHT_IN_BYTES)
            watch.until_full(1)
            watch.stands_still(2, "tls")
            for context in untrusted:
                proxy.speak(context)
                watch.stands_still(2, "tls")
            # The plain port heard the beginning of handshakes (22); nobody heard anything else.
            assert proxy.heard[:2] == b"\x16\x03"
            assert TOKEN.encode() not in proxy.heard
            assert b"event_id" not in proxy.heard
            assert (api.calls, shop.committed) == (0, 0)
            assert was_logged(process, "tls")

            proxy.speak(ours.server())
            assert watch.until_settled(300)["ledger"]["delivered"] == 300
        assert watch.maximum.bytes > TIGHT_IN_BYTES.bytes / 2, "the budget in bytes was what held it"
    assert api.accepted() == expected
