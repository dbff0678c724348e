"""A network without IPv4: brokers, registry, API, key store and page at ``::1``; and a name with a dead address
family."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from consumer.adapters.conversions_api import ConversionsApi, Token
from consumer.adapters.schemas import RegistrySchemas
from consumer.demo.api import Sandbox
from consumer.engine.messages import Answered, FetchSchema, SchemaFound, Send
from consumer.engine.model import SchemaRef
from tests.adapters.fake_registry import FakeRegistry
from tests.conftest import IN_CI
from tests.end_to_end.api import Loop
from tests.end_to_end.processes import TOKEN, Process, command, run_environment
from tests.end_to_end.records import (
    SCHEMA,
    commerce_event,
    committed_offsets,
    new_group,
    new_topic,
    write_registered,
)
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka
from tests.support.keeper import Unavailable
from tests.support.limits import LATE
from tests.support.redis_server import redis_server

EVENTS = 50
NAME = "both.pinstream.invalid"


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    with ExitStack() as stack:
        try:
            stack.enter_context(socket.socket(socket.AF_INET6)).bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[RealBroker]:
    """A broker at ``::1``."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    broker = RealBroker()
    broker.bootstrap_servers = broker.bootstrap_servers.replace("127.0.0.1", "[::1]")
    try:
        with broker:
            yield broker
    except Unavailable as error:
        if IN_CI:
            raise
        pytest.skip(f"needs a Kafka broker of its own: {error}")


def test_everything_at_ipv6_addresses(own_kafka: RealBroker, servers: Loop, tmp_path: Path) -> None:
    """`check` finds everything, `run` delivers and commits, and every address is shown with its brackets."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    topic, group = new_topic(kafka, 1), new_group()
    sandbox, registry = Sandbox(token=TOKEN), FakeRegistry(host="::1")
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(tmp_path / "redis", "--bind", "127.0.0.1", "::1"))
        url = servers.call(sandbox.start("::1"))
        stack.callback(lambda: servers.call(sandbox.stop()))
        servers.call(registry.start())
        stack.callback(lambda: servers.call(registry.stop()))
        schema_id = registry.add("orders-value", json.dumps(SCHEMA)).schema_id
        write_registered(kafka, topic, schema_id, [commerce_event(f"six-{n}") for n in range(EVENTS)])
        env = run_environment(
            tmp_path, kafka, topic, group, url,
            SCHEMA_REGISTRY_URL=registry.url,
            PINSTREAM_KEY_STORE=f"redis://[::1]:{redis.port}",
            PINSTREAM_HTTP_ADDRESS="[::]:0",
            COLUMNS="300",
        )  # fmt: skip
        checked = command("check", "--send-test-event", env=env)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        with Process(tmp_path, "run", env=env) as process:
            assert process.until_settled(EVENTS)["delivered"] == EVENTS
            page = process.until_logged("starting")["page"]
            assert page.startswith("http://[::1]:")
            # Who listens on all addresses answers by IPv4 too: the image's own probe does not know which there are.
            with urllib.request.urlopen(page.replace("[::1]", "127.0.0.1") + "healthz") as answer:
                assert answer.status == 200
            assert process.stop()[0] == 0
            reported = process.stderr
        assert sum(committed_offsets(kafka, group, topic)) == EVENTS
        shown = command("offsets", "show", env=env)
        assert shown.returncode == 0, shown.stderr
    # An address without its brackets would end in something that cannot be told from a port.
    assert not re.search(r"(?<![\[0-9a-f:])::1?:[0-9]", checked.stdout + reported + shown.stdout)


@contextmanager
def silence(port: int) -> Iterator[None]:
    """A port of ``::1`` that does not even refuse connections, as behind a router that drops packets."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket(socket.AF_INET6))
        full.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        full.bind(("::1", port))
        full.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket(socket.AF_INET6))
            waiting.setblocking(False)
            waiting.connect_ex(("::1", port))
        yield


async def test_a_family_that_is_dead_costs_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name has addresses of both families, and IPv6 is dead: API and registry are reached by IPv4, long
    before the connection would time out."""
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    asked = socket.getaddrinfo

    def both(host: Any, port: Any, *others: Any, **more: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return asked(host, port, *others, **more)
        return [
            *asked("::1", port, type=socket.SOCK_STREAM),
            *asked("127.0.0.1", port, type=socket.SOCK_STREAM),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    async with FakeRegistry() as registry:
        stored = registry.add("orders-value", '"string"')
        port = urlsplit(registry.url).port or 0
        with silence(port):
            begun = time.monotonic()
            schemas = RegistrySchemas({"url": f"http://{NAME}:{port}"}, timeout=60.0)
            answer = await schemas.fetch(FetchSchema(SchemaRef("id", str(stored.schema_id))))
            await schemas.close()
            assert isinstance(answer, SchemaFound)
            api = ConversionsApi(
                f"http://{NAME}:{port}", Token("x"), account="1", timeout=60.0, concurrency=1, agent="tests"
            )
            called = await api.send(Send(1, "1", [b"{}"], 1))
            await api.close()
            assert isinstance(called, Answered)
            assert time.monotonic() - begun < 5 + LATE
