"""Parameter coverage: what share of events carried what the platform recommends, by event name.

Theory of operation. The platform rates an integration by the parameters its events carry (pinterest.md, "What it is
for"). Every event is counted, and a sample of them is looked at: all of a slice of up to four, else four that lie
evenly in it and begin one further on in each slice; and of each minute the first sixteen events of a name, so that a
rare one has a share worth showing. What is counted goes into the running minute, and when that ends into two windows:
an hour of minutes, and a day of quarters of an hour. A window keeps its sum, so that a snapshot costs the same at any
rate.

Windows go by the monotonic clock: a clock that is set must not empty them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import add, sub
from typing import Any, Final, NamedTuple

from consumer.core.model import ConversionEvent

_SAMPLE = 4
"""Events looked at of a slice: at a microsecond each, a twentieth of one for each event of a slice of 64."""
_FIRST = 16
"""Events of a name looked at in any case, each minute."""
_MINUTE = 60
_MOST_NAMES = 64
OTHER = "other"
_NOTHING: Final[Mapping[str, Any]] = {}


class Parameter(NamedTuple):
    """A recommended parameter, and what the platform advises about it."""

    id: str
    advice: str


PARAMETERS: Final = (
    Parameter(
        "em",
        "The customer's e-mail address, hashed: one of the identities the platform accepts on its own, so send it "
        "wherever the customer is known.",
    ),
    Parameter(
        "ph",
        "The customer's phone number, hashed, beside another identity: alone it is not enough.",
    ),
    Parameter(
        "external_id",
        "Your own id of the customer, hashed, spelled as the browser tag spells it, beside another identity: alone it "
        "is not enough.",
    ),
    Parameter(
        "click_id",
        "The id of the ad click as it came, never hashed and its case kept, beside another identity: alone it is not "
        "enough.",
    ),
    Parameter(
        "ip_and_agent",
        "The customer's IP address and user agent, not hashed: an identity only where both are sent.",
    ),
    Parameter(
        "value",
        "What the event is worth, as an exact decimal number: it is never derived where it is missing.",
    ),
    Parameter(
        "currency",
        "The currency of the value, a code of ISO 4217: an event with a value and no currency is refused.",
    ),
    Parameter(
        "content_ids",
        "The ids of the products, as text with leading zeros kept: an item without an id is left out.",
    ),
    Parameter("order_id", "The order's own number, as text: an empty one or 0 counts as none."),
    Parameter(
        "event_source_url",
        "The absolute http or https address of the page, with its query: for web events only, so app and offline "
        "events lower this share rightly.",
    ),
    Parameter(
        "opt_out",
        "Whether the customer opted out, true or false; limited data processing (LDP) needs state and country as well.",
    ),
)


class Covered(NamedTuple):
    """Of an event name in a window: all events, those looked at, and how many of these carried each of `PARAMETERS`."""

    events: int
    sampled: int
    carried: tuple[int, ...]


class CoverageSnapshot(NamedTuple):
    """Coverage by event name, over the last hour and the last day."""

    hour: Mapping[str, Covered]
    day: Mapping[str, Covered]


_COLUMNS = 2 + len(PARAMETERS)
NO_COVERAGE: Final = CoverageSnapshot({}, {})
_Rows = dict[str, list[int]]
"""By event name: events, those looked at, and how many of these carried each parameter."""


class Coverage:
    """Counts events and looks at some of them."""

    def __init__(self) -> None:
        self._minute = 0
        self._events: Counter[str] = Counter()
        """Events of the running minute, by name."""
        self._met = 0
        """How many names there are in them."""
        self._wanted: dict[str, int] = {}
        """By name, how many more of the running minute's first events are to be looked at."""
        self._seen: dict[tuple[str, tuple[bool, ...]], int] = {}
        """By name and what was carried, how many events were looked at that are not in `_rows` yet."""
        self._rows: _Rows = {}
        self._names: set[str] = set()
        self._turn = 0
        self._hour = _Window(60, 1)
        self._day = _Window(24 * 4, 15)

    def add(self, events: list[ConversionEvent], now: float) -> None:
        """A slice of events was claimed at `now` (monotonic seconds)."""
        # What is done for every event is done by C's loops; the rest is for those looked at.
        self._go_on(now)
        names = [event.name for event in events]
        self._events.update(names)
        if len(self._events) > self._met:
            self._meet(names)
        places: Iterable[int] = _spread(len(events), self._turn)
        if self._wanted and not self._wanted.keys().isdisjoint(names):
            places = {*places, *self._first(names)}
        self._turn += 1
        seen = self._seen
        for place in places:
            name = names[place]
            what = (name if name in self._names else OTHER, _carried(events[place].payload))
            seen[what] = seen.get(what, 0) + 1

    def snapshot(self, now: float) -> CoverageSnapshot:
        """The windows that end at `now` (monotonic seconds)."""
        self._go_on(now)
        rows = self._running()
        return CoverageSnapshot(self._hour.covered(rows), self._day.covered(rows))

    def _go_on(self, now: float) -> None:
        minute = int(now // _MINUTE)
        if minute == self._minute:
            return
        rows = self._running()
        for window in (self._hour, self._day):
            window.add(self._minute, rows)
            window.move(minute)
        self._minute, self._met = minute, 0
        self._events.clear()
        self._wanted.clear()
        self._rows.clear()

    def _meet(self, names: list[str]) -> None:
        """Some names are new in this minute. Once there are most names, further ones are ``other``."""
        for name, count in Counter(names).items():
            if len(self._names) < _MOST_NAMES:
                self._names.add(name)
            if name in self._names:
                if self._events[name] == count:
                    self._wanted[name] = _FIRST
            else:
                count = self._events.pop(name)
                self._events[OTHER] += count
                self._wanted[name] = 1
        self._met = len(self._events)

    def _first(self, names: list[str]) -> Iterator[int]:
        """Where names stand that are wanted."""
        for place, name in enumerate(names):
            wanted = self._wanted.get(name)
            if wanted is None:
                continue
            yield place
            if wanted > 1:
                self._wanted[name] = wanted - 1
            else:
                del self._wanted[name]

    def _running(self) -> _Rows:
        """The rows of the running minute."""
        rows = self._rows
        for (name, carried), count in self._seen.items():
            row = rows.setdefault(name, [0] * _COLUMNS)
            row[1] += count
            row[2:] = [so_far + count * one for so_far, one in zip(row[2:], carried, strict=True)]
        self._seen.clear()
        for name, count in self._events.items():
            rows[name][0] = count
        return rows


class _Window:
    """The last so many buckets, each so many minutes wide, the one that is being filled among them."""

    def __init__(self, most: int, width: int) -> None:
        self._most = most
        self._width = width
        self._buckets: deque[tuple[int, _Rows]] = deque()
        self._sum: _Rows = {}

    def add(self, minute: int, rows: _Rows) -> None:
        """This was counted in a minute that is over."""
        number = minute // self._width
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append((number, {}))
        _enter(rows, self._buckets[-1][1])
        _enter(rows, self._sum)

    def move(self, minute: int) -> None:
        """This minute has begun: what is too old for it goes."""
        while self._buckets and self._buckets[0][0] <= minute // self._width - self._most:
            for name, row in self._buckets.popleft()[1].items():
                left = [*map(sub, self._sum[name], row)]
                if left[0]:
                    self._sum[name] = left
                else:
                    del self._sum[name]

    def covered(self, running: _Rows) -> dict[str, Covered]:
        """The sum, with the running minute."""
        rows = dict(self._sum)
        _enter(running, rows)
        return {name: Covered(row[0], row[1], tuple(row[2:])) for name, row in sorted(rows.items())}


def _enter(rows: _Rows, sums: _Rows) -> None:
    for name, row in rows.items():
        so_far = sums.get(name)
        sums[name] = list(row) if so_far is None else [*map(add, so_far, row)]


def _spread(count: int, turn: int) -> Sequence[int]:
    """Which of so many are looked at: all of a few, else some that lie evenly; over `count` turns, each as often."""
    if count <= _SAMPLE:
        return range(count)
    return [(turn + part * count // _SAMPLE) % count for part in range(_SAMPLE)]


def _carried(payload: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether a payload carries each of `PARAMETERS`: what is empty is never in it."""
    user = payload.get("user_data", _NOTHING)
    custom = payload.get("custom_data", _NOTHING)
    return (
        "em" in user,
        "ph" in user,
        "external_id" in user,
        "click_id" in user,
        "client_ip_address" in user and "client_user_agent" in user,
        "value" in custom,
        "currency" in custom,
        "content_ids" in custom or any("id" in one for one in custom.get("contents", ())),
        "order_id" in custom,
        "event_source_url" in payload,
        "opt_out" in payload,
    )
