"""The group coordinator: who holds which partition, and how that changes hands.

Theory of operation. A rebalance asks members for what they must give back (all, when eager; only what moves, when
cooperative), waits until they have, and hands out what nobody owns. A member that died is believed to be there
until its session expires, so a rebalance waits for it. A member that is thrown out is told later: until then it
works on as a zombie, whose commits the broker refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer.engine.model import TopicPartition
from tests.simulation.member import Member

if TYPE_CHECKING:
    from tests.simulation.world import World


class Group:
    """One consumer group over all partitions."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.joined: list[Member] = []
        self.expelled: list[Member] = []
        """Members that were thrown out and do not know it yet."""
        self._running = False
        self._due = False
        self._awaited: list[Member] = []
        self._plan: dict[TopicPartition, Member] = {}

    # -- comings and goings

    def join(self, member: Member) -> None:
        """A process has started."""
        self.joined.append(member)
        self.rebalance()

    def rejoin(self, member: Member) -> None:
        """A member that was thrown out learns of it and joins again."""
        if member in self.expelled:
            self.expelled.remove(member)
            member.given_up = False
            self.join(member)

    def leave(self, member: Member) -> None:
        """A member left, or its session expired."""
        if member in self.expelled:
            self.expelled.remove(member)
        if member not in self.joined:
            return
        self.joined.remove(member)
        owners = self._world.broker.owners
        for tp in [tp for tp, (owner, _) in owners.items() if owner is member]:
            del owners[tp]
            if self._world.roll(self._world.rates.cut_logs):
                self._world.cut_log(tp)
        self.rebalance()
        self._returned(member)

    def expel(self, member: Member) -> None:
        """The group gives a living member's partitions away; it learns of that later."""
        if not self._world.knobs.shared:
            member.watch.excuse_in_flight()
            member.excuse_uncommitted()
        self.leave(member)
        self.expelled.append(member)
        self._world.later(self._world.random.uniform(0, 4), member.lose)

    def holders(self) -> int | None:
        """How many members hold partitions; None during a rebalance."""
        return None if self._running else len({owner for owner, _ in self._world.broker.owners.values()})

    # -- rebalances

    def rebalance(self) -> None:
        """Begin a rebalance soon, or after the one that is under way."""
        if not self._due:
            self._due = True
            if not self._running:
                self._world.later(self._world.random.uniform(0, 0.5), self._begin)

    def _begin(self) -> None:
        world, owners = self._world, self._world.broker.owners
        self._running, self._due = True, False
        self._plan = self._draw_plan()
        wanted: dict[Member, list[TopicPartition]] = {}
        for tp, (owner, _) in owners.items():
            if world.knobs.eager or self._plan.get(tp) is not owner:
                wanted.setdefault(owner, []).append(tp)
        self._awaited = list(wanted)
        for member, tps in wanted.items():
            world.random.shuffle(tps)
            member.revoke(tps)
        if not wanted:
            self._hand_out()

    def _draw_plan(self) -> dict[TopicPartition, Member]:
        """Usually a sticky plan, sometimes a random one."""
        world = self._world
        plan = {}
        for tp in world.broker.logs:
            owner = world.broker.owners.get(tp)
            if not self.joined:
                break
            sticks = owner is not None and owner[0] in self.joined and world.random.random() < 0.5
            plan[tp] = owner[0] if sticks and owner is not None else world.random.choice(self.joined)
        return plan

    def released(self, member: Member, tps: list[TopicPartition]) -> None:
        """A member's callback has returned: it has released these."""
        owners = self._world.broker.owners
        for tp in tps:
            if tp in owners and owners[tp][0] is member and tp not in member.watch.held:
                del owners[tp]
                if member not in self._awaited:
                    # Nobody waits for it any more, and somebody must have it.
                    self.rebalance()
        self._returned(member)

    def _returned(self, member: Member) -> None:
        if member in self._awaited:
            self._awaited.remove(member)
            if not self._awaited:
                self._hand_out()

    def _hand_out(self) -> None:
        self._running = False
        given: dict[Member, list[TopicPartition]] = {}
        for tp in self._world.broker.logs:
            if tp in self._world.broker.owners:
                continue
            member = self._plan.get(tp)
            if member in self.joined and member is not None:
                given.setdefault(member, []).append(tp)
            elif self.joined:
                self._due = True
        for member, tps in given.items():
            member.assign(tps)
        if self._due:
            self._due = False
            self.rebalance()
