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
from tests.end_to_end.processes import TOKEN, Process, run_environment
from tests.end_to_end.records import (
    commerce_event,
    committed_offsets,
    new_group,
    new_topic,
    write_events,
)
from tests.support.certificates import Authority
from tests.support.kafka.harness import Kafka
from tests.support.limits import LATE

BATCH, CONCURRENCY = 20, 4
TIGHT_IN_EVENTS = Budget(events=100, bytes=1 << 20)
TIGHT_IN_BYTES = Budget(events=5000, bytes=64 * 1024)
HEALING = 100.0
"""Seconds that the longest backoff takes on a busy machine."""


@pytest.fixture
def proxy(servers: Loop, api: Api) -> Iterator[Proxy]:
    """The proxy between process and API."""
    with Proxy(servers, api.url) as server:
        yield server


def orders(count: int, prefix: str = "order", *, growing: bool = False) -> list[CommerceEvent]:
    """Events that the API must accept; `growing`: each is larger than the one before, up to thirty times the size."""
    events = (commerce_event(f"{prefix}-{number}") for number in range(count))
    if not growing:
        return list(events)
    return [
        event | {"page_url": f"https://example.com/{'a' * (8000 * number // count)}"}
        for number, event in enumerate(events)
    ]


def ids(events: list[CommerceEvent]) -> set[str]:
    """Their ids."""
    return {str(event["event_id"]) for event in events}


def environment(
    folder: Path, kafka: Kafka, topic: str, group: str, url: str, budget: Budget, **settings: str
) -> dict[str, str]:
    """Small batches, a small budget, and short time limits for calls."""
    own = {
        "PINSTREAM_BATCH_EVENTS": str(BATCH),
        "PINSTREAM_CONCURRENCY": str(CONCURRENCY),
        # Short for a test, and long for a call that is answered, also on a machine that has much to do.
        "PINSTREAM_REQUEST_TIMEOUT": "2s",
    }
    return run_environment(folder, kafka, topic, group, url, **{**own, **budget.settings, **settings})


ERRORS = [
    pytest.param(Mode.HALF_OPEN, "timeout", id="half-open"),
    pytest.param(Mode.DROP, "connection", id="reset"),
    pytest.param(Mode.REFUSE, "connect", id="refused"),
]


@pytest.mark.parametrize(("mode", "reason"), ERRORS)
def test_the_way_to_the_api_is_cut(
    kafka: Kafka, api: Api, proxy: Proxy, tmp_path: Path, mode: Mode, reason: str
) -> None:
    """In the middle of work calls fail and are repeated under the same ids, intake pauses, and delivery
    continues by itself."""
    topic, group = new_topic(kafka), new_group()
    before, during = orders(60, "before"), orders(400, "during")
    write_events(kafka, topic, before)
    env = environment(tmp_path, kafka, topic, group, proxy.url, TIGHT_IN_EVENTS)
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_settled(len(before))
        proxy.set(mode)
        write_events(kafka, topic, during)

        full = watch.until_full(TIGHT_IN_EVENTS.events)
        assert full["ledger"]["read"] == len(before) + TIGHT_IN_EVENTS.events
        watch.stands_still(3, reason)
        assert sum(committed_offsets(kafka, group, topic)) == len(before)
        assert set(api.accepted()) == ids(before)
        assert any(line["event"] == "no_verdict" and line["reason"] == reason for line in process.log)

        proxy.set(Mode.FORWARD)
        healed = watch.until_settled(len(before + during), HEALING)
        assert healed["ledger"]["delivered"] == len(before + during)
        assert process.stop()[0] == 0
    assert api.accepted() == Counter(ids(before + during)), "all of them, once: none had arrived"
    if mode is Mode.HALF_OPEN:
        again = sent_again(proxy)
        assert again, "what went into the void was sent again"
        assert again <= ids(during)


def test_records_that_grow_fit_into_the_budget(kafka: Kafka, api: Api, proxy: Proxy, tmp_path: Path) -> None:
    """Each record is larger than the one before: the budget in bytes holds at every moment, before and after
    the outage."""
    topic, group = new_topic(kafka), new_group()
    events = orders(300, growing=True)
    write_events(kafka, topic, events)
    proxy.set(Mode.REFUSE)
    env = environment(tmp_path, kafka, topic, group, proxy.url, TIGHT_IN_BYTES)
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, TIGHT_IN_BYTES)
        watch.until_full(1)
        watch.stands_still(3, "connect")
        proxy.set(Mode.FORWARD)
        healed = watch.until_settled(len(events), HEALING)
        assert healed["ledger"]["delivered"] == len(events)
        assert process.stop()[0] == 0
    assert watch.maximum.bytes > TIGHT_IN_BYTES.bytes / 2, "the budget in bytes was what held it"
    assert api.accepted() == Counter(ids(events))


def sent_again(proxy: Proxy) -> set[str]:
    """Event ids that the proxy received more than once."""
    heard = Counter(re.findall(rb'"event_id":"([^"]+)"', bytes(proxy.heard)))
    return {name.decode() for name, times in heard.items() if times > 1}


def test_kept_connections_that_died_unnoticed(kafka: Kafka, api: Api, proxy: Proxy, tmp_path: Path) -> None:
    """A router has forgotten the idle connections: each costs at most one time-out, then new ones are made."""
    topic, group = new_topic(kafka), new_group()
    before, after = orders(200, "before"), orders(200, "after")
    write_events(kafka, topic, before)
    env = environment(tmp_path, kafka, topic, group, proxy.url, TIGHT_IN_EVENTS)
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_settled(len(before))
        kept = proxy.links
        assert 1 <= kept <= CONCURRENCY
        proxy.set(Mode.HALF_OPEN)
        proxy.set(Mode.FORWARD)
        write_events(kafka, topic, after)
        healed = watch.until_settled(len(before + after), HEALING)
        assert 1 <= failed(healed, "timeout") <= kept
        assert process.stop()[0] == 0
    assert api.accepted() == Counter(ids(before + after))


def test_answers_that_never_arrive(kafka: Kafka, api: Api, proxy: Proxy, tmp_path: Path) -> None:
    """The API accepts the events and the answers are lost: the events stay open, are sent again unchanged, and
    settle once."""
    topic, group = new_topic(kafka), new_group()
    events = orders(300)
    write_events(kafka, topic, events)
    proxy.set(Mode.MUTE)
    env = environment(
        tmp_path, kafka, topic, group, proxy.url, TIGHT_IN_EVENTS, PINSTREAM_REQUEST_TIMEOUT="700ms"
    )
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_full(TIGHT_IN_EVENTS.events)
        watch.stands_still(4, "timeout")
        watch.until(lambda _: max(api.accepted().values()) > 1, "an event that the API took twice")
        assert len(api.accepted()) <= TIGHT_IN_EVENTS.events
        assert sum(committed_offsets(kafka, group, topic)) == 0

        proxy.set(Mode.FORWARD)
        healed = watch.until_settled(len(events), HEALING)
        assert healed["ledger"]["delivered"] == len(events)
        assert process.stop()[0] == 0
    assert set(api.accepted()) == ids(events), "the same ids, so that the platform can tell"


def test_certificates_that_cannot_be_trusted(kafka: Kafka, servers: Loop, api: Api, tmp_path: Path) -> None:
    """No TLS, or a certificate of a stranger, an expired one, or another host's: no byte of ours is sent; with
    the right certificate delivery continues."""
    topic, group = new_topic(kafka), new_group()
    events = orders(300)
    write_events(kafka, topic, events)
    ours, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "stranger")
    untrusted = [
        stranger.server(),
        ours.server(age=timedelta(days=30)),
        ours.server(host="elsewhere.example"),
    ]
    with Proxy(servers, api.url) as proxy:
        url = proxy.url.replace("http://", "https://")
        env = environment(tmp_path, kafka, topic, group, url, TIGHT_IN_BYTES, SSL_CERT_FILE=str(ours.file))
        with Process(tmp_path, "run", env=env) as process:
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
            assert api.calls == 0
            assert sum(committed_offsets(kafka, group, topic)) == 0
            assert any(line["event"] == "no_verdict" and line["reason"] == "tls" for line in process.log)

            proxy.speak(ours.server())
            healed = watch.until_settled(len(events), HEALING)
            assert healed["ledger"]["delivered"] == len(events)
            assert process.stop()[0] == 0
        assert watch.maximum.bytes > TIGHT_IN_BYTES.bytes / 2, "the budget in bytes was what held it"
    assert api.accepted() == Counter(ids(events))


HOST = "api.pinstream.invalid"
RESOLVER = f"""
import socket, time
from pathlib import Path

hosts = Path(__file__).with_name("hosts")
ask = socket.getaddrinfo


def getaddrinfo(host, *others, **more):
    if host in ("{HOST}", b"{HOST}") and hosts.exists():
        host = hosts.read_text().strip()
        if host == "silence":
            time.sleep(20)
    return ask(host, *others, **more)


socket.getaddrinfo = getaddrinfo
"""
"""What the process under test asks for addresses: the machine's own resolver, to which `HOST` is unknown for good
(RFC 6761), unless the file beside it names the address, as /etc/hosts would. That file is not ours to write."""


class Resolver:
    """Resolves `HOST` for one process; at first as the machine does, which does not know that host."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "resolver"
        self._folder.mkdir()
        (self._folder / "sitecustomize.py").write_text(RESOLVER)
        # Nobody answers on a machine without a network: that must not take longer than a call may.
        self.settings = {"PYTHONPATH": str(self._folder), "RES_OPTIONS": "timeout:1 attempts:1"}

    def say(self, address: str) -> None:
        """From now on answer with this address; ``silence``: do not answer for 20 seconds."""
        draft = self._folder / "draft"
        draft.write_text(address)
        draft.replace(self._folder / "hosts")


def test_a_name_that_does_not_resolve(kafka: Kafka, api: Api, proxy: Proxy, tmp_path: Path) -> None:
    """The API's host is unknown: the log says why, and events wait; once it is known all are delivered, once."""
    topic, group = new_topic(kafka), new_group()
    events = orders(300)
    write_events(kafka, topic, events)
    resolver = Resolver(tmp_path)
    env = environment(
        tmp_path, kafka, topic, group, proxy.url.replace("127.0.0.1", HOST), TIGHT_IN_EVENTS,
        **resolver.settings, PINSTREAM_REQUEST_TIMEOUT="10s",
    )  # fmt: skip
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_full(TIGHT_IN_EVENTS.events)
        watch.stands_still(4, "dns")
        assert sum(committed_offsets(kafka, group, topic)) == 0
        assert proxy.connections == 0
        assert any(line["event"] == "no_verdict" and line["reason"] == "dns" for line in process.log)

        resolver.say("127.0.0.1")
        healed = watch.until_settled(len(events), HEALING)
        assert healed["ledger"]["delivered"] == len(events)
        assert process.stop()[0] == 0
    assert api.accepted() == Counter(ids(events))


def test_a_resolver_that_says_nothing_holds_up_no_stop(
    kafka: Kafka, api: Api, proxy: Proxy, tmp_path: Path
) -> None:
    """Calls time out while the name server is silent, and SIGTERM ends the process within the grace all the same."""
    topic, group = new_topic(kafka), new_group()
    write_events(kafka, topic, orders(100))
    resolver = Resolver(tmp_path)
    resolver.say("silence")
    env = environment(
        tmp_path, kafka, topic, group, proxy.url.replace("127.0.0.1", HOST), TIGHT_IN_EVENTS,
        **resolver.settings, PINSTREAM_REQUEST_TIMEOUT="500ms", PINSTREAM_SHUTDOWN_GRACE="3s",
    )  # fmt: skip
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, TIGHT_IN_EVENTS)
        watch.until_full(TIGHT_IN_EVENTS.events)
        watch.stands_still(2, "timeout")
        code, seconds = process.stop()
    assert code == 0
    assert seconds < 3 + LATE
    assert sum(committed_offsets(kafka, group, topic)) == 0
    assert api.calls == 0
