"""The end of the shell: it stops in time, and an error outside an adapter's Protocol ends it with that error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Position, TopicPartition
from consumer.errors import DestinationRefused, InvariantViolation, KafkaError
from consumer.service import Service, State
from tests.engine.building import TOPIC, UNDECODABLE, event, filtered, of_schema
from tests.service.driving import AdapterFailure, serve, settled, something_processed, until, values
from tests.service.fakes import STEP, Process, World
from tests.service.virtual_time import START, now, run

# -- the end


def test_a_stop_drains_and_commits() -> None:
    """Calls in flight are waited for, queued events are dropped; a second request changes nothing."""
    process = Process(World(p0=values(4)), linger=0.0)

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        process.service.request_stop()
        process.service.request_stop()
        await running
        process.service.request_stop()

    run(scenario())
    assert process.world.committed == {0: 4}
    assert process.source.closed_with == [Position(TOPIC, 0, 4, 7)]


@pytest.mark.parametrize("lost", [False, True])
def test_partitions_taken_back_after_the_drain_take_their_positions_with_them(lost: bool) -> None:
    """A rebalance overtakes the last commit: what is settled goes to the group with the revoke, and only once.

    Found in CI: two members left as a third came, and the next owner sent 160 events again.
    """
    process = Process(World(p0=values(4)), linger=0.0)
    service, close = process.service, process.source.close
    handed: list[Any] = []

    async def overtaken(timeout: float, positions: Any = ()) -> None:
        ours = [TopicPartition(TOPIC, 0)]
        if lost:
            await service.lost(ours)
        handed.append([*await service.revoked([TopicPartition(TOPIC, 1)])])
        handed.append([*await service.revoked(ours)])
        handed.append([*await service.revoked(ours)])
        await close(timeout, positions)

    process.source.close = overtaken  # type: ignore[method-assign]  # a close that a rebalance comes before

    async def scenario() -> None:
        running = asyncio.create_task(service.run())
        await until(lambda: process.api.in_flight > 0)
        service.request_stop()
        await running

    run(scenario())
    assert handed == [[], [] if lost else [Position(TOPIC, 0, 4, 7)], []]


@pytest.mark.parametrize("close_time", [0.0, 100.0])
def test_the_grace_is_one_deadline_for_all_of_the_shutdown(close_time: float) -> None:
    """Draining, committing and leaving share one deadline: after it comes a kill (docs/why.md, scality/backbeat)."""
    process = Process(World(p0=values(4)), linger=0.0, grace=25.0)
    process.api.answering = process.api.hang
    process.source.close_time = close_time

    async def scenario() -> float:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        begun = now()
        process.service.request_stop()
        await running
        return now() - begun

    assert run(scenario()) <= 25.0 + STEP
    assert process.source.closed


def test_leaving_has_all_that_is_left_of_the_grace() -> None:
    """A source that leaves in the middle of a rebalance waits for other members, whose drains may take as long
    as ours."""
    process = Process(World(p0=values(4)), linger=0.0, grace=25.0)
    process.source.close_time = 23.0

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.world.committed == {0: 4})
        process.service.request_stop()
        begun = now()
        await running
        assert 23.0 <= now() - begun <= 25.0

    run(scenario())


def test_a_stop_while_the_source_starts() -> None:
    """It ends as soon as the source has started."""
    process = Process(World(p0=values(4)))

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await asyncio.sleep(0.0)
        process.service.request_stop()
        await running

    run(scenario(), limit=60.0)
    assert process.source.closed
    assert process.world.processed == []


@pytest.mark.parametrize("hangs_for", [20.0, 3600.0])
def test_a_source_whose_start_hangs_is_not_waited_for(hangs_for: float) -> None:
    """It has as long as leaving the group has: one that has started by then leaves in order, another is left behind."""
    process = Process(World(p0=values(4)), grace=25.0)
    start = process.source.start

    async def hang() -> None:
        await asyncio.sleep(hangs_for)
        await start()

    process.source.start = hang  # type: ignore[method-assign]

    async def scenario() -> float:
        running = asyncio.create_task(process.service.run())
        await asyncio.sleep(0.0)
        begun = now()
        process.service.request_stop()
        await running
        return now() - begun

    assert run(scenario()) <= 25.0
    assert process.source.closed
    assert process.world.processed == []


def test_the_end_is_reported_when_it_begins() -> None:
    """Also that of a failure, which no signal asks for: from then on its time is watched."""
    process = Process(World(p0=values(4)))
    reported: list[bool] = []
    process.service.closes = lambda: reported.append(process.source.closed)

    async def scenario() -> None:
        process.service.feed(m.CommitDone(()))
        with pytest.raises(InvariantViolation):
            await process.service.run()

    run(scenario(), limit=60.0)
    assert reported == [False]


def test_a_stop_before_the_run() -> None:
    """A signal can come at any time: the run ends at once instead of waiting indefinitely."""
    process = Process(World(p0=values(4)))

    async def scenario() -> None:
        process.service.request_stop()
        await process.service.run()

    run(scenario(), limit=60.0)
    assert process.source.closed


def test_an_error_before_the_run_ends_it() -> None:
    """An engine that failed before the start takes no inputs, so a run would never end: it raises the error."""
    process = Process(World(p0=values(4)))

    async def scenario() -> None:
        process.service.feed(m.CommitDone(()))
        process.service.request_stop()
        with pytest.raises(InvariantViolation, match="a commit was answered but not asked"):
            await process.service.run()

    run(scenario(), limit=60.0)
    assert process.source.closed
    assert process.world.processed == []


def test_a_cancelled_run_leaves_the_group() -> None:
    """The source is always closed, and nothing is committed on the way."""
    process = Process(World(p0=values(4)), linger=0.0, commit_interval=100.0)

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(something_processed(process))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    run(scenario())
    assert process.source.closed
    assert process.source.closed_with == ()


def test_patience_that_ran_out_ends_with_its_own_exit_code() -> None:
    """The refused records stay open; what was settled before is committed; the error says what is refused."""
    process = Process(World(p0=[filtered(), *values(3)]), linger=0.0, halt_patience=90.0)
    process.api.answering = process.api.refuse

    async def scenario() -> float:
        with pytest.raises(
            DestinationRefused, match=r"the access token is refused \(HTTP 401, code 2\)"
        ) as caught:
            await process.service.run()
        assert caught.value.exit_code == 3
        return now()

    assert run(scenario()) - START == pytest.approx(90.0, abs=1.0)
    assert process.world.committed == {0: 1}
    assert process.calls.count("read_token") < 12


def test_a_renewed_token_ends_the_halt() -> None:
    """The token is read again, one probe is sent, and all events are delivered."""
    process = Process(World(p0=values(3)), linger=0.0)
    process.api.answering = process.api.refuse
    process.api.token_changes = [False, False, True]

    async def renewed(command: m.Send) -> m.Answered:
        answer = process.api.refuse if process.api.token_changes else process.api.accept
        return await answer(command)

    process.api.answering = renewed
    run(serve(process, settled(process)))
    assert process.world.processed == ["0", "1", "2"]
    assert process.reported("resumed")


CALLS = [
    "start",
    "fetch",
    "end_offsets",
    "commit",
    "send",
    "read_token",
    "ask_time",
    "look_up",
    "confirm",
    "fetch_schema",
    "store",
]


@pytest.mark.parametrize("call", CALLS)
def test_what_an_adapter_raises_beyond_its_protocol_ends_the_service(call: str) -> None:
    """No error is swallowed: it is raised, the source is closed, and nothing is committed after it."""
    log = [filtered(), UNDECODABLE, of_schema("s", "1"), event("old", time=0.0), *values(3)]
    process = Process(World(p0=log), linger=0.0)
    process.broken[call] = AdapterFailure(call)
    if call == "read_token":
        process.api.answering = process.api.refuse

    async def scenario() -> None:
        with pytest.raises(AdapterFailure, match=call):
            await process.service.run()
        process.service.request_stop()
        await process.service.lost([])

    run(scenario(), limit=60.0)
    assert process.source.closed
    assert process.source.closed_with == ()


def test_a_dead_end_of_the_source_comes_out_as_it_is() -> None:
    """`KafkaError` keeps its exit code."""
    process = Process(World(p0=values(3)))
    process.broken["fetch"] = KafkaError("the topic is gone; create it")

    async def scenario() -> None:
        with pytest.raises(KafkaError, match="the topic is gone"):
            await process.service.run()

    run(scenario())


def test_a_failure_answers_a_revoke_with_nothing_to_commit() -> None:
    """A revoke after the failure is answered in the same way: leaving the group must not hang."""
    process = Process(World(p0=values(3)), linger=0.0)
    process.api.answering = process.api.hang

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        revoking = asyncio.create_task(process.source.revoke(0))
        await asyncio.sleep(0.0)
        process.broken["end_offsets"] = AdapterFailure("housekeeping")
        assert await revoking == ()
        with pytest.raises(AdapterFailure):
            await running
        assert await process.service.revoked([]) == ()

    run(scenario())


def test_an_observer_that_fails_ends_the_service() -> None:
    """The service does not continue without its log."""
    process = Process(World(p0=values(1)))

    def fail(_: m.Report) -> None:
        raise AdapterFailure("no space for the log")

    def connect(service: Service) -> Any:
        process.source._listener = service
        return process.source

    async def scenario() -> None:
        service = Service(
            process.pipeline,
            connect=connect,
            api=process.api,
            key_store=process.key_store,
            schemas=process.service._schemas,
            dead_letters=process.service._dead_letters,
            clock=process.service._clock,
            report=fail,
            grace=5.0,
        )
        with pytest.raises(AdapterFailure):
            await service.run()

    run(scenario(), limit=60.0)


@pytest.mark.parametrize("call", ["send", "look_up", "confirm", "store", "commit", "fetch_schema"])
def test_a_call_that_is_cancelled_from_within_does_not_strand_its_records(call: str) -> None:
    """A library may cancel a task by itself: the command must be answered, or the service must end."""
    process = Process(World(p0=[UNDECODABLE, of_schema("s", "1"), *values(3)]), linger=0.0)
    process.broken[call] = asyncio.CancelledError()

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: call in process.calls)
        await asyncio.sleep(2 * STEP)
        process.broken.clear()
        await asyncio.wait({running}, timeout=120.0)
        totals = process.service.statistics().totals
        ended, committed = running.done(), dict(process.world.committed)
        process.service.request_stop()
        await asyncio.wait({running})
        assert ended or (not totals.open and committed == {0: 5})

    run(scenario())


def test_the_states_of_a_service() -> None:
    """It serves until the stop, and is drained at the end; a stop before the start omits serving. After an
    error it has failed, and stays so."""

    def seen(end: Callable[[Service], None], *, at_once: bool = False) -> list[State]:
        process = Process(World(p0=values(4)), linger=0.0)
        service, states = process.service, [process.service.state]
        become = service._become

        def watched(state: State) -> None:
            become(state)
            states.append(state)

        service._become = watched  # type: ignore[method-assign]  # it has no other observer

        async def scenario() -> None:
            if at_once:
                end(service)
            running = asyncio.create_task(service.run())
            if not at_once:
                await until(lambda: process.api.in_flight > 0)
                end(service)
            await asyncio.gather(running, return_exceptions=True)
            service.request_stop()

        run(scenario())
        return states

    assert seen(Service.request_stop) == [State.STARTING, State.SERVING, State.STOPPING, State.DRAINED]
    assert seen(Service.request_stop, at_once=True) == [State.STARTING, State.STOPPING, State.DRAINED]
    # An input that the engine does not know.
    assert seen(lambda service: service.feed(Any)) == [State.STARTING, State.SERVING, State.FAILED]  # type: ignore[arg-type]
