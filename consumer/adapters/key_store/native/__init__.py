"""The operations on many keys: compiled, or in plain Python where the package was built without a C compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumer.adapters.key_store.plain import Builder, Merger, Segment, Table
else:
    try:
        from consumer.adapters.key_store.native._keys import Builder, Merger, Segment, Table
    except ModuleNotFoundError:  # built without a compiler
        from consumer.adapters.key_store.plain import Builder, Merger, Segment, Table

__all__ = ["Builder", "Merger", "Segment", "Table"]
