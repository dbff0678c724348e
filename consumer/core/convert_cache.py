"""A bounded memory of what a pure rule answered: shoppers, products and places come again and again.

Theory of operation. A `dict` whose ``__missing__`` works the value out, so that a hit costs one C look-up. Only
short text is remembered (a number that equals another one's key never finds it), the number of entries is
bounded, and when it is full the oldest quarter goes at once: hostile input costs what a miss costs, no more.

What hardly ever comes again (the e-mail address of a shopper who buys once) is not worth remembering: it would push
everything else out of the processor's cache. So a cache goes round three stages, and changes them when it is told that
events went by (every `WATCH` of them):

- *Counting*: it remembers nothing, so that every look-up comes by, and learns how many there are to an event. (Of those
  that find something it never hears.)
- *Remembering*: it counts those that find nothing. From `TRIAL` events on, when it has had the time to be useful, it is
  asked after each `WATCH` how large their share is; if it is too large it forgets all.
- *Resting*: for `REST` events it is the rule and nothing else; then it tries again, since the same shoppers may look
  around for an hour and then be gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum
from itertools import islice
from typing import Any, Final

MOST_ENTRIES: Final = 8192
"""So many of five fields stay in a processor's second-level cache. With four times as many a hit costs four times as
much, nearly what the rule costs."""
LONGEST_KEY: Final = 256
"""Characters. With digests as values a full cache holds a few megabytes at the worst."""
WATCH: Final = 512
TRIAL: Final = 16 * WATCH
"""Events, like the others. In as many a full cache's worth of shoppers goes by."""
REST: Final = 32 * TRIAL
"""A trial in vain costs 2 µs an event for five fields: less than 0.1 µs for each event until the next."""
_WORTH_IT: Final = 0.5
"""The largest share of unknown values at which remembering pays. To hash one costs about 0.5 µs, to remember it as much
again; to find it 0.1 µs."""


class _Stage(Enum):
    COUNTING = "counting"
    REMEMBERING = "remembering"
    RESTING = "resting"


class Cache(dict[Any, Any]):
    """``cache[value]`` is ``rule(value)``. `value` must be hashable; `rule` must be pure and must not raise."""

    __slots__ = ("__missing__", "_asked", "_left", "_most", "_per_event", "_rule", "_stage")

    __missing__: Callable[[Any], Any]
    """What answers for a value that is not remembered. `dict` finds it here too: the slot stands in the class. So a
    resting cache has the rule itself here."""

    def __init__(self, rule: Callable[[Any], Any], most: int = MOST_ENTRIES) -> None:
        super().__init__()
        self._rule = rule
        self._most = most
        self._asked = 0
        """How often `__missing__` was asked since the last `watch`; not counted at rest."""
        self._per_event = 0.0
        """Look-ups, as they were counted last."""
        self._enter(_Stage.COUNTING)

    def _enter(self, stage: _Stage) -> None:
        self._stage = stage
        self.__missing__, self._left = {
            _Stage.COUNTING: (self._count, 0),
            _Stage.REMEMBERING: (self._remember, TRIAL),
            _Stage.RESTING: (self._rule, REST),
        }[stage]

    def _count(self, key: Any) -> Any:
        self._asked += 1
        return self._rule(key)

    def _remember(self, key: Any) -> Any:
        self._asked += 1
        value = self._rule(key)
        if key.__class__ is str and len(key) <= LONGEST_KEY:
            if len(self) >= self._most:
                for old in list(islice(self, max(1, self._most // 4))):
                    del self[old]
            self[key] = value
        return value

    def watch(self, events: int) -> None:
        """So many events, at least one, went by since this was last called: is it worth remembering anything?"""
        asked, self._asked = self._asked, 0
        self._left -= events
        if self._left > 0:
            return
        if self._stage is _Stage.COUNTING:
            self._per_event = asked / events
            self._enter(_Stage.REMEMBERING)
        elif self._stage is _Stage.RESTING:
            self._enter(_Stage.COUNTING)
        elif asked > events * self._per_event * _WORTH_IT:
            self.clear()
            self._enter(_Stage.RESTING)


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
