"""Recommended parameters and ages of delivered events.

Theory of operation. *Coverage*, by event name. The platform rates an integration by the parameters that its events
carry (docs/platform.md). An executor of a conversion says what it wrote: a mask with one bit for each path of `BITS`.
The engine counts events by name and mask, and splits the masks into parameters once a minute or for a snapshot. So an
event costs next to nothing, and every figure is exact.

*Freshness.* The platform wants events within one hour of happening (docs/platform.md). Ages are counted in a
histogram, so that memory does not depend on their number. A bound is at most a quarter above the one before it (below
five seconds: one second, because event times are whole seconds). A quantile is the upper bound of its bucket: never too
low, and at most a quarter too high. One of the bounds is the hour, so the share within it is exact.

*Windows.* Both are counted since the start, over the last hour and over the last day (`windows`): 157 histograms at
most, half a megabyte.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from itertools import accumulate
from operator import or_
from typing import Any, Final

from consumer.engine.figures.counters import counted_as
from consumer.engine.figures.definitions import Histogram, derived, figure, snapshot
from consumer.engine.figures.windows import Windows, added, quantile
from consumer.engine.model import Instant
from consumer.engine.native import count_ages

HOUR = 3600
# Upper bounds of the histogram's buckets, in seconds; one more bucket holds older events.
AGE_BOUNDS = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 22, 26, 30, 36, 42, 50, 60, 75, 90, 105),
    *(120, 150, 180, 210, 240, 300, 360, 420, 480, 540, 600, 720, 840, 960, 1080, 1200, 1500, 1800),
    *(60 * n for n in (35, 40, 45, 50, 55)),
    *(HOUR, 4500, 5400, 6300, 7200, 9000, 10800, 12600),
    *(HOUR * n for n in (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 30, 36, 42, 48, 60, 72, 84)),
    *(24 * HOUR * n for n in (4, 5, 6, 7)),
)
_BOUNDS = (*map(float, AGE_BOUNDS), math.inf)
_COLUMN = array("d", _BOUNDS)
# The histogram of no event.
_NONE = (0,) * len(_BOUNDS)
# Some of `AGE_BOUNDS`, because Prometheus keeps a series for each.
METRIC_AGES = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400, 172800, 604800)
# The number of buckets for events that are at most an hour old.
_UP_TO_HOUR = AGE_BOUNDS.index(HOUR) + 1
# The name of the only row in the windows.
_ALL = "all"


@snapshot
class Ages:
    """Ages of events delivered: a histogram by `AGE_BOUNDS`, and what it says, in seconds."""

    buckets: tuple[int, ...] = figure(path="", default=_NONE, merge=partial(added, _NONE))

    @derived("delivered")
    def delivered(self) -> int:
        """Events delivered since the start."""
        return sum(self.buckets)

    # Not rounded again: as seconds are, to three digits, it would be 1 with one in two thousand too late.
    @derived("within_one_hour", status_note="null before the first.", show=lambda share: share)
    def within_hour(self) -> float | None:
        """Share of them that were at most an hour old then, 0 to 1."""
        if not self.delivered:
            return None
        # Rounded down, so that 1 means all.
        return sum(self.buckets[:_UP_TO_HOUR]) * 1_000_000 // self.delivered / 1_000_000

    @derived("age_p50", status_note="See below. null: none, or more than 7 days.")
    def p50(self) -> float | None:
        """Median of their ages in seconds; at most a quarter too high."""
        return quantile(_BOUNDS, self.buckets, 0.50)

    @derived("age_p95")
    def p95(self) -> float | None:
        """95th percentile of their ages."""
        return quantile(_BOUNDS, self.buckets, 0.95)

    @derived("age_p99")
    def p99(self) -> float | None:
        """99th percentile of their ages."""
        return quantile(_BOUNDS, self.buckets, 0.99)


@snapshot
class FreshnessSnapshot:
    """Event age at delivery since the start, and over the last hour and day."""

    # Seconds, since the start.
    age_sum: float = figure(path="")
    # Since the start.
    total: Ages = figure(path=".")
    hour: Ages = figure("The same five of what was delivered in the last hour.", default=Ages())
    day: Ages = figure("The same five of what was delivered in the last day.", default=Ages())

    @derived(metric="pinstream_delivered_within_hour_ratio", labels=("window",))
    def within_hour(self) -> Mapping[str, float | None]:
        """Share of the events delivered in the last hour or day that were at most an hour old then."""
        return {"hour": self.hour.within_hour, "day": self.day.within_hour}

    @derived(metric="pinstream_event_age_seconds")
    def age(self) -> Histogram:
        """Age of events when they were delivered."""
        up_to = dict(zip(_BOUNDS, accumulate(self.total.buckets), strict=True))
        bounds = (*METRIC_AGES, math.inf)
        return Histogram(bounds, [up_to[bound] for bound in bounds], self.age_sum)


class Freshness:
    """Counts the ages of events at delivery."""

    def __init__(self) -> None:
        # The histogram of the running minute, once there is one.
        self._running = array("q")
        self._age_sum = 0.0
        self._windows = Windows()

    def add(self, event_times: Iterable[int], now: Instant) -> None:
        """Count events that happened at these times (unix seconds) and were delivered at `now`."""
        self._windows.roll(now.monotonic)
        if not self._windows.running:
            self._windows.running[_ALL] = self._running = array("q", _NONE)
        unix, whole = now.unix, int(now.unix)
        past, total = count_ages(array("q", event_times), unix, _COLUMN, self._running)
        # An event that lies ahead has no age. Whole seconds are summed as integers, so that rounding loses nothing.
        self._age_sum += past * whole - total + past * (unix - whole)

    def snapshot(self, now: float) -> FreshnessSnapshot:
        """Return the figures of `now` (monotonic seconds)."""
        self._windows.roll(now)
        windows = (Ages(tuple(rows.get(_ALL, _NONE))) for rows in self._windows.sums())
        return FreshnessSnapshot(self._age_sum, *windows)


# Masks of all names together, before they are split. Usually there are a few dozen: records of one producer are alike.
_MAX_MASKS = 4096
_NOTHING: Final[Mapping[str, Any]] = {}


@snapshot
class Parameter:
    """A recommended parameter: the paths that it needs, all of them, and what the platform advises about it."""

    id: str = figure("A parameter that the platform recommends.")
    paths: tuple[str, ...]
    advice: str = figure("What the platform asks of it, in one sentence.")


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
        "The ids of the products, as text with leading zeros kept: an item without an id is omitted.",
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


# The bit of each path that belongs to a parameter. An executor says with these what it wrote.
BITS: Final[Mapping[str, int]] = {
    path: 1 << number for number, path in enumerate(path for one in PARAMETERS for path in one.paths)
}
ITEM_ID: Final = "custom_data.contents[].id"
# The same by field of a conversion event: the ids of items count as content ids.
BITS_OF_FIELDS: Final[Mapping[str, int]] = {**BITS, ITEM_ID: BITS["custom_data.content_ids"]}
# For each of `PARAMETERS`, the bits that must be set.
_NEEDS: Final = tuple(reduce(or_, (BITS[path] for path in one.paths)) for one in PARAMETERS)
_PLACES: Final = tuple((*path.rpartition(".")[::2], bit) for path, bit in BITS.items())


def written_in(payload: Mapping[str, Any]) -> int:
    """Return the mask of a written payload."""
    # A name is enough: the converter never writes an empty value.
    mask = 0
    for parent, key, bit in _PLACES:
        if key in (payload.get(parent, _NOTHING) if parent else payload):
            mask |= bit
    items = payload.get("custom_data", _NOTHING).get("contents", ())
    return mask | BITS_OF_FIELDS[ITEM_ID] if any("id" in item for item in items) else mask


def by_id(row: Sequence[Any]) -> Mapping[str, Any]:
    """Return values that are in the order of `PARAMETERS` by the parameters' ids."""
    return {parameter.id: value for parameter, value in zip(PARAMETERS, row, strict=True)}


@snapshot
class Covered:
    """One event name in a window: all events, and how many of them carried each of `PARAMETERS`."""

    events: int = figure("Events delivered in the last hour: the same that `freshness` speaks of.")
    carried: tuple[int, ...] = figure("How many of them carried the parameter.", keys=("id",), show=by_id)

    @derived("sampled")
    def sampled(self) -> int:
        """As `events`: each is counted, none is omitted."""
        # Until version 0.2 only some were counted. A field of /status is never removed.
        return self.events

    @derived("share", keys=("id",), show=by_id)
    def shares(self) -> tuple[float, ...]:
        """The share of them that carried it, 0 to 1: `carried / events`."""
        return tuple(count / self.events for count in self.carried)


@snapshot
class CoverageSnapshot:
    """Coverage by event name, over the last hour and the last day."""

    hour: Mapping[str, Covered] = figure(keys=("event name",))
    day: Mapping[str, Covered] = figure("The same of the last day.", keys=("event name",))

    @derived("parameters[]")
    def parameters(self) -> Sequence[Parameter]:
        """What is counted."""
        return PARAMETERS

    @derived(metric="pinstream_parameter_coverage_ratio", labels=("event_name", "parameter"))
    def ratios(self) -> Mapping[tuple[str, str], float]:
        """Share of the events delivered in the last hour that carried a recommended parameter."""
        return {
            (name, parameter): share
            for name, covered in self.hour.items()
            for parameter, share in by_id(covered.shares).items()
        }


class Coverage:
    """Counts events by name and by what was written of them."""

    def __init__(self) -> None:
        # By name and mask: events of the running minute that are not in the windows yet.
        self._masks: Counter[tuple[str, int]] = Counter()
        self._names: set[str] = set()
        # By name: events, and how many of them carried each of `PARAMETERS`.
        self._windows = Windows()

    def add(self, kinds: Iterable[tuple[tuple[str, str, int], int]], now: float) -> None:
        """Count events of each kind (`reading.Kind`) that were delivered at `now` (monotonic seconds)."""
        if self._windows.is_over(now) or len(self._masks) > _MAX_MASKS:
            self._split_masks(now)
        for (_account, name, written), count in kinds:
            self._masks[name, written] += count

    def snapshot(self, now: float) -> CoverageSnapshot:
        """Return the windows that end at `now` (monotonic seconds)."""
        self._split_masks(now)
        _, hour, day = (
            {name: Covered(row[0], tuple(row[1:])) for name, row in sorted(rows.items())}
            for rows in self._windows.sums()
        )
        return CoverageSnapshot(hour, day)

    def _split_masks(self, now: float) -> None:
        """Enter the masks into the minute in which they were counted, then roll the windows to `now`."""
        for (name, mask), count in self._masks.items():
            known = counted_as(name, self._names)
            self._names.add(known)
            row = self._windows.running.setdefault(known, [0] * (1 + len(PARAMETERS)))
            row[0] += count
            # A parameter may need several paths, so it is carried only if all of its bits are set.
            for column, needs in enumerate(_NEEDS, start=1):
                if mask & needs == needs:
                    row[column] += count
        self._masks.clear()
        self._windows.roll(now)
