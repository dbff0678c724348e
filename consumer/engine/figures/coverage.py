"""Parameter coverage: what share of delivered events carried what the platform recommends, by event name.

Theory of operation. The platform rates an integration by the parameters that its events carry (docs/platform.md). An
executor of a conversion says what it wrote: a mask with one bit for each path of `BITS`. The engine counts events by
name and mask, and splits the masks into parameters once a minute or for a snapshot. So an event costs next to nothing,
and every figure is exact.

Only delivered events are counted, as in `freshness`, so that both describe the same events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any, Final

from consumer.engine.figures.definitions import derived, figure, snapshot
from consumer.engine.figures.windows import Windows

# Names of a family that is not a closed set: each is a series of Prometheus, and a row in 156 buckets of the windows.
MOST_NAMES = 64
# Masks of all names together, before they are split. Usually there are a few dozen: records of one producer are alike.
_MOST_MASKS = 4096
OTHER = "other"
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
        """As `events`: each is counted, none is left out."""
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
    day: Mapping[str, Covered] = figure("The same of the last day:", keys=("event name",))

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


def counted_as(name: str, names: Collection[str]) -> str:
    """Return the name under which `name` is counted beside these `names`: ``other`` once they are `MOST_NAMES`."""
    # A shop, or the API, may make up names without end.
    return name if name in names or len(names) < MOST_NAMES else OTHER


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
        if self._windows.is_over(now) or len(self._masks) > _MOST_MASKS:
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
