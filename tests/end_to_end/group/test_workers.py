"""``pinstream run --workers N`` on real processes: work is divided; workers are killed, stopped, orphaned and
given up."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from consumer.demo.faults import Chance
from consumer.engine.model import Disposition
from tests.end_to_end.group.members import Traffic
from tests.end_to_end.group.workers import Series, Supervisor
from tests.end_to_end.processes import TOKEN, last_error, quick_group, the_one_line, wait_for
from tests.end_to_end.records import committed_offsets, dead_letters
from tests.end_to_end.shop import NewShop, Shop
from tests.support.kafka.harness import WITHIN, ask, create_topic

PARTITIONS = 6
BATCH, CONCURRENCY = 20, 4
"""Of both workers together: each may have half of these requests in flight."""
AT_RISK = BATCH * CONCURRENCY // 2
"""The most events that the death of one worker may cause others to send again."""
GRACE = 6.0
LATE = 3.0
RATE = 300
"""Events a second in the tests with continuous traffic."""
SLOW = 0.1
"""Seconds before each answer in those tests."""
UNREPORTED = round(AT_RISK / SLOW)
"""The most events that a worker can have delivered between two reports (it sends two a second)."""


@pytest.fixture
def new_shop(new_shop: NewShop) -> NewShop:
    """Shops with small batches, a short grace, and a group that notices a death soon."""

    def make(**options: Any) -> Shop:
        shop = new_shop(
            **options,
            PINSTREAM_SHUTDOWN_GRACE=f"{GRACE:g}s",
            PINSTREAM_BATCH_EVENTS=str(BATCH),
            PINSTREAM_CONCURRENCY=str(CONCURRENCY),
        )
        shop.env |= quick_group(shop.kafka)
        return shop

    return make


@pytest.fixture
def shop(new_shop: NewShop) -> Shop:
    """One with as many partitions as the embedded broker gives."""
    return new_shop()


@pytest.fixture
def wide_shop(new_shop: NewShop) -> Shop:
    """One with more partitions, and an API that takes its time."""
    shop = new_shop(partitions=PARTITIONS)
    shop.api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW)
    return shop


def supervisor(shop: Shop, workers: int = 2, under: tuple[str, ...] = ()) -> Supervisor:
    """Its workers."""
    return Supervisor(shop.folder, workers, env=shop.env, under=under)


def traffic_of(shop: Shop, seed: int) -> Traffic:
    """Continuous traffic."""
    return Traffic(shop.kafka, shop.topic, seed=seed, rate=RATE)


def until_all_joined(supervisor: Supervisor) -> None:
    """Wait until both workers are members of the group."""
    supervisor.until(
        lambda: [line["event"] for line in supervisor.log].count("worker_joined") == 2, "both to join"
    )


def until_called(supervisor: Supervisor, shop: Shop, calls: int) -> None:
    """Wait until the API has had more calls than these."""
    supervisor.until(lambda: shop.api.calls > calls, "calls")


def until_all_committed(supervisor: Supervisor, shop: Shop, traffic: Traffic) -> None:
    """End the traffic, and wait until all of it is settled and committed."""
    traffic.stop()
    supervisor.until(
        lambda: committed_offsets(shop.kafka, shop.group, shop.topic, PARTITIONS) == traffic.ends,
        "all of it",
        within=90,
    )


def ended_in_order(supervisor: Supervisor) -> None:
    """Supervisor and workers said that they stopped, and no worker counts as dead."""
    assert {line.get("worker") for line in supervisor.log if line["event"] == "stopped"} == {1, 2, None}
    assert [line for line in supervisor.log if line["event"] == "worker_ended"] == []


@contextmanager
def watched(supervisor: Supervisor) -> Iterator[list[str]]:
    """Reads /metrics and /status all the time meanwhile; collects whatever went back or did not add up."""
    wrong: list[str] = []
    over = threading.Event()

    def check() -> None:
        before: dict[Series, float] = {}
        while not over.wait(0.1):
            now = supervisor.counters()
            wrong.extend(
                f"{one} {before[one]} -> {now.get(one)}" for one in before if now.get(one, 0) < before[one]
            )
            before = now
            supervisor.ledger()

    def run() -> None:
        try:
            check()
        except Exception as error:
            wrong.append(repr(error))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield wrong
    finally:
        over.set()
        thread.join(30)


@pytest.mark.real_kafka  # the embedded broker gives every topic four partitions, and knows no sessions
@pytest.mark.timeout(240)
def test_a_worker_that_is_frozen_is_shown_and_counted_once(wide_shop: Shop) -> None:
    """After two heartbeats its row says so. Once its session has ended, its partitions count where they are read now,
    and its open records there alone; when it goes on, no figure goes back."""
    with supervisor(wide_shop) as both, traffic_of(wide_shop, seed=6) as traffic:
        victim = both.until_divided(PARTITIONS)[1]
        until_called(both, wide_shop, 20)
        with watched(both) as wrong:
            os.kill(victim["pid"], signal.SIGSTOP)
            frozen = time.monotonic()
            both.until(lambda: both.workers()[1]["silent"], "its row")
            assert time.monotonic() - frozen < 2.5, "two heartbeats, and what a busy machine takes"

            def taken_over() -> bool:
                status = both.status()
                rows = status["workers"]
                assert sum(row["partitions"] for row in rows) <= PARTITIONS
                assert status["ledger"]["open"] == sum(one["ledger"]["open"] for one in status["partitions"])
                return [row["partitions"] for row in rows] == [PARTITIONS, 0]

            both.until(taken_over, "the rebalance")
            os.kill(victim["pid"], signal.SIGCONT)
            until_all_committed(both, wide_shop, traffic)
            assert not both.workers()[1]["silent"]
        assert wrong == []


@pytest.mark.real_kafka
@pytest.mark.timeout(240)
def test_a_worker_is_killed_under_load(wide_shop: Shop) -> None:
    """It is started again; nothing is lost, little is sent twice, and the figures of all never go back.

    What the dead one delivered after its last report nobody counts as delivered: by so much, and no more, less is told
    than the sandbox has accepted.
    """
    with supervisor(wide_shop) as both, traffic_of(wide_shop, seed=5) as traffic:
        victim = both.until_divided(PARTITIONS)[1]
        until_called(both, wide_shop, 20)
        with watched(both) as wrong:
            psutil.Process(victim["pid"]).kill()
            both.until(lambda: both.workers()[1]["restarts"] == 1, "the restart")
            reborn = both.until_divided(PARTITIONS)[1]
            assert reborn["pid"] != victim["pid"]
            until_all_committed(both, wide_shop, traffic)
        assert wrong == []
        accepted = wide_shop.api.accepted()
        assert set(accepted) == traffic.deliverable
        assert accepted.total() - len(accepted) <= AT_RISK
        assert len(accepted) - UNREPORTED <= both.ledger()["delivered"] <= accepted.total()
        assert both.get("/healthz") == both.get("/readyz") == (200, "ok\n")
        [end] = [line for line in both.log if line["event"] == "worker_ended"]
        assert (end["worker"], end["code"]) == (2, -signal.SIGKILL)
        pids = [one.pid for one in both.children()]
        assert len(pids) == 2
        ends_in_time(both)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "Traceback" not in both.stderr


def ends_in_time(both: Supervisor) -> None:
    """SIGTERM ends all of them, with 0."""
    code, seconds = both.stop()
    assert code == 0, both.stderr[-3000:]
    assert seconds < GRACE + LATE


@pytest.mark.real_kafka
def test_two_workers_share_the_work_and_one_page(new_shop: NewShop) -> None:
    """Each worker reads partitions; their figures add up to what the sandbox counted; SIGTERM ends all with 0."""
    shop, records = new_shop(partitions=PARTITIONS), 3000
    with supervisor(shop) as both:
        both.until_divided(PARTITIONS)
        generator = shop.generate(records, seed=3, duplicates=0.0, invalid=0.02)
        ledger = both.until_settled(records)
        counts, delivered = shop.api.counts(), ledger["delivered"]
        assert ledger["read"] == records
        assert delivered == counts.accepted_events == counts.distinct_event_ids
        assert counts.value_sum == generator.value_sum
        assert ledger["dead_lettered"] == generator.tally[Disposition.DEAD_LETTERED]
        status = both.status()
        assert sorted(one["partition"] for one in status["partitions"]) == list(range(PARTITIONS))
        assert sum(row["read"] for row in status["workers"]) == records
        assert all(row["read"] for row in status["workers"])
        by_name = sum(status["counts"]["delivered_by_event_name"].values())
        assert (status["freshness"]["delivered"], by_name, status["key_store"]["keys"]) == (delivered,) * 3
        settled = both.counters()["pinstream_records_settled_total", (("disposition", "delivered"),)]
        assert settled == delivered
        both.until(lambda: shop.committed == records, "all to be committed")
        ends_in_time(both)
    stopped = [line for line in both.log if line["event"] == "stopped"]
    assert {line.get("worker") for line in stopped} == {1, 2, None}
    assert stopped[-1]["delivered"] == delivered
    assert {line["worker"] for line in both.log if line["event"] == "partitions_assigned"} == {1, 2}


@pytest.mark.real_kafka
def test_bad_records_of_all_partitions_at_once(shop: Shop) -> None:
    """Four workers find bad records in all partitions at once, and create the dead-letter topic at once: no letter
    stays open."""
    topics = [create_topic(shop.kafka, 8) for _ in range(8)]
    shop.env["KAFKA_TOPICS"] = ",".join(topics)
    with supervisor(shop, 4) as four:
        four.until_divided(64)
        producer = Producer({**shop.kafka.config, "linger.ms": 50})
        for topic, partition in itertools.product(topics, range(8)):
            for _ in range(3):
                producer.produce(topic, b"no event", partition=partition)
        assert producer.flush(WITHIN) == 0
        ledger = four.until_settled(192)
        assert four.stop()[0] == 0
    assert ledger["dead_lettered"] == sum(len(dead_letters(shop.kafka, topic)) for topic in topics) == 192
    assert not [line for line in four.log if line["event"] == "dead_letters_not_stored"]


def test_without_its_supervisor_no_worker_goes_on(shop: Shop) -> None:
    """SIGKILL for the supervisor: its workers stop in order by themselves, and send nothing more."""
    with supervisor(shop) as both, traffic_of(shop, seed=8):
        both.until(
            lambda: len([line for line in both.log if line["event"] == "partitions_assigned"]) >= 2, "both"
        )
        until_called(both, shop, 5)
        workers = both.children()
        both.kill()
        gone, left = psutil.wait_procs(workers, GRACE + LATE)
        assert (len(gone), left) == (2, [])
        calls = shop.api.calls
        time.sleep(1)
        assert shop.api.calls == calls
    assert {line["worker"] for line in both.log if line["event"] == "stopped"} == {1, 2}


def test_ctrl_c_at_a_terminal(shop: Shop) -> None:
    """SIGINT for the whole process group: only the supervisor acts on it, and all end in order. The token protects the
    page of all: health is open, figures are not; and no worker listens on a port."""
    shop.env["PINSTREAM_HTTP_TOKEN"] = "not-for-all"
    with supervisor(shop, under=("setsid",)) as both:
        until_all_joined(both)
        assert both.get("/status")[0] == both.get("/metrics")[0] == 401
        wait_for(lambda: both.get("/healthz")[0] == 200, "health")
        listening = [one.net_connections("inet") for one in both.children()]
        assert not any(socket.status == psutil.CONN_LISTEN for sockets in listening for socket in sockets)
        assert os.getpgid(both.pid) == both.pid
        os.killpg(both.pid, signal.SIGINT)
        assert both.wait() == 0, both.stderr[-3000:]
    ended_in_order(both)


@pytest.mark.real_kafka
def test_who_has_no_partitions_says_goodbye_too(new_shop: NewShop) -> None:
    """More workers than partitions, stopped in order: the group is empty at once, and a new member does not
    wait for the session of one that has left."""
    shop = new_shop(partitions=1)
    shop.env["KAFKA_SESSION_TIMEOUT_MS"] = "45000"
    admin = AdminClient({"bootstrap.servers": shop.kafka.bootstrap_servers})

    def members() -> int:
        return len(ask(lambda: admin.describe_consumer_groups([shop.group])[shop.group].result(10)).members)

    with supervisor(shop, 3) as all_three:
        all_three.until(lambda: members() == 3, "all to join")
        code, seconds = all_three.stop()
    assert (code, members()) == (0, 0)
    assert seconds < LATE


@pytest.mark.slow("half a minute without a report")
def test_a_worker_that_hangs_does_not_hold_up_the_end(shop: Shop) -> None:
    """A worker is frozen: health says which one. It does not receive the stop, so it is killed in time, and the
    exit code says so."""
    with supervisor(shop) as both:
        until_all_joined(both)
        workers = both.children()
        workers[1].suspend()
        both.until(lambda: both.get("/healthz")[0] == 503, "sickness", 60.0)
        assert both.get("/healthz")[1].startswith("worker 2: it has reported nothing for ")
        code, seconds = both.stop()
        assert GRACE < seconds < GRACE + LATE
        assert psutil.wait_procs(workers, 2)[1] == []
    assert code == 1
    assert "SIGKILL" in last_error(both.stderr)
    [killed] = [line for line in both.log if line["event"] == "worker_killed"]
    assert killed["worker"] == 2
    assert [line.get("worker") for line in both.log if line["event"] == "stopped"] == [1, None]


def test_what_no_restart_mends(shop: Shop) -> None:
    """A token is refused for longer than the patience: all end in order, with 3, and one line says why."""
    shop.generate(200, seed=4)
    shop.env["PINSTREAM_HALT_PATIENCE"] = "1s"
    shop.api.set_token("another")
    with supervisor(shop) as both:
        assert both.wait() == 3
    assert "PINTEREST_ACCESS_TOKEN" in last_error(both.stderr)
    assert shop.api.counts().accepted_events == 0
    assert TOKEN not in both.stderr


def test_what_is_wrong_from_the_start_is_said_once(shop: Shop) -> None:
    """The same exit code and one line as with one process, however many workers there would be."""

    def says(code: int, workers: str, **settings: str) -> str:
        return shop.command("run", "--workers", workers, code=code, **settings).stderr

    said = says(1, "3", KAFKA_TOPICS="no-such-topic")
    assert "no-such-topic" in last_error(said)
    assert said.count("pinstream: ") == 1
    assert "--workers" in the_one_line(says(2, "0"))
    assert "PINSTREAM_LINGER" in the_one_line(says(2, "3", PINSTREAM_LINGER="soon"))
    assert "memory:" in the_one_line(says(2, "2", PINSTREAM_KEY_STORE="memory:"))
    assert "PINSTREAM_CONCURRENCY=4" in the_one_line(says(2, "5"))
