"""What reading a datum of a foreign schema can cost at most, judged before the first byte is read.

A datum of *n* bytes must not be able to make more than a small number of values per byte. Avro has types that take
no bytes (``null``, an empty record), so an array of them can claim 2^62 items in nine bytes, records that hold
records that hold records… of such types double with every level, and an item of one byte may bring thousands of
nulls along.

So each value costs one, each byte it is sure to take pays for `VALUES_PER_BYTE`, and what is left is the type's
*debt*. What can come again within one datum (items of arrays, values of maps, records that hold themselves) must
pay for itself; a whole datum may have a debt once, of a size that no honest schema comes near.
"""

from __future__ import annotations

from typing import Final

from consumer.avro.schema import Array, AvroType, Fixed, InvalidSchema, Map, Record, Union, label

MAX_VALUES_PER_DATUM: Final = 10_000
"""Values that one datum may hold beyond what its bytes pay for."""
VALUES_PER_BYTE: Final = 16
"""Honest data have about one."""
_BYTES: Final = {"null": 0, "float": 4, "double": 8}
"""The fewest bytes of a primitive; one, if it is not here."""


def require_bounded(node: AvroType) -> None:
    """Refuse a schema whose data could cost more than their size. Raises `InvalidSchema`."""
    _Bounds().debt(node, frozenset())


class _Bounds:
    """One walk over a schema; `_known` holds what a record owes, None while it is being counted."""

    def __init__(self) -> None:
        self._known: dict[str, int | None] = {}
        self._recurring: set[str] = set()
        """Records that hold themselves."""

    def debt(self, node: AvroType, around: frozenset[str]) -> int:
        """What a datum owes at most; `around` are the records that it begins without a byte in between."""
        if isinstance(node, Record):
            return self._record(node, around)
        if isinstance(node, Union):
            return max(self.debt(branch, frozenset()) for branch in node.branches) - VALUES_PER_BYTE
        if isinstance(node, Map):  # each value has a key's length before it
            self._require_paid(node.values, "a map", VALUES_PER_BYTE)
        elif isinstance(node, Array):
            self._require_paid(node.items, "an array", 0)
        size = node.size if isinstance(node, Fixed) else _BYTES.get(node.kind, 1)
        return 1 - VALUES_PER_BYTE * size

    def _require_paid(self, node: AvroType, holder: str, paid: int) -> None:
        if self.debt(node, frozenset()) > paid:
            raise InvalidSchema(
                f"{holder} of {label(node)}: items of so few bytes and so many values have no bound"
            )

    def _record(self, node: Record, around: frozenset[str]) -> int:
        if node.name in around:
            raise InvalidSchema(f"{node.name}: contains itself without an end")
        if node.name in self._known:
            known = self._known[node.name]
            if (
                known is None
            ):  # being counted, and we are inside it, behind a byte: it must pay for the next round
                self._recurring.add(node.name)
            return known or 0
        self._known[node.name] = None
        inside = around | {node.name}
        debt = 1 + sum(self.debt(each.type, inside) for each in node.fields)
        if debt > (0 if node.name in self._recurring else MAX_VALUES_PER_DATUM):
            raise InvalidSchema(f"{node.name}: holds more values than its bytes pay for")
        self._known[node.name] = debt
        return debt
