"""Parameter coverage: what share of delivered events carried what the platform recommends, by event name.

Theory of operation. The platform rates an integration by the parameters its events carry (docs/platform.md). Whatever
writes an event says which of them it wrote: one bit for each path of `BITS`, which both executors of a conversion take
from here. The engine counts equal masks of an event name, and takes them apart once a minute or when a snapshot is
taken; so an event costs next to nothing, and every figure is exact.

Each event that was delivered is counted, as freshness does, so that both speak of the same events: a duplicate, or one
that the platform refused, says nothing of what it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import attrgetter, or_
from typing import Annotated, Any, Final, NamedTuple, Protocol

from consumer.engine.figures import Figure
from consumer.engine.windows import Rows, Windows

_MOST_NAMES = 64
_MOST_MASKS = 4096
"""Of all names together, before they are taken apart."""
OTHER = "other"
_NOTHING: Final[Mapping[str, Any]] = {}


class WrittenEvent(Protocol):
    """An event as it was written."""

    @property
    def name(self) -> str:
        """The conversion's."""

    @property
    def written(self) -> int:
        """The bits of `BITS` whose paths were written."""


class Parameter(NamedTuple):
    """A recommended parameter: where it stands, in all of `paths`, and what the platform advises about it."""

    id: Annotated[str, Figure("id", "A parameter that the platform recommends.")]
    paths: tuple[str, ...]
    advice: Annotated[str, Figure("advice", "What the platform asks of it, in one sentence.")]


PARAMETERS: Final = (
    Parameter(
        "em",
        ("user_data.em",),
        "The customer's e-mail address, hashed: one of the identities the platform accepts on its own, so send it "
        "wherever the customer is known.",
    ),
    Parameter(
        "ph",
        ("user_data.ph",),
        "The customer's phone number, hashed, beside another identity: alone it is not enough.",
    ),
    Parameter(
        "external_id",
        ("user_data.external_id",),
        "Your own id of the customer, hashed, spelled as the browser tag spells it, beside another identity: alone it "
        "is not enough.",
    ),
    Parameter(
        "click_id",
        ("user_data.click_id",),
        "The id of the ad click as it came, or else from epik in the page's address, never hashed and its case kept, "
        "beside another identity: alone it is not enough.",
    ),
    Parameter(
        "ip_and_agent",
        ("user_data.client_ip_address", "user_data.client_user_agent"),
        "The customer's IP address and user agent, not hashed: an identity only where both are sent.",
    ),
    Parameter(
        "value",
        ("custom_data.value",),
        "What the event is worth, as an exact decimal number: it is never derived where it is missing.",
    ),
    Parameter(
        "currency",
        ("custom_data.currency",),
        "The currency of the value, a code of ISO 4217: an event with a value and no currency is refused.",
    ),
    Parameter(
        "content_ids",
        ("custom_data.content_ids",),
        "The ids of the products, as text with leading zeros kept: an item without an id is left out.",
    ),
    Parameter(
        "order_id",
        ("custom_data.order_id",),
        "The order's own number, as text: an empty one or 0 counts as none.",
    ),
    Parameter(
        "event_source_url",
        ("event_source_url",),
        "The absolute http or https address of the page, with its query: for web events only, so app and offline "
        "events lower this share rightly.",
    ),
    Parameter(
        "opt_out",
        ("opt_out",),
        "Whether the customer opted out, true or false; limited data processing (LDP) needs state and country as well.",
    ),
)


BITS: Final[Mapping[str, int]] = {
    path: 1 << number for number, path in enumerate(path for one in PARAMETERS for path in one.paths)
}
"""The bit of each path that some parameter stands in. Whatever writes an event says with these what it wrote."""
ITEM_ID: Final = "custom_data.contents[].id"
BITS_OF_FIELDS: Final[Mapping[str, int]] = {**BITS, ITEM_ID: BITS["custom_data.content_ids"]}
"""The same by the fields of a conversion event: the ids of items are content ids as well."""
_NEEDS: Final = tuple(reduce(or_, (BITS[path] for path in one.paths)) for one in PARAMETERS)
"""Of each of `PARAMETERS` the bits that have to be there."""
_PLACES: Final = tuple((*path.rpartition(".")[::2], bit) for path, bit in BITS.items())


def written_in(payload: Mapping[str, Any]) -> int:
    """The mask of an event that was written as a payload: what is empty is never in one."""
    mask = 0
    for parent, key, bit in _PLACES:
        if key in (payload.get(parent, _NOTHING) if parent else payload):
            mask |= bit
    items = payload.get("custom_data", _NOTHING).get("contents", ())
    return mask | BITS_OF_FIELDS[ITEM_ID] if any("id" in item for item in items) else mask


def by_id(row: Sequence[Any]) -> Mapping[str, Any]:
    """What stands in the order of `PARAMETERS`, by their ids."""
    return {parameter.id: value for parameter, value in zip(PARAMETERS, row, strict=True)}


class Covered(NamedTuple):
    """Of an event name in a window: all events, and how many of them carried each of `PARAMETERS`."""

    events: Annotated[
        int, Figure("events", "Events delivered in the last hour: the same that `freshness` speaks of.")
    ]
    carried: Annotated[
        tuple[int, ...], Figure("carried.{id}", "How many of them carried the parameter.", show=by_id)
    ]

    @property
    def sampled(self) -> Annotated[int, Figure("sampled", "As `events`: each is counted, none is left out.")]:
        """Until version 0.2 some were left out; a field of /status is never taken away."""
        return self.events

    @property
    def shares(
        self,
    ) -> Annotated[
        tuple[float, ...],
        Figure("share.{id}", "The share of them that carried it, 0 to 1: `carried / events`.", show=by_id),
    ]:
        """What share of the events carried each."""
        return tuple(count / self.events for count in self.carried)


class CoverageSnapshot(NamedTuple):
    """Coverage by event name, over the last hour and the last day."""

    hour: Annotated[Mapping[str, Covered], Figure("hour.{event name}")]
    day: Annotated[Mapping[str, Covered], Figure("day.{event name}", "The same of the last day:")]

    @property
    def parameters(self) -> Annotated[Sequence[Parameter], Figure("parameters[]")]:
        """What is counted."""
        return PARAMETERS

    @property
    def ratios(
        self,
    ) -> Annotated[
        Mapping[tuple[str, str], float],
        Figure(
            sentence="Share of the events delivered in the last hour that carried a recommended parameter.",
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


NO_COVERAGE: Final = CoverageSnapshot({}, {})
_NAME: attrgetter[str] = attrgetter("name")
_WRITTEN: attrgetter[int] = attrgetter("written")


class Coverage:
    """Counts events by name and by what was written of them."""

    def __init__(self) -> None:
        self._masks: Counter[tuple[str, int]] = Counter()
        """Of the running minute, by name and mask: events that are not in `_rows` yet."""
        self._rows: Rows = {}
        """Of the running minute, by name: events, and how many of them carried each of `PARAMETERS`."""
        self._names: set[str] = set()
        self._windows = Windows()

    def add(self, events: Sequence[WrittenEvent], now: float) -> None:
        """These were delivered at `now` (monotonic seconds)."""
        self._roll(now)
        # What is done for each of them is done by C's loops.
        self._masks.update(zip(map(_NAME, events), map(_WRITTEN, events), strict=True))
        if len(self._masks) > _MOST_MASKS:
            self._running()

    def snapshot(self, now: float) -> CoverageSnapshot:
        """The windows that end at `now` (monotonic seconds)."""
        self._roll(now)
        sums = self._windows.sums(self._running())
        return CoverageSnapshot(_covered(sums.hour), _covered(sums.day))

    def _roll(self, now: float) -> None:
        if self._windows.roll(now, self._running):
            self._rows.clear()

    def _running(self) -> Rows:
        """The rows of the running minute."""
        for (name, mask), count in self._masks.items():
            row = self._rows.setdefault(self._known(name), [0] * (1 + len(PARAMETERS)))
            row[0] += count
            for column, needs in enumerate(_NEEDS, start=1):
                if mask & needs == needs:
                    row[column] += count
        self._masks.clear()
        return self._rows

    def _known(self, name: str) -> str:
        """Once there are most names, further ones are ``other``."""
        if name in self._names:
            return name
        if len(self._names) >= _MOST_NAMES:
            return OTHER
        self._names.add(name)
        return name


def _covered(rows: Rows) -> dict[str, Covered]:
    return {name: Covered(row[0], tuple(row[1:])) for name, row in sorted(rows.items())}
