"""A start before its brokers: ``run`` waits as it would later, says for what, can be stopped, and then delivers.

Each cause is real: a port that nobody listens at, one that accepts connections and never answers, a name that is not
known, a cluster whose group coordinator cannot exist. The broker is the module's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.group.workers import Supervisor
from tests.end_to_end.processes import Process, command, last_error, run_environment
from tests.end_to_end.records import generated, new_group, write_generated
from tests.support.kafka.broker import RealBroker, free_ports
from tests.support.kafka.harness import Kafka, create_topic
from tests.support.limits import LATE

EVENTS = 40
AT_ONCE = 5.0
"""Seconds for a stop when there is nothing to leave and to commit, on a busy machine; the grace is 25."""
LIMIT = 15.0
"""Seconds of --fail-fast."""
NAME = "kafka.pinstream.invalid"
RESOLVER = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **found) {{
    int (*ask)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    ask = dlsym(RTLD_NEXT, "getaddrinfo");
    if (host == NULL || strcmp(host, "{NAME}") != 0) return ask(host, port, hints, found);
    return access(HEALED, F_OK) == 0 ? ask("127.0.0.1", port, hints, found) : EAI_NONAME;
}}
"""
"""librdkafka's resolver: `NAME` is unknown until the file HEALED exists."""


Started = Callable[[RealBroker], AbstractContextManager[RealBroker]]


def absent() -> Kafka:
    """An address where nobody listens, and nobody will by accident."""
    return Kafka(f"127.0.0.1:{free_ports(1)[0]}", "none")


@contextmanager
def silent() -> Iterator[Kafka]:
    """A server that accepts connections and never answers."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=256)) as server:
        yield Kafka(f"127.0.0.1:{server.getsockname()[1]}", "none")


def environment(folder: Path, kafka: Kafka, **settings: str) -> dict[str, str]:
    """What ``run`` needs; nothing of it is reached before the brokers are."""
    return run_environment(folder, kafka, "orders", new_group(), "http://127.0.0.1:9/v5", **settings)


def waits(process: Process, cause: str) -> None:
    """Wait until /readyz says `cause`; it is alive meanwhile, and the page is there."""
    process.until(lambda: cause in process.get("/readyz")[1], f"/readyz to say {cause}")
    assert process.get("/readyz")[0] == 503
    assert process.get("/healthz") == (200, "ok\n")
    assert process.get("/")[0] == 200
    assert process.status()["starting"]


def delivers(process: Process, kafka: Kafka, api: Api) -> None:
    """Write records and wait until the process has delivered them."""
    _, events = generated(EVENTS, seed=4, duplicates=0.0, invalid=0.0)
    write_generated(kafka, "orders", events)
    process.until(lambda: api.counts().accepted_events == EVENTS, "all events")
    process.until(lambda: process.get("/readyz") == (200, "ok\n"), "readiness")
    # Of workers, one may deliver all while another still starts.
    process.until(lambda: process.status()["starting"] is None, "the end of all starts")


@pytest.fixture(scope="module")
def shop(started: Started) -> Iterator[RealBroker]:
    """A broker with the topics ``orders`` and ``orders.dead-letters``."""
    with started(RealBroker()) as broker:
        kafka = Kafka(broker.bootstrap_servers, "real")
        create_topic(kafka, 2, "orders")
        create_topic(kafka, 1, "orders.dead-letters")
        yield broker


@pytest.mark.kafka
@pytest.mark.timeout(240)
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow("the broker starts again"))])
def test_a_broker_that_comes_up_last(shop: RealBroker, api: Api, tmp_path: Path, workers: int) -> None:
    """The processes say that they wait for it, then join and deliver, without an end in between."""
    kafka = Kafka(shop.bootstrap_servers, "real")
    env = run_environment(tmp_path, kafka, "orders", new_group(), api.url, KAFKA_AUTO_OFFSET_RESET="earliest")
    shop.kill()
    process = Process(tmp_path, "run", env=env) if workers == 1 else Supervisor(tmp_path, workers, env=env)
    with process:
        waits(process, f"The brokers do not answer ({kafka.bootstrap_servers}, connection refused) for ")
        said = process.until_logged("start_waits")
        assert f"no broker answered at {kafka.bootstrap_servers}" in said["reason"]
        before = process.children() if isinstance(process, Supervisor) else []
        shop.restart()
        delivers(process, kafka, api)
        process.until_logged("start_goes_on")
        assert [line["event"] for line in process.log].count("start_waits") == 1
        if isinstance(process, Supervisor):
            rows = process.until_divided(2)
            assert [one["restarts"] for one in rows] == [0, 0]
            assert set(before) <= set(process.children())
        assert process.stop()[0] == 0
    assert not [line for line in process.log if line["event"] == "worker_ended"]


@pytest.mark.kafka
@pytest.mark.timeout(240)
def test_a_name_that_is_not_known_yet(shop: RealBroker, api: Api, tmp_path: Path) -> None:
    """DNS does not know the broker, and later does."""
    healed, library = tmp_path / "healed", tmp_path / "resolver.so"
    kafka = Kafka(shop.bootstrap_servers, "real")
    named = kafka._replace(bootstrap_servers=kafka.bootstrap_servers.replace("127.0.0.1", NAME))
    compile_resolver(library, healed)
    env = run_environment(tmp_path, named, "orders", new_group(), api.url, LD_PRELOAD=str(library))
    with Process(tmp_path, "run", env=env) as process:
        waits(process, f"The brokers do not answer ({named.bootstrap_servers}, ")
        assert "a broker's name cannot be resolved" in process.until_logged("start_waits")["reason"]
        healed.touch()
        delivers(process, kafka, api)
        assert process.stop()[0] == 0


def compile_resolver(library: Path, healed: Path) -> None:
    """Make the library with librdkafka's resolver."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    line = [compiler, "-shared", "-fPIC", f'-DHEALED="{healed}"', "-x", "c", "-", "-o", str(library), "-ldl"]
    subprocess.run(line, input=RESOLVER.encode(), check=True)


def test_a_stop_ends_the_wait_at_once(tmp_path: Path) -> None:
    """Exit code 0: there is nothing to drain, to commit and to leave."""
    with silent() as kafka, Process(tmp_path, "run", env=environment(tmp_path, kafka)) as process:
        waits(process, f"The brokers do not answer ({kafka.bootstrap_servers}, ")
        code, seconds = process.stop()
    assert code == 0
    assert seconds < AT_ONCE
    assert "Traceback" not in process.stderr


@pytest.mark.slow("waits for its time limit")
def test_fail_fast_ends_it(tmp_path: Path) -> None:
    """Exit code 1 after the time limit, and one line that says what to check; with workers, too."""
    kafka, begun = absent(), time.monotonic()
    with ExitStack() as stack:
        both = [
            stack.enter_context(
                Process(folder, "run", "--fail-fast", *workers, env=environment(folder, kafka))
            )
            for folder, workers in ((tmp_path / "one", ()), (tmp_path / "two", ("--workers", "2")))
        ]
        for process in both:
            assert process.wait() == 1
            assert LIMIT <= time.monotonic() - begun < LIMIT + 2 * LATE
            said = f"no broker answered at {kafka.bootstrap_servers} within 15 s: check"
            assert said in last_error(process.stderr)
            assert "start_waits" not in process.stderr


@pytest.mark.kafka
def test_what_waiting_cannot_help_ends_it(shop: RealBroker, tmp_path: Path) -> None:
    """A topic that the brokers do not have, a refused login, a broker that wants a login: exit code 1 and one line."""
    plain = Kafka(shop.bootstrap_servers, "real")
    secured = Kafka(shop.sasl_bootstrap_servers, "real")
    login = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "shop",
        "KAFKA_SASL_PASSWORD": "not-the-password",
    }
    for kafka, settings, says in (
        (plain, {"KAFKA_TOPICS": "no-such-topic"}, "the topic no-such-topic does not exist"),
        (secured, login, "the broker refused the login"),
        (plain, login, "takes no login"),
        (secured, {}, "requires TLS or a login: set KAFKA_SECURITY_PROTOCOL"),
        (plain, {"KAFKA_SECURITY_PROTOCOL": "SSL"}, "does not speak TLS"),
    ):
        done = command("run", env=environment(tmp_path, kafka, **settings))
        assert done.returncode == 1, done.stderr
        assert says in last_error(done.stderr)


def test_a_proxy_whose_broker_is_away(tmp_path: Path) -> None:
    """It accepts connections and closes them at once, as a broker that wants TLS does, but it answers nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        threading.Thread(target=close_all, args=(server,), daemon=True).start()
        kafka = Kafka(f"127.0.0.1:{server.getsockname()[1]}", "none")
        with Process(tmp_path, "run", env=environment(tmp_path, kafka)) as process:
            assert "closes them at once" in process.until_logged("start_waits")["reason"]
            assert process.stop()[0] == 0


def close_all(server: socket.socket) -> None:
    """Close each connection, until the server is closed."""
    with contextlib.suppress(OSError):
        while True:
            server.accept()[0].close()


def test_a_key_store_that_takes_long_to_open(tmp_path: Path) -> None:
    """Another process has it locked: the page is there and says so, and a stop ends the wait at once."""
    store = tmp_path / "keys"
    store.mkdir()
    env = environment(tmp_path, absent(), PINSTREAM_KEY_STORE=f"disk:{store}")
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with Process(tmp_path, "run", env=env) as process:
            waits(process, "the key store is being opened")
            code, seconds = process.stop()
    assert (code, seconds < AT_ONCE) == (0, True)
