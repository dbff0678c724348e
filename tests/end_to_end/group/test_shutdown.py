"""``docker stop``: one deadline for all of the end, whatever holds it up, exit code 0, and nothing lost or told twice.

Every test stops a real process by a signal while something is the matter, holds the time it took against
PINSTREAM_SHUTDOWN_GRACE, then starts it again with all in order and looks what became of each event.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from consumer.app.signals import TOGETHER
from consumer.demo.faults import Chance
from consumer.demo.generator import GeneratedEvent
from consumer.engine.model import Disposition
from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.crashes.test_kills import keys_in
from tests.end_to_end.group.members import set_session
from tests.end_to_end.processes import TOKEN, Process, run_environment, wait_for
from tests.end_to_end.records import (
    SCHEMA,
    commerce_event,
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    value_of,
    write_generated,
    write_registered,
)
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka
from tests.support.limits import LATE
from tests.support.switches import switched

GRACE = 4.0
"""Seconds that a busy machine may need beyond the grace, to notice the signal and to end an interpreter. Each
of our time-outs is longer than both together, so waiting for one by mistake would show."""
BATCH, CONCURRENCY = 20, 4


def environment(
    folder: Path, kafka: Kafka, topic: str, group: str, api: Api, **settings: str
) -> dict[str, str]:
    """Small batches, a short grace, and a membership that the next process takes over at once."""
    return run_environment(
        folder, kafka, topic, group, api.url,
        **{
            "PINSTREAM_SHUTDOWN_GRACE": f"{GRACE:g}s",
            "PINSTREAM_BATCH_EVENTS": str(BATCH),
            "PINSTREAM_CONCURRENCY": str(CONCURRENCY),
            "KAFKA_GROUP_INSTANCE_ID": f"{group}-1",
            **settings,
        },
    )  # fmt: skip


def ids_to_deliver(events: list[GeneratedEvent]) -> set[str]:
    """The ids of the events that the API must accept."""
    return {one.event["event_id"] for one in events if one.event and one.expected is Disposition.DELIVERED}


def stop_in_time(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop the process; it must end in order, within the grace."""
    code, seconds = process.stop(number)
    assert code == 0, process.stderr[-3000:]
    assert seconds < GRACE + LATE
    assert "Traceback" not in process.stderr


def finish(folder: Path, env: dict[str, str], kafka: Kafka, topic: str, group: str, records: int) -> None:
    """Let another process do the rest."""
    with Process(folder, "run", env=env) as process:
        process.until(lambda: sum(committed_offsets(kafka, group, topic)) == records, "the rest")
        stop_in_time(process)


@pytest.mark.real_kafka  # the embedded broker knows no static membership
def test_under_load_what_was_answered_is_never_sent_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Stopped three times under load, by either signal: all answers are waited for, remembered and committed.

    After each stop the key store holds what the API accepted, no more and no less; in the end each event was
    accepted once. (A dead letter behind an event that was not sent yet is written again: it is not remembered.)
    """
    topic, group = new_topic(kafka), new_group()
    _, events = generated(3000, seed=6, duplicates=0.05, invalid=0.02)
    write_generated(kafka, topic, events)
    api.set_faults(slow=Chance(share=0.7), slow_seconds=0.6)
    env = environment(tmp_path, kafka, topic, group, api)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        with Process(tmp_path, "run", env=env) as process:
            before = api.calls
            process.until(partial(api_was_called, api, before + CONCURRENCY), "a second round of calls")
            stop_in_time(process, number)
        reported = process.log[-1]
        assert (reported["event"], reported["open"]) == ("stopped", 0)
        accepted = api.accepted()
        assert reported["delivered"] > 0
        assert keys_in(tmp_path / "state" / "keys") == len(accepted) == accepted.total()
        assert sum(committed_offsets(kafka, group, topic)) < len(events), "stopped too late to show anything"
    api.set_faults()
    finish(tmp_path, env, kafka, topic, group, len(events))
    assert set(api.accepted()) == ids_to_deliver(events)
    assert set(api.accepted().values()) == {1}
    assert {message.value() for message, _ in dead_letters(kafka, topic)} == {
        value_of(one) for one in events if one.defect
    }


def api_was_called(api: Api, more_than: int) -> bool:
    """Whether it has had more calls than these."""
    return api.calls > more_than


def test_what_is_answered_on_the_way_out_is_committed(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """All events are in flight and nothing is committed: the process waits for the answers and commits before
    it ends."""
    topic, group = new_topic(kafka), new_group()
    _, events = generated(60, seed=13)
    write_generated(kafka, topic, events)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=1.0)
    env = run_environment(
        tmp_path, kafka, topic, group, api.url,
        PINSTREAM_SHUTDOWN_GRACE="10s", **switched(commit_interval=60),
    )  # fmt: skip
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: set(api.accepted()) == ids_to_deliver(events), "all of it in flight")
        assert process.stop()[0] == 0
    assert the_drain(process)["in_time"] == 1
    assert sum(committed_offsets(kafka, group, topic)) == len(events)


def the_drain(process: Process) -> dict[str, Any]:
    """What the log says of the last drain: whether it ended before its deadline, and what was dropped."""
    found: dict[str, Any] = [line for line in process.log if line.get("event") == "drained"][-1]
    return found


@pytest.mark.real_kafka
def test_an_api_that_hangs_cannot_hold_it_up(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Calls without an answer end with the grace; their events stay open, and are sent again under the same ids."""
    topic, group = new_topic(kafka), new_group()
    _, events = generated(300, seed=7)
    write_generated(kafka, topic, events)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=600.0)
    env = environment(tmp_path, kafka, topic, group, api)
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: api.calls == CONCURRENCY, "calls in flight")
        stop_in_time(process)
    assert the_drain(process)["in_time"] == 0
    assert process.log[-1]["delivered"] == 0
    in_flight = api.accepted().total()
    assert keys_in(tmp_path / "state" / "keys") == 0
    api.set_faults()
    finish(tmp_path, env, kafka, topic, group, len(events))
    accepted = api.accepted()
    assert set(accepted) == ids_to_deliver(events)
    assert accepted.total() - len(accepted) == in_flight <= BATCH * CONCURRENCY


@pytest.mark.real_kafka
@pytest.mark.parametrize("fault", ["refused token", "throttled"])
def test_while_nothing_may_be_sent(kafka: Kafka, api: Api, tmp_path: Path, fault: str) -> None:
    """In a halt, and during a Retry-After: the process does not wait for the end of it, and commits nothing unsent."""
    topic, group = new_topic(kafka), new_group()
    _, events = generated(300, seed=8)
    write_generated(kafka, topic, events)
    refused = fault == "refused token"
    if refused:
        api.set_token("another")
    else:
        api.set_faults(throttled=Chance(share=1.0), wait_seconds=250.0)
    env = environment(tmp_path, kafka, topic, group, api)
    state = "halted" if refused else "throttled"
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["destination"]["state"] == state, f"being {state}")
        stop_in_time(process)
    assert the_drain(process)["in_time"] == 1
    assert process.log[-1]["delivered"] == 0
    assert api.accepted() == {}
    api.set_token(TOKEN)
    api.set_faults()
    finish(tmp_path, env, kafka, topic, group, len(events))
    assert set(api.accepted()) == ids_to_deliver(events)
    assert set(api.accepted().values()) == {1}


@pytest.mark.real_kafka
@pytest.mark.parametrize("outage", ["down", "hanging"])
def test_while_a_schema_cannot_be_had(
    kafka: Kafka, api: Api, servers: Loop, tmp_path: Path, outage: str
) -> None:
    """Records that wait for their schema are dropped: they are read again, and delivered once the schema is there."""
    topic, group = new_topic(kafka), new_group()
    with Registry(servers) as registry:
        schema_id = registry.add("orders-value", SCHEMA)
        write_registered(kafka, topic, schema_id, (commerce_event(f"waits-{n}") for n in range(20)))
        env = environment(tmp_path, kafka, topic, group, api, SCHEMA_REGISTRY_URL=registry.url)
        if outage == "down":
            registry.down()
        else:
            registry.set_faults(hang=True)
        with Process(tmp_path, "run", env=env) as process:
            process.until(lambda: process.ledger()["open"] == 20, "the records that wait")
            if outage == "down":
                process.until_logged("schema_unavailable")
            else:
                process.until(lambda: registry.requests, "a question")
            stop_in_time(process)
        assert the_drain(process) | {"released": 20, "in_time": 1} == the_drain(process)
        assert sum(committed_offsets(kafka, group, topic)) == 0
        if outage == "down":
            registry.up()
        registry.set_faults()
        finish(tmp_path, env, kafka, topic, group, 20)
    assert api.accepted() == {f"waits-{n}": 1 for n in range(20)}
    assert dead_letters(kafka, topic) == []


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_while_the_broker_does_not_answer(
    own_kafka: RealBroker, api: Api, tmp_path: Path, protocol: str
) -> None:
    """What was delivered and cannot be committed has its keys stored: it is read again after the restart and
    not sent."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    topic, group = new_topic(kafka), new_group()
    _, events = generated(400, seed=9)
    write_generated(kafka, topic, events)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.4)
    env = environment(tmp_path, kafka, topic, group, api, KAFKA_GROUP_PROTOCOL=protocol)
    if protocol == "consumer":
        # Its static member keeps the name until its session is over, which here is short for everyone.
        del env["KAFKA_GROUP_INSTANCE_ID"]
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: api.calls > CONCURRENCY, "a second round of calls")
        with paused(own_kafka):
            stop_in_time(process)
    reported, accepted = process.log[-1], api.accepted()
    assert reported["event"] == "stopped"
    assert keys_in(tmp_path / "state" / "keys") == reported["delivered"] == accepted.total() > 0
    api.set_faults()
    finish(tmp_path, env, kafka, topic, group, len(events))
    assert set(api.accepted()) == ids_to_deliver(events)
    assert set(api.accepted().values()) == {1}


def test_while_it_starts_and_the_broker_does_not_answer(
    own_kafka: RealBroker, api: Api, tmp_path: Path
) -> None:
    """A process that is stopped before it has reached a broker ends without reaching one."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    env = environment(tmp_path, kafka, new_topic(kafka), new_group(), api)
    with paused(own_kafka), Process(tmp_path, "run", env=env) as process:
        broker = int(own_kafka.bootstrap_servers.rpartition(":")[2])
        process.until(lambda: broker in peers(process), "a question to the broker")
        process.send(signal.SIGTERM)
        wait_for(lambda: process.ended, "its end", within=GRACE + LATE)
        assert process.wait() == 0
    assert api.calls == 0


@pytest.mark.real_kafka
def test_a_name_that_a_dead_member_still_has(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Killed and started again under KIP-848 with a static name: it ends with 1, to be started again; never idles.

    The group keeps the name until the dead member's session is over, and librdkafka does not go on by itself.
    """
    topic, group = new_topic(kafka), new_group()
    write_generated(kafka, topic, generated(20, seed=11)[1])
    env = environment(tmp_path, kafka, topic, group, api, KAFKA_GROUP_PROTOCOL="consumer")
    with Process(tmp_path, "run", env=env) as killed:
        killed.until_settled(20)
        set_session(kafka, group, 60.0)  # longer than the next process takes to start on a busy machine
        killed.kill()
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: "still used by another member" in process.stderr, "the refusal")
        wait_for(lambda: process.ended, "its end")
        assert process.wait() == 1


@pytest.mark.real_kafka
def test_a_second_sigterm_ends_at_once(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A second SIGTERM ends the process at once: exit code 130, and what was in flight is sent again."""
    topic, group = new_topic(kafka), new_group()
    _, events = generated(200, seed=10)
    write_generated(kafka, topic, events)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=600.0)
    env = environment(tmp_path, kafka, topic, group, api, PINSTREAM_SHUTDOWN_GRACE="60s")
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: api.calls == CONCURRENCY, "calls in flight")
        process.send(signal.SIGTERM)
        process.until(lambda: process.status()["stopping"], "the first signal's effect")
        time.sleep(TOGETHER)  # sooner it would be the same wish
        code, seconds = process.stop(signal.SIGTERM)
    assert code == 130
    assert seconds < LATE
    in_flight = api.accepted().total()
    api.set_faults()
    finish(tmp_path, env, kafka, topic, group, len(events))
    accepted = api.accepted()
    assert set(accepted) == ids_to_deliver(events)
    assert accepted.total() - len(accepted) == in_flight <= BATCH * CONCURRENCY


DETACHED = ("setsid", "sh", "-c", 'exec "$@" <&-', "sh")
AS_PID_1 = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", *DETACHED[1:])


@pytest.mark.real_kafka
@pytest.mark.parametrize("under", [DETACHED, AS_PID_1], ids=["detached", "pid 1"])
def test_as_in_a_container(kafka: Kafka, api: Api, tmp_path: Path, under: tuple[str, ...]) -> None:
    """Without a terminal, with standard input closed, and as process 1, which ignores every signal that it does
    not handle."""
    if under is AS_PID_1 and not can_be_pid_1():
        pytest.skip("unshare is not installed, or may not make a process namespace here")
    topic, group = new_topic(kafka), new_group()
    _, events = generated(400, seed=12)
    write_generated(kafka, topic, events)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.4)
    env = environment(tmp_path, kafka, topic, group, api)
    with Process(tmp_path, "run", env=env, under=under) as process:
        process.until(lambda: api.calls > CONCURRENCY, "a second round of calls")
        begun = time.monotonic()
        innermost(process).send_signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - begun < GRACE + LATE
    assert process.log[-1]["event"] == "stopped"
    assert process.log[-1]["delivered"] == api.accepted().total()
    assert set(api.accepted().values()) == {1}


def can_be_pid_1() -> bool:
    """Whether this user may create a process namespace."""
    if shutil.which("unshare") is None:
        return False
    asked = [*AS_PID_1[: AS_PID_1.index("sh")], "true"]
    return subprocess.run(asked, capture_output=True, timeout=30, check=False).returncode == 0


def innermost(process: Process) -> psutil.Process:
    """pinstream's own process, when it runs under another command."""
    found = psutil.Process(process.pid)
    while children := found.children():
        [found] = children
    return found


def peers(process: Process) -> set[int]:
    """The ports to which it has connections."""
    ends = [one.raddr for one in psutil.Process(process.pid).net_connections()]
    return {getattr(end, "port", 0) for end in ends}


@contextmanager
def paused(broker: RealBroker) -> Iterator[None]:
    """A broker that keeps its connections and does not answer."""
    broker.pause()
    try:
        yield
    finally:
        broker.resume()
