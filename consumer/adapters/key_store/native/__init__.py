"""The operations on many keys: compiled, or in plain Python where the package was built without a C compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumer.adapters.key_store.plain import Builder, KeyTable, Merger, Segment
else:
    try:
        from consumer.adapters.key_store.native._keys import Builder, KeyTable, Merger, Segment
    except ModuleNotFoundError:  # built without a compiler
        from consumer.adapters.key_store.plain import Builder, KeyTable, Merger, Segment

__all__ = ["Builder", "KeyTable", "Merger", "Segment"]
