"""What the sandbox knows of ad accounts: its counts, independent of pinstream's own ledger, and its quality scores.

The main sums are over *distinct* events, by account + event name + event id, the key by which Pinterest deduplicates.
Events accepted more than once are counted as doubles, by source, because Pinterest deduplicates web and app events but
not offline ones. Values are summed as decimals without rounding.

To recognise doubles, the sandbox remembers keys: all of them, or the latest `max_ids`. Counts of distinct events are
exact unless an event comes again after its key was forgotten: it then counts as another event. `forgotten_event_ids`
says whether that is possible.

The answers to ``conversion_eqs`` have the form of the platform's description; Pinterest's own sandbox has none.
Coverage is that of all events accepted since the start, whatever the ``lookback_period``. How the platform makes a
score of it is not published: here the mean coverage decides. The sandbox has no browser tag of its own, so nothing
overlaps.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, Inexact
from typing import Any, Final, NamedTuple

# Additions are exact for any size. An operation that would round raises.
_EXACT: Final = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[Inexact])
_ZERO: Final = Decimal(0)


class EventKey(NamedTuple):
    """The key by which Pinterest recognises the same event."""

    account: str
    event_name: str
    event_id: str


@dataclass(kw_only=True)
class SandboxCounts:
    """Counts of the sandbox since its start or last reset. In test mode only calls are counted."""

    accepted_events: int = 0  # events answered as processed, including doubles
    distinct_event_ids: int = 0  # distinct account + event name + event id
    # How many of them are forgotten. If 0, the counts of distinct events are exact.
    forgotten_event_ids: int = 0
    value_sum: Decimal = _ZERO  # sum of ``custom_data.value`` over distinct events, the first of each
    accepted_value_sum: Decimal = _ZERO  # the same sum, including doubles
    # By source (web, app, offline): how often an event was accepted again.
    doubles: Counter[str] = field(default_factory=lambda: Counter(web=0, app=0, offline=0))
    # Events answered as failed, by the rule's code.
    rejected_events: Counter[str] = field(default_factory=Counter)
    # Calls refused as a whole because of their content, by the rule's code.
    refused_calls: Counter[str] = field(default_factory=Counter)
    # By HTTP status as text; ``dropped`` if the connection was cut instead.
    calls: Counter[str] = field(default_factory=Counter)
    test_calls: int = 0
    accepted_by_account: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """Return the JSON of ``GET /sandbox/counts`` and the demo; amounts are decimal text, never floats."""
        return {
            name: f"{value:f}" if isinstance(value, Decimal) else value for name, value in vars(self).items()
        }


class SandboxMemory:
    """The running `counts`, and the events counted. `max_ids`: how many event keys are kept; None: all."""

    def __init__(self, *, max_ids: int | None) -> None:
        self._max_ids = max_ids
        # How often each remembered event was accepted.
        self.deliveries: OrderedDict[EventKey, int] = OrderedDict()
        self.counts = SandboxCounts()
        self.seen = SeenEvents()

    def accept(self, account: str, event: Mapping[str, Any]) -> None:
        """Count one processed event that has passed `rules.check_event`."""
        counts = self.counts
        counts.accepted_events += 1
        counts.accepted_by_account[account] += 1
        self.seen.note(account, event)
        text = (event.get("custom_data") or {}).get("value")
        value = _ZERO if text is None else _EXACT.create_decimal(text)
        counts.accepted_value_sum = _EXACT.add(counts.accepted_value_sum, value)
        key = EventKey(account, event["event_name"], event["event_id"])
        # An event that was sent twice because its first answer was lost must not count as two.
        before = self.deliveries.get(key, 0)
        self.deliveries[key] = before + 1
        if before:
            # Pinterest takes both apps for one source.
            counts.doubles[event["action_source"].partition("_")[0]] += 1
            return
        counts.distinct_event_ids += 1
        counts.value_sum = _EXACT.add(counts.value_sum, value)
        # So a sandbox that runs for days does not grow.
        if len(self.deliveries) - 1 == self._max_ids:
            self.deliveries.popitem(last=False)
            counts.forgotten_event_ids += 1


# Component -> where an event has it: an object in it (empty: the event itself), and the key there.
_COMPONENTS: Final = {
    "advertiser_external_id": ("user_data", "external_id"),
    "click_id_epik": ("user_data", "click_id"),
    "external_event_id": ("", "event_id"),
    "hashed_email": ("user_data", "em"),
    "hashed_maid": ("user_data", "hashed_maids"),
    "ip_address": ("user_data", "client_ip_address"),
    "order_id": ("custom_data", "order_id"),
    "order_value": ("custom_data", "value"),
    "product_id": ("custom_data", "content_ids"),
    "source_url": ("", "event_source_url"),
    "user_agent": ("user_data", "client_user_agent"),
}
_PLATFORMS: Final = {"web": "WEB", "app_ios": "MOBILE_IOS", "app_android": "MOBILE_ANDROID"}
# Mean coverage, in percent, from which on a score is given; and coverage below which a component has an issue.
_GOOD, _FAIR, _POOR = 60, 40, 50


class SeenEvents:
    """Counts accepted events, and how many of them have each component: by account, platform and event name."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], dict[str, Counter[str]]]
        self._counts = defaultdict(lambda: defaultdict(Counter))

    def note(self, account: str, event: Mapping[str, Any]) -> None:
        """Count one accepted event."""
        platform = _PLATFORMS.get(event["action_source"], "OFFLINE")
        self._counts[account, platform][event["event_name"]].update(
            component
            for component, (parent, key) in _COMPONENTS.items()
            if key in ((event.get(parent) or ()) if parent else event)
        )

    def scores(self, account: str, period: str) -> list[dict[str, Any]]:
        """Return the event quality scores of an account."""
        return [
            {"lookback_period": period, "source_platform": platform, **_score(by_name)}
            for (one, platform), by_name in self._counts.items()
            if one == account
        ]


def _score(by_name: Mapping[str, Counter[str]]) -> dict[str, Any]:
    components: dict[str, Any] = defaultdict(dict)
    shares = []
    for name, counts in by_name.items():
        for component in _COMPONENTS:
            # Every event has its id.
            coverage = round(100 * counts[component] / counts["external_event_id"], 1)
            reason = f"{component} is missing from many {name} events."
            issues = [{"id": "1", "name": "Low coverage", "reason": reason}] if coverage < _POOR else []
            overlap = 0 if component == "external_event_id" else None
            components[component][name] = {"coverage": coverage, "issues": issues, "overlap": overlap}
            shares.append(coverage)
    mean = sum(shares) / len(shares)
    status = "GOOD" if mean >= _GOOD else "FAIR" if mean >= _FAIR else "NEEDS_IMPROVEMENT"
    return {
        "ingestion_source": "CONVERSIONS_API", "overall_status": status, "quality_components": components
    }  # fmt: skip
