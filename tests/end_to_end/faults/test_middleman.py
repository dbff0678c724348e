"""A proxy answers in the platform's place: that is no verdict on any event, and no secret is shown."""

from __future__ import annotations

import pytest

from consumer.demo.faults import Chance, Speech
from tests.end_to_end.faults.outages import Budget, Watch, failed
from tests.end_to_end.processes import TOKEN
from tests.end_to_end.records import commerce_event
from tests.end_to_end.shop import NewShop
from tests.support.switches import switched

BUDGET = Budget(events=1000, bytes=1 << 22)
RECORDS = 300


@pytest.mark.parametrize(("status", "says"), [(400, "html"), (413, "empty"), (403, "echo"), (401, "json")])
def test_a_middleman_s_answer_settles_nothing(new_shop: NewShop, status: int, says: Speech) -> None:
    """While the proxy answers, nothing is dead-lettered, committed or halted; afterwards all events are
    delivered, once."""
    shop = new_shop(**BUDGET.settings, PINSTREAM_BATCH_EVENTS="50", **switched(longest_wait=1.0))
    expected = shop.write_orders(RECORDS)
    shop.api.set_faults(middleman=Chance(share=1.0), middleman_status=status, middleman_says=says)
    with shop.run() as process:
        watch = Watch(process, BUDGET)
        seen = watch.until(
            lambda one: failed(one, f"http_{status}") >= 12 and one["ledger"]["read"] == RECORDS,
            "twelve failed calls, and all records",
        )
        assert seen["ledger"] == {
            "read": RECORDS, "delivered": 0, "duplicate": 0, "filtered": 0, "dead_lettered": 0, "open": RECORDS,
        }  # fmt: skip
        assert [one["state"] for one in seen["destination"]["accounts"]] != ["halted"]
        shop.api.set_faults()
        assert watch.until_settled(RECORDS)["ledger"]["delivered"] == RECORDS
    assert shop.api.accepted() == expected
    said = [line["said"] for line in process.log if line["event"] == "no_verdict"]
    assert {one.partition(":")[0] for one in said} == {"middleman/1.0"}
    assert TOKEN not in process.stderr
    assert "order-1" not in process.stderr


def test_a_proxy_with_a_limit_gets_smaller_batches(new_shop: NewShop) -> None:
    """One event is larger than the proxy accepts: that one waits, all others are delivered, and none becomes a
    dead letter."""
    shop = new_shop(**BUDGET.settings, **switched(longest_wait=1.0))
    shop.write(commerce_event("large", page_url=f"https://example.com/{'a' * 20_000}"))
    shop.write_orders(RECORDS - 1)
    shop.api.set_faults(max_body_bytes=16_000)
    with shop.run() as process:
        watch = Watch(process, BUDGET)
        watch.until(lambda one: one["ledger"]["delivered"] == RECORDS - 1, "all but the large one")
        seen = watch.check()
        assert (seen["ledger"]["open"], seen["ledger"]["dead_lettered"]) == (1, 0)
        shop.api.set_faults()
        watch.until_settled(RECORDS)
    assert shop.api.accepted().total() == RECORDS
