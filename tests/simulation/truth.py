"""What is true of a whole world, whatever its members believe: accepted, durable, stored, and what is excused.

Theory of operation. A record is resolved when nothing more is owed to it; only resolved records may be committed
past. An event may be accepted more often than once only where nobody could have known better: each such
occasion (an answer that never came, a crash with calls in flight, ...) excuses one more acceptance of each key
that was in flight then, and no more. So "at most what was in flight at ungraceful moments" is checked to the
number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from consumer.engine.figures.statistics import Totals
from consumer.engine.model import Backoff, Disposition
from tests.simulation.knobs import Knobs
from tests.simulation.records import RecordKind, Spec

_RANKS = (Disposition.DUPLICATE, Disposition.FILTERED, Disposition.DEAD_LETTERED, Disposition.DELIVERED)
"""Outcomes of receipts of one record; the last one counts."""


class Violation(AssertionError):
    """An invariant does not hold; `invariant` names it."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant


def require(holds: bool, invariant: str, found: object) -> None:
    """Raise `Violation` unless `holds`; the message shows what was `found`."""
    if not holds:
        raise Violation(invariant, str(found))  # the text of a snapshot costs more than the check


def longest_delay(backoff: Backoff, failures: int) -> float:
    """The longest delay that a backoff allows after this many failures in a row.

    Computed here, because a deliberate bug replaces the method of `Backoff`.
    """
    return float(min(backoff.cap, backoff.base * 2 ** min(failures - 1, 32)))


class Truth:
    """What is true of the world, whatever its members believe."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self.specs = specs
        self.accepted: Counter[bytes] = Counter()
        self.durable: set[bytes] = set()
        """Keys that were ever stored."""
        self.letters: Counter[int] = Counter()
        """Dead letters on their topic, by the record's number."""
        self.receipts: dict[int, set[Disposition]] | None = None
        """Receipts on their topic, by the record's number; None: none are wanted."""
        self._keys_receipted: set[bytes] = set()
        """Keys of events with a receipt that says delivered."""
        self.gone: set[int] = set()
        """Numbers of records that are no longer in the log, because it was cut."""
        self.removed: set[int] = set()
        """Numbers of records that were removed from the log before they were resolved; `gone` has these, too."""
        self.missed: set[int] = set()
        """Those of them that a process found missing and reported."""
        self._excused: Counter[bytes] = Counter()
        partitions: dict[bytes, set[object]] = {}
        for spec in specs:
            partitions.setdefault(spec.key, set()).add(spec.tp)
        self.spread = {key for key, where in partitions.items() if len(where) > 1}
        """Keys with records in more than one partition: two members can hold one each at the same time."""
        counts = Counter(spec.key for spec in specs)
        self.shared = {key for key, count in counts.items() if count > 1}
        """Keys with more than one record: one can be read by a member that did not deliver the other."""

    def accept(self, spec: Spec) -> None:
        """The API processed this event."""
        self.accepted[spec.key] += 1
        require(spec.kind is RecordKind.GOOD, "only good events are accepted", spec)
        if self.accepted[spec.key] - 1 > self._excused[spec.key]:
            raise Violation(
                "accepted once", f"{spec} was accepted {self.accepted[spec.key]} times; "
                f"{self._excused[spec.key]} more were excused",
            )  # fmt: skip

    def excuse(self, keys: Iterable[bytes]) -> None:
        """Allow one more acceptance of each of these."""
        self._excused.update(keys)

    def store_key(self, key: bytes) -> None:
        """The key store has written this key."""
        if self.receipts is not None and key not in self._keys_receipted:
            raise Violation("a key is stored after its receipt", key.hex())
        self.durable.add(key)

    def receipt(self, spec: Spec, outcome: Disposition) -> None:
        """The receipts topic has a receipt of this record."""
        assert self.receipts is not None
        self.receipts.setdefault(spec.number, set()).add(outcome)
        if outcome is Disposition.DELIVERED:
            self._keys_receipted.add(spec.key)

    def resolved(self, spec: Spec) -> bool:
        """Whether a commit may go past this record."""
        return spec.number in self.removed or self.settled(spec)

    def remove(self, specs: Iterable[Spec]) -> None:
        """These records are no longer in the log."""
        numbers = [spec.number for spec in specs]
        self.removed.update(numbers)
        self.gone.update(numbers)

    def settled(self, spec: Spec) -> bool:
        """Whether this record has an outcome, and its receipt if any is wanted."""
        if self.receipts is not None and spec.number not in self.receipts:
            return False
        if spec.kind.passes_silently:
            return True
        if spec.kind is RecordKind.GOOD:
            return spec.key in self.durable
        # A refused event can also be the duplicate of one that was delivered.
        return spec.number in self.letters or (spec.kind.is_event and spec.key in self.durable)

    def check_end(self) -> None:
        """Check that every key with a good event was accepted, and that the receipts say so."""
        for spec in self.specs:
            receipted = self.receipts is None or spec.number in self.receipts or spec.number in self.gone
            require(receipted, "every record has a receipt", spec)
            if spec.kind is RecordKind.GOOD and spec.number not in self.gone and not self.accepted[spec.key]:
                raise Violation("every valid event is accepted", f"{spec} never was")
            if self.receipts is not None and spec.kind is RecordKind.GOOD and spec.number not in self.gone:
                found = spec.key in self._keys_receipted
                require(found, "a delivered event has a receipt that says so", spec)

    def check_exactly_once(self, knobs: Knobs) -> None:
        """For worlds without faults: one acceptance per key, one dead letter per bad record."""
        beyond = set() if knobs.shared else self.shared if knobs.own_stores else self.spread
        for spec in self.specs:
            if self.accepted[spec.key] > 1 and spec.key not in beyond:
                raise Violation("exactly once without faults", f"{spec}: {self.accepted[spec.key]} times")
            if self.letters[spec.number] > 1:
                raise Violation("one dead letter without faults", f"{spec}: {self.letters[spec.number]}")

    def check_totals(self, totals: Totals | None) -> None:
        """For worlds without faults and with one process: its ledger shows the true outcomes of the records."""
        letters = sum(self.letters.values())
        filtered = sum(1 for spec in self.specs if spec.kind.passes_silently)
        delivered = sum(self.accepted.values())
        duplicate = len(self.specs) - delivered - filtered - letters
        expected = Totals(len(self.specs), delivered, duplicate, filtered, letters, 0)
        if totals != expected or letters != len(self.letters):
            raise Violation("the ledger tells the truth", f"{totals} instead of {expected}")
        if self.receipts is not None:
            counted = Counter(max(map(_RANKS.index, found)) for found in self.receipts.values())
            said = {one.value: counted[rank] for rank, one in enumerate(_RANKS)}
            require(expected == Totals(read=len(self.specs), open=0, **said), "receipts are the ledger", said)
