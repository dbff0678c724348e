"""Recommended parameters and ages of delivered events.

Theory of operation. *Coverage*, by event name. The platform rates an integration by the parameters that its events
carry (docs/platform.md). An executor of a conversion says what it wrote: a mask with one bit for each path of `BITS`.
The engine counts events by name and mask, and splits the masks into parameters once a minute or for a snapshot. So an
event costs next to nothing, and every figure is exact.

*Freshness.* The platform wants events within one hour of happening (docs/platform.md). Ages are counted in a
histogram, so that memory does not depend on their number. A bound is at most a quarter above the one before it (below
five seconds: one second, because event times are whole seconds). A quantile is the upper bound of its bucket: never too
low, and at most a quarter too high. One of the bounds is the hour, so the share within it is exact.

*Windows.* Both are counted since the start, over the last hour and over the last day. The owner counts the running
minute. When it ends, it is added to three windows: one that never ends, an hour of minutes, and a day of quarters of an
hour, which are 157 histograms at most, half a megabyte. The sum of a window is computed then, once a minute, so a
snapshot costs the same at any rate. A window is up to one bucket short: the hour has 59 to 60 minutes, the day 23¾ to
24 hours.

Windows use the monotonic clock, because setting the wall clock must not empty them.
"""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, MutableSequence, Sequence
from functools import reduce
from itertools import accumulate, chain
from operator import add, or_
from typing import Any, Final

from consumer.engine.figures.counters import counted_as
from consumer.engine.figures.definitions import Histogram, derived, figure, snapshot
from consumer.engine.model import Instant
from consumer.engine.native import count_ages

_MINUTE = 60

# Counts by name, in columns; all rows of one owner have the same columns.
Rows = dict[str, MutableSequence[int]]


class Windows:
    """What one counter counted since the start, in the last hour and in the last day."""

    def __init__(self) -> None:
        # The counts of the running minute, which the owner enters here.
        self.running: Rows = {}
        self._minute = 0
        # By the number of buckets, and by the minutes of each: since the start there is one, which never ends.
        self._windows = [_Buckets(1, sys.maxsize), _Buckets(60, 1), _Buckets(24 * 4, 15)]

    def is_over(self, now: float) -> bool:
        """Return True if the running minute has ended at `now` (monotonic seconds)."""
        return int(now // _MINUTE) != self._minute

    def roll(self, now: float) -> None:
        """Roll the windows forward to `now` (monotonic seconds). If the minute has ended, no name is `running`."""
        if self.is_over(now):
            ended, self._minute = self._minute, int(now // _MINUTE)
            for window in self._windows:
                window.roll(ended, self.running, self._minute)
            self.running = {}

    def sums(self) -> list[Rows]:
        """Return the sums since the start, of the last hour and of the last day, each with the running minute.

        The caller may keep the rows, but must not change them.
        """
        return [_sum([window.sum, self.running]) for window in self._windows]


class _Buckets:
    """The last `maximum` buckets of `width` minutes each, with the one that is being filled."""

    def __init__(self, maximum: int, width: int) -> None:
        self._maximum = maximum
        self._width = width
        # By their numbers, which count from the begin of the clock.
        self._buckets: dict[int, Rows] = {}
        self.sum: Rows = {}

    def roll(self, ended: int, rows: Rows, begun: int) -> None:
        """Add the counts of the minute that `ended`; drop the buckets that are too old now that another has `begun`."""
        number, oldest = ended // self._width, begun // self._width - self._maximum
        self._buckets[number] = _sum([self._buckets.get(number, {}), rows])
        self._buckets = {number: bucket for number, bucket in self._buckets.items() if number > oldest}
        self.sum = _sum(self._buckets.values())


def _sum(buckets: Iterable[Rows]) -> Rows:
    """Add counts by name. Rows are replaced, never changed, because a snapshot may hold them."""
    sums: Rows = {}
    for name, row in chain.from_iterable(map(dict.items, buckets)):
        sums[name] = list(map(add, sums[name], row)) if name in sums else list(row)
    return sums


HOUR = 3600
_DAY = 24 * HOUR
# Upper bounds of the histogram's buckets, in seconds; one more bucket holds older events.
AGE_BOUNDS = (
    *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 22, 26, 30, 36, 42, 50, 60, 75, 90, 105),
    *(120, 150, 180, 210, 240, 300, 360, 420, 480, 540, 600, 720, 840, 960, 1080, 1200, 1500, 1800),
    *(_MINUTE * n for n in (35, 40, 45, 50, 55)),
    *(HOUR, 4500, 5400, 6300, 7200, 9000, 10800, 12600),
    *(HOUR * n for n in (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 30, 36, 42, 48, 60, 72, 84)),
    *(_DAY * n for n in (4, 5, 6, 7)),
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

    buckets: tuple[int, ...] = figure(
        path="", default=_NONE, merge=lambda several: tuple(map(sum, zip(_NONE, *several, strict=True)))
    )

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
        return self._quantile(0.50)

    @derived("age_p95")
    def p95(self) -> float | None:
        """95th percentile of their ages."""
        return self._quantile(0.95)

    @derived("age_p99")
    def p99(self) -> float | None:
        """99th percentile of their ages."""
        return self._quantile(0.99)

    def _quantile(self, share: float) -> float | None:
        seen = [*accumulate(self.buckets)]
        # The upper bound of the bucket that has it.
        bound = _BOUNDS[bisect_left(seen, share * seen[-1])]
        return bound if seen[-1] and bound < math.inf else None


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
