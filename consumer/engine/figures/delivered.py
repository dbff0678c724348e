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
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from operator import itemgetter, or_
from typing import Any, Final

from consumer.engine.figures.counters import counted_as
from consumer.engine.figures.definitions import (
    Histogram,
    buckets,
    derived,
    figure,
    first,
    quantile,
    snapshot,
)
from consumer.engine.figures.windows import FIVE_MINUTES, Windows
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

    buckets: tuple[int, ...] = buckets(_BOUNDS)

    @derived("delivered")
    def delivered(self) -> int:
        """Events delivered since the start."""
        return sum(self.buckets)

    # Not rounded again: as seconds are, to three digits, it would be 1 with one in two thousand too late.
    @derived("within_one_hour", show=lambda share: share)
    def within_hour(self) -> float | None:
        """Share of them that were at most an hour old then, 0 to 1."""
        if not self.delivered:
            return None
        # Rounded down, so that 1 means all.
        return sum(self.buckets[:_UP_TO_HOUR]) * 1_000_000 // self.delivered / 1_000_000

    p50 = quantile(
        0.50,
        _BOUNDS,
        "Median of their ages.",
        path="age_p50",
        status_note="See below. null: none, or more than 7 days.",
    )
    p95 = quantile(0.95, _BOUNDS, "95th percentile of their ages.", path="age_p95")
    p99 = quantile(0.99, _BOUNDS, "99th percentile of their ages.", path="age_p99")


@snapshot
class FreshnessSnapshot:
    """Event age at delivery since the start, and over the last hour and day."""

    # Seconds, since the start.
    age_sum: float = figure(path="")
    # Since the start.
    total: Ages = figure(path=".")
    hour: Ages = figure("The same five of the last hour.", default=Ages())
    day: Ages = figure("The same five of the last day.", default=Ages())
    late: int = figure(
        "Web and app events delivered in the last five minutes, over an hour after they happened.",
        default=0,
    )

    @derived("catching_up", status_note="[What to do](platform.md#late-events).")
    def catching_up(self) -> str | None:
        """That late events are being delivered, and what they become, in words."""
        if not self.late:
            return None
        return (
            f"Catching up: {self.late:,} web and app events of the last five minutes were delivered more than an hour "
            "after they happened. Pinterest counts these as offline and probably does not deduplicate them against the "
            "browser tag, so each may count twice"
        )

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
        self._windows, self._late = Windows(), Windows(FIVE_MINUTES)

    def add(self, event_times: Iterable[int], now: Instant) -> int:
        """Count events that happened at these times (unix seconds) and were delivered at `now`. Return how many of them
        were more than an hour old."""
        self._windows.roll(now.monotonic)
        if not self._windows.running:
            self._running = array("q", _NONE)
            self._windows.running.setdefault(_ALL, self._running)
        unix, whole, older = now.unix, int(now.unix), sum(self._running[_UP_TO_HOUR:])
        past, total = count_ages(array("q", event_times), unix, _COLUMN, self._running)
        # An event that lies ahead has no age. Whole seconds are summed as integers, so that rounding loses nothing.
        self._age_sum += past * whole - total + past * (unix - whole)
        return sum(self._running[_UP_TO_HOUR:]) - older

    def add_late(self, events: int, now: float) -> None:
        """Count web and app events that were delivered late at `now` (monotonic seconds)."""
        self._late.roll(now)
        self._late.running.setdefault(_ALL, [0])[0] += events

    def snapshot(self, now: float) -> FreshnessSnapshot:
        """Return the figures of `now` (monotonic seconds)."""
        self._windows.roll(now)
        self._late.roll(now)
        [late] = (rows.get(_ALL, [0]) for rows in self._late.sums())
        total, hour, day = (Ages(tuple(rows.get(_ALL, _NONE))) for rows in self._windows.sums())
        return FreshnessSnapshot(self._age_sum, total, hour, day, late[0])


# Masks of all names together, before they are split. Usually there are a few dozen: records of one producer are alike.
_MAX_MASKS = 4096
_NOTHING: Final[Mapping[str, Any]] = {}


# Event names whose customer gave a name or an address: these are conversions, and worth most.
OF_CUSTOMERS: Final = frozenset(
    {
        *("add_payment_info", "checkout", "contact", "lead", "schedule", "signup", "start_trial"),
        *("submit_application", "subscribe"),
    }
)
_OF_VALUE: Final = frozenset(
    {"add_payment_info", "add_to_cart", "checkout", "initiate_checkout", "subscribe"}
)
_OF_PRODUCTS: Final = frozenset(
    {
        "add_payment_info",
        "add_to_cart",
        "add_to_wishlist",
        "checkout",
        "customize_product",
        "initiate_checkout",
    }
)
# A share of events, and the names that it is for; None: all (other) names.
_Targets = tuple[tuple[float, Collection[str] | None], ...]
# Where everybody is known, and where only some are.
_OF_PERSONS: Final[_Targets] = ((0.9, OF_CUSTOMERS), (0.3, None))
_EVERYWHERE: Final[_Targets] = ((0.95, None),)
_BESIDE: Final[_Targets] = ((0.5, OF_CUSTOMERS),)


@snapshot
class Parameter:
    """A recommended parameter: the paths that it needs, all of them, and what the platform advises about it."""

    id: str = figure("A recommended parameter; what is worth most stands first.")
    label: str = figure("What the page calls it.")
    paths: tuple[str, ...]
    """Of paths with ``|`` between them, one is enough; none: every event has it, or it is refused."""
    advice: str = figure("What the platform asks of it, in one sentence.")
    component: str | None = figure(
        "Its name in Pinterest's event quality score.",
        status_note="null: it does not count there.",
        default=None,
    )
    targets: _Targets = ()
    sources: tuple[str, ...] = ()
    """Where an event that carries it happens, of `web` and `app`; none: anywhere."""


# In this order: what matches an event to a person (without a match, nothing else counts), the platform's own "resilient
# signals" first; what tells it apart; what campaigns optimise for; what the score does not count.
PARAMETERS: Final = (
    Parameter(
        "em",
        "E-mail, hashed",
        ("user_data.em",),
        "The customer's e-mail address, hashed: one of the identities the platform accepts on its own, so send it "
        "wherever the customer is known.",
        "hashed_email",
        _OF_PERSONS,
    ),
    Parameter(
        "click_id",
        "Click id",
        ("user_data.click_id",),
        "The id of the ad click as it came, or else from epik in the page's address, never hashed and its case kept, "
        "beside another identity: alone it is not enough.",
        "click_id_epik",
        # Only visits that an ad has led to have one.
        ((0.01, None),),
        ("web",),
    ),
    Parameter(
        "external_id",
        "Customer id, hashed",
        ("user_data.external_id",),
        "Your own id of the customer, hashed, spelled as the browser tag spells it, beside another identity: alone it "
        "is not enough.",
        "advertiser_external_id",
        _OF_PERSONS,
    ),
    Parameter(
        "client_ip_address",
        "IP address",
        ("user_data.client_ip_address",),
        "The customer's IP address, not hashed: an identity only where the user agent is sent as well.",
        "ip_address",
        _EVERYWHERE,
        ("web", "app"),
    ),
    Parameter(
        "client_user_agent",
        "Browser",
        ("user_data.client_user_agent",),
        "The customer's user agent, not hashed: an identity only where the IP address is sent as well.",
        "user_agent",
        _EVERYWHERE,
        ("web", "app"),
    ),
    Parameter(
        "hashed_maids",
        "Advertising id, hashed",
        ("user_data.hashed_maids",),
        "The device's advertising id (MAID), hashed: one of the identities the platform accepts on its own, where the "
        "user of the app allows it.",
        "hashed_maid",
        ((0.3, None),),
        ("app",),
    ),
    Parameter(
        "event_id",
        "Event id",
        (),
        "The event's own id, equal to the browser tag's, by which the platform deduplicates: every event has one.",
        "external_event_id",
        ((1.0, None),),
    ),
    Parameter(
        "value",
        "Value",
        ("custom_data.value",),
        "What the event is worth, as an exact decimal number: it is never derived where it is missing.",
        "order_value",
        ((0.95, _OF_VALUE),),
    ),
    Parameter(
        "currency",
        "Currency",
        ("custom_data.currency",),
        "The currency of the value, a code of ISO 4217: an event with a value and no currency is refused.",
        None,
        ((0.95, _OF_VALUE),),
    ),
    Parameter(
        "content_ids",
        "Product ids",
        ("custom_data.content_ids",),
        "The ids of the products, as text with leading zeros kept: an item without an id is omitted.",
        "product_id",
        # Some pages are of a product, and some are not.
        ((0.95, _OF_PRODUCTS), (0.3, ("page_visit", "view_content"))),
    ),
    Parameter(
        "order_id",
        "Order id",
        ("custom_data.order_id",),
        "The order's own number, as text: an empty one or 0 counts as none.",
        "order_id",
        ((0.95, ("checkout",)),),
    ),
    Parameter(
        "event_source_url",
        "Page address",
        ("event_source_url",),
        "The absolute http or https address of the page, with its query: for web events only.",
        "source_url",
        _EVERYWHERE,
        ("web",),
    ),
    Parameter(
        "ph",
        "Phone, hashed",
        ("user_data.ph",),
        "The customer's phone number, hashed, beside another identity: alone it is not enough.",
        None,
        _BESIDE,
    ),
    Parameter(
        "name",
        "Name, hashed",
        ("user_data.fn", "user_data.ln"),
        "The customer's first and last name, hashed, beside another identity: alone they are not enough.",
        None,
        _BESIDE,
    ),
    Parameter(
        "place",
        "Country and place, hashed",
        ("user_data.country", "user_data.ct|user_data.zp"),
        "The customer's country, with city or postal code, hashed, beside another identity: alone it is not enough.",
        None,
        _BESIDE,
    ),
    Parameter(
        "birth",
        "Birthday, hashed",
        ("user_data.db",),
        "The customer's date of birth, hashed, beside another identity: alone it is not enough.",
        None,
        ((0.1, OF_CUSTOMERS),),
    ),
    Parameter(
        "opt_out",
        "Opt-out flag",
        ("opt_out",),
        "Whether the customer opted out, true or false; limited data processing (LDP) needs state and country as well.",
    ),
)


# The bit of each path that belongs to a parameter. An executor says with these what it wrote, and with one of those of
# the sources where the event happened.
_PATHS: Final = tuple(path for one in PARAMETERS for path in one.paths)
BITS: Final[Mapping[str, int]] = {
    path: 1 << number for number, paths in enumerate(_PATHS) for path in paths.split("|")
}
_WEB, _APP = 1 << len(_PATHS), 2 << len(_PATHS)
BITS_OF_SOURCES: Final[Mapping[str, int]] = {"web": _WEB, "app_ios": _APP, "app_android": _APP}
COUNTED: Final = (4 << len(_PATHS)) - 1  # all of these
ITEM_ID: Final = "custom_data.contents[].id"
# The same by field of a conversion event: the ids of items count as content ids.
BITS_OF_FIELDS: Final[Mapping[str, int]] = {**BITS, ITEM_ID: BITS["custom_data.content_ids"]}
# For each column of a window after the number of events, the bits that must be set.
_NEEDS: Final = (
    *(_WEB, _APP),
    *(reduce(or_, (BITS[path.partition("|")[0]] for path in one.paths), 0) for one in PARAMETERS),
)
_PLACES: Final = tuple((*path.rpartition(".")[::2], bit) for path, bit in BITS.items())


def written_in(payload: Mapping[str, Any]) -> int:
    """Return the mask of a written payload."""
    # A name is enough: the converter never writes an empty value.
    mask = BITS_OF_SOURCES.get(payload.get("action_source", ""), 0)
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

    events: int = figure("Events delivered in the last hour.")
    carried: tuple[int, ...] = figure("How many of them carried the parameter.", keys=("id",), show=by_id)
    web: int = figure("How many of them were on the web.", default=0)
    app: int = figure("How many of them were in an app.", default=0)
    # The event name without a section: the targets depend on it.
    name: str = figure(path="", default="", merge=first)

    @derived("sampled")
    def sampled(self) -> int:
        """As `events`."""
        # Until version 0.2 only some were counted. A field of /status is never removed.
        return self.events

    @derived("share", keys=("id",), show=by_id)
    def shares(self) -> tuple[float, ...]:
        """The share of them that carried it, 0 to 1: `carried / events`."""
        return tuple(count / self.events for count in self.carried)

    @derived(
        "target",
        keys=("id",),
        show=by_id,
        status_note="See [below](#targets).",
    )
    def targets(self) -> tuple[float | None, ...]:
        """The share that a good integration reaches, 0 to 1."""
        return tuple(map(self._target, PARAMETERS))

    def _target(self, one: Parameter) -> float | None:
        share = next((share for share, names in one.targets if names is None or self.name in names), None)
        # Only some of the events may be able to carry it.
        able = sum(getattr(self, source) for source in one.sources) if one.sources else self.events
        return share * able / self.events if share and able else None


# Events that should carry a parameter, at least, before it is missed: below that, none may do so by chance.
_LEAST_EXPECTED: Final = 3


@snapshot
class CoverageGap:
    """A parameter that events of one name carry less often than its target says."""

    event_name: str = figure("What to add first: events of this name lack the parameter.")
    id: str = figure("The parameter.", status_note="Sorted by what is worth most: see [below](#targets).")
    share: float = figure("The share of the last day's events that carried it.")
    target: float = figure("Its target.")
    events: int = figure("How many more events would have to carry it for that.")


@snapshot
class CoverageSnapshot:
    """Coverage by event name, over the last hour and the last day."""

    hour: Mapping[str, Covered] = figure(keys=("event name",))
    day: Mapping[str, Covered] = figure("The same of the last day.", keys=("event name",))

    @derived("parameters[]")
    def parameters(self) -> Sequence[Parameter]:
        """What is counted."""
        return PARAMETERS

    @derived("gaps[]")
    def gaps(self) -> Sequence[CoverageGap]:
        """What to add first."""
        found = []
        for name, covered in self.day.items():
            of_all = zip(PARAMETERS, covered.shares, covered.targets, strict=True)
            for rank, (one, share, target) in enumerate(of_all):
                if target is None or target * covered.events < _LEAST_EXPECTED or share >= target:
                    continue
                missing = math.ceil((target - share) * covered.events)
                # Conversions first; of these, what is worth most; of that, what most events lack.
                order = covered.name not in OF_CUSTOMERS, rank, -missing, name
                found.append((order, CoverageGap(name, one.id, share, target, missing)))
        return tuple(gap for _, gap in sorted(found, key=itemgetter(0)))

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
        # By name: events, and how many of them have each of `_NEEDS`.
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
            {
                # The name of a section stands behind it (`settled`).
                name: Covered(row[0], tuple(row[3:]), row[1], row[2], name.partition(" (")[0])
                for name, row in sorted(rows.items())
            }
            for rows in self._windows.sums()
        )
        return CoverageSnapshot(hour, day)

    def _split_masks(self, now: float) -> None:
        """Enter the masks into the minute in which they were counted, then roll the windows to `now`."""
        for (name, mask), count in self._masks.items():
            known = counted_as(name, self._names)
            self._names.add(known)
            row = self._windows.running.setdefault(known, [0] * (1 + len(_NEEDS)))
            row[0] += count
            # A parameter may need several paths, so it is carried only if all of its bits are set.
            for column, needs in enumerate(_NEEDS, start=1):
                if mask & needs == needs:
                    row[column] += count
        self._masks.clear()
        self._windows.roll(now)
