"""The counts of the sandbox, independent of pinstream's own ledger.

An event that was sent twice because the first answer was lost must not count as two events. So the main sums are over
*distinct* events, by account + event name + event id, the key by which Pinterest deduplicates. Events accepted more
than once are counted as doubles, by source, because Pinterest deduplicates web and app events but not offline ones.
Values are summed as decimals without rounding.

To recognise doubles, the sandbox remembers keys: all of them, or the latest `most_ids`, so that a long-running sandbox
does not grow. Counts of distinct events are exact unless an event comes again after its key was forgotten: it then
counts as another event. `forgotten_event_ids` says whether that is possible.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, Inexact
from typing import Any, Final, NamedTuple

_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact])
"""Additions are exact for any size; an operation that would round raises."""
_ZERO: Final = Decimal(0)
_SOURCES: Final[Mapping[str, str]] = {
    "web": "web",
    "app_ios": "app",
    "app_android": "app",
    "offline": "offline",
}


class EventKey(NamedTuple):
    """The key by which Pinterest recognises the same event."""

    account: str
    event_name: str
    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxCounts:
    """Counts of the sandbox since its start or last reset. In test mode only calls are counted."""

    accepted_events: int
    """Events answered as processed, including doubles."""
    distinct_event_ids: int | None
    """Distinct account + event name + event id; None if the sandbox keeps no ids."""
    forgotten_event_ids: int = 0
    """How many of them are forgotten. If 0, the counts of distinct events are exact."""
    value_sum: Decimal | None
    """Sum of ``custom_data.value`` over distinct events, the first of each; None without ids."""
    accepted_value_sum: Decimal
    """The same sum, including doubles."""
    doubles: Mapping[str, int]
    """By source (web, app, offline): how often an event was accepted again."""
    rejected_events: Mapping[str, int]
    """Events answered as failed, by the rule's code."""
    refused_calls: Mapping[str, int]
    """Calls refused as a whole because of their content, by the rule's code."""
    calls: Mapping[str, int]
    """By HTTP status as text; ``dropped`` if the connection was cut instead."""
    test_calls: int
    accepted_by_account: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return the JSON of ``GET /sandbox/counts`` and the demo; amounts are decimal text, never floats."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in document.items():
            if isinstance(value, Decimal):
                document[name] = f"{value:f}"
            elif isinstance(value, Mapping):
                document[name] = dict(value)
        return document


class RunningCounts:
    """The running counts. `most_ids`: the number of latest events to remember; None for all, 0 for none."""

    def __init__(self, *, most_ids: int | None) -> None:
        self._most_ids = most_ids
        self._deliveries: OrderedDict[EventKey, int] = OrderedDict()
        self._forgotten = 0
        self._accepted: Counter[str] = Counter()
        self._value = _ZERO
        self._accepted_value = _ZERO
        self._doubles = dict.fromkeys(("web", "app", "offline"), 0)
        self._rejected: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._test_calls = 0

    @property
    def deliveries(self) -> Mapping[EventKey, int]:
        """How often each remembered event was accepted."""
        return dict(self._deliveries)

    def accept(self, account: str, event: Mapping[str, Any]) -> None:
        """Counts one processed event that has passed `rules.check_event`."""
        self._accepted[account] += 1
        custom_data = event.get("custom_data")
        text = custom_data.get("value") if custom_data else None
        value = None if text is None else _EXACT.create_decimal(text)
        if value is not None:
            self._accepted_value = _EXACT.add(self._accepted_value, value)
        if self._most_ids == 0:
            return
        key = EventKey(account, event["event_name"], event["event_id"])
        before = self._deliveries.get(key, 0)
        self._deliveries[key] = before + 1
        if before:
            self._doubles[_SOURCES[event["action_source"]]] += 1
            return
        if value is not None:
            self._value = _EXACT.add(self._value, value)
        if len(self._deliveries) - 1 == self._most_ids:
            self._deliveries.popitem(last=False)
            self._forgotten += 1

    def accept_unread(self, account: str, events: int) -> None:
        """Counts events without reading them, for a sandbox that does not validate."""
        self._accepted[account] += events

    def reject(self, code: str) -> None:
        """Counts an event answered as failed."""
        self._rejected[code] += 1

    def refuse(self, code: str) -> None:
        """Counts a call refused because of its content."""
        self._refused[code] += 1

    def answered(self, status: str, *, test: bool) -> None:
        """Counts an answered call: `status` is the HTTP status as text, or ``dropped``."""
        self._calls[status] += 1
        self._test_calls += test

    def counts(self) -> SandboxCounts:
        """A frozen copy."""
        known = self._most_ids != 0
        return SandboxCounts(
            accepted_events=self._accepted.total(),
            distinct_event_ids=self._forgotten + len(self._deliveries) if known else None,
            forgotten_event_ids=self._forgotten,
            value_sum=self._value if known else None,
            accepted_value_sum=self._accepted_value,
            doubles=dict(self._doubles),
            rejected_events=dict(self._rejected),
            refused_calls=dict(self._refused),
            calls=dict(self._calls),
            test_calls=self._test_calls,
            accepted_by_account=dict(self._accepted),
        )
