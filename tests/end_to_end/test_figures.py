"""The figures on the page and in /metrics agree with what the API received, which is counted independently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumer.engine.model import Disposition
from tests.end_to_end.shop import Shop
from tests.web.page.browser import Visit, live, needs_browser, shows, turn, visit

__all__ = ["visit"]  # a fixture

Event = dict[str, Any]

CARRIES: dict[str, Callable[[Event], Any]] = {
    "em": lambda event: event["user_data"].get("em"),
    "ph": lambda event: event["user_data"].get("ph"),
    "external_id": lambda event: event["user_data"].get("external_id"),
    "click_id": lambda event: event["user_data"].get("click_id"),
    "client_ip_address": lambda event: event["user_data"].get("client_ip_address"),
    "client_user_agent": lambda event: event["user_data"].get("client_user_agent"),
    "hashed_maids": lambda event: event["user_data"].get("hashed_maids"),
    "event_id": lambda event: event["event_id"],
    "name": lambda event: event["user_data"].get("fn") and event["user_data"].get("ln"),
    "place": lambda event: (
        event["user_data"].get("country") and (event["user_data"].get("ct") or event["user_data"].get("zp"))
    ),
    "birth": lambda event: event["user_data"].get("db"),
    "value": lambda event: event.get("custom_data", {}).get("value"),
    "currency": lambda event: event.get("custom_data", {}).get("currency"),
    "content_ids": lambda event: event.get("custom_data", {}).get("content_ids"),
    "order_id": lambda event: event.get("custom_data", {}).get("order_id"),
    "event_source_url": lambda event: event.get("event_source_url"),
    "opt_out": lambda event: "opt_out" in event,
}
"""Whether an event that the API received has each parameter: its fields are never empty."""


def percent(part: int, whole: int) -> str:
    """A share as the page shows it: rounded down, and 0 % only if it is zero."""
    return "< 1 %" if 0 < 100 * part < whole else f"{100 * part // whole} %"


def samples(metrics: str) -> dict[str, dict[tuple[str, ...], float]]:
    """For each sample name, its values by the values of its labels, in the order of the labels' names."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics):
        for one in family.samples:
            labels = tuple(value for _, value in sorted(one.labels.items()))
            found.setdefault(one.name, {})[labels] = one.value
    return found


@needs_browser
@pytest.mark.asyncio(loop_scope="module")
async def test_page_and_metrics_report_what_the_api_got(shop: Shop, visit: Visit) -> None:
    """The ledger, freshness, and each share of coverage by event name are exact."""
    generator = shop.generate(1_500, duplicates=0.1, invalid=0.05)
    with shop.run() as process:
        process.until_settled(1_500)
        got = shop.api.events
        assert len(got) == shop.api.counts().accepted_events == shop.api.counts().distinct_event_ids
        by_name = Counter(str(event["event_name"]) for event in got)
        async with visit(process.page) as shown:
            await live(shown)
            await shows(shown, "= 1,500 read", "#sum")
            counts = await shown.locator("#ledger .count").all_inner_texts()
            assert counts == [*(f"{generator.tally[one]:,}" for one in Disposition), "0"]
            assert counts[0] == f"{len(got):,}"
            await turn(shown, "quality")
            await shows(shown, f"of {len(got):,} events delivered in the last hour", "#freshness")
            rows = await shown.eval_on_selector_all(
                "#coverage tbody tr",
                "all => all.map(row => [row.querySelector('code')?.innerText, [...row.cells].slice(1)"
                ".map(one => [one.dataset.name, one.innerText])])",
            )
        # The goal stands below a share that is under it.
        reported = {
            parameter: {name: cell.replace("\u00a0", " ").partition("\n")[0] for name, cell in row}
            for parameter, row in rows
        }
        assert reported.pop(None) == {
            "all": f"{len(got):,}",
            **{name: f"{count:,}" for name, count in by_name.items()},
        }
        carriers = {
            parameter: Counter(str(event["event_name"]) for event in got if carries(event))
            for parameter, carries in CARRIES.items()
        }
        seen = process.status()["coverage"]["hour"]
        assert reported.keys() == carriers.keys()
        for parameter, carried in carriers.items():
            # Blank where it does not apply; one that applies to no name has no goal.
            goals = [name for name in by_name if seen[name]["target"][parameter] is not None]
            assert reported[parameter] == {
                "all": percent(carried.total(), len(got)),
                **{
                    name: percent(carried[name], count) if name in (goals or by_name) else ""
                    for name, count in by_name.items()
                },
            }
        found = samples(process.get("/metrics")[1])
        assert found["pinstream_delivered_events_total"] == {(name,): n for name, n in by_name.items()}
        assert found["pinstream_event_age_seconds_count"] == {(): len(got)}
        assert found["pinstream_records_settled_total"] == {
            (one.value,): generator.tally[one] for one in Disposition
        }
        assert found["pinstream_parameter_coverage_ratio"] == {
            (name, parameter): carried[name] / count
            for parameter, carried in carriers.items()
            for name, count in by_name.items()
        }
