"""A bounded memory of what a pure rule answered: shoppers, products and places come again and again.

Theory of operation. A `dict` whose ``__missing__`` works the value out, so that a hit costs one C look-up. Only
short text is remembered (a number that equals another one's key never finds it), the number of entries is
bounded, and when it is full the oldest quarter goes at once: hostile input costs what a miss costs, no more.

What hardly ever comes again (the e-mail address of a shopper who buys once) is not worth remembering: it would push
everything else out of the processor's cache. So a cache goes round three stages, and changes them when it is told that
events went by (every `WATCH` of them):

- *Remembering*, from the start. Of look-ups that find something it never hears.
- *Counting*, after the first `TRIAL` events (it has had the time to be useful then) and after each `KEEP`: for `WATCH`
  events what it knows lies aside, so that every look-up comes by, and it counts those that find something there. If
  they are enough it takes all back and goes on remembering; if not it forgets all.
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
KEEP: Final = 8 * TRIAL
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

    __slots__ = ("__missing__", "_aside", "_asked", "_left", "_most", "_rule", "_stage", "_unknown")

    __missing__: Callable[[Any], Any]
    """What answers for a value that is not remembered. `dict` finds it here too: the slot stands in the class. So a
    resting cache has the rule itself here."""

    def __init__(self, rule: Callable[[Any], Any], most: int = MOST_ENTRIES) -> None:
        super().__init__()
        self._rule = rule
        self._most = most
        self._aside: dict[Any, Any] = {}
        """What is known, while look-ups are counted."""
        self._asked = self._unknown = 0
        """Look-ups that were counted, and how many of them found nothing."""
        self._enter(_Stage.REMEMBERING, TRIAL)

    def _enter(self, stage: _Stage, events: int) -> None:
        """For so many events; the stage may end at the first `watch` after them."""
        self._stage, self._left = stage, events
        self.__missing__ = {
            _Stage.REMEMBERING: self._remember,
            _Stage.COUNTING: self._count,
            _Stage.RESTING: self._rule,
        }[stage]

    def _remember(self, key: Any) -> Any:
        return self._learn(key, self)

    def _count(self, key: Any) -> Any:
        self._asked += 1
        if key in self._aside:
            return self._aside[key]
        self._unknown += 1
        return self._learn(key, self._aside)

    def _learn(self, key: Any, memory: dict[Any, Any]) -> Any:
        value = self._rule(key)
        if key.__class__ is str and len(key) <= LONGEST_KEY:
            if len(memory) >= self._most:
                for old in list(islice(memory, max(1, self._most // 4))):
                    del memory[old]
            memory[key] = value
        return value

    def watch(self, events: int) -> None:
        """So many events went by since this was last called: is it worth remembering anything?"""
        self._left -= events
        if self._left > 0:
            return
        if self._stage is _Stage.REMEMBERING:
            self._aside = self.copy()
            self.clear()
            self._enter(_Stage.COUNTING, WATCH)
        elif self._stage is _Stage.RESTING:
            self._enter(_Stage.REMEMBERING, TRIAL)
        else:
            self._judge()

    def _judge(self) -> None:
        """At the end of counting."""
        if self._unknown <= self._asked * _WORTH_IT:
            self.update(self._aside)
            self._enter(_Stage.REMEMBERING, KEEP)
        else:
            self._enter(_Stage.RESTING, REST)
        self._aside = {}
        self._asked = self._unknown = 0


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
