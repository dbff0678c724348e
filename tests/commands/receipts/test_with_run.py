"""The three commands on the receipts of `pinstream run`, over a kill and a restart, beside the log of the API."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path

import pytest

from consumer.demo.faults import Chance
from consumer.engine.model import Disposition
from tests.commands.receipts.making import answered
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, quick_group, run_environment
from tests.end_to_end.records import (
    committed_offsets,
    generated,
    new_group,
    new_topic,
    records_on,
    write_generated,
)
from tests.support.kafka.harness import Kafka, create_topic

EVENTS = 1500


@pytest.mark.slow("each command is tested by itself, and so is a kill")
def test_receipts_of_a_service_that_was_killed(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The ledger is that of the shop; each event is traced to its call, each order is in its class."""
    topic, group, receipts = new_topic(kafka), new_group(), create_topic(kafka, 2)
    shop, events = generated(EVENTS, duplicates=0.1, invalid=0.05)
    write_generated(kafka, topic, events)
    own = {"PINSTREAM_RECEIPTS_TOPIC": receipts, "PINSTREAM_BATCH_EVENTS": "25", "PINSTREAM_CONCURRENCY": "4"}
    env = run_environment(tmp_path, kafka, topic, group, api.url, **own, **quick_group(kafka))
    api.set_faults(slow=Chance(1.0), slow_seconds=0.05)
    with Process(tmp_path / "first", "run", env=env) as service:
        service.until(lambda: api.counts().accepted_events > EVENTS / 4, "a part of the events")
        service.kill()
    api.set_faults()
    with Process(tmp_path / "second", "run", env=env) as service:
        service.until(
            lambda: sum(committed_offsets(kafka, group, topic)) == records_on(kafka, topic), "all records"
        )
        assert service.stop()[0] == 0

    audit = answered("audit", "--since", "1h", env=env)
    ledger = Counter({one["outcome"]: one["records"] for one in audit["counts"]})
    assert ledger == Counter({kind.value: count for kind, count in shop.tally.items()})
    assert ledger["delivered"] == api.counts().distinct_event_ids
    assert (audit["without_receipt"], sum(one["records"] for one in audit["offsets"])) == ([], EVENTS)
    # Of what the kill caused to be sent again, the first call has a receipt only if its answer came in time.
    assert len(audit["delivered_twice"]) <= sum(count - 1 for count in api.accepted().values()) <= 100

    accepted = {event["event_id"]: event for event in api.events if event["event_id"] in api.accepted()}
    traces = answered("trace", *accepted, env=env)["traces"]
    for one in traces:
        event, delivered = accepted[one["id"]], [r for r in one["records"] if r["outcome"] == "delivered"]
        assert {(r["request_id"] is not None, r["http_status"]) for r in delivered} == {(True, 200)}
        assert {r["event_name"] for r in delivered} == {event["event_name"]}
        assert {r["value"] for r in delivered} == {event.get("custom_data", {}).get("value")}
        assert 1 <= len(delivered) <= api.accepted()[one["id"]]
        assert any(r["remembered_until"] not in (None, "unknown") for r in delivered)
    refused = [
        one.event["event_id"] for one in events if one.event and one.expected is Disposition.DEAD_LETTERED
    ]
    for one in answered("trace", *refused[:5], env=env, code=1)["traces"]:
        [record] = [r for r in one["records"] if r["counts"]]
        assert (record["outcome"], record["letters"][0]["state"]) == ("dead_lettered", "waiting")

    orders = [event for event in accepted.values() if event["event_name"] == "checkout"]
    lines = ["id,value,currency,time"]
    for number, event in enumerate(orders[3:]):
        custom = event["custom_data"]
        value = Decimal(custom["value"]) + (number < 2)
        lines.append(f"{custom['order_id']},{value},{custom['currency']},{event['event_time']}")
    lines.append(lines[-1].replace(lines[-1].partition(",")[0], "nobody"))
    (tmp_path / "orders.csv").write_text("\n".join(lines))
    found = answered("reconcile", str(tmp_path / "orders.csv"), env=env, code=1)
    classes = {kind: count for kind, count in found["classes"].items() if count}
    assert classes == {"delivered": len(orders) - 5, "other_value": 2, "never_read": 1, "not_in_list": 3}
    assert sum(Decimal(one["delivered"]) for one in found["sums"]) == sum(
        Decimal(event["custom_data"]["value"]) for event in orders
    )
