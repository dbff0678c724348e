"""The shell: feeds inputs to the engine, performs its commands, sets one timer.

It decides nothing, with one exception: a call does not begin if the process stood still after the engine had decided
it. The engine cannot know that in time.

Theory of operation. `feed` is synchronous and atomic under asyncio: one input in, commands out. `_perform` does at once
what needs no waiting; every `Attempt` starts at once as a task of its own, and the task's result is the next input. So
there are no locks and no queues between stages. One
loop fetches, reading `Pipeline.room` before each fetch; one timer ticks at `Pipeline.next_deadline`; one slow loop does
the rest (end offsets, expiry of keys). Rebalances come in through `assigned`, `revoked` and `lost`.

An error that an adapter raises beyond its Protocol (`consumer.ports`) is a bug or final, and ends the service: no error
is ignored, and nothing is committed after one.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from enum import Enum, auto
from functools import partial
from typing import Any, Final, TypeVar, assert_never

from consumer.engine import messages as m
from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.figures.outside import CertificateStatistics
from consumer.engine.figures.statistics import Statistics
from consumer.engine.model import Chunk, Instant, Position, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import split_keys
from consumer.errors import DestinationRefused, KeyStoreError, bug
from consumer.ports import (
    Api,
    DeadLetterWriter,
    KeyStore,
    ReceiptWriter,
    RecordSource,
    Schemas,
    UserFunction,
)

# Seconds that one fetch waits for records. Without room they are the longest that a resumed partition waits.
_FETCH_TIMEOUT, _FULL_TIMEOUT = 5.0, 0.1
_HOUSEKEEPING = 2.0
# Share of the grace for draining; the rest is for the last commit and for leaving the group: one deadline for all.
_DRAIN_SHARE = 0.8
# At least this time, in seconds: leaving may wait for the source's thread first (`chunks.IDLE_CHECK_SECONDS`).
_LEAST_CLOSE = 0.7
# Seconds of the remaining grace that are kept for closing all but the source.
_AFTERWARDS = 1.0
# Seconds for closing after a failure, which has no grace.
_CLOSE_TIMEOUT = 10.0

_T = TypeVar("_T")


async def claimed(store: KeyStore, keys: bytes, earlier: bytes, now: float) -> tuple[Sequence[int], int]:
    """Claim keys, except those of events that were delivered under their earlier key. See `KeyStore.claim`."""
    if not earlier:
        return await store.claim(keys, now)
    before = await store.look_up(earlier, now)
    new = b"".join(key for key, known in zip(split_keys(keys), before, strict=True) if known == m.Found.NEW)
    found, session = await store.claim(new, now)
    rest = iter(found)
    return [known or next(rest) for known in before], session


async def _answered(attempt: Awaitable[_T], make: Callable[[_T], m.Input]) -> m.Input:
    """Return the input that is made of what an attempt returns."""
    return make(await attempt)


class State(Enum):
    """What a `Service` does."""

    STARTING = auto()
    SERVING = auto()
    STOPPING = auto()
    """The stop is requested: what is open is drained."""
    DRAINED = auto()
    """The engine has named the last positions, which are committed when the group is left."""
    FAILED = auto()
    """Nothing is fed or committed any more: open records are read again."""


_CHANGES: Final = {
    State.STARTING: {State.SERVING, State.STOPPING, State.FAILED},
    State.SERVING: {State.STOPPING, State.FAILED},
    State.STOPPING: {State.DRAINED, State.FAILED},
    State.DRAINED: frozenset[State](),
    State.FAILED: frozenset[State](),
}
"""The states that may follow each."""


def system_clock() -> Instant:
    """Return the time of the machine's clocks: the event loop's monotonic one, so that virtual time moves it, and
    the wall clock."""
    return Instant(asyncio.get_running_loop().time(), time.time())


class Service:
    """One group member: engine, adapters, and the loop between them.

    `connect` makes the source; it gets the service, whose `assigned`, `revoked` and `lost` the source calls. `grace`:
    seconds that a revoke or the stop may take to drain.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        connect: Callable[[Service], RecordSource],
        api: Api,
        key_store: KeyStore,
        schemas: Schemas,
        dead_letters: DeadLetterWriter,
        receipts: ReceiptWriter | None = None,
        transform: UserFunction | None = None,
        report: Callable[[m.Report], None],
        grace: float,
        certificates: Sequence[CertificateStatistics] = (),
        clock: Callable[[], Instant] = system_clock,
        around_fetched: Callable[[Sequence[Chunk]], AbstractContextManager[object]] = nullcontext,
        log_lines_dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.pipeline = pipeline
        self._source = connect(self)
        self._api = api
        self._key_store = key_store
        self._schemas = schemas
        self._dead_letters = dead_letters
        self._receipts = receipts
        self._transform = transform
        self._clock = clock
        self._report = report
        self._grace = grace
        self._certificates = certificates
        self._around_fetched = around_fetched
        self._log_lines_dropped = log_lines_dropped
        self._tasks: set[asyncio.Task[m.Input | None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        # When it fires (monotonic); None: it is not set.
        self._ticks_at: float | None = None
        # Numbers of inputs that require an answer.
        self._numbers = itertools.count(1)
        self._releases: dict[int, asyncio.Future[Sequence[Position]]] = {}
        self.state = State.STARTING
        # Once drained, the last positions of partitions that were not revoked since.
        self._final: Sequence[Position] = ()
        # When the stop has to be over; None: it is not requested.
        self._stop_deadline: float | None = None
        # Why the destination's refusal made the engine request the stop, and what made the service fail.
        self._refused: str | None = None
        self._failure: BaseException | None = None
        # Set in a state that none follows.
        self._over = asyncio.Event()
        # The figures of the key store as they were last looked at.
        self._keys = KeyStoreStatistics()
        # Why the key store needs a restart of the process to be used again; None: it does not, as far as known.
        self.key_store_broken: str | None = None
        # Called when the end begins, whatever the reason.
        self.closes: Callable[[], None] = lambda: None
        # When the last fetch began, in monotonic seconds: a service without lag fetches, too.
        self.fetched_at: float | None = None

    # -- for the application

    async def run(self) -> None:
        """Serve until `request_stop`.

        Raises the error that ended it, and `DestinationRefused` if patience ran out.
        """
        # The stop may have been requested before, and the engine may have failed at it.
        if self.state is State.STARTING:
            self._become(State.SERVING)
        background: list[asyncio.Task[None]] = []
        try:
            self.feed(m.Tick())  # from now on the engine notices if the process stood still
            await self._start()
            background = [asyncio.create_task(self._intake()), asyncio.create_task(self._housekeeping())]
            for task in background:
                task.add_done_callback(self._watch)
            await self._over.wait()
        except BaseException as error:  # the source cannot start, or this task is cancelled
            self._fail(error)
            raise
        finally:
            await self._end(background)
        if self._failure is not None:
            raise self._failure
        if self._refused is not None:
            raise DestinationRefused(
                f"{self._refused}; nothing was lost: set a valid token in PINTEREST_ACCESS_TOKEN or its file, make "
                "sure that it may write to that ad account (PINTEREST_AD_ACCOUNT_ID), and start again"
            )

    def _become(self, state: State) -> None:
        if state not in _CHANGES[self.state]:
            raise bug(f"a service that is {self.state.name} cannot be {state.name}")
        self.state = state
        if not _CHANGES[state]:
            self._over.set()

    async def _start(self) -> None:
        """Start the source. A stop waits for that as long as it may wait for leaving the group."""
        starting: asyncio.Future[Any] = asyncio.ensure_future(self._source.start())
        over: asyncio.Future[Any] = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait([starting, over], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([starting], timeout=self._time_to_close())
            if starting.done():
                starting.result()
        finally:
            starting.cancel()
            over.cancel()

    def request_stop(self) -> None:
        """Request the stop: take no more records, drain within the grace, commit, leave. Calling it again changes
        nothing."""
        if self._stop_deadline is None:
            self._stop_deadline = self._clock().monotonic + self._grace
        if State.STOPPING in _CHANGES[self.state]:
            self._become(State.STOPPING)
        self.feed(m.StopRequested(self._grace * _DRAIN_SHARE))

    def grace_left(self) -> float:
        """Return the seconds that are left for stopping; before a stop is requested, all of the grace."""
        if self._stop_deadline is None:
            return self._grace
        return max(0.0, self._stop_deadline - self._clock().monotonic)

    def statistics(self) -> Statistics:
        """Return the present figures of the engine, the key store, the log and the certificates."""
        return replace(
            self.pipeline.statistics(self._clock()),
            key_store=self._key_store.statistics(),
            log_lines_dropped=self._log_lines_dropped(),
            certificates=self._certificates,
        )

    # -- rebalances (the source calls these, on the event loop)

    async def assigned(self, assignments: Sequence[m.Assignment]) -> None:
        """Report assigned partitions to the engine."""
        self._report(m.Report("info", "partitions_assigned", {"partitions": len(assignments)}))
        self.feed(m.Assigned(assignments))

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Drain revoked partitions; return what to commit, once they are drained or the grace is over."""
        if self.state is State.FAILED:
            return ()
        if self.state is State.DRAINED:
            return self._hand_over(partitions)
        number = next(self._numbers)
        future: asyncio.Future[Sequence[Position]] = asyncio.get_running_loop().create_future()
        self._releases[number] = future
        self.feed(m.Revoked(partitions, number, self._grace))
        return await future

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Report to the engine that partitions already belong to another member."""
        if self.state is State.DRAINED:
            self._hand_over(partitions)
        self.feed(m.Lost(partitions))

    def _hand_over(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Return the last positions of partitions that are revoked between the drain and leaving the group.

        Each position is returned once, so that none is committed under a later assignment.
        """
        taken = set(partitions)
        mine = [one for one in self._final if TopicPartition(one.topic, one.partition) in taken]
        self._final = [one for one in self._final if one not in mine]
        return mine

    # -- feed, perform, re-arm

    def feed(self, happened: m.Input) -> None:
        """Pass an input to the engine, and begin its commands. An error in the engine ends the service."""
        if self.state is State.FAILED:
            return
        try:
            # One step, with no await in it: no other input comes in between.
            now = self._clock()
            for command in self.pipeline.handle(happened, now):
                self._perform(command, now)
        except Exception as error:
            self._fail(error)
            return
        self._rearm()

    def _perform(self, command: m.Command, now: Instant) -> None:  # noqa: C901 - one case for each command
        """Do at once what needs no waiting; begin an attempt. `now`: when the engine decided."""
        # The time is the engine's: this machine's clock may be wrong.
        store, clock = self._key_store, self.pipeline.clock
        match command:
            case m.Report():
                self._report(command)
            case m.Release():
                future = self._releases.pop(command.number, None)
                if future is not None and not future.done():
                    future.set_result(command.positions)
            case m.Stop():
                self._final = command.positions
                self._become(State.DRAINED)
            case m.GiveUp():
                self._refused = command.reason
                # Not inside of `feed`: the stop is an input of its own.
                asyncio.get_running_loop().call_soon(self.request_stop)
            case m.FetchSchema():
                self._begin(self._schemas.fetch(command))
            case m.Transform():
                if self._transform is None:
                    raise bug("the engine calls a function that there is not")
                self._begin(self._transform.run(command, self.feed))
            case m.LookUpKeys(number, keys, earlier):
                self._ask(
                    command,
                    partial(claimed, store, keys, earlier, clock.forgotten_at),
                    lambda got: m.KeysLookedUp(number, *got),
                )
            case m.StoreKeys(number, keys):
                self._ask(
                    command,
                    partial(store.confirm, keys, clock.delivered_at),
                    lambda got: m.KeysStored(number, got),
                )
            case m.ReleaseKeys(keys):
                self._ask(command, partial(store.release, keys), lambda _: None)
            case m.RenewLease(number):
                self._ask(command, store.renew, lambda got: m.LeaseRenewed(number, *got))
            case m.ShareNote(note):
                self._ask(command, partial(store.share_note, note), lambda _: None)
            case m.AcquirePermits(number, destination, account, calls, minute, seconds):
                quota = f"{destination}:{account}"  # an account has one at each address of the API
                ask = partial(store.acquire_permits, quota, calls, minute, seconds)
                self._ask(command, ask, lambda got: m.PermitsGranted(number, account, *got))
            case m.Send():
                self._begin(self._send(command, now))
            case m.StoreDeadLetters(number, letters):
                self._begin(
                    _answered(self._dead_letters.store(letters), partial(m.DeadLettersStored, number))
                )
            case m.StoreReceipts(number, receipts):
                if self._receipts is None:
                    raise bug("the engine wants receipts of a service that writes none")
                storing = self._receipts.store(receipts)
                self._begin(_answered(storing, lambda written: m.ReceiptsStored(number, *written)))
            case m.Commit():
                self._begin(self._source.commit(command.positions))
            case m.RestartPartitions():
                self._begin(self._source.restart_partitions(command.partitions))  # `Assigned` answers it
            case m.ReadToken():
                self._begin(_answered(self._api.read_token(), m.TokenRead))
            case m.AskTime():
                self._begin(_answered(self._api.ask_time(), m.TimeAsked))
            case _:
                assert_never(command)

    def _begin(self, attempt: Coroutine[Any, Any, m.Input | None]) -> None:
        """Begin an attempt as a task of its own; its result is the next input."""
        task = asyncio.create_task(attempt)
        # asyncio keeps only a weak reference to a task.
        self._tasks.add(task)
        task.add_done_callback(self._watch)

    async def _send(self, command: m.Send, decided: Instant) -> m.Answered | m.Unanswered:
        # If the wall clock was set, the call is made again.
        if (
            decided.monotonic + self._clock().since(decided) > command.start_deadline
        ):  # this process stood still
            return m.Unanswered(command.number, m.START_EXPIRED)
        # It has begun in time, but may still wait for a connection, or for its turn to write.
        return await self._api.send(command, lambda: not self.pipeline.was_away(decided, self._clock()))

    def _ask(
        self,
        command: m.KeyStoreCommand,
        ask: Callable[[], Awaitable[_T]],
        answer: Callable[[_T], m.Input | None],
    ) -> None:
        """Begin an attempt at the key store; `answer` makes the input of what it returns."""

        async def attempt() -> m.Input | None:
            try:
                returned = await ask()
            except KeyStoreError as error:
                self._report(m.Report("error", "key_store_trouble", {"reason": str(error)}))
                if error.needs_restart:
                    self.key_store_broken = str(error)
                if error.lease_lost:
                    # Before the answer: the claimed keys may be another member's, so no call may begin with them.
                    self.feed(m.LeaseLost())
                return m.KeyStoreFailed(command, str(error))
            self.key_store_broken = None
            return answer(returned)

        self._begin(attempt())

    def _rearm(self) -> None:
        deadline = self.pipeline.next_deadline() if _CHANGES[self.state] else None
        if deadline == self._ticks_at:
            return  # most inputs change no deadline
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._ticks_at = None, deadline
        if deadline is None:
            return
        delay = max(0.0, deadline - self._clock().monotonic)
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = self._ticks_at = None
        self.feed(m.Tick())

    def _watch(self, task: asyncio.Task[m.Input | None]) -> None:
        """Handle the end of a task: its answer is the next input, its failure ends the service."""
        self._tasks.discard(task)
        if task.cancelled():
            if not self._over.is_set():
                # A library may cancel a task by itself; the engine would wait for the answer indefinitely.
                self._fail(bug("a command was cancelled from within"))
            return
        error = task.exception()
        if error is not None:
            self._fail(error)
        elif (answer := task.result()) is not None:
            self.feed(answer)

    def _fail(self, error: BaseException) -> None:
        """End the service. Once it is drained, its positions are committed all the same."""
        self._failure = self._failure or error
        if State.FAILED in _CHANGES[self.state]:
            self._become(State.FAILED)
        for future in self._releases.values():
            if not future.done():
                future.set_result(())
        self._releases.clear()

    # -- the loops

    async def _intake(self) -> None:
        while True:
            self.fetched_at = self._clock().monotonic
            # Also without room: a member that does not poll is expelled from the group.
            room = self.pipeline.room()
            chunks = await self._source.fetch(room, _FETCH_TIMEOUT if room > 0 else _FULL_TIMEOUT)
            if chunks:
                with self._around_fetched(chunks):
                    self.feed(m.Fetched(chunks))

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING)
            self.feed(await self._source.end_offsets())
            figures = self._key_store.statistics()
            before, self._keys = self._keys, figures
            # Such events, read again, are sent again.
            if (lost := figures.lost - before.lost) > 0:
                self._report(m.Report("warning", "keys_lost", {"keys": lost}))
            forgotten = {
                "raise PINSTREAM_KEY_STORE_MAX_BYTES, unless the store's folder was deleted": (
                    figures.evicted - before.evicted
                ),
                "give the shared key store's server more memory, and set its maxmemory-policy to noeviction": (
                    figures.evicted_by_server - before.evicted_by_server
                ),
            }
            for advice, count in forgotten.items():
                if count > 0:
                    self._report(
                        m.Report("warning", "keys_forgotten_early", {"keys": count, "advice": advice})
                    )
            try:
                await self._key_store.expire(self.pipeline.clock.forgotten_at)
            except KeyStoreError as error:
                # Old keys take room and harm nothing: the next round tries again.
                self._report(m.Report("warning", "key_store_trouble", {"reason": str(error)}))

    async def _end(self, background: list[asyncio.Task[None]]) -> None:
        self.closes()
        for task in background:
            task.cancel()
        # The fetch under way runs in the source's thread; closing waits for it there.
        await asyncio.gather(*background, return_exceptions=True)
        try:
            await self._source.close(self._time_to_close(), self._final)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for left in list(self._tasks):
                left.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _time_to_close(self) -> float:
        """Return the seconds that the source may take to close."""
        if self._stop_deadline is None:
            return _CLOSE_TIMEOUT
        # All the time that is left: a member that leaves in the middle of a rebalance has to wait for the others, and
        # one that ends without leaving makes them wait until its session times out.
        return max(_LEAST_CLOSE, self._stop_deadline - self._clock().monotonic - _AFTERWARDS)
