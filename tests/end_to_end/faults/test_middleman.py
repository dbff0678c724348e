"""A proxy answers in the platform's place: that is no verdict on any event, and no secret is shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from consumer.demo.faults import Chance, Speech
from tests.end_to_end.api import Api
from tests.end_to_end.faults.outages import Budget, Watch, failed
from tests.end_to_end.processes import TOKEN, Process, run_environment
from tests.end_to_end.records import commerce_event, new_group, new_topic, write_events
from tests.support.kafka.harness import Kafka

BUDGET = Budget(events=1000, bytes=1 << 22)
RECORDS = 300


@pytest.mark.parametrize(("status", "says"), [(400, "html"), (413, "empty"), (403, "echo"), (401, "json")])
def test_a_middleman_s_answer_settles_nothing(
    kafka: Kafka, api: Api, tmp_path: Path, status: int, says: Speech
) -> None:
    """While the proxy answers, nothing is dead-lettered, committed or halted; afterwards all events are
    delivered, once."""
    topic, group = new_topic(kafka), new_group()
    write_events(kafka, topic, [commerce_event(f"order-{number}") for number in range(RECORDS)])
    env = run_environment(
        tmp_path, kafka, topic, group, api.url, **BUDGET.settings, PINSTREAM_BATCH_EVENTS="50"
    )
    api.set_faults(middleman=Chance(share=1.0), middleman_status=status, middleman_says=says)
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, BUDGET)
        seen = watch.until(lambda one: failed(one, f"http_{status}") >= 12, "twelve failed calls")
        assert seen["ledger"] == {
            "read": RECORDS, "delivered": 0, "duplicate": 0, "filtered": 0, "dead_lettered": 0, "open": RECORDS,
        }  # fmt: skip
        assert [one["state"] for one in seen["destination"]["accounts"]] != ["halted"]
        api.set_faults()
        healed = watch.until_settled(RECORDS, 100.0)
        assert healed["ledger"]["delivered"] == RECORDS
        assert process.stop()[0] == 0
    assert api.accepted() == Counter({f"order-{number}": 1 for number in range(RECORDS)})
    said = [line["said"] for line in process.log if line["event"] == "no_verdict"]
    assert {one.partition(":")[0] for one in said} == {"middleman/1.0"}
    assert TOKEN not in process.stderr
    assert "order-1" not in process.stderr


def test_a_proxy_with_a_limit_gets_smaller_batches(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """One event is larger than the proxy accepts: that one waits, all others are delivered, and none becomes a
    dead letter."""
    topic, group = new_topic(kafka), new_group()
    events = [commerce_event(f"order-{number}") for number in range(RECORDS)]
    events[0] = events[0] | {"page_url": f"https://example.com/{'a' * 20_000}"}
    write_events(kafka, topic, events)
    env = run_environment(tmp_path, kafka, topic, group, api.url, **BUDGET.settings)
    api.set_faults(max_body_bytes=16_000)
    with Process(tmp_path, "run", env=env) as process:
        watch = Watch(process, BUDGET)
        watch.until(lambda one: one["ledger"]["delivered"] == RECORDS - 1, "all but the large one", 100.0)
        seen = watch.check()
        assert (seen["ledger"]["open"], seen["ledger"]["dead_lettered"]) == (1, 0)
        api.set_faults()
        watch.until_settled(RECORDS, 100.0)
        assert process.stop()[0] == 0
    assert sum(api.accepted().values()) == RECORDS
