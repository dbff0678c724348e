"""A sandbox first, as in the README, then another API, with one state folder. Each gets every event once. And a gateway
that is declared to be the platform."""

from __future__ import annotations

from tests.end_to_end.api import Api, Loop
from tests.end_to_end.records import commerce_event, new_group
from tests.end_to_end.shop import Shop

RECORDS = 100


def test_a_sandbox_first_and_then_another_api_on_one_folder(shop: Shop, servers: Loop) -> None:
    """What one destination received is no duplicate for another; the same holds for test mode."""
    expected = shop.write_orders(RECORDS)
    with Api(servers) as other:
        runs = [
            (shop.api.url, "false", "delivered"),
            (other.url, "true", "delivered"),
            (other.url, "false", "delivered"),
            (other.url + "/", "false", "duplicate"),
            (shop.api.url, "false", "duplicate"),
        ]
        for url, test_mode, disposition in runs:
            own = {"PINTEREST_API_URL": url, "PINTEREST_TEST_MODE": test_mode, "KAFKA_GROUP_ID": new_group()}
            assert shop.serve(RECORDS, **own)[disposition] == RECORDS
        assert shop.api.accepted() == other.accepted() == expected


def test_a_gateway_that_is_declared_to_be_the_platform(shop: Shop) -> None:
    """What was delivered through its URL before is a duplicate once PINSTREAM_DESTINATION says so: in the same group,
    for copies that come later; in another group; and in a replay."""
    orders = [commerce_event(f"order-{number}") for number in range(RECORDS)]
    shop.write(*orders)
    assert shop.serve(RECORDS)["delivered"] == RECORDS
    shop.env["PINSTREAM_DESTINATION"] = "pinterest"
    shop.write(*orders)
    for group, records in ((shop.group, RECORDS), (new_group(), 2 * RECORDS)):
        with shop.run(KAFKA_GROUP_ID=group) as process:
            assert process.until_settled(records)["duplicate"] == records
            assert process.status()["committed_elsewhere"] == 0
    shop.replay()
    assert shop.api.accepted() == {f"order-{number}": 1 for number in range(RECORDS)}
