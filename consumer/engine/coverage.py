"""Parameter coverage: what share of delivered events carried what the platform recommends, by event name.

Theory of operation. The platform rates an integration by the parameters its events carry (docs/platform.md).
Each event that was delivered is counted, as freshness does, so that both speak of the same events: a duplicate,
or one that the platform refused, says nothing of what it has. Looking at one costs a microsecond or two, so that some
are chosen, for each name on its own.

The events of a name are taken in blocks as they come, of each block one is looked at, and it stands for the block. A
block is of one event at first, so that the first 256 of a minute are all looked at; then it grows to 16, and there are
always 128 times as many events before it in the minute as in it.

Which of its block is looked at is drawn at random before the block comes. So each event is looked at with a chance of
one in as many as its block has, and counts that many times: the expected sum of what is counted is what truly happened,
whatever the order of the events, and blocks err independently of each other. A block that the end of the minute cuts
short may have been looked at or not; that is right on average too, and wrong by one block at most.

A share is of what the chosen stand for, so that it is never above 1; all that the chosen stand for is the number of
events, but for cut blocks. Where no name had more than 256 events in any minute, shares are exact.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, Protocol

import orjson

from consumer.engine.figures import Figure
from consumer.engine.windows import Rows, Windows

_BLOCK = 16
"""The most events that one stands for."""
_BEFORE = 128
"""How many times as many events as are in a block came before it, unless it is of one."""
_MOST_NAMES = 64
OTHER = "other"
_NOTHING: Final[Mapping[str, Any]] = {}


class Looked(Protocol):
    """What is looked at: an event by its name, with its JSON."""

    @property
    def name(self) -> str:
        """The conversion's."""

    @property
    def body(self) -> bytes:
        """As it is sent."""


class Parameter(NamedTuple):
    """A recommended parameter, and what the platform advises about it."""

    id: Annotated[str, Figure("id", "A parameter that the platform recommends.")]
    advice: Annotated[str, Figure("advice", "What the platform asks of it, in one sentence.")]


PARAMETERS: Final = (
    Parameter(
        "em",
        "The customer's e-mail address, hashed: one of the identities the platform accepts on its own, so send it "
        "wherever the customer is known.",
    ),
    Parameter("ph", "The customer's phone number, hashed, beside another identity: alone it is not enough."),
    Parameter(
        "external_id",
        "Your own id of the customer, hashed, spelled as the browser tag spells it, beside another identity: alone it "
        "is not enough.",
    ),
    Parameter(
        "click_id",
        "The id of the ad click as it came, or else from epik in the page's address, never hashed and its case kept, "
        "beside another identity: alone it is not enough.",
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


def by_id(row: Sequence[Any]) -> Mapping[str, Any]:
    """What stands in the order of `PARAMETERS`, by their ids."""
    return {parameter.id: value for parameter, value in zip(PARAMETERS, row, strict=True)}


class Covered(NamedTuple):
    """Of an event name in a window: all events, those looked at, and how many of these carried each of `PARAMETERS`.

    `shares`: what share of all events carried each, 0 to 1. It is not `carried / sampled`, as not all that were looked
    at stand for equally many.
    """

    events: Annotated[
        int, Figure("events", "Events delivered in the last hour: the same that `freshness` speaks of.")
    ]
    sampled: Annotated[int, Figure("sampled", "So many of them were looked at; at least one.")]
    carried: Annotated[
        tuple[int, ...], Figure("carried.{id}", "So many of `sampled` carried the parameter.", show=by_id)
    ]
    shares: Annotated[
        tuple[float, ...],
        Figure(
            "share.{id}",
            "The share of all `events` that carried it, 0 to 1, estimated from those looked at (see below). "
            "This, and not `carried / sampled`, is the figure to show.",
            show=by_id,
        ),
    ]


class CoverageSnapshot(NamedTuple):
    """Coverage by event name, over the last hour and the last day."""

    hour: Annotated[Mapping[str, Covered], Figure("hour.{event name}")]
    day: Annotated[Mapping[str, Covered], Figure("day.{event name}", "The same of the last day:")]

    @property
    def parameters(self) -> Annotated[Sequence[Parameter], Figure("parameters[]")]:
        """What is looked for."""
        return PARAMETERS

    @property
    def ratios(
        self,
    ) -> Annotated[
        Mapping[tuple[str, str], float],
        Figure(
            told="Share of the events delivered in the last hour that carried a recommended parameter, from a sample.",
            metric="pinstream_parameter_coverage_ratio",
            labels=("event_name", "parameter"),
        ),
    ]:
        """Of the last hour, by event name and parameter."""
        return {
            (name, parameter): share
            for name, covered in self.hour.items()
            for parameter, share in by_id(covered.shares).items()
        }


_EVENTS, _SAMPLED, _WEIGHT, _CARRIED = 0, 1, 2, 3
_WEIGHTED = _CARRIED + len(PARAMETERS)
_COLUMNS = _WEIGHTED + len(PARAMETERS)
"""Of a row: events, those looked at, what they stand for; how many carried each parameter, what those stand for."""
NO_COVERAGE: Final = CoverageSnapshot({}, {})


class Coverage:
    """Counts events and looks at some of them. `random`: uniform, from 0 up to but not including 1."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._turns: dict[str, _Turns] = {}
        """Of the running minute, by name."""
        self._seen: dict[tuple[str, tuple[bool, ...], int], int] = {}
        """By name, what was carried and what one stands for, how many were looked at that are not in `_rows` yet."""
        self._rows: Rows = {}
        self._names: set[str] = set()
        self._windows = Windows()

    def add(self, events: Sequence[Looked], now: float) -> None:
        """These were delivered at `now` (monotonic seconds)."""
        self._go_on(now)
        places: dict[str, list[int]] = defaultdict(list)
        for place, event in enumerate(events):
            places[event.name].append(place)
        seen = self._seen
        for name, mine in places.items():
            known = self._known(name)
            for place, stands_for in self._turns_of(known).take(mine):
                what = (known, _carried(orjson.loads(events[place].body)), stands_for)
                seen[what] = seen.get(what, 0) + 1

    def snapshot(self, now: float) -> CoverageSnapshot:
        """The windows that end at `now` (monotonic seconds)."""
        self._go_on(now)
        sums = self._windows.sums(self._running())
        return CoverageSnapshot(_covered(sums.hour), _covered(sums.day))

    def _go_on(self, now: float) -> None:
        if self._windows.moved(now, self._running):
            self._turns.clear()
            self._rows.clear()

    def _known(self, name: str) -> str:
        """Once there are most names, further ones are ``other``."""
        if name in self._names:
            return name
        if len(self._names) >= _MOST_NAMES:
            return OTHER
        self._names.add(name)
        return name

    def _turns_of(self, name: str) -> _Turns:
        turns = self._turns.get(name)
        if turns is None:
            turns = self._turns[name] = _Turns(self._random)
        return turns

    def _running(self) -> Rows:
        """The rows of the running minute."""
        rows = self._rows
        for (name, carried, stands_for), count in self._seen.items():
            row = rows.setdefault(name, [0] * _COLUMNS)
            weight = count * stands_for
            row[_SAMPLED] += count
            row[_WEIGHT] += weight
            for column, one in enumerate(carried):
                row[_CARRIED + column] += count * one
                row[_WEIGHTED + column] += weight * one
        self._seen.clear()
        for name, turns in self._turns.items():
            rows[name][_EVENTS] = turns.met
        return rows


class _Turns:
    """Chooses among the events of one name in one minute: of each block one."""

    __slots__ = ("_chosen", "_end", "_random", "_size", "met")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.met = 0
        """How many events there were."""
        self._end = 0
        """How many there will have been when the block ends."""
        self._begin_block()

    def take(self, places: list[int]) -> Iterator[tuple[int, int]]:
        """The next events of this name stand at `places`: those that are chosen, and what each stands for."""
        before = self.met
        self.met += len(places)
        while self._chosen < self.met:
            yield places[self._chosen - before], self._size
            self._begin_block()

    def _begin_block(self) -> None:
        self._size = _size_after(self._end)
        self._chosen = self._end + (int(self._random() * self._size) if self._size > 1 else 0)
        self._end += self._size


def _size_after(count: int) -> int:
    """How many events the block has that begins after so many: a power of two, so that blocks end where sizes grow."""
    return min(_BLOCK, 1 << max(0, (count // _BEFORE).bit_length() - 1))


def _covered(rows: Rows) -> dict[str, Covered]:
    return {
        name: Covered(
            row[_EVENTS],
            row[_SAMPLED],
            tuple(row[_CARRIED:_WEIGHTED]),
            tuple(one / row[_WEIGHT] for one in row[_WEIGHTED:]),
        )
        for name, row in sorted(rows.items())
    }


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
