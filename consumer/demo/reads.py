"""What the sandbox knows of an ad account, for the questions that need a token that may read.

Its answers to ``conversion_eqs``, ``conversion_tags`` and ``advertiser_defined_events`` have the form of the platform's
description (`api`); Pinterest's own sandbox has none of the three. Coverage is that of all events accepted since the
start, whatever the ``lookback_period``. How the platform makes a score of it is not published: here the mean coverage
decides. The sandbox has no browser tag of its own, so nothing overlaps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final

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
