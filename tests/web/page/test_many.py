"""The page of many: ad accounts in several states, workers, members that share a key store, sections."""

from __future__ import annotations

import pytest

from tests.web.page import scenes
from tests.web.page.browser import Visit, check, fits, needs_browser, shoot, shows, text, turn

pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]


@pytest.mark.parametrize("size", ["wide", "tablet", "phone"])
async def test_each_account_says_how_it_is(visit: Visit, size: str) -> None:
    """The refused one is named at the top, which does not call the others well if they are not."""
    async with check(visit, scenes.crowd(), scenes.history(), size=size) as (_, shown):
        state = await text(shown, "#state")
        assert state.startswith(
            "Pinterest refuses 1 of 4 ad accounts; for 1 more it does not answer. Why: ad account 2: the access token"
        )
        await turn(shown, "delivery")
        destination = await text(shown, "#destination")
        for said in (
            "Ad account 1 takes events",
            "Ad account 2 is refused Why: the access token is refused (HTTP 401, code 2).",
            "Another member met it and reported it to this one. 0 calls in flight, 9,120 events queued",
            "Ad account 3 is at its call limit Calls continue in 13 s.",
            "Ad account 4 does not answer Why: no verdict on any event",
            "The call quota is divided by 3 members.",
        ):
            assert said in destination
        opened = await text(shown, "#oldest")
        assert "another member, which has the same event in flight" in opened
        assert "14 open events are in flight at another member" in opened
        await fits(shown)
        await shoot(shown, f"many-{size}")


async def test_many_accounts_leave_no_empty_card(visit: Visit) -> None:
    """A long list of accounts stands in columns, over the whole width; a short one stands beside the calls."""
    many, few = scenes.crowd(), scenes.full()
    listed = many["destination"]["accounts"]
    many["destination"]["accounts"] = [{**listed[i % 4], "account": str(i)} for i in range(14)]
    for scene, beside in ((many, False), (few, True)):
        async with check(visit, scene, scenes.history(), view="delivery") as (_, shown):
            # In one question: between two of them the page may move both.
            calls, destination = await shown.evaluate("""() => [
                document.querySelector("#calls"), document.querySelector("#destination"),
            ].map((one) => one.closest(".card").getBoundingClientRect().toJSON())""")
            assert (calls["y"] == destination["y"]) is beside
            # 14 accounts one below the other would take more than 1,000.
            assert destination["height"] < 800
            await shoot(shown, f"accounts-{len(scene['destination']['accounts'])}")


async def test_workers_are_shown(visit: Visit) -> None:
    """Each with its state and restarts; the partitions are then those of all. A single process has none, nor a table
    for them."""
    async with check(visit, scenes.crowd(), view="delivery") as (server, shown):
        lines = await shown.locator("#workers tbody tr").all_inner_texts()
        assert [" ".join(line.split()) for line in lines] == [
            "Worker 1 running 2 120,000 40 0 0.3 s ago",
            "Worker 2 running 2 240,000 80 3 0.3 s ago",
            "Worker 3 ended; will be started again 0 – – 7 –",
            "Worker 4 starting 0 – – 0 0.3 s ago",
        ]
        assert await text(shown, "#h-partitions") == "Partitions of all workers"
        server.report(workers=[])
        await shows(shown, "Partitions of this member", "#h-partitions")
        assert await shown.is_hidden("#by-workers")


async def test_the_whole_group_is_shown(visit: Visit) -> None:
    """Members with their partitions and lags, and partitions without a member; a sentence where Kafka cannot say."""
    held = [{"topic": "orders", "partition": number, "lag": 5} for number in range(3)]
    async with check(visit, scenes.full()) as (server, shown):
        server.group = {
            "state": "Stable",
            "problem": None,
            "members": [
                {"member": None, "lag": 5, "partitions": held[:1]},
                {"member": "shop (10.0.0.7)", "lag": 10, "partitions": held[1:]},
            ],
        }
        await turn(shown, "delivery")
        await shows(shown, "State: Stable.", "#group")
        assert [
            " ".join(one.split()) for one in await shown.locator("#group tbody tr").all_inner_texts()
        ] == [
            "no member orders [0] 5",
            "shop (10.0.0.7) orders [1, 2] 10",
        ]
        server.group = {"state": None, "members": [], "problem": "Kafka: the brokers do not say who is in it"}
        await turn(shown, "overview")
        await turn(shown, "delivery")
        await shows(shown, "Kafka: the brokers do not say", "#group")
        server.group = None
        await turn(shown, "overview")
        await turn(shown, "delivery")
        await shown.wait_for_selector("#by-group", state="hidden")
