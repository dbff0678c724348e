"""The page while something does not answer: the brokers, a worker, the key store; and certificates that end."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest

from consumer.engine.figures.statistics import Statistics, Totals
from tests.web.building import partition, silent, statistics, uncoordinated
from tests.web.page import scenes
from tests.web.page.browser import Visit, check, live, needs_browser, shoot, shows, text, turn

pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]


def settled(seen: Statistics) -> Totals:
    """The ledger after its open records were released."""
    return replace(seen.totals, open=0, read=seen.totals.read - seen.totals.open)


async def test_while_no_broker_answers_nothing_checks_well(visit: Visit) -> None:
    """Red from the first look to the end of the session and beyond; the lag is unknown in each place, and never 0."""
    lost = replace(silent(), partitions=(), joined=False, totals=settled(silent()))
    async with check(visit, scenes.scene(silent), scenes.history()) as (server, shown):
        assert (await text(shown, "#state")).startswith(
            "The brokers do not answer (kafka:9092, connection refused) for 12 s. Nothing can be read or committed, "
            "and the lag is unknown. What was read before still goes to Pinterest: 640 records open. Nothing is lost"
        )
        assert await shown.get_attribute("#state", "class") == "bad"
        assert await shown.title() == "The brokers do not answer – pinstream"
        assert re.search(
            r"Lag unknown at least|Lag unknown 2 partitions not known", await text(shown, "#tiles")
        )
        await shoot(shown, "brokers-silent")
        await turn(shown, "delivery")
        said = "gets what was read before; nothing more can be read 0 calls in flight, 640 events queued"
        assert said in await text(shown, "#destination")
        assert (await text(shown, "#partitions")).count("unknown") == 2
        for document in (scenes.scene(lambda: lost), scenes.scene(lambda: replace(lost, joined=True))):
            server.report(**document)
            await shows(shown, "None assigned.", "#partitions")
            assert "The brokers do not answer" in await text(shown, "#state")
            assert await shown.get_attribute("#state", "class") == "bad"
            await turn(shown, "overview")
            assert "Lag unknown" in await text(shown, "#tiles")
            await turn(shown, "delivery")
            assert not re.search("takes events|spare|forming", await text(shown, "body"))


async def test_a_group_without_a_coordinator_is_red(visit: Visit) -> None:
    """The headline says what to look at, with and without partitions, and not that the group is forming."""
    lost = replace(uncoordinated(), partitions=(), joined=False, totals=settled(uncoordinated()))
    for made, ending in (
        (uncoordinated, "; what it reads still goes to Pinterest: 700 records to go"),
        (lambda: lost, ""),
    ):
        async with check(visit, scenes.scene(made), scenes.history()) as (_, shown):
            assert (await text(shown, "#state")).startswith(
                "No coordinator of the group answers (for 12 s): the partitions of __consumer_offsets need leaders "
                "that this machine reaches; fewer brokers than offsets.topic.replication.factor cannot create it. "
                f"Until one does, this member gets no partitions, and nothing can be committed{ending}. Nothing"
            )
            assert await shown.get_attribute("#state", "class") == "bad"
            assert await shown.title() == "No coordinator of the group answers – pinstream"
            assert not re.search("spare|forming", await text(shown, "body"))
            await shoot(shown, "no-coordinator")


async def test_a_worker_that_stands_still_is_named(visit: Visit) -> None:
    """Its row says so after two heartbeats, and the headline after five seconds."""
    made = scenes.full(workers=scenes.workers())
    made["workers"][1] |= {"silent": True, "reported_seconds_ago": 1.1}
    async with check(visit, made, view="delivery") as (server, shown):
        assert "Worker 2 stands still: no report" in await text(shown, "#workers")
        assert (await text(shown, "#state")).startswith("Keeping up")
        await turn(shown, "overview")
        made["workers"][1]["reported_seconds_ago"] = 12.0
        server.report(workers=made["workers"])
        await shows(shown, "Worker 2 stands still. It has not reported for 12 s.", "#state")
        assert await shown.get_attribute("#state", "class") == "bad"
        await shoot(shown, "worker-still")


async def test_the_page_says_why_the_key_store_fails(visit: Visit) -> None:
    """The cause is that of the log."""
    why = "the shared key store redis://keys:6379 takes no writes, for too few replicas follow it"
    made = scenes.scene(
        lambda: statistics(
            partition(open=5, lag=5), seconds_since_progress=44.0, key_store_fails=True, key_store_trouble=why
        )
    )
    async with check(visit, made) as (_, shown):
        assert (
            f"Nothing settles: 5 records to go. No record was settled for 44 s. The key store fails: {why}."
            in (await text(shown, "#state"))
        )


async def test_the_page_says_when_a_certificate_ends(visit: Visit) -> None:
    """From fourteen days before, and after its end."""
    setting = "KAFKA_SSL_CERTIFICATE_LOCATION"
    async with check(visit, scenes.full(certificates=[]), view="delivery") as (server, shown):
        soon = "a certificate ends in 9 days: replace it"
        for days, said in ((15, None), (9.4, soon), (-1, "a certificate has ended")):
            server.report(certificates=[{"setting": setting, "expires": int(time.time() + days * 86_400)}])
            if said is None:
                await live(shown)
                assert setting not in await text(shown, "#retries")
            else:
                await shows(shown, said, "#retries")
                assert setting in await text(shown, "#retries")


async def test_members_that_differ_are_named(visit: Visit) -> None:
    """What other members send by other settings stands below the ledger, with what to do; nothing where they agree."""
    differ = statistics(partition(), members_differ=("mapping", "function", "destination"))
    async with check(visit, scenes.scene(lambda: statistics(partition()))) as (server, shown):
        assert await shown.locator("#members").is_hidden()
        server.report(**scenes.scene(lambda: differ))
        await shows(
            shown,
            "Other members of the group send by another mapping, function: normal while an update is rolled out. "
            "After it, give all the same. Members that share the key store send to another URL for the same ad "
            "account: each has a quota and a memory of its own. Give all the same, or see PINSTREAM_DESTINATION. "
            "See docs/runbook.md#members-differ.",
            "#members",
        )


async def test_late_events_are_a_banner(visit: Visit) -> None:
    """While web and app events are delivered late, overview and quality say what becomes of them."""
    made = scenes.full()
    made["freshness"]["catching_up"] = "Catching up: 31 web and app events of the last five minutes were late"
    async with check(visit, made) as (server, shown):
        assert f"{made['freshness']['catching_up']}. See Data quality" in await text(shown, "#todo")
        await turn(shown, "quality")
        assert made["freshness"]["catching_up"] in await text(shown, "#freshness")
        server.report(freshness={**made["freshness"], "catching_up": None})
        await shown.wait_for_function("() => !document.querySelector('#freshness .warn:not(.big)')")
