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
from pathlib import Path
from typing import Any

import psutil
import pytest
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient

from consumer.app.signals import TOGETHER
from consumer.demo.faults import Chance
from consumer.engine.model import Disposition
from tests.end_to_end.api import Api
from tests.end_to_end.group.members import Traffic
from tests.end_to_end.group.workers import Series, Supervisor
from tests.end_to_end.processes import TOKEN, command, last_error, run_environment, the_one_line, wait_for
from tests.end_to_end.records import (
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    write_generated,
)
from tests.support.kafka.harness import WITHIN, Kafka, create_topic

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
SESSION = 6.0
"""Seconds after which the group takes a dead worker's partitions over."""


def environment(
    folder: Path, kafka: Kafka, topic: str, group: str, api: Api, **settings: str
) -> dict[str, str]:
    """Small batches, a short grace, and a group that notices a death soon."""
    return run_environment(
        folder, kafka, topic, group, api.url,
        **{
            "PINSTREAM_SHUTDOWN_GRACE": f"{GRACE:g}s",
            "PINSTREAM_BATCH_EVENTS": str(BATCH),
            "PINSTREAM_CONCURRENCY": str(CONCURRENCY),
            "KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION * 1000)),
            "KAFKA_HEARTBEAT_INTERVAL_MS": "300",
            **settings,
        },
    )  # fmt: skip


def until_all_joined(supervisor: Supervisor) -> None:
    """Wait until both workers are members of the group."""
    supervisor.until(
        lambda: [line["event"] for line in supervisor.log].count("worker_joined") == 2, "both to join"
    )


def until_all_committed(
    supervisor: Supervisor, kafka: Kafka, group: str, topic: str, traffic: Traffic
) -> None:
    """End the traffic, and wait until all of it is settled and committed."""
    traffic.stop()
    supervisor.until(
        lambda: committed_offsets(kafka, group, topic, PARTITIONS) == traffic.ends, "all of it", within=90
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
def test_a_worker_that_is_frozen_is_shown_and_counted_once(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """After two heartbeats its row says so. Once its session has ended, its partitions count where they are read now,
    and its open records there alone; when it goes on, no figure goes back."""
    topic, group = new_topic(kafka, PARTITIONS), new_group()
    env = environment(tmp_path, kafka, topic, group, api)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW)
    with Supervisor(tmp_path, 2, env=env) as both, Traffic(kafka, topic, seed=6, rate=RATE) as traffic:
        victim = both.until_divided(PARTITIONS)[1]
        both.until(lambda: api.calls > 20, "calls")
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
            until_all_committed(both, kafka, group, topic, traffic)
            assert not both.workers()[1]["silent"]
        assert wrong == []


@pytest.mark.real_kafka  # the embedded broker gives every topic four partitions, and knows no sessions
@pytest.mark.timeout(240)
def test_a_worker_is_killed_under_load(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """It is started again; nothing is lost, little is sent twice, and the figures of all never go back.

    What the dead one delivered after its last report nobody counts as delivered: by so much, and no more, less is told
    than the sandbox has accepted.
    """
    topic, group = new_topic(kafka, PARTITIONS), new_group()
    env = environment(tmp_path, kafka, topic, group, api)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW)
    with Supervisor(tmp_path, 2, env=env) as both, Traffic(kafka, topic, seed=5, rate=RATE) as traffic:
        victim = both.until_divided(PARTITIONS)[1]
        both.until(lambda: api.calls > 20, "calls")
        with watched(both) as wrong:
            psutil.Process(victim["pid"]).kill()
            both.until(lambda: both.workers()[1]["restarts"] == 1, "the restart")
            reborn = both.until_divided(PARTITIONS)[1]
            assert reborn["pid"] != victim["pid"]
            until_all_committed(both, kafka, group, topic, traffic)
        assert wrong == []
        accepted = api.accepted()
        assert set(accepted) == traffic.deliverable
        assert accepted.total() - len(accepted) <= AT_RISK
        assert len(accepted) - UNREPORTED <= both.ledger()["delivered"] <= accepted.total()
        assert both.get("/healthz") == (200, "ok\n")
        assert both.get("/readyz") == (200, "ok\n")
        [end] = [line for line in both.log if line["event"] == "worker_ended"]
        assert (end["worker"], end["code"]) == (2, -signal.SIGKILL)
        pids = [one.pid for one in both.children()]
        assert len(pids) == 2
        code, seconds = both.stop()
    assert code == 0, both.stderr[-3000:]
    assert seconds < GRACE + LATE
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert "Traceback" not in both.stderr


@pytest.mark.real_kafka
def test_two_workers_share_the_work_and_one_page(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Each worker reads partitions; their figures add up to what the sandbox counted; SIGTERM ends all with 0."""
    topic, group = new_topic(kafka, PARTITIONS), new_group()
    generator, events = generated(3000, seed=3, duplicates=0.0, invalid=0.02)
    with Supervisor(tmp_path, 2, env=environment(tmp_path, kafka, topic, group, api)) as both:
        both.until_divided(PARTITIONS)
        write_generated(kafka, topic, events)
        ledger = both.until_settled(len(events))
        counts = api.counts()
        assert ledger["read"] == len(events)
        assert ledger["delivered"] == counts.accepted_events == counts.distinct_event_ids
        assert counts.value_sum == generator.value_sum
        assert ledger["dead_lettered"] == sum(one.expected is Disposition.DEAD_LETTERED for one in events)
        status = both.status()
        assert sorted(one["partition"] for one in status["partitions"]) == list(range(PARTITIONS))
        assert sum(row["read"] for row in status["workers"]) == len(events)
        assert all(row["read"] for row in status["workers"])
        assert status["freshness"]["delivered"] == ledger["delivered"]
        assert sum(status["counts"]["delivered_by_event_name"].values()) == ledger["delivered"]
        assert status["key_store"]["keys"] == ledger["delivered"]
        counters = both.counters()
        assert (
            counters["pinstream_records_settled_total", (("disposition", "delivered"),)]
            == ledger["delivered"]
        )
        both.until(
            lambda: sum(committed_offsets(kafka, group, topic, PARTITIONS)) == len(events),
            "all to be committed",
        )
        code, seconds = both.stop()
    assert code == 0, both.stderr[-3000:]
    assert seconds < GRACE + LATE
    stopped = [line for line in both.log if line["event"] == "stopped"]
    assert {line.get("worker") for line in stopped} == {1, 2, None}
    assert stopped[-1]["delivered"] == ledger["delivered"]
    assert {line["worker"] for line in both.log if line["event"] == "partitions_assigned"} == {1, 2}


@pytest.mark.real_kafka
def test_bad_records_of_all_partitions_at_once(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Four workers find bad records in all partitions at once, and create the dead-letter topic at once: no letter
    stays open."""
    topics, group = [create_topic(kafka, 8) for _ in range(8)], new_group()
    env = environment(tmp_path, kafka, ",".join(topics), group, api)
    with Supervisor(tmp_path, 4, env=env) as four:
        four.until_divided(64)
        producer = Producer({**kafka.config, "linger.ms": 50})
        for topic, partition in itertools.product(topics, range(8)):
            for _ in range(3):
                producer.produce(topic, b"no event", partition=partition)
        assert producer.flush(WITHIN) == 0
        ledger = four.until_settled(192)
        assert four.stop()[0] == 0
    assert ledger["dead_lettered"] == sum(len(dead_letters(kafka, topic)) for topic in topics) == 192
    assert not [line for line in four.log if line["event"] == "dead_letters_not_stored"]


def test_without_its_supervisor_no_worker_goes_on(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """SIGKILL for the supervisor: its workers stop in order by themselves, and send nothing more."""
    topic, group = new_topic(kafka), new_group()
    with (
        Supervisor(tmp_path, 2, env=environment(tmp_path, kafka, topic, group, api)) as both,
        Traffic(kafka, topic, seed=8, rate=RATE),
    ):
        both.until(
            lambda: len([line for line in both.log if line["event"] == "partitions_assigned"]) >= 2, "both"
        )
        both.until(lambda: api.calls > 5, "calls")
        workers = both.children()
        both.kill()
        gone, left = psutil.wait_procs(workers, GRACE + LATE)
        assert (len(gone), left) == (2, [])
        calls = api.calls
        time.sleep(1)
        assert api.calls == calls
    assert {line["worker"] for line in both.log if line["event"] == "stopped"} == {1, 2}


def test_ctrl_c_at_a_terminal(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """SIGINT for the whole process group: only the supervisor acts on it, and all end in order."""
    topic, group = new_topic(kafka), new_group()
    env = environment(tmp_path, kafka, topic, group, api)
    with Supervisor(tmp_path, 2, env=env, under=("setsid",)) as both:
        until_all_joined(both)
        assert os.getpgid(both.pid) == both.pid
        os.killpg(both.pid, signal.SIGINT)
        assert both.wait() == 0, both.stderr[-3000:]
    ended_in_order(both)


@pytest.mark.real_kafka
def test_a_signal_for_every_process(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """SIGTERM for supervisor and workers at once, as systemd stops a unit: all end in order, with 0, and no
    worker counts as dead."""
    topic, group = new_topic(kafka, PARTITIONS), new_group()
    api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW)
    with (
        Supervisor(tmp_path, 2, env=environment(tmp_path, kafka, topic, group, api)) as both,
        Traffic(kafka, topic, seed=6, rate=RATE),
    ):
        both.until_divided(PARTITIONS)
        both.until(lambda: api.calls > 5, "calls")
        workers = both.children()
        for one in workers:
            one.terminate()
        both.send(signal.SIGTERM)
        assert both.wait() == 0, both.stderr[-3000:]
        assert psutil.wait_procs(workers, 2)[1] == []
    ended_in_order(both)


@pytest.mark.real_kafka
@pytest.mark.timeout(240)
def test_one_worker_is_asked_to_stop(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """SIGTERM for one worker: it drains and leaves, another takes its place, and nothing is sent twice."""
    topic, group = new_topic(kafka, PARTITIONS), new_group()
    with (
        Supervisor(tmp_path, 2, env=environment(tmp_path, kafka, topic, group, api)) as both,
        Traffic(kafka, topic, seed=7, rate=RATE) as traffic,
    ):
        old = both.until_divided(PARTITIONS)[0]
        both.until(lambda: api.calls > 20, "calls")
        with watched(both) as wrong:
            psutil.Process(old["pid"]).terminate()
            both.until(lambda: both.workers()[0]["restarts"] == 1, "the restart")
            assert both.until_divided(PARTITIONS)[0]["pid"] != old["pid"]
            until_all_committed(both, kafka, group, topic, traffic)
        assert wrong == []
        accepted = api.accepted()
        assert set(accepted) == traffic.deliverable
        assert accepted.total() == len(accepted)
        both.until(lambda: both.ledger()["delivered"] == len(accepted), "the last report")
        [end] = [line for line in both.log if line["event"] == "worker_ended"]
        assert (end["worker"], end["code"]) == (1, 0)
        assert both.stop()[0] == 0


@pytest.mark.real_kafka
def test_who_has_no_partitions_says_goodbye_too(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """More workers than partitions, stopped in order: the group is empty at once, and a new member does not
    wait for the session of one that has left."""
    topic, group = new_topic(kafka, 1), new_group()
    env = environment(tmp_path, kafka, topic, group, api, KAFKA_SESSION_TIMEOUT_MS="45000")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})

    def members() -> int | None:
        try:
            return len(admin.describe_consumer_groups([group])[group].result(10).members)
        except KafkaException:  # its coordinator is not ready yet
            return None

    with Supervisor(tmp_path, 3, env=env) as all_three:
        all_three.until(lambda: members() == 3, "all to join")
        code, seconds = all_three.stop()
    assert (code, members()) == (0, 0)
    assert seconds < LATE


def test_a_second_signal_ends_all_at_once(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Exit code 130, as with one process; no worker is left."""
    topic, group = new_topic(kafka), new_group()
    api.set_faults(slow=Chance(share=1.0), slow_seconds=GRACE)
    write_generated(kafka, topic, generated(500, seed=2)[1])
    with Supervisor(tmp_path, 2, env=environment(tmp_path, kafka, topic, group, api)) as both:
        both.until(lambda: api.calls > 0, "a call")
        workers = both.children()
        both.send(signal.SIGTERM)
        time.sleep(2 * TOGETHER)
        both.send(signal.SIGTERM)
        assert both.wait() == 130
        assert psutil.wait_procs(workers, 2)[1] == []


def test_a_worker_that_hangs_does_not_hold_up_the_end(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A worker is frozen: health says which one. It does not receive the stop, so it is killed in time, and the
    exit code says so."""
    env = environment(tmp_path, kafka, new_topic(kafka), new_group(), api)
    with Supervisor(tmp_path, 2, env=env) as both:
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


def test_what_no_restart_mends(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A token is refused for longer than the patience: all end in order, with 3, and one line says why."""
    topic, group = new_topic(kafka), new_group()
    write_generated(kafka, topic, generated(200, seed=4)[1])
    env = environment(tmp_path, kafka, topic, group, api, PINSTREAM_HALT_PATIENCE="1s")
    api.set_token("another")
    with Supervisor(tmp_path, 2, env=env) as both:
        assert both.wait() == 3
    assert "PINTEREST_ACCESS_TOKEN" in last_error(both.stderr)
    assert api.counts().accepted_events == 0
    assert TOKEN not in both.stderr


def test_what_is_wrong_from_the_start_is_said_once(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The same exit code and one line as with one process, however many workers there would be."""
    env = environment(tmp_path, kafka, "no-such-topic", new_group(), api)

    def ends(code: int, *arguments: str, **settings: Any) -> str:
        done = command("run", "--workers", *arguments, env={**env, **settings})
        assert done.returncode == code, done.stderr
        return done.stderr

    said = ends(1, "3")
    assert "no-such-topic" in last_error(said)
    assert said.count("pinstream: ") == 1
    assert "--workers" in the_one_line(ends(2, "0"))
    assert "PINSTREAM_LINGER" in the_one_line(ends(2, "3", PINSTREAM_LINGER="soon"))
    assert "memory:" in the_one_line(ends(2, "2", PINSTREAM_KEY_STORE="memory:"))
    assert "PINSTREAM_CONCURRENCY=4" in the_one_line(ends(2, "5"))


def test_one_worker_is_no_supervisor(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """``--workers 1`` is one plain process."""
    topic = new_topic(kafka)
    with Supervisor(tmp_path, 1, env=environment(tmp_path, kafka, topic, new_group(), api)) as one:
        one.until_logged("partitions_assigned")
        assert one.children() == []
        assert "workers" not in one.status()
        assert one.stop()[0] == 0


def test_the_token_protects_the_page_of_all(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Health is open, figures are not; and no worker listens on a port."""
    env = environment(tmp_path, kafka, new_topic(kafka), new_group(), api, PINSTREAM_HTTP_TOKEN="not-for-all")
    with Supervisor(tmp_path, 2, env=env) as both:
        until_all_joined(both)
        assert both.get("/status")[0] == 401
        assert both.get("/metrics")[0] == 401
        wait_for(lambda: both.get("/healthz")[0] == 200, "health")
        listening = [one.net_connections("inet") for one in both.children()]
        assert not any(socket.status == psutil.CONN_LISTEN for sockets in listening for socket in sockets)
        assert both.stop()[0] == 0
