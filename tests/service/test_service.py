"""The shell at work: it feeds the engine, performs commands and sets the timer; a kill at any moment loses nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import orjson
import pytest

from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.memory import MemoryKeyStore
from consumer.engine import messages as m
from consumer.engine.model import Disposition, Instant, Position
from consumer.errors import KeyStoreError
from consumer.ports import Renewed
from consumer.service import claimed, system_clock
from tests.engine.building import TOPIC, UNDECODABLE, UNIX, event, filtered, of_schema
from tests.service.driving import all_committed, serve, settled, until, values
from tests.service.fakes import STEP, Process, World
from tests.service.virtual_time import START, now, run

# -- the good life


def test_everything_is_delivered_and_committed() -> None:
    """Each record gets its outcome; at the end the source commits and leaves, once."""
    world = World(
        p0=[*values(5), filtered(), UNDECODABLE, None], p1=[*values(3, "x"), event("bad"), event("x0")]
    )
    process = Process(world)
    run(serve(process, settled(process)))
    assert all_committed(world)()
    assert sorted(world.processed) == sorted([str(n) for n in range(5)] + [f"x{n}" for n in range(3)])
    assert len(world.letters) == 2
    assert process.source.closed


def test_schemas_are_fetched() -> None:
    """With or without the schema, the records continue or become dead letters."""
    process = Process(World(p0=[of_schema("a", "1"), of_schema("b", "missing")]), schema_patience=5.0)
    run(serve(process, settled(process)))
    assert process.world.processed == ["a"]
    assert len(process.world.letters) == 1


def test_the_timer_ticks_at_the_core_s_deadline() -> None:
    """A batch that is not full while a call is in flight waits for the linger time and no longer."""
    process = Process(World(p0=values(3)), batch_events=2, linger=30.0)
    begun: list[float] = []

    async def note(command: m.Send) -> m.Answered:
        begun.append(now())
        await asyncio.sleep(60.0)
        return await process.api.accept(command)

    process.api.answering = note
    run(serve(process, settled(process)))
    assert [at - START for at in begun] == pytest.approx([0.0, 30.0], abs=10 * STEP)


def test_an_idle_service_hardly_works() -> None:
    """One input a second or so: the timer never spins, and fetching never stops."""
    process = Process(World(p0=[]))

    async def idle() -> None:
        running = asyncio.create_task(process.service.run())
        await asyncio.sleep(3600.0)
        process.service.request_stop()
        await running

    run(idle())
    assert process.pipeline.handled < 2 * 3600
    assert 700 < process.calls.count("fetch") < 740


def test_an_input_that_changes_no_deadline_sets_no_timer() -> None:
    """An input that leaves the deadline where it was leaves the timer, too; and the tick after it still comes."""
    process = Process(World(p0=[]))

    async def idle() -> None:
        running = asyncio.create_task(process.service.run())
        await asyncio.sleep(10.3)
        process.service.feed(m.BrokersSilent(None, 0.0))
        timer = process.service._timer
        process.service.feed(m.BrokersSilent(None, 0.0))
        assert process.service._timer is timer
        before = process.pipeline.handled
        await asyncio.sleep(10.0)
        assert process.pipeline.handled > before + 10
        process.service.request_stop()
        await running

    run(idle())


def test_the_room_is_read_before_each_fetch() -> None:
    """With a full budget it polls without fetching records; records that settle make room again."""
    process = Process(World(p0=values(50)), max_open_events=10)
    run(serve(process, settled(process)))
    assert 0 in process.source.rooms
    assert max(process.source.rooms) == 10
    assert len(process.world.processed) == 50


def test_housekeeping_reports_ends_and_expires_keys() -> None:
    """The lag and what waits for its start are known; an error while keys expire is reported, and the service
    continues."""
    process = Process(World(p0=values(3)))
    process.key_store.failures["expire"] = 2
    process.key_store.evicted = 7
    starts: set[int] = set()

    def check() -> bool:
        process.source.pending = 2 if process.calls.count("expire") < 3 else 0
        figures = process.service.statistics()
        starts.add(figures.waiting_for_start)
        assert figures.keys_forgotten_early == 7, "as the key store has it"
        return process.calls.count("expire") >= 4

    run(serve(process, check))
    assert starts == {0, 2}, "as the source has it, each time"
    assert [one.fields["keys"] for one in process.reported("keys_forgotten_early")] == [7]
    assert len(process.reported("key_store_trouble")) == 2
    assert process.world.committed == {0: 3}


def test_more_keys_forgotten_early_or_lost_are_reported() -> None:
    """The log has a line for each increase, with what has been added since the last, and what to do about it."""
    process = Process(World(p0=values(3)))

    def check() -> bool:
        rounds = process.calls.count("expire")
        process.key_store.evicted = (0, 40, 40, 100)[min(rounds, 3)]
        process.key_store.evicted_by_server = (0, 0, 0, 0, 8)[min(rounds, 4)]
        process.key_store.lost = (0, 0, 5)[min(rounds, 2)]
        return rounds >= 6

    run(serve(process, check))
    forgotten = process.reported("keys_forgotten_early")
    assert [one.fields["keys"] for one in forgotten] == [40, 60, 8]
    words = ["PINSTREAM_KEY_STORE_MAX_BYTES", "PINSTREAM_KEY_STORE_MAX_BYTES", "server more memory"]
    for one, word in zip(forgotten, words, strict=True):
        assert word in str(one.fields["advice"])
    assert [one.fields for one in process.reported("keys_lost")] == [{"keys": 5}]


@pytest.mark.parametrize("call", ["look_up", "confirm"])
def test_a_key_store_when_failing_is_tried_again(call: str) -> None:
    """Each failure is one log line; nothing is sent twice because of it, and nothing is lost."""
    process = Process(World(p0=values(3)))
    process.key_store.failures[call] = 7
    run(serve(process, settled(process)))
    assert process.world.processed == ["0", "1", "2"]
    assert len(process.reported("key_store_trouble")) == 7


@pytest.mark.parametrize(
    ("monotonic", "unix", "reason"), [(2.1, 2.1, "too_late"), (0.0, 2.1, "too_late"), (1.9, 1.9, None)]
)
def test_a_call_that_comes_expired_does_not_begin(monotonic: float, unix: float, reason: str | None) -> None:
    """The process stood still after the engine had decided, so another member may have the events.

    The monotonic clock does not show for how long the machine was suspended; the wall clock does.
    """
    process = Process(World())

    async def attempt() -> m.Input | None:
        present = process.service._clock()
        decided = Instant(present.monotonic - monotonic, present.unix - unix)
        send = m.Send(1, "1", [b'{"data":[]}'], 0, start_deadline=decided.monotonic + 2.0)
        return await process.service._send(send, decided)

    answer = run(attempt())
    assert getattr(answer, "reason", None) == reason
    assert process.calls.count("send") == (reason is None)


@pytest.mark.parametrize(("monotonic", "unix"), [(2.1, 2.1), (0.001, 2.1)])
@pytest.mark.parametrize("is_seen", [False, True])
def test_a_call_that_has_begun_writes_nothing_after_the_process_stood_still(
    is_seen: bool, monotonic: float, unix: float
) -> None:
    """Whether an input has shown that by then or not. A call that was decided after it is made."""
    process = Process(World())

    async def attempts() -> list[m.Input | None]:
        service, decided = process.service, process.service._clock()
        service.feed(m.Tick())
        back = Instant(decided.monotonic + monotonic, decided.unix + unix)
        service._clock = lambda: back
        if is_seen:
            service.feed(m.Tick())
        first = await service._send(m.Send(1, "1", [b'{"data":[]}'], 0), decided)
        service.feed(m.Tick())
        return [first, await service._send(m.Send(2, "1", [b'{"data":[]}'], 0), back)]

    first, second = run(attempts())
    assert first == m.Unanswered(1, m.START_EXPIRED)
    assert (
        isinstance(second, m.Answered) or monotonic == 0.0
    )  # without the monotonic clock both are one moment


def test_deadlines_do_not_depend_on_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock gives the loop's monotonic time and the wall's."""
    monkeypatch.setattr("time.time", lambda: UNIX)

    async def read() -> tuple[float, float]:
        return system_clock()

    assert run(read()) == (START, UNIX)


# -- rebalances


def test_a_revoke_returns_what_to_commit() -> None:
    """It returns after the answers to calls in flight; the partition's later records belong to another member."""
    process = Process(World(p0=values(4), p1=values(4, "x")), linger=0.0)

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        assert await process.source.revoke(0) == [Position(TOPIC, 0, 4, 7)]
        await until(lambda: process.world.committed[1] == 4)
        process.service.request_stop()
        await running

    run(scenario())


def test_a_revoke_waits_no_longer_than_the_grace() -> None:
    """An API that never answers must not get the member thrown out of its group."""
    process = Process(World(p0=values(4)), linger=0.0, grace=20.0)
    process.api.answering = process.api.hang

    async def scenario() -> float:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        begun = now()
        assert await process.source.revoke(0) == []
        took = now() - begun
        process.service.request_stop()
        await running
        return took

    assert run(scenario()) == pytest.approx(20.0)


def test_lost_partitions_commit_nothing() -> None:
    """Their records belong to another member; the service continues."""
    process = Process(World(p0=values(4), p1=values(4, "x")), linger=0.0, commit_interval=5.0)

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        await process.source.lose(0)
        await until(lambda: process.world.committed[1] == 4)
        process.service.request_stop()
        await running

    run(scenario())
    assert process.world.committed[0] == 0


def test_a_partition_that_comes_back_is_read_on() -> None:
    """Reading continues from the committed offset; nothing stays paused, and nothing delivered is sent again."""
    process = Process(World(p0=values(30)), linger=0.0, max_open_events=7)

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        for _ in range(4):
            await asyncio.sleep(0.2)
            await process.source.revoke(0)
            await asyncio.sleep(0.2)
            await process.source.assign(0)
        await until(all_committed(process.world))
        process.service.request_stop()
        await running

    run(scenario())
    assert sorted(process.world.processed, key=int) == [str(n) for n in range(30)]


def test_a_stop_during_a_revoke_answers_it() -> None:
    """The consumer's thread waits for that answer, without which it can neither commit nor leave."""
    process = Process(World(p0=values(4), p1=values(4, "x")), linger=0.0)

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        revoking = asyncio.create_task(process.source.revoke(0))
        await asyncio.sleep(0.0)
        process.service.request_stop()
        await running
        await revoking

    run(scenario())
    assert process.world.committed == {0: 4, 1: 4}


# -- kill -9


def die_at(process: Process, moment: float) -> None:
    """Run a process and kill it at this virtual time: nothing that it has begun continues."""

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await asyncio.sleep(moment)
        process.dead = True
        running.cancel()
        await asyncio.wait({running})

    run(scenario())


@pytest.mark.parametrize("receipts", [False, True])
@pytest.mark.parametrize("moment", [n * STEP / 2 for n in range(60)])
def test_a_kill_at_any_moment_loses_nothing(moment: float, receipts: bool) -> None:
    """Whatever was under way, the next process delivers the rest, and sends again only events whose keys were
    not stored. Receipts say what became of every record, and at the kill few are ahead of what they say."""
    world = World(p0=[*values(6), filtered(), UNDECODABLE], p1=[event("0"), event("bad"), *values(5, "x")])
    policy: dict[str, Any] = {"batch_events": 2, "concurrency": 2, "linger": 0.0, "commit_interval": 0.03}
    policy["receipts"] = receipts
    die_at(Process(world, **policy), moment)
    delivered = [one for one in world.receipts if one[2] is Disposition.DELIVERED]
    assert len(delivered) - len(world.keys) <= policy["batch_events"] * policy["concurrency"]
    after = Process(world, **policy)
    run(serve(after, all_committed(world)))
    expected = {str(n) for n in range(6)} | {f"x{n}" for n in range(5)}
    assert set(world.processed) == expected
    # In flight, or answered and on the way to the key store (the strict bound: test_lessons.py).
    assert len(world.processed) - len(expected) <= 2 * policy["batch_events"] * policy["concurrency"]
    assert {one.rejection.code for one in world.letters} == {"malformed", "refused"}
    if receipts:
        check_receipts(world, expected)


def check_receipts(world: World, delivered: set[str]) -> None:
    """Check that the receipts, the best one of each record, are what became of the records."""
    ranks = [Disposition.DUPLICATE, Disposition.FILTERED, Disposition.DEAD_LETTERED, Disposition.DELIVERED]
    best: dict[tuple[int, int], Disposition] = {}
    for partition, offset, outcome, _ in world.receipts:
        best[partition, offset] = max(best.get((partition, offset), outcome), outcome, key=ranks.index)
    assert sorted(best) == [(tp, at) for tp, log in world.log.items() for at in range(len(log))]
    found = Counter(best.values())
    # One event has two records: one of them is a duplicate, unless the kill made both be sent.
    assert found[Disposition.DELIVERED] + found[Disposition.DUPLICATE] == len(delivered) + 1
    assert (found[Disposition.FILTERED], found[Disposition.DEAD_LETTERED]) == (1, 2)
    said = {orjson.loads(body)["event_id"] for *_, outcome, body in world.receipts if outcome is ranks[-1]}
    assert said == delivered
    assert len(world.letters) <= 4


# -- virtual time itself


def test_a_test_that_would_hang_is_reported() -> None:
    """Waiting for what will never happen fails at once."""

    async def hang() -> None:
        await asyncio.Event().wait()

    def unbounded(main: Coroutine[Any, Any, None]) -> None:
        run(main, limit=10.0)

    with pytest.raises(TimeoutError):
        unbounded(hang())


def test_the_engine_is_reported_of_a_lost_lease_whatever_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here, keys were to be stored. No call begins until the lease is renewed, which is requested at once."""
    process = Process(World(p0=values(1)), lease=60.0, call_timeout=1.0)
    errors, left = [KeyStoreError("the store has lost something")], []
    errors[0].lease_lost = True
    confirm = process.key_store.confirm

    async def lose(keys: bytes, now: float) -> bytes:
        if errors:
            raise errors.pop()
        return await confirm(keys, now)

    async def renew() -> Renewed:
        left.append(process.service.statistics().lease_left)
        return Renewed(0)

    monkeypatch.setattr(process.key_store, "confirm", lose)
    monkeypatch.setattr(process.key_store, "renew", renew)
    run(serve(process, settled(process)))
    assert left[:2] == [0.0, 0.0]


async def test_an_event_that_went_through_a_gateway_before_is_not_claimed() -> None:
    """A key that was delivered under its earlier tag is a duplicate; only the others are claimed, in order."""
    store = MemoryKeyStore(Window.of(3_600.0), 1 << 24)
    await store.confirm(bytes(16), 5.0)
    keys = b"".join(bytes([number]) * 16 for number in (1, 2, 3))
    earlier = b"".join(bytes([number]) * 16 for number in (9, 0, 8))
    await store.confirm(bytes([3]) * 16, 5.0)
    assert await claimed(store, keys, earlier, 6.0) == ([0, 1, 1], 0)
    assert (await claimed(store, keys, b"", 6.0))[0] == b"\0\0\1"
