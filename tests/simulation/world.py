"""A seeded world: virtual time, the troubles in it, and the rules every moment of it must keep.

Theory of operation. Everything that happens is an entry in one queue, ordered by time; chance comes from one
generator seeded with the world's seed. So a seed is a whole history, and running it again gives it again. For a
while there is trouble; then all is quiet, and everything must come to its end: all is committed, nothing is left
over (liveness). Safety is checked at every input, by `Watch` and `Truth`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from random import Random
from typing import Any

from consumer.engine import messages as m
from consumer.engine.figures.statistics import Totals
from consumer.engine.model import CommerceEvent, Filtered, Instant, Record, Rejection, Stage, TopicPartition
from tests.simulation.api import Api
from tests.simulation.avro_records import FORMS
from tests.simulation.broker import Broker
from tests.simulation.group import Group
from tests.simulation.knobs import CLOCKS, SESSION, Knobs, Rates, StoreFaults
from tests.simulation.member import Member
from tests.simulation.records import HOUR, WALL, RecordKind, Spec, new_record, successor, write_logs
from tests.simulation.stores import KeyStore, Registry, SharedStore
from tests.simulation.truth import Truth, Violation

PATIENCE = 3600.0
"""Seconds of quiet after which everything must be finished."""
_MAX_EVENTS = 150_000
TRANSFORM_FAILED = Rejection(Stage.CONVERT, "transform_failed", "the function raised ValueError")

Trace = Callable[[float, str, Any, Sequence[Any]], None]
"""Called with each input: time, process, input, commands."""


class World:
    """One world. `run` lives it to its end, or raises `Violation`."""

    def __init__(self, knobs: Knobs, trace: Trace | None = None, *, digest: bool = False) -> None:
        self.knobs = knobs
        self.rates: Rates = knobs.rates
        self.policy = knobs.policy
        """The policy that a process starts with."""
        self.random = Random(f"world {knobs.seed}")
        self.base = self.now = self.random.choice((0.0, 1234.567, 987_654.321))
        """A process's monotonic clock may start anywhere, because floats round differently there."""
        self.quiet_at = self.base + knobs.quiet_at
        self._clocks = dict(enumerate(knobs.clocks))
        """For each slot, how wrong its machine's clock is."""
        self.form = FORMS[knobs.reading]
        self.specs, logs = write_logs(knobs, self.random, self.form)
        self.truth = Truth(self.specs)
        self.truth.receipts = {} if knobs.receipts else None
        self.broker = Broker(logs, self.truth)
        self.broker.max_map = knobs.policy.map_bytes
        self.broker.metadata_limit = knobs.metadata_limit
        self.api = Api(self)
        self._stores: dict[int, KeyStore] = {}
        self.shared = SharedStore(self)
        self.registry = Registry(self)
        self.group = Group(self)
        self.inputs = self.crashes = 0
        self.alive: list[Member] = []
        self._ids = itertools.count(1)
        self._restarting = 0
        self._ending = False
        self._last_totals: Totals | None = None
        self._spells: dict[str, list[tuple[float, float]]] = {}
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._trace = trace
        self._digest = blake2b(digest_size=16) if digest else None

    # -- time and chance

    def at(self, moment: float, act: Callable[..., None], *args: Any) -> None:
        """Schedule an action for a moment."""
        heapq.heappush(self._queue, (moment, next(self._order), act, args))

    def later(self, delay: float, act: Callable[..., None], *args: Any) -> None:
        """Schedule an action for `delay` seconds from now."""
        self.at(self.now + delay, act, *args)

    @property
    def wall(self) -> float:
        """The time on the platform's clock, in unix seconds."""
        return WALL + self.now - self.base

    def instant(self, slot: int) -> Instant:
        """The present moment on both clocks of a machine."""
        return Instant(self.now, self.wall + self._clocks.get(slot, 0.0))

    @property
    def faulty(self) -> bool:
        """Whether anything may still go wrong."""
        return self.now < self.quiet_at

    def roll(self, rate: float) -> bool:
        """Whether a trouble of this rate happens now."""
        return rate > 0 and self.faulty and self.random.random() < rate

    def in_spell(self, what: str) -> bool:
        """Whether `what` is out of order for some time."""
        return any(begin <= self.now < end for begin, end in self._spells.get(what, ()))

    def delay(self) -> float:
        """How long an action takes."""
        slow = 20 if self.roll(self.rates.slow) else 1
        return self.knobs.latency * (0.1 + self.random.random()) * slow

    def spec_of(self, record: Record) -> Spec:
        """The truth about a record."""
        return self.specs[int(record.key or b"")]

    def function(self, event: CommerceEvent) -> CommerceEvent | Filtered | Rejection:
        """What the user's function makes of an event: usually the same event, for some of the fake ones a verdict."""
        kind = self.specs[event["number"]].kind if "number" in event else RecordKind.GOOD
        if kind is RecordKind.FILTERED:
            return Filtered("transform")
        return TRANSFORM_FAILED if kind is RecordKind.UNCONVERTIBLE else event

    def counts_as_offline(self, spec: Spec, unix_now: float) -> bool:
        """Whether the platform would count its event as an offline one at that time, and so keep both copies."""
        return spec.number % 5 == 0 or unix_now - spec.occurred_at > HOUR

    def keys_of(self, slot: int) -> KeyStore:
        """The key store that a member in this slot uses."""
        machine = slot if self.knobs.own_stores else 0
        if machine not in self._stores:
            self._stores[machine] = KeyStore(self)
        return self._stores[machine]

    def note(self, member: Member, happened: m.Input, commands: Sequence[m.Command]) -> None:
        """Record that an input was handled."""
        self.inputs += 1
        if self._trace is not None:
            self._trace(self.now - self.base, member.name, happened, commands)
        if self._digest is not None:
            self._digest.update(repr((member, happened, commands)).encode())

    def _say(self, what: str) -> None:
        if self._trace is not None:
            self._trace(self.now - self.base, "--", what, ())

    def put_out_of_order(self, what: str, begin: float, end: float) -> None:
        """Let `what` (see `in_spell`) fail completely from `begin` to `end`, in seconds from the world's start."""
        self._spells.setdefault(what, []).append((self.base + begin, self.base + end))

    @property
    def digest(self) -> str:
        """A digest of all inputs and commands so far, 32 characters long."""
        return self._digest.hexdigest() if self._digest is not None else ""

    # -- the run

    def run(self) -> None:
        """Live from the first moment to the last. Raises `Violation`."""
        for slot in range(self.knobs.members):
            self.later(self.random.uniform(0, 2), self._start, slot)
        self._plan_faults()
        self.at(self.quiet_at, self._check_for_end)
        events = 0
        while self._queue:
            self.now, _, act, args = heapq.heappop(self._queue)
            act(*args)
            events += 1
            if events > _MAX_EVENTS:
                raise Violation("everything comes to its end", f"not within {events} events; {self._state()}")
        self.truth.check_end()
        if self.knobs.graceful:
            self.truth.check_exactly_once(self.knobs)
        if self.knobs.undisturbed:
            self.truth.check_totals(self._last_totals)

    def _check_for_end(self) -> None:
        self._turn_off_guards()
        done = self.broker.all_committed() and not self._restarting
        if done and all(_left_over(member) == "" for member in self.alive):
            self._ending = True
            for member in list(self.alive):
                member.request_stop()
        elif self.now > self.quiet_at + PATIENCE:
            raise Violation("everything comes to its end", self._state())
        else:
            self.later(1.0, self._check_for_end)

    def _turn_off_guards(self) -> None:
        """An operator has looked at the dead letters, and restarts the processes whose guard stopped intake."""
        for member in [one for one in self.alive if one.watch.guarding and not one.watch.stopping]:
            self._say(f"the guard of {member} is turned off")
            self.policy = replace(self.policy, dead_letter_share=1.0)
            member.request_stop()

    def _state(self) -> str:
        missing = [
            f"{tp.topic}[{tp.partition}] is at {self.broker.committed_offset(tp)} of {log[-1].offset + 1}"
            for tp, log in self.broker.logs.items()
            if log and (self.broker.committed_offset(tp) or 0) <= log[-1].offset
        ]
        left = [f"{member}: {_left_over(member)}" for member in self.alive if _left_over(member)]
        return "; ".join(missing + left) or "a process does not stop"

    # -- processes

    def _start(self, slot: int) -> None:
        member = Member(self, slot, next(self._ids))
        self.alive.append(member)
        self._say(f"{member} starts")
        member.feed(m.Tick())
        self.group.join(member)

    def _start_again(self, slot: int) -> None:
        self._restarting -= 1
        self._start(slot)

    def _gone(self, member: Member) -> None:
        member.alive = False
        # Whatever it had in flight, or was not committed: a new process cannot know of it.
        member.watch.excuse_in_flight()
        member.excuse_uncommitted()
        self.alive.remove(member)
        if not self._ending:
            self._restarting += 1
            self.later(self.random.uniform(0.1, 3), self._start_again, member.slot)

    def crash(self, member: Member) -> None:
        """The process dies at once; the group notices when its session expires."""
        self._say(f"{member} crashes")
        self.crashes += 1
        self._gone(member)
        self.later(self.random.uniform(0.5, 4), self.group.leave, member)

    def ended(self, member: Member) -> None:
        """The process stopped in order, unless it crashed during the stop."""
        if not member.alive:
            return
        self._say(f"{member} has stopped")
        self._last_totals = member.pipeline.ledger.totals()
        if self.knobs.shared:
            member.keys.leave()
        self._gone(member)
        self.group.leave(member)

    # -- troubles

    def _plan_faults(self) -> None:
        knobs, incidents = self.knobs, self.knobs.incidents
        plans: list[tuple[int, Callable[[], None]]] = [
            (knobs.rebalances, self.group.rebalance),
            (knobs.restarts, self._restart_one),
            (incidents.crashes, self._crash_one),
            (incidents.expulsions, self._expel_one),
            (incidents.setbacks, self._set_one_back),
            (incidents.clock_jumps, self._jump),
            (incidents.freezes, self._freeze_one),
            (incidents.removals, self._remove_some),
            (incidents.recreated, self._recreate_a_topic),
        ]
        for count, act in plans:
            for _ in range(count):
                self.at(self.random.uniform(self.base, self.quiet_at), act)
        accounts = [f"account {n + 1}" for n in range(knobs.accounts)]
        for count, names in (
            (incidents.token_spells, ["token"]),
            (incidents.account_spells, accounts),
            (
                incidents.outages,
                ["api", "keys", "letters", "commits", "registry"] + ["receipts"] * knobs.receipts,
            ),
        ):
            for _ in range(count):
                begin = self.random.uniform(0, knobs.quiet_at)
                end = min(knobs.quiet_at, begin + self.random.uniform(0.5, 8))
                self.put_out_of_order(self.random.choice(names), begin, end)
        self._plan_store_faults(self.knobs.store_faults)

    def _plan_store_faults(self, faults: StoreFaults) -> None:
        """Plan the troubles of the shared key store."""
        for _ in range(faults.frozen):
            begin = self.random.uniform(0, self.knobs.quiet_at)
            end = min(self.knobs.quiet_at, begin + self.random.uniform(0.5, 8))
            self.put_out_of_order("frozen keys", begin, end)
        for _ in range(faults.full):
            begin = self.random.uniform(self.base, self.quiet_at)
            self.at(begin, setattr, self.shared, "full", True)
            self.at(
                min(self.quiet_at, begin + self.random.uniform(0.5, 8)), setattr, self.shared, "full", False
            )
        for _ in range(faults.set_back):
            kept = self.random.uniform(self.base, self.quiet_at)
            self.at(kept, self.shared.keep)
            self.at(min(self.quiet_at, kept + self.random.uniform(0.1, 4)), self.shared.go_back)
        for _ in range(faults.flushed):
            self.at(self.random.uniform(self.base, self.quiet_at), self.shared.flush)

    def _one(self) -> Member | None:
        living = [member for member in self.alive if not member.watch.stopping]
        return self.random.choice(living) if living else None

    def _restart_one(self) -> None:
        member = self._one()
        if member is not None:
            member.request_stop()
            if self.random.random() < 0.2:
                # Someone is impatient; the first deadline stands.
                self.later(self.random.uniform(0, 1), member.request_stop)

    def _crash_one(self) -> None:
        member = self._one()
        if member is None:
            return
        if self.random.random() < 0.3:
            self.crash(member)
        else:
            # In the middle of performing commands: between any two of them.
            member.crash_in = self.random.randint(0, 40)

    def _expel_one(self) -> None:
        member = self._one()
        if member is not None and member in self.group.joined:
            self._say(f"{member} is expelled")
            self.group.expel(member)

    def _freeze_one(self) -> None:
        member = self._one()
        if member is not None:
            seconds = self.random.uniform(0.3, max(3 * SESSION, 1.5 * self.policy.lease))
            self._say(f"{member} stands still for {seconds} s")
            member.freeze(seconds)
            if seconds > SESSION:
                self.later(SESSION, self._session_expires, member)

    def _session_expires(self, member: Member) -> None:
        if member.alive and member in self.group.joined and self.now < member.frozen_until:
            self._say(f"{member} is given up")
            member.given_up = True
            self.group.expel(member)

    def cut_log(self, tp: TopicPartition) -> None:
        """Between two owners the end of a log is lost and other records take its place, under a higher leader epoch.

        It may be cut below the committed offset, if that has an epoch: the log outgrows the offset again.
        """
        log, committed = self.broker.logs[tp], self.broker.committed.get(tp)
        below = committed is not None and committed.leader_epoch is not None and self.random.random() < 0.5
        begin = max(0 if below or committed is None else committed.next_offset, self.broker.begins.get(tp, 0))
        first = self.broker.index(tp, begin)
        last = self.broker.index(tp, log[-1].offset + 1)
        while last > first and log[last - 1].visible_at > self.now - self.base:
            last -= 1
        epoch = log[last - 1].leader_epoch if last > first else None
        if epoch is None:
            return
        place = self.random.randint(first, last - 1)
        new = [successor(self.specs, old, epoch + 1, old.visible_at) for old in log[place:last]]
        gone = self.broker.cut(tp, place, new)
        self.truth.gone.update(spec.number for spec in gone)
        for later in log[last:]:
            later.leader_epoch = max(epoch + 1, later.leader_epoch or 0)
        self._say(f"{tp.topic}[{tp.partition}] is cut at {new[0].offset}")

    def _remove_some(self) -> None:
        """Retention or an operator removes a log's beginning, but never the record that is its last one now."""
        tp = self.random.choice(sorted(self.broker.logs))
        visible = sum(spec.visible_at <= self.now - self.base for spec in self.broker.logs[tp])
        if visible > 1:
            self.broker.remove(tp, self.random.randint(1, visible - 1))
            self._say(f"{tp.topic}[{tp.partition}] begins at {self.broker.begins[tp]}")

    def _recreate_a_topic(self) -> None:
        """The topic is deleted and created again, longer than before, so that no earlier offset is out of range."""
        topic = self.random.choice(sorted(self.broker.topic_ids))
        logs: dict[TopicPartition, list[Spec]] = {}
        now = self.now - self.base
        for tp in [one for one in self.broker.logs if one.topic == topic]:
            old = self.broker.logs[tp]
            end = old[-1].offset + 1 if old else 0
            count = (
                self.random.randint(1, 12) if self.random.random() < 0.3 else end + self.random.randint(0, 5)
            )
            logs[tp] = [
                new_record(self.specs, tp, offset, now + self.random.choice((0.0, 0.0, 2.0)), self.form)
                for offset in range(min(count, 60))
            ]
            logs[tp].sort(key=lambda spec: spec.offset)
        gone = self.broker.recreate(logs)
        self.truth.gone.update(spec.number for spec in gone)
        self._say(f"{topic} is recreated")

    def _set_one_back(self) -> None:
        member = self._one()
        if member is not None and member.set_back():
            self._say(f"a position of {member} goes back")

    def _jump(self) -> None:
        slot = self.random.randrange(self.knobs.members)
        self._clocks[slot] = self.random.choice(CLOCKS)
        self._say(f"the clock of m{slot} is off by {self._clocks[slot]} s from now on")


def _left_over(member: Member) -> str:
    """The work that a process still has, in words; empty when it has finished."""
    pipeline = member.pipeline
    left = {
        "open": pipeline.ledger.open,
        "claims": len(pipeline.claims.claimed),
        "keys": len(pipeline.keys),
        "dead letters": len(pipeline.letters),
        "receipts": len(pipeline.receipts) + pipeline.steps.unreceipted,
        "parked": len(pipeline.parking),
        "held": pipeline.admission.held,
        "early": len(pipeline.untimely),
        "with the function": int(pipeline.transforming.busy),
        "deferred": pipeline.admission.deferred,
        "looking up": len(pipeline.lookups._asked) + len(pipeline.lookups._again),
        "queued": sum(queue.queued for queue in pipeline.dispatcher),
        "in flight": sum(1 for _ in pipeline.dispatcher.in_flight()),
        "draining": len(pipeline._drains),
    }
    return ", ".join(f"{count} {what}" for what, count in left.items() if count)
