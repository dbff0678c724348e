"""The machine's clock is wrong: no event becomes a dead letter for it, the log says so, and the service
recovers by itself."""

from __future__ import annotations

import time

import pytest

from tests.end_to_end.faults.clocks import WrongClock
from tests.end_to_end.processes import Process
from tests.end_to_end.records import commerce_event
from tests.end_to_end.shop import NewShop, Shop

RECORDS = 1_200
"""More records than the dead-letter guard needs for a judgement."""
DAYS = 3 * 86_400.0
"""More than the window for which delivered keys are remembered."""


def wrong(new_shop: NewShop, off: float) -> tuple[Shop, WrongClock]:
    """A shop whose processes have a clock that is so many seconds ahead."""
    shop = new_shop(partitions=1)
    clock = WrongClock(shop.folder, off)
    shop.env |= clock.env
    return shop, clock


@pytest.mark.parametrize("off", [-3_600.0, 8 * 86_400.0], ids=str)
def test_a_clock_that_is_wrong(new_shop: NewShop, off: float) -> None:
    """From the start on: all is delivered, with the times at which it happened; it is said who is wrong, how much."""
    shop, clock = wrong(new_shop, off)
    begun = int(time.time())
    shop.write_orders(1, "first")
    with shop.run() as process:
        process.until(lambda: shop.api.accepted(), "the first one")
        clock.set(off)
        shop.write_orders(RECORDS)
        ledger = process.until_settled(RECORDS + 1)
        assert (ledger["delivered"], ledger["dead_lettered"]) == (RECORDS + 1, 0)
        reported = process.until_logged("clock_off")
        assert reported["behind_seconds"] == pytest.approx(-off, abs=5)
        status = process.status()["clock"]
        assert status["behind_platform"] == pytest.approx(-off, abs=5)
        assert status["corrected"] == status["behind_platform"]
        assert 'pinstream_clock_behind_seconds{by="platform"}' in process.get("/metrics")[1]
        clock.set(0.0)
        process.until(lambda: process.status()["clock"]["corrected"] == 0, "the clock that is right again")
        process.until_logged("clock_right")
    assert shop.letters == []
    assert all(begun <= event["event_time"] <= time.time() for event in shop.api.events)


@pytest.mark.parametrize(("store", "off"), [("disk", DAYS), ("redis", -DAYS)])
def test_a_clock_that_jumps_forgets_nothing(
    new_shop: NewShop, request: pytest.FixtureRequest, off: float, store: str
) -> None:
    """A delivered event that is read again is a duplicate while the clock is wrong, after a restart meanwhile, and
    when it is right again; the jump is told."""
    # A clock that is behind is so from the start: then the deliveries themselves are stored under a wrong clock.
    shop, clock = wrong(new_shop, min(off, 0.0))
    if store == "redis":
        shop.env["PINSTREAM_KEY_STORE"] = f"{request.getfixturevalue('redis').url}?prefix={shop.topic}"
    events = [commerce_event(f"event-{n}") for n in range(RECORDS)]

    def read_again(process: Process) -> None:
        """Write all events again, and wait until each is a duplicate."""
        before = process.status()["ledger"]
        shop.write(*events)
        ledger = process.until_settled(before["read"] + RECORDS)
        assert ledger["duplicate"] == before["duplicate"] + RECORDS, ledger

    with shop.run() as process:
        shop.write(*events)
        assert process.until_settled(RECORDS)["delivered"] == RECORDS
        clock.set(off)
        read_again(process)
    with shop.run() as process:
        read_again(process)
        clock.set(0.0)
        read_again(process)
        reported = process.until_logged("clock_jumped")
        assert reported["seconds"] == pytest.approx(-off, abs=5)
        assert "remembered" in reported["means"]
        assert process.status()["clock"]["jumps"] == 1
        assert "pinstream_clock_jumps_total 1" in process.get("/metrics")[1]
        assert process.status()["counts"]["keys_forgotten_early"] == 0
    assert len(shop.api.events) == RECORDS
