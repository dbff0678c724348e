"""What reading a datum of a foreign schema can cost at most, judged before the first byte is read.

A datum of *n* bytes must not be able to make more than a bounded number of values per byte. Avro has types
that take no bytes (``null``, an empty record), so an array of them can claim 2^62 items in nine bytes, and
records that hold records that hold records… of such types double with every level. Schemas with the former
are refused, the latter are counted and refused above a limit no honest schema comes near.
"""

from __future__ import annotations

from typing import Final

from consumer.core.avro_schema import Array, AvroType, Fixed, InvalidSchema, Map, Record, Union, label

MAX_VALUES_PER_DATUM: Final = 10_000
"""Values that one datum may hold, not counting what its arrays and maps repeat."""


def require_bounded(node: AvroType) -> None:
    """Refuse a schema whose data could cost more than their size. Raises `InvalidSchema`."""
    _Bounds().values(node, frozenset())


class _Bounds:
    """One walk over a schema; `_known` holds what a named type costs, None while it is being counted."""

    def __init__(self) -> None:
        self._known: dict[str, int | None] = {}

    def values(self, node: AvroType, around: frozenset[str]) -> int:
        """How many values a datum makes; `around` are the records that it begins without a byte in between."""
        if isinstance(node, Record):
            return self._record(node, around)
        if isinstance(node, Union):
            return 1 + max(self.values(branch, frozenset()) for branch in node.branches)
        if isinstance(node, Map):
            self.values(node.values, frozenset())
        if isinstance(node, Array):
            self.values(node.items, frozenset())
            if takes_no_bytes(node.items):
                raise InvalidSchema(
                    f"an array of {label(node.items)}: items that take no bytes have no bound"
                )
        return 1

    def _record(self, node: Record, around: frozenset[str]) -> int:
        if node.name in around:
            raise InvalidSchema(f"{node.name}: contains itself without an end")
        if node.name in self._known:
            # While it is being counted we are inside it, behind a byte: that byte pays for the next round.
            return self._known[node.name] or 0
        self._known[node.name] = None
        inside = around | {node.name}
        count = 1 + sum(self.values(each.type, inside) for each in node.fields)
        if count > MAX_VALUES_PER_DATUM:
            raise InvalidSchema(f"{node.name}: holds more than {MAX_VALUES_PER_DATUM} values")
        self._known[node.name] = count
        return count


def takes_no_bytes(node: AvroType) -> bool:
    """Whether the type's data are zero bytes long. Only for schemas whose records have an end."""
    if isinstance(node, Record):
        return all(takes_no_bytes(each.type) for each in node.fields)
    return node.kind == "null" or (isinstance(node, Fixed) and node.size == 0)
