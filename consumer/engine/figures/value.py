"""What delivered events are worth, by event name and currency.

Theory of operation. No figure may show what a single order is worth, and neither may the difference between
two readings. So what is shown grows in steps of ten events or more: the latest events with a value, nine at most of
each name and currency, wait for the tenth. Their number and their value are shown together, and a window gains and
loses whole steps only. Prometheus sees the same steps.

Values are added exactly, in ten-thousandths of the currency's unit, and shown in whole units. Digits beyond the fourth
do not count.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from consumer.engine.figures.counters import MAX_NAMES, OTHER
from consumer.engine.figures.definitions import derived, figure, snapshot
from consumer.engine.figures.windows import Windows
from consumer.engine.model import VALUE_PARTS

# Events whose value is shown at once, at least.
_STEP: Final = 10


@snapshot
class Worth:
    """Events with a value, of one name and currency."""

    events: int = figure("Events with a value that this covers.")
    # In `VALUE_PARTS`, so that values of workers are added exactly.
    parts: int = figure(path="")

    @derived("value")
    def value(self) -> int:
        """What they are worth, in whole units of the currency, rounded down."""
        return self.parts // VALUE_PARTS


# By event name and currency.
Worths = Mapping[tuple[str, str], Worth]
_KEYS: Final = ("event name", "currency")


@snapshot
class ValueSnapshot:
    """What delivered events are worth."""

    total: Worths = figure(
        "Since the start.",
        keys=_KEYS,
        status_note="In steps of at least ten events: see [below](#delivered-value).",
        default_factory=dict,
    )
    hour: Worths = figure("The same of the last hour.", keys=_KEYS, default_factory=dict)
    day: Worths = figure("The same of the last day.", keys=_KEYS, default_factory=dict)

    @derived(metric="pinstream_delivered_value_total", labels=("event_name", "currency"))
    def values(self) -> Mapping[tuple[str, str], int]:
        """What delivered events are worth, in whole units of the currency; in steps of at least ten events."""
        return {names: worth.value for names, worth in self.total.items()}

    @derived(metric="pinstream_delivered_value_events_total", labels=("event_name", "currency"))
    def valued(self) -> Mapping[tuple[str, str], int]:
        """Delivered events that this value is of."""
        return {names: worth.events for names, worth in self.total.items()}


class DeliveredValue:
    """Adds up what events are worth at delivery."""

    def __init__(self) -> None:
        self._windows = Windows()
        # By name and currency: events that are not shown yet, and what they are worth.
        self._waiting: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, worths: Mapping[tuple[str, str], tuple[int, int]], now: float) -> None:
        """Add events that were delivered at `now` (monotonic seconds): how many have a value, and the sum of these."""
        self._windows.roll(now)
        for (name, currency), (events, parts) in worths.items():
            known = (name, currency) in self._waiting or len(self._waiting) < MAX_NAMES
            names = (name if known else OTHER, currency)
            before, worth = self._waiting.get(names, (0, 0))
            events, worth = before + events, worth + parts
            if events >= _STEP:
                row = self._windows.running.setdefault(names, [0, 0])
                row[0] += events
                row[1] += worth
                events, worth = 0, 0
            self._waiting[names] = events, worth

    def snapshot(self, now: float) -> ValueSnapshot:
        """Return the figures of `now` (monotonic seconds)."""
        self._windows.roll(now)
        return ValueSnapshot(
            *({names: Worth(*row) for names, row in sorted(rows.items())} for rows in self._windows.sums())
        )
