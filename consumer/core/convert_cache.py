"""A bounded memory of what a pure rule answered: shoppers, products and places come again and again.

Theory of operation. A `dict` whose ``__missing__`` works the value out, so that a hit costs one C look-up. Only
short text is remembered (a number that equals another one's key never finds it), the number of entries is
bounded, and when it is full the oldest quarter goes at once: hostile input costs what a miss costs, no more.

What hardly ever comes again (the e-mail address of a shopper who buys once) is not worth remembering: it would push
everything else out of the processor's cache. So every `WATCH` events a cache is asked how many of them it did not
know. If that is most, it *rests*: it forgets all, and remembers nothing for the next `REST` events. Then it tries
again, since the same shoppers may look around for an hour and then be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

MOST_ENTRIES: Final = 8192
LONGEST_KEY: Final = 256
"""Characters. With digests as values a full cache holds a few megabytes at the worst."""
WATCH: Final = 2048
REST: Final = 30 * WATCH
_WORTH_IT: Final = 0.6
"""The largest share of unknown values at which remembering pays: below it a look-up saves more than it costs."""


class Cache(dict[Any, Any]):
    """``cache[value]`` is ``rule(value)``. `value` must be hashable; `rule` must be pure and must not raise."""

    __slots__ = ("_missed", "_most", "_resting", "_rule")

    def __init__(self, rule: Callable[[Any], Any], most: int = MOST_ENTRIES) -> None:
        super().__init__()
        self._rule = rule
        self._most = most
        self._missed = 0
        self._resting = 0
        """For so many more events nothing is remembered."""

    def __missing__(self, key: Any) -> Any:
        if self._resting:
            return self._rule(key)
        self._missed += 1
        value = self._rule(key)
        if key.__class__ is str and len(key) <= LONGEST_KEY:
            if len(self) >= self._most:
                for old in list(islice(self, max(1, self._most // 4))):
                    del self[old]
            self[key] = value
        return value

    def watch(self, events: int) -> None:
        """So many events went by since this was last called: is it worth remembering anything?"""
        missed, self._missed = self._missed, 0
        if self._resting:
            self._resting = max(0, self._resting - events)
        elif missed > events * _WORTH_IT:
            self.clear()
            self._resting = REST


class Watch:
    """Counts events, and asks the caches every `WATCH` of them."""

    __slots__ = ("_caches", "_events")

    def __init__(self, caches: Callable[[], Iterable[Cache]]) -> None:
        self._caches = caches
        self._events = 0

    def add(self, events: int) -> None:
        """So many events went by."""
        self._events += events
        if self._events >= WATCH:
            for cache in self._caches():
                cache.watch(self._events)
            self._events = 0
