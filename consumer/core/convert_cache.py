"""A bounded memory of what a pure rule answered: shoppers, products and places come again and again.

Theory of operation. A `dict` whose ``__missing__`` works the value out, so that a hit costs one C look-up. Only
short text is remembered (a number that equals another one's key never finds it), the number of entries is
bounded, and when it is full the oldest quarter goes at once: hostile input costs what a miss costs, no more.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

MOST_ENTRIES = 8192
LONGEST_KEY = 256
"""Characters. With digests as values a full cache holds a few megabytes at the worst."""


class Cache(dict[Any, Any]):
    """``cache[value]`` is ``rule(value)``. `value` must be hashable; `rule` must be pure and must not raise."""

    __slots__ = ("_most", "_rule")

    def __init__(self, rule: Callable[[Any], Any], most: int = MOST_ENTRIES) -> None:
        super().__init__()
        self._rule = rule
        self._most = most

    def __missing__(self, key: Any) -> Any:
        value = self._rule(key)
        if key.__class__ is str and len(key) <= LONGEST_KEY:
            if len(self) >= self._most:
                for old in list(islice(self, max(1, self._most // 4))):
                    del self[old]
            self[key] = value
        return value
