"""The shell: feeds the engine what happened, performs what it says, re-arms one timer. It decides nothing.

Theory of operation. `feed` is synchronous and atomic under asyncio: one input in, commands out, each command begun
at once as a task of its own; the task's end is the next input. So there are no locks and no queues between stages.
One loop fetches, reading `Pipeline.room` before each fetch; one timer ticks at `Pipeline.next_deadline`; one slow
loop keeps house (end offsets, expiry of keys). Rebalances come in through `assigned`, `revoked` and `lost`.

The Protocols below are all it needs of the outside; the adapters fit them by shape. What an adapter raises beyond
its Protocol is a bug or a dead end, and ends the service: nothing is swallowed, and nothing is committed after.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, assert_never

from consumer.engine import messages as m
from consumer.engine.model import Chunk, Instant, Position, TopicPartition
from consumer.engine.pipeline import FETCH_MOST, Pipeline
from consumer.engine.statistics import Statistics
from consumer.errors import DestinationRefused, InvariantViolation, KeyStoreError

_FETCH_TIMEOUT = 0.1
"""Seconds one fetch waits for records: the longest a commit, a pause or a stop waits for the consumer's thread (some
seconds while it asks brokers that do not answer)."""
_HOUSEKEEPING = 2.0
_DRAIN_SHARE = 0.8
"""Of the grace, for draining; the rest is for the last commit and for leaving the group: one deadline for all."""
_LEAST_CLOSE = 0.5
_AFTERWARDS = 1.0
"""Of what the grace still leaves for the source: kept for closing all else."""
_CLOSE_TIMEOUT = 10.0
"""Where nobody asked for the end, there is no grace."""


class CommitAnswer(Protocol):
    """What the broker took of a commit, and why not the rest; see `CommitDone`."""

    @property
    def committed(self) -> Sequence[Position]:
        """Those it took."""

    @property
    def failure(self) -> str | None:
        """The reason, in the adapter's words; None: it took all."""

    @property
    def trouble(self) -> m.CommitTrouble:
        """What kind of reason that is."""


class RecordSource(Protocol):
    """Where records come from and positions go; see `consumer.adapters.kafka`."""

    async def start(self) -> None:
        """Join the group. Raises `KafkaError`."""

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        """At most `room` records; 0: pause, and poll all the same. Raises `KafkaError` at a dead end."""

    async def commit(self, positions: Sequence[Position]) -> CommitAnswer:
        """Those the broker took, and why not the others. Tries once, in bounded time; never raises."""

    async def read_anew(self, partitions: Sequence[m.NewLife]) -> None:
        """Read these from the beginning: `Service.assigned` is called when it begins."""

    async def end_offsets(self) -> m.EndOffsets:
        """What is known of the assigned partitions: their ends, and how far each was read. Asks no broker for it."""

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Commit `positions` and leave the group, in bounded time."""


class Api(Protocol):
    """The Conversions API; see `consumer.adapters.conversions_api`."""

    async def send(self, command: m.Send) -> m.Answered | m.Unanswered:
        """One attempt, in bounded time. Never raises."""

    async def read_token(self) -> bool:
        """Read the access token again; True if it changed. Never raises."""


class KeyStoreFigures(Protocol):
    """Of a key store's figures those that are asked for here."""

    @property
    def evicted_early(self) -> int:
        """Keys that a full store forgot since the start, before their window was over."""


class KeyStore(Protocol):
    """The windowed key store; see `consumer.adapters.key_store`. Raises `KeyStoreError`."""

    async def look_up(self, keys: Sequence[bytes], now: float) -> Sequence[bool]:
        """Per key, whether it is remembered at `now`."""

    async def remember(self, keys: Sequence[bytes], now: float) -> None:
        """Durable when it returns."""

    async def expire(self, now: float) -> None:
        """Bounded housekeeping."""

    def statistics(self) -> KeyStoreFigures:
        """What it knows of itself, without waiting."""


class Schemas(Protocol):
    """Writers' schemas; see `consumer.adapters.schemas`."""

    async def fetch(self, command: m.FetchSchema) -> m.SchemaFound | m.SchemaMissing | m.SchemaUnavailable:
        """One attempt, in bounded time. Never raises."""


class DeadLetterWriter(Protocol):
    """The dead-letter topics; see `consumer.adapters.kafka`."""

    async def store(self, letters: Sequence[m.DeadLetter]) -> Sequence[bool]:
        """Per letter, whether the broker acknowledged it. Bounded; never raises."""


class Clocks(Protocol):
    """Both clocks."""

    def now(self) -> Instant:
        """The moment."""


class Tracer(Protocol):
    """Traces of the core's work; see `consumer.app.tracing`, which wraps the source and the API for the rest."""

    def convert(self, chunks: Sequence[Chunk]) -> AbstractContextManager[object]:
        """Around the handling of what was fetched. Never raises, never waits."""


class Untraced:
    """Nobody wants traces."""

    def convert(self, chunks: Sequence[Chunk]) -> AbstractContextManager[object]:
        """Nothing around it."""
        return nullcontext()


Observer = Callable[[m.Report], None]


class Service:
    """One group member: core, adapters, and the loop between them.

    `connect` makes the source; it is given the service, whose `assigned`, `revoked` and `lost` the source calls.
    `grace`: seconds that a revoke or the stop may take to drain.
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
        clock: Clocks,
        report: Observer,
        grace: float,
        tracer: Tracer | None = None,
    ) -> None:
        self.pipeline = pipeline
        self._source = connect(self)
        self._api = api
        self._key_store = key_store
        self._schemas = schemas
        self._dead_letters = dead_letters
        self._clock = clock
        self._report = report
        self._grace = grace
        self._tracer = tracer or Untraced()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        """Of the inputs that ask for an answer themselves."""
        self._releases: dict[int, asyncio.Future[Sequence[Position]]] = {}
        self._ended: asyncio.Future[Sequence[Position]] | None = None
        self._final: Sequence[Position] | None = None
        self._stop_deadline: float | None = None
        self._closing = False
        self._refused: str | None = None
        self._failed = False
        self._forgotten = 0
        """Keys that the key store forgot early, as the core was told."""
        self.key_store_broken: str | None = None
        """Why the key store cannot be used before a new start; None: nothing is known of that."""
        self.fetched_at: float | None = None
        """When the last fetch began, in monotonic seconds: a service that is caught up still fetches."""

    # -- for whoever runs it

    async def run(self) -> None:
        """Serve until `request_stop`.

        Raises what ended it otherwise, and `DestinationRefused` when patience ran out.
        """
        self._ended = asyncio.get_running_loop().create_future()
        if self._final is not None:
            self._ended.set_result(self._final)
        background: list[asyncio.Task[None]] = []
        positions: Sequence[Position] = ()
        try:
            self.feed(m.Tick())  # from now on it knows whether it was away
            await self._source.start()
            background = [asyncio.create_task(self._intake()), asyncio.create_task(self._keep_house())]
            for task in background:
                task.add_done_callback(self._watch)
            positions = await self._ended
        finally:
            await self._end(background, positions)
        if self._refused is not None:
            raise DestinationRefused(self._refused)

    def request_stop(self) -> None:
        """Take no more, drain within the grace, commit, leave. Calling it again changes nothing."""
        if self._stop_deadline is None:
            self._stop_deadline = self._clock.now().monotonic + self._grace
        self.feed(m.StopRequested(self._grace * _DRAIN_SHARE))

    def grace_left(self) -> float:
        """Seconds that are left for stopping; while nobody asked for that, all of the grace."""
        if self._stop_deadline is None:
            return self._grace
        return max(0.0, self._stop_deadline - self._clock.now().monotonic)

    def statistics(self) -> Statistics:
        """The core's figures of now."""
        return self.pipeline.statistics(self._clock.now())

    # -- what the group says (the source calls these, on the event loop)

    async def assigned(self, assignments: Sequence[m.Assignment]) -> None:
        """Partitions are ours."""
        self._report(m.Report("info", "partitions_assigned", {"partitions": len(assignments)}))
        self.feed(m.Assigned(assignments))

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """Partitions are taken back: returns what to commit, once they are drained or the grace is over."""
        if self._failed:
            return ()
        if self._final is not None:
            return self._hand_over(partitions)
        number = next(self._numbers)
        future: asyncio.Future[Sequence[Position]] = asyncio.get_running_loop().create_future()
        self._releases[number] = future
        self.feed(m.Revoked(partitions, number, self._grace))
        return await future

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Partitions are another's already."""
        if self._final is not None:
            self._hand_over(partitions)
        self.feed(m.Lost(partitions))

    def topic_ids_told(self, ids: Mapping[str, str]) -> None:
        """The brokers said which ids topics have now."""
        self.feed(m.TopicIdsTold(ids))

    def _hand_over(self, partitions: Sequence[TopicPartition]) -> Sequence[Position]:
        """All is drained, and the group takes partitions back before we left it: their last positions go with them.

        Each goes once, so that none is committed under a later assignment.
        """
        taken, final = set(partitions), self._final or ()
        mine = [one for one in final if TopicPartition(one.topic, one.partition) in taken]
        self._final = [one for one in final if one not in mine]
        return mine

    # -- feed, perform, re-arm

    def feed(self, happened: m.Input) -> None:
        """Tell the core what happened, begin what it says. An error in the core ends the service."""
        if self._failed:
            return
        try:
            for command in self.pipeline.handle(happened, self._clock.now()):
                self._perform(command)
        except Exception as error:
            self._fail(error)
            return
        self._rearm()

    def _perform(self, command: m.Command) -> None:  # noqa: C901 - one case for each command
        match command:
            case m.FetchSchema():
                self._begin(self._fetch_schema(command))
            case m.LookUpKeys():
                self._begin(self._look_up(command))
            case m.StoreKeys():
                self._begin(self._store_keys(command))
            case m.Send():
                self._begin(self._send(command))
            case m.StoreDeadLetters():
                self._begin(self._store_dead_letters(command))
            case m.Commit():
                self._begin(self._commit(command))
            case m.ReadAnew():
                self._begin(self._source.read_anew(command.partitions))
            case m.ReadToken():
                self._begin(self._read_token())
            case m.Release():
                self._release(command)
            case m.Stop():
                self._stop(command)
            case m.GiveUp():
                self._give_up(command)
            case m.Report():
                self._report(command)
            case _:
                assert_never(command)

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.pipeline.next_deadline()
        if deadline is None or (self._ended is not None and self._ended.done()):
            self._timer = None
            return
        delay = max(0.0, deadline - self._clock.now().monotonic)
        self._timer = asyncio.get_running_loop().call_later(delay, self.feed, m.Tick())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._watch)

    def _watch(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            if not self._closing:
                # A library may do that of its own accord; the core would wait for the answer for ever.
                self._fail(InvariantViolation("a command was cancelled from within; please report this"))
            return
        error = task.exception()
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the service. After a failure nothing is committed any more: what is open is read again."""
        self._failed = True
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error)
        for future in self._releases.values():
            if not future.done():
                future.set_result(())
        self._releases.clear()

    # -- the loops

    async def _intake(self) -> None:
        while True:
            self.fetched_at = self._clock.now().monotonic
            room = min(self.pipeline.room(), FETCH_MOST)
            chunks = await self._source.fetch(room, _FETCH_TIMEOUT)
            if chunks:
                with self._tracer.convert(chunks):
                    self.feed(m.Fetched(chunks))

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING)
            self.feed(await self._source.end_offsets())
            before, self._forgotten = self._forgotten, self._key_store.statistics().evicted_early
            if self._forgotten != before:
                self.feed(m.KeysForgotten(self._forgotten))
            try:
                await self._key_store.expire(self._clock.now().unix)
            except KeyStoreError as error:
                self._report(m.Report("warning", "key_store_trouble", {"reason": str(error)}))

    async def _end(self, background: list[asyncio.Task[None]], positions: Sequence[Position]) -> None:
        self._closing = True
        for task in background:
            task.cancel()
        # The fetch under way runs in the source's thread; closing waits for it there.
        await asyncio.gather(*background, return_exceptions=True)
        try:
            await self._source.close(self._close_timeout(), positions)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for left in list(self._tasks):
                left.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _close_timeout(self) -> float:
        if self._stop_deadline is None:
            return _CLOSE_TIMEOUT
        # All that is left: a member that leaves in the middle of a rebalance has to wait for the others, and one that
        # ends without a goodbye makes them wait for as long as its session.
        return max(_LEAST_CLOSE, self._stop_deadline - self._clock.now().monotonic - _AFTERWARDS)

    # -- commands

    def _release(self, command: m.Release) -> None:
        future = self._releases.pop(command.number, None)
        if future is not None and not future.done():
            future.set_result(command.positions)

    def _stop(self, command: m.Stop) -> None:
        self._final = command.positions
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(command.positions)

    def _give_up(self, command: m.GiveUp) -> None:
        self._refused = command.reason
        asyncio.get_running_loop().call_soon(self.request_stop)

    async def _fetch_schema(self, command: m.FetchSchema) -> None:
        self.feed(await self._schemas.fetch(command))

    async def _look_up(self, command: m.LookUpKeys) -> None:
        try:
            found = await self._key_store.look_up(command.keys, self._clock.now().unix)
        except KeyStoreError as error:
            self._key_store_failed(error)
            self.feed(m.LookUpFailed(command.number))
        else:
            self.key_store_broken = None
            self.feed(m.KeysLookedUp(command.number, found))

    async def _store_keys(self, command: m.StoreKeys) -> None:
        try:
            await self._key_store.remember(command.keys, self._clock.now().unix)
        except KeyStoreError as error:
            self._key_store_failed(error)
            self.feed(m.StoreFailed(command.number))
        else:
            self.key_store_broken = None
            self.feed(m.KeysStored(command.number))

    def _key_store_failed(self, error: KeyStoreError) -> None:
        self._report(m.Report("error", "key_store_trouble", {"reason": str(error)}))
        if error.needs_restart:
            self.key_store_broken = str(error)

    async def _send(self, command: m.Send) -> None:
        self.feed(await self._api.send(command))

    async def _store_dead_letters(self, command: m.StoreDeadLetters) -> None:
        self.feed(m.DeadLettersStored(command.number, await self._dead_letters.store(command.letters)))

    async def _commit(self, command: m.Commit) -> None:
        done = await self._source.commit(command.positions)
        self.feed(m.CommitDone(command.number, done.committed, done.failure, done.trouble))

    async def _read_token(self) -> None:
        self.feed(m.TokenRead(await self._api.read_token()))


class SystemClock:
    """The machine's clocks: the event loop's monotonic one, so that virtual time moves it, and the wall."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall

    def now(self) -> Instant:
        """The moment, on both."""
        return Instant(asyncio.get_running_loop().time(), self._wall())
