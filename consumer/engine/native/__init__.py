"""What the engine does with many records or keys at once, compiled if there is a C compiler."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumer.engine.native.plain import count_ages, offsets_of, rising, sizes_of, sum_values
else:
    try:
        from consumer.engine.native._rows import count_ages, offsets_of, rising, sizes_of, sum_values
    except ModuleNotFoundError:  # built without a compiler
        from consumer.engine.native.plain import count_ages, offsets_of, rising, sizes_of, sum_values

__all__ = ["count_ages", "offsets_of", "rising", "sizes_of", "sum_values"]
