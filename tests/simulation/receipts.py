"""The receipts topic of a world, and a process's way there and back.

Theory of operation. A receipt must be true: of the record that it names, of the event as it was sent, and of an outcome
that is known to have come. What was written stays, whoever wrote it; `Truth` asks for the receipts of a record before a
commit may go past it. Some writes fail, as a whole or in part, and may have been done all the same.

`ReceiptsClient` also knows what its process was told: no key is stored, and no record settles, before the process has
heard that the receipt is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from consumer.engine import messages as m
from consumer.engine.model import Disposition
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import split_keys
from consumer.engine.receipts import Receipts
from tests.simulation.records import Spec
from tests.simulation.truth import Violation, require

if TYPE_CHECKING:
    from tests.simulation.member import Member
    from tests.simulation.watch import HeldRecords
    from tests.simulation.world import World

_DELIVERED, _LETTER = Disposition.DELIVERED, Disposition.DEAD_LETTERED


class ReceiptsClient:
    """One process's writer."""

    def __init__(self, world: World, member: Member) -> None:
        self._world, self._member = world, member
        policy = world.knobs.policy
        self._at_risk = policy.concurrency * policy.batch_events
        self._writing: dict[int, list[tuple[Receipts, list[Spec], HeldRecords | None]]] = {}
        self._storing: dict[int, list[bytes]] = {}
        self._keys: set[bytes] = set()
        """Keys of delivered events that have a receipt and are not durable, as far as the process knows."""
        self._stored = 0

    # -- what the process says, and is told

    def commanded(self, command: m.Command) -> None:
        """Check one command."""
        match command:
            case m.StoreKeys(number, keys) if self._world.knobs.receipts:
                self._storing[number] = split_keys(keys)
                early = [key.hex() for key in self._storing[number] if key not in self._keys]
                require(not early, "a key is stored after its receipt", early)
            case m.StoreReceipts(number, receipts):
                require(not self._writing, "one write of receipts at a time", number)
                self._writing[number] = [self._checked(one) for one in receipts]
                rows = sum(len(one.records) for one in receipts)
                require(rows <= self._at_risk, "a write of receipts has its limit", rows)
                ahead = sum(len(one.records) for one in receipts if one.outcome.is_delivered) + len(
                    self._keys - self._member.watch.taken_over
                )
                require(ahead <= self._at_risk, "at most what is at risk is ahead", ahead)

    def reported(self, happened: m.Input) -> None:
        """Take in an input that is about to be handled."""
        match happened:
            case m.ReceiptsStored(number, stored):
                for (one, specs, _), done in zip(self._writing.pop(number), stored, strict=True):
                    self._stored += len(specs) * done
                    if done and one.outcome.is_delivered:
                        self._keys.update(spec.key for spec in specs)
            case m.KeysStored(number, stored) if number in self._storing:
                keys = self._storing.pop(number)
                self._keys -= {key for key, done in zip(keys, stored or [1] * len(keys), strict=True) if done}
            case m.KeyStoreFailed(m.StoreKeys(number)):
                self._storing.pop(number, None)

    def settled_down(self, pipeline: Pipeline) -> None:
        """After the commands of an input: no record has settled without a receipt."""
        if self._world.knobs.receipts:
            settled = pipeline.ledger.settlements
            require(settled <= self._stored, "a record settles after its receipt", (settled, self._stored))

    def in_flight(self, helds: list[HeldRecords]) -> list[str]:
        """Receipts for these partitions that are being written, in words; those of delivered events aside."""
        written = [entry for entries in self._writing.values() for entry in entries]
        return [str(one) for one, _, held in written if held in helds and not one.outcome.is_delivered]

    def _checked(self, one: Receipts) -> tuple[Receipts, list[Spec], HeldRecords | None]:
        """Check that receipts are true. Return them with their records, and with the partition if it is held."""
        outcome, truth, form = one.outcome, self._world.truth, self._world.form
        kind, call = outcome.disposition, outcome.call
        specs = [self._world.spec_of(record) for record in one.records]
        columns = zip(specs, one.records, one.bodies, one.kinds, one.times, strict=True)
        for spec, record, body, of, time in columns:
            event = orjson.loads(body) if body else None
            true = {
                Disposition.DELIVERED: truth.accepted[spec.key] > 0 and outcome.attempts > 0,
                Disposition.DUPLICATE: spec.key in truth.durable,
                Disposition.FILTERED: spec.kind.passes_silently,
                Disposition.DEAD_LETTERED: spec.number in truth.letters,
            }[kind]
            if (
                not true
                or record is not spec.record
                or (one.topic, one.partition) != spec.tp
                or (of is None or event is None or not time) is spec.kind.is_event
                or (of is not None and of.account != spec.account)
                or (event is not None and spec.number != form.number(event))
                or (outcome.code is None) is (kind in (Disposition.FILTERED, _LETTER))
                or (call is None) is (kind is _DELIVERED or (kind is _LETTER and spec.kind.is_event))
            ):
                raise Violation("a receipt is true", f"{spec}: {one} {event}")
        held = self._member.watch.held.get(specs[0].tp)
        if kind is not _DELIVERED and held is None:
            raise Violation("no receipt is written for what is another's to settle", f"{specs[0]}: {one}")
        return one, specs, held

    # -- there and back

    def perform(self, command: m.StoreReceipts) -> None:
        """Write receipts, and give the engine the answer."""

        def store() -> m.Input:
            stored = [self._store(one, specs) for one, specs, _ in writing]
            reason = "" if all(stored) else "the receipts topic does not answer"
            return m.ReceiptsStored(command.number, stored, reason)

        writing = self._writing[command.number]
        self._member.attempt(store)

    def _store(self, one: Receipts, specs: list[Spec]) -> bool:
        """Whether these receipts are acknowledged; a failed write may have been done all the same, or in part."""
        world = self._world
        fails = world.in_spell("receipts") or world.roll(world.knobs.receipts_fail)
        done = world.random.randint(0, len(specs)) if fails and world.random.random() < 0.3 else 0
        for spec in specs[:done] if fails else specs:
            world.truth.receipt(spec, one.outcome.disposition)
        return not fails
