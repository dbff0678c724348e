"""A process of the group: a `Pipeline`, and the thin shell that performs its commands, late and in any order.

Theory of operation. As in the real shell: one consumer thread polls, and while a revoke callback waits for its
`Release` nothing is polled; commits go one after the other; everything else is performed at once and comes back
whenever it does. A command takes effect at one moment and is answered at a later one, and a crash can fall
before, between or after: what a dead process had under way may still take effect, and is never answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from consumer.engine import messages as m
from consumer.engine.model import Chunk, Instant, Position, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import split_keys
from consumer.engine.records import offset_map
from consumer.errors import InvariantViolation
from tests.simulation.api import Reply
from tests.simulation.receipts import ReceiptsClient
from tests.simulation.records import Spec
from tests.simulation.stores import KeyClient
from tests.simulation.truth import Violation
from tests.simulation.watch import HeldRecords, Watch

if TYPE_CHECKING:
    from tests.simulation.world import World

_SPIN = 300
"""More ticks than this at one moment are a busy loop."""


class Member:
    """One life of one process."""

    def __init__(self, world: World, slot: int, life: int) -> None:
        self.name = f"m{slot}.{life}"
        self.slot = slot
        self.alive = True
        self.frozen_until = float("-inf")
        self._deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.given_up = False
        """The group threw it out while it stood still: it can know that it was away."""
        self.crash_in: int | None = None
        """Commands that it still performs before it crashes; None: it does not crash."""
        self._world = world
        self.watch = Watch(world, self)
        self.keys = KeyClient(world, self)
        """Its connection to the key store, if members share one."""
        self.receipts = ReceiptsClient(world, self)
        parts = world.form.parts(world.specs)
        self.pipeline = Pipeline(
            world.policy,
            parts.decoder,
            parts.converter,
            # A function gets each event by itself, so that there is nothing to read on with.
            reading=None if world.knobs.function else parts.reading,
            seed=world.random.getrandbits(32),
        )
        self._epoch = self._numbers = 0
        self.in_callback = False
        self._knows_brokers = self._hears_no_broker = False
        self._ask_size_at = world.now
        self._committing = False
        self._after_commit: list[Callable[[], None]] = []
        self._finals: list[Callable[[], None]] = []
        """Synchronous commits under way, one after another, as in the consumer's thread."""
        self._released: dict[int, list[TopicPartition]] = {}
        self._wake_at: float | None = None
        self._ticks = (0.0, 0)
        self._performers: dict[type, Callable[[Any], None]] = {
            m.FetchSchema: self._fetch_schema,
            m.Transform: self._transform,
            m.LookUpKeys: self._look_up,
            m.StoreKeys: self._store_keys,
            m.Send: self._send,
            m.StoreDeadLetters: self._store_letters,
            m.StoreReceipts: self.receipts.perform,
            m.Commit: self._commit,
            m.Release: self._release,
            m.Stop: self._stop,
            m.RestartPartitions: self._restart,
            m.ReadToken: self._read_token,
            m.AskTime: self._ask_time,
            m.GiveUp: lambda _: self._later(self.request_stop),
            m.Report: lambda _: None,
        }
        if world.knobs.shared:
            for kind in (
                m.LookUpKeys,
                m.StoreKeys,
                m.ReleaseKeys,
                m.RenewLease,
                m.AcquirePermits,
                m.ShareNote,
            ):
                self._performers[kind] = self.keys.perform
        world.later(world.delay(), self._poll)

    def __repr__(self) -> str:
        return self.name

    # -- feeding

    def instant(self) -> Instant:
        """The present moment on both clocks of its machine."""
        return self._world.instant(self.slot)

    def feed(self, happened: m.Input) -> None:
        """Give the engine one input and perform its commands."""
        if not self.alive or self.stands_still(self.feed, happened):
            return
        world, watch = self._world, self.watch
        self.receipts.reported(happened)
        watch.reported(happened)
        try:
            commands = self.pipeline.handle(happened, self.instant())
            world.note(self, happened, commands)
            watch.handled(self.pipeline)
            for command in commands:
                self.receipts.commanded(command)
                watch.commanded(command)
            self.receipts.settled_down(self.pipeline)
            watch.settled_down(self.pipeline)
        except InvariantViolation as bug:
            raise Violation("the core finds no fault with itself", str(bug)) from bug
        for command in commands:
            if self.crash_in is not None:
                self.crash_in -= 1
                if self.crash_in < 0:
                    world.crash(self)
                    return
            self._performers[type(command)](command)
            if not self.alive:
                return
        self._arm()

    def _arm(self) -> None:
        due = self.pipeline.next_deadline()
        if due is None:
            self._wake_at = None
            return
        due = max(due, self._world.now)
        if due != self._wake_at:
            self._wake_at = due
            self._world.at(due, self._wake, due)

    def freeze(self, seconds: float) -> None:
        """Stand still: whatever happens to the process takes effect when it goes on."""
        self.frozen_until = max(self.frozen_until, self._world.now + seconds)

    def stands_still(self, act: Callable[..., None], *args: Any) -> bool:
        """Whether it stands still; if so, `act` is done when it goes on."""
        if self._world.now >= self.frozen_until:
            return False
        if not self._deferred:
            self._world.at(self.frozen_until, self._go_on)
        self._deferred.append((act, args))
        return True

    def _go_on(self) -> None:
        """Do what happened meanwhile, in order, unless it was frozen again for longer."""
        if self._world.now < self.frozen_until:
            self._world.at(self.frozen_until, self._go_on)
            return
        deferred, self._deferred = self._deferred, []
        for act, args in deferred:
            act(*args)

    def _wake(self, due: float) -> None:
        if not self.alive or due != self._wake_at or self.stands_still(self._wake, due):
            return
        self._wake_at = None
        moment, count = self._ticks
        self._ticks = (due, count + 1 if moment == due else 1)
        if self._ticks[1] > _SPIN:
            raise Violation("the core does not spin", f"{self.name}: {_SPIN} ticks at one moment")
        self.feed(m.Tick())

    def _later(self, act: Callable[[], None]) -> None:
        self._world.later(self._world.delay(), act)

    def takes_effect(self) -> bool:
        """Whether what it has under way still takes effect: of a dead process it may."""
        return self.alive or self._world.random.random() < 0.5

    def attempt(self, act: Callable[[], m.Input | None]) -> None:
        """Act outside: the effect comes after one delay, the answer after another."""

        def effect() -> None:
            if not self.takes_effect():
                return
            answer = act()
            if answer is not None:
                self._later(lambda: self.feed(answer))

        self._later(effect)

    # -- performing

    def _fetch_schema(self, command: m.FetchSchema) -> None:
        self.attempt(lambda: self._world.registry.find(command.ref))

    def _transform(self, command: m.Transform) -> None:
        """Call the user's function: it returns for some of the events after a while, and may be slow with one
        of them."""
        world = self._world
        results = [world.function(event) for event in command.events]
        slow_at = world.random.randrange(len(results)) if world.random.random() < 0.2 else None
        if slow_at is not None:
            seconds = world.random.uniform(1.0, 4.0)
            before = results[:slow_at] if world.random.random() < 0.5 else []
            world.later(seconds, self.feed, m.TransformIsSlow(command.number, slow_at, seconds, before))
            world.later(seconds + 0.5, self._return, m.Transformed(command.number, results[len(before) :]))
            return
        maximum = world.random.randint(1, len(results)) if world.random.random() < 0.3 else len(results)
        self._later(lambda: self._return(m.Transformed(command.number, results[:maximum])))

    def _return(self, happened: m.Transformed) -> None:
        if self.takes_effect():
            self.feed(happened)

    def _look_up(self, command: m.LookUpKeys) -> None:
        now = self.pipeline.clock.forgotten_at

        def look_up() -> m.Input:
            found = self._world.keys_of(self.slot).look_up(split_keys(command.keys), now)
            return m.KeyStoreFailed(command) if found is None else m.KeysLookedUp(command.number, found)

        self.attempt(look_up)

    def _store_keys(self, command: m.StoreKeys) -> None:
        now = self.pipeline.clock.delivered_at

        def store() -> m.Input:
            stored = self._world.keys_of(self.slot).store(split_keys(command.keys), now)
            return m.KeysStored(command.number) if stored else m.KeyStoreFailed(command)

        self.attempt(store)

    def _store_letters(self, command: m.StoreDeadLetters) -> None:
        def store() -> m.Input:
            return m.DeadLettersStored(command.number, [self._store_letter(one) for one in command.letters])

        self.attempt(store)

    def _store_letter(self, letter: m.DeadLetter) -> bool:
        """Whether the dead letter is acknowledged; a failed write may have been written all the same."""
        world = self._world
        spec = world.spec_of(letter.record)
        fails = world.in_spell("letters") or world.roll(world.rates.letters_fail)
        if not fails or world.random.random() < 0.3:
            world.broker.store_letter(letter, spec)
        return not fails

    def _send(self, command: m.Send) -> None:
        if self.is_zombie and not self.given_up and not self._world.knobs.shared:
            # Its partitions are another's already, and it cannot know: what it sends now may be sent by both.
            self._world.truth.excuse(spec.key for spec in self.watch.calls[command.number].specs)

        def effect() -> None:
            if self.takes_effect():
                reply = self._world.api.process(command)
                self._later(lambda: self._answer(command.number, reply))

        self._later(effect)

    def _answer(self, number: int, reply: Reply) -> None:
        if not self.alive or self.stands_still(self._answer, number, reply):
            return
        self.watch.answered(number, reply)
        if reply.status:
            self.feed(m.Answered(number, reply.status, reply.headers, reply.body))
        else:
            self.feed(m.Unanswered(number, reply.reason))

    def _read_token(self, _: m.ReadToken) -> None:
        self._later(lambda: self.feed(m.TokenRead(self._world.random.random() < 0.5)))

    def _ask_time(self, _: m.AskTime) -> None:
        def effect() -> None:
            if self.takes_effect():
                reply = self._world.api.date()
                answered = m.Answered(0, reply.status, reply.headers, reply.body)
                self._later(
                    lambda: self.feed(
                        m.TimeAsked(answered if reply.status else m.Unanswered(0, reply.reason))
                    )
                )

        self._later(effect)

    def _restart(self, command: m.RestartPartitions) -> None:
        """Begin reading at another place, between two polls."""

        def effect() -> None:
            if not self.alive or self.stands_still(effect):
                return
            if self.in_callback:
                self._later(effect)
                return
            owners, assignments = self._world.broker.owners, []
            for one in command.partitions:
                tp = TopicPartition(one.topic, one.partition)
                if owners.get(tp) == (self, one.epoch):
                    self._epoch += 1
                    owners[tp] = (self, self._epoch)
                    assignments.append(
                        m.Assignment(*tp, self._epoch, None, False, topic_id=one.topic_id, beginning=0)
                    )
            self.feed(m.Assigned(assignments))

        self._later(effect)

    def _hear_of_topic_ids(self) -> None:
        """It learns at intervals which ids the topics have."""
        world = self._world
        if self.watch.held and not self.in_callback and world.random.random() < 0.04:
            topics = {tp.topic for tp in self.watch.held}
            self.feed(m.TopicIds({name: world.broker.topic_ids[name] for name in sorted(topics)}))

    def _hear_of_brokers(self) -> None:
        """It learns once how long the brokers take to answer, and each time that none answers, or one again."""
        if not self.watch.held or self.in_callback:
            return
        are_silent = self._world.in_spell("commits")
        if are_silent is not self._hears_no_broker:
            self._hears_no_broker = are_silent
            self.feed(m.BrokersSilent("broker:9092, connection refused" if are_silent else None))
        elif not self._knows_brokers:
            self._knows_brokers = True
            self.feed(m.BrokerStats("consumer", [m.BrokerTimes("1", 0.01, 0.02, 0.0)]))

    def _hear_of_size(self) -> None:
        """It asks at intervals how many members hold partitions, and soon after members came or left."""
        world = self._world
        if not world.knobs.divided or self.in_callback or world.now < self._ask_size_at:
            return
        self._ask_size_at = world.now + 10.0

        def ask() -> m.Input | None:
            size = None if world.roll(world.rates.commit_fails) else world.group.holders()
            if size is None:
                self._ask_size_at = world.now + 0.5
            return None if size is None else m.GroupSize(size)

        self.attempt(ask)

    def _commit(self, command: m.Commit) -> None:
        self._committing = True
        epochs = {tp: held.epoch for tp, held in self.watch.held.items()}

        def effect() -> None:
            if self.takes_effect():
                done = self._commit_at_broker(command, epochs)
                self._later(lambda: self._committed(done))

        self._later(effect)

    def _commit_at_broker(self, command: m.Commit, epochs: dict[TopicPartition, int]) -> m.CommitDone:
        world, wanted = self._world, list(command.positions)
        fails = world.in_spell("commits") or world.roll(world.rates.commit_fails)
        if fails:
            # Nothing, a part, or all of it takes effect, and the answer may be lost.
            wanted = wanted[: world.random.choice((0, 0, 1, len(wanted)))]
        taken = world.broker.commit(self, epochs, wanted)
        if fails and world.random.random() < 0.5:
            return m.CommitDone((), "timed out")
        if any(len(one.metadata) > world.broker.metadata_limit for one in wanted):
            return m.CommitDone(taken, "too large", m.CommitError.METADATA)
        return m.CommitDone(taken, None if len(taken) == len(command.positions) else "refused")

    def _committed(self, done: m.CommitDone) -> None:
        if not self.alive or self.stands_still(self._committed, done):
            return
        self._committing = False
        waiting, self._after_commit = self._after_commit, []
        for act in waiting:
            act()
        self.feed(done)

    def _commit_finally(
        self, tps: list[TopicPartition], positions: Sequence[Position], then: Callable[[], None]
    ) -> None:
        """Commit synchronously, after the commits under way; it may fail, and no answer comes then."""
        epochs = {tp: epoch for tp, (owner, epoch) in self._world.broker.owners.items() if owner is self}

        def effect() -> None:
            world = self._world
            if not self.alive or self.stands_still(effect):
                return
            self._finals.remove(effect)
            fails = world.in_spell("commits") or world.roll(world.rates.commit_fails)
            taken = [] if fails else world.broker.commit(self, epochs, positions)
            # Where maps are cut short, or not taken at all, what they lack is nobody's fault.
            if len(taken) < len(positions) or fails or world.knobs.short_maps:
                self._excuse(tps)
            self._later(then)
            if self._finals:
                self._later(self._finals[0])

        self._finals.append(effect)
        if len(self._finals) > 1:
            return
        if self._committing:
            self._after_commit.append(lambda: self._later(effect))
        else:
            self._later(effect)

    def excuse_uncommitted(self) -> None:
        """After an ungraceful end the next owners may send what it delivered and did not commit."""
        self._excuse([tp for tp, (owner, _) in self._world.broker.owners.items() if owner is self])

    def _excuse(self, tps: list[TopicPartition]) -> None:
        """Allow the next owner to send what was delivered of these and could not be committed."""
        helds = [HeldRecords(tp, 0, 0) for tp in tps if self._world.broker.logs[tp]]
        for held in helds:
            held.last_seen = self._world.broker.logs[held.tp][-1].offset
        self.watch.excuse_uncovered(helds)

    def _release(self, command: m.Release) -> None:
        tps = self._released.pop(command.number)
        self._commit_finally(tps, command.positions, lambda: self._called_back(tps))

    def _called_back(self, tps: list[TopicPartition]) -> None:
        if self.alive and not self.stands_still(self._called_back, tps):
            self.in_callback = bool(self._released)
            self._ask_size_at = self._world.now
            self._world.group.released(self, tps)

    def _stop(self, command: m.Stop) -> None:
        owners = self._world.broker.owners
        tps = [tp for tp, (owner, _) in owners.items() if owner is self]
        self._commit_finally(tps, command.positions, lambda: self._world.ended(self))

    def request_stop(self) -> None:
        """SIGTERM."""
        self.feed(m.StopRequested(self._world.knobs.grace))

    # -- what the group does to it

    @property
    def is_zombie(self) -> bool:
        """Thrown out of the group without knowing it yet."""
        return self in self._world.group.expelled

    def assign(self, tps: list[TopicPartition]) -> None:
        """The group gives it these partitions."""
        broker, random = self._world.broker, self._world.random
        self._ask_size_at = self._world.now
        assignments = []
        for tp in tps:
            self._epoch += 1
            start, commit_start = broker.committed_offset(tp), False
            metadata, leader_epoch = self._find_metadata(tp)
            topic_id, void = broker.topic_ids[tp.topic], None
            if start is not None and offset_map.is_void(Position(*tp, start, None, metadata), topic_id):
                start, leader_epoch, void = None, None, start
                self.watch.excuse_all([HeldRecords(tp, 0, 0)], whole=True)
            elif start is None and broker.logs[tp] and random.random() < 0.5:
                start, commit_start = broker.logs[tp][0].offset, True
            broker.owners[tp] = (self, self._epoch)
            beginning = broker.begins.get(tp, 0) if start is None else None
            assignments.append(
                m.Assignment(
                    *tp, self._epoch, start, commit_start, leader_epoch, metadata, topic_id, void, beginning
                )
            )
        self.feed(m.Assigned(assignments))
        for tp in tps:
            held = self.watch.held.get(tp)
            if held is None or not held.position:
                continue
            # The client asks whether the log still has what was committed, and goes back to where it was cut.
            committed = broker.committed.get(tp)
            if committed is not None and committed.leader_epoch is not None:
                cut = broker.end_of_epoch(tp, committed.leader_epoch)
                held.position = held.position if cut is None else min(cut, held.position)
            if held.position and self._world.roll(self._world.rates.begins_below):
                held.position = random.randint(0, held.position - 1)

    def _find_metadata(self, tp: TopicPartition) -> tuple[str, int | None]:
        """The metadata of the committed offset: what pinstream wrote, or what another tool wrote."""
        world = self._world
        committed = world.broker.committed.get(tp)
        if committed is None:
            return "", None
        text = committed.metadata
        if world.roll(world.rates.foreign_metadata):
            text = world.random.choice(("", "by hand", text[:-1], text + "A", "pinstream:2:!", text[::-1]))
            lost = HeldRecords(tp, 0, 0)
            lost.last_seen = world.broker.logs[tp][-1].offset
            self.watch.excuse_all([lost])
        return text, committed.leader_epoch

    def revoke(self, tps: list[TopicPartition]) -> None:
        """The group wants these back: nothing is polled until the release."""
        if not self.alive or self.stands_still(self.revoke, tps):
            return
        self._keep_stale(tps)
        self.in_callback = True
        self._numbers += 1
        self._released[self._numbers] = tps
        self.feed(m.Revoked(tps, self._numbers, self._world.knobs.grace))

    def lose(self) -> None:
        """It learns that the group has thrown it out."""
        if not self.alive or self.stands_still(self.lose):
            return
        if self.in_callback and self._world.random.random() < 0.7:
            self._later(self.lose)
            return
        tps = list(self.watch.held)
        self._keep_stale(tps)
        if tps:
            self.feed(m.Lost(tps))
        self._world.group.rejoin(self)

    # -- polling

    def _poll(self) -> None:
        if not self.alive or self.stands_still(self._poll):
            return
        world = self._world
        for hear in (self._hear_of_topic_ids, self._hear_of_brokers):
            hear()
            if not self.alive:
                return
        self._hear_of_size()
        room = 0 if self.in_callback or not self.watch.held else self.pipeline.room()
        if room > 0:
            world.later(world.delay() / 4, self._fetch, room)
        else:
            world.later(world.knobs.latency + 0.02, self._poll)

    def _fetch(self, room: int) -> None:
        if not self.alive or self.stands_still(self._fetch, room):
            return
        world = self._world
        chunks = [] if self.in_callback else self._take(room)
        if chunks:
            self.feed(m.Fetched(chunks))
        elif world.random.random() < 0.05:
            ends = {tp: log[-1].offset + 1 for tp, log in world.broker.logs.items() if log}
            self.feed(m.EndOffsets(ends, begins=world.broker.begins))
        world.later(world.delay() / 2 if chunks else world.knobs.latency + 0.05, self._poll)

    def _take(self, room: int) -> list[Chunk]:
        """Up to `room` records, from each partition's position on."""
        world, chunks = self._world, []
        helds = list(self.watch.held.values())
        world.random.shuffle(helds)
        for held in helds:
            specs = world.broker.fetch(
                held.tp, held.position, min(room, world.random.randint(1, 40)), world.now - world.base
            )
            if specs:
                found = _chunks(held, specs)
                if specs[0].offset != held.position:
                    found[0] = found[0]._replace(log_start=world.broker.begins.get(held.tp, 0))
                held.position = specs[-1].offset + 1
                room -= len(specs)
                chunks += found
            if not room:
                break
        return chunks

    def _keep_stale(self, tps: list[TopicPartition]) -> None:
        """Deliver records that were on their way after their assignment has ended."""
        world = self._world
        for tp in tps:
            held = self.watch.held.get(tp)
            if held is None or not world.roll(world.rates.stale_fetch):
                continue
            specs = world.broker.fetch(tp, held.position, 5, world.now - world.base)
            if specs:
                world.later(world.random.uniform(0, 3), self.feed, m.Fetched(_chunks(held, specs)))

    def set_back(self) -> bool:
        """Move one partition's position back. False if no partition can go back."""
        helds = [held for held in self.watch.held.values() if held.last_seen >= 0 and not held.draining]
        if not helds or self.in_callback:
            return False
        held = self._world.random.choice(helds)
        held.position = self._world.random.randint(0, held.last_seen)
        return True


def _chunks(held: HeldRecords, specs: Sequence[Spec]) -> list[Chunk]:
    """Records of one partition, cut where the leader epoch changes."""
    chunks: list[Chunk] = []
    for spec in specs:
        if not chunks or chunks[-1].leader_epoch != spec.leader_epoch:
            # Some were gathered, for longer than a batch waits or not.
            waited = spec.offset % 5 / 10
            chunks.append(Chunk(*held.tp, held.epoch, spec.leader_epoch, [], waited=waited))
        chunks[-1].records.append(spec.record)
    return chunks
