"""The page in a real browser: each state in words, and every figure in its place.

Screenshots of the states go to artifacts/page/ for people to look at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from consumer.engine.figures.counters import Counters
from consumer.engine.figures.outside import SchemaWait
from consumer.engine.figures.statistics import Cause, ClockStatistics, GuardStatistics, Statistics
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.web.status import status_document
from tests.web.building import (
    INFO,
    TOPIC,
    account,
    empty,
    guarded,
    halted,
    hanging,
    idle,
    partition,
    statistics,
    throttled,
    unasked,
    unreachable,
)
from tests.web.page import scenes
from tests.web.page.browser import (
    VIEWS,
    Visit,
    check,
    needs_browser,
    shoot,
    shows,
    stand,
    text,
    turn,
)

pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]


# -- states


async def test_a_page_that_has_no_answer_yet_says_it_is_connecting(visit: Visit) -> None:
    """Loading: no figure is invented, and the page says that they will come."""
    async with stand(scenes.full()) as server:
        server.silent = True
        async with visit(server.url, clock=True) as shown:
            await shown.wait_for_selector("#tiles dd")
            assert await text(shown, "#state") == "Connecting … The figures appear in a moment."
            assert await text(shown, "#live") == "connecting …"
            assert re.findall(r"\d", await text(shown, "#tiles dd.big")) == []
            assert await shown.get_attribute("#main", "aria-busy") == "true"
            assert not re.search("NaN|undefined|null", await text(shown, "body"))
            await shoot(shown, "loading", full=False)
            await shown.clock.run_for(12_000)
            await shows(shown, "No connection to pinstream. There are no figures yet.", "#lost")


async def test_a_busy_page_shows_all_there_is(visit: Visit) -> None:
    """Live: every figure of /status in words and with units, each in its view, and a ledger that visibly adds up."""
    async with check(visit, scenes.full(), scenes.history()) as (_, shown):
        assert await text(shown, "#state") == "Keeping up: 31,866 records to go. The oldest has waited 4.5 s."
        assert (await text(shown, "#live")).startswith("live, ")
        ledger = await text(shown, "#ledger")
        for row in ("5,120,000 98.31 %", "48,004 0.92 %", "33,200 0.63 %", "176 < 0.01 %", "6,600 0.12 %"):
            assert row in ledger
        assert await text(shown, "#read") == "Read 5,207,980 records"
        assert (
            "It adds up: 5,120,000 + 48,004 + 33,200 + 176 + 6,600 = 5,207,980 read. 812 records more were released"
            in await text(shown, "#sum")
        )
        assert "Reads orders, ^shop\\..* as group pinstream" in await text(shown, "#route")
        assert await shown.is_hidden("#mode")
        said = {}
        for view in VIEWS[1:]:
            await turn(shown, view)
            said[view] = re.sub(" times ", " ", await text(shown, f"#{view}"))
    for view, words in SAID.items():
        for one in words:
            assert one in said[view]
    # A marketer's view says nothing of how Kafka stores records.
    assert not re.search(r"\b(offset|partition|topic|lag|commit)", said["quality"], re.I)


SAID = {
    "delivery": (
        "orders [3] at offset 1,200,348 12 s its batch to fill 549755885175",
        "1,204,511 keys in 91.9 MiB",
        "a verdict on the events 990 99.59 % 234 ms no answer, sent again 4 0.40 % 30 s",
        "HTTP answers: 200: 1,000, 429: 6, timeout: 2.",
        "call without a verdict, sent again timeout 2",
    ),
    "quality": (
        "96.00 % of 1,000 events delivered in the last hour arrived within one hour "
        "Half within 3 s, 95 % within 50 s, 99 % within 75 min.",
        "48,004 suppressed, 0.92 % of the records read",
        "malformed in user_data.em 77 < 0.01 % user_data.em is not an e-mail address",
    ),
    "refusals": (
        "none of em, hashed_maids",
        "orders [0] at offset 1,200,340 convert no_identity",
        "'em' is not hashed 9",
    ),
}
"""What stands in each view of `scenes.full`."""


STATES: dict[str, tuple[Callable[[], Statistics], str] | tuple[Callable[[], Statistics], str, str]] = {
    "halted": (
        halted,
        "Halted: Pinterest refuses the token or the ad account. Why: the access token is refused (HTTP 401, code "
        "2). Nothing is lost. What to do: set a valid token in PINTEREST_ACCESS_TOKEN or its file",
        "is refused Why: the access token is refused (HTTP 401, code 2). For 13 min; next attempt in 13 min.",
    ),
    "unreachable": (
        unreachable,
        "Pinterest does not answer. Why: no verdict on any event; the latest call: HTTP 403 (squid/5.7: Access "
        "denied). For 13 min: 52,011 records to go. Nothing is lost, and pinstream continues by itself. What to "
        "do: if",
        "does not answer Why: no verdict on any event; the latest call: HTTP 403 (squid/5.7: Access denied).",
    ),
    "guarded": (
        guarded,
        "Intake has stopped: too many records would be dead letters. Why: 1,640 of the latest 2,000 records of "
        "orders would be dead letters, mostly convert no_identity. Nothing is lost. The cause: records cannot be "
        "converted: the mapping, or the data from the producer, is wrong. What to do: correct the mapping or the "
        "producer and start again.",
        "takes events 0 calls in flight",
    ),
    "throttled": (
        throttled,
        "Throttled: waiting until Pinterest takes calls again. Nothing is lost, and pinstream continues by itself: "
        "1,011 records to go. The oldest has waited 67 min.",
        "is at its call limit Calls continue in 37 s.",
    ),
    "hanging": (
        hanging,
        "shop.events:clean works on one record for 94 s. PINSTREAM_TRANSFORM names this function. It has not "
        "returned for the record of orders [0] at offset 5,017. Nothing else is read until it is done;",
        "takes events 0 calls in flight",
    ),
    "unassigned": (empty, "No partitions assigned yet. The group is still forming"),
    "starting": (lambda: replace(empty(), starting="DNS"), "Starting. Why: DNS. It goes on"),
    "spare": (
        lambda: replace(empty(), joined=True),
        "No partitions for this member. The group has more members than its topics have partitions",
    ),
    "refused": (
        lambda: replace(
            guarded(), guard=GuardStatistics(TOPIC, 501, 1_000, "deliver refused", Cause.DESTINATION, "S")
        ),
        "Intake has stopped: too many records would be dead letters. Why: 501 of the latest 1,000 records "
        "of orders would be dead letters, mostly deliver refused of S. Nothing is lost. The cause: Pinterest "
        "refuses the events. What to",
        "refuses events 0 calls in flight",
    ),
    "unreadable": (
        lambda: statistics(replace(partition(3, lag=90), unreadable_at=1_020), waiting_for_start=1),
        "1 partition cannot be read further: Kafka sends damaged data. orders [3] from offset 1,020. pinstream "
        "keeps",
    ),
    "unstarted": (
        lambda: statistics(waiting_for_start=2),
        "Waiting for Kafka to say where to start. 2 assigned partitions cannot be read until then, 0 partitions",
    ),
    "partly": (
        lambda: statistics(partition(lag=9), waiting_for_start=1),
        "Waiting for Kafka to say where to start. 1 assigned partition cannot be read until then, 1 partition can.",
    ),
    "unknown": (
        lambda: statistics(partition(0), partition(1, lag=None)),
        "No known record is waiting. The lag of 1 partition is not known yet.",
    ),
    "clock": (
        lambda: statistics(partition(lag=9), clock=ClockStatistics(612.0, 610.0, 612.0, 0)),
        "This machine's clock is 10 min behind. Pinterest's clock says so, and pinstream uses that clock until "
        "this one is right. Nothing is lost. What to do: set the clock right (NTP); no restart is needed.",
    ),
    "clocks": (
        lambda: statistics(partition(open=2, lag=9), clock=ClockStatistics(None, 612.0, 0.0, 2)),
        "Record timestamps are 10 min ahead of this machine's clock. Pinterest's clock, which decides between the "
        "two, is not known yet. 2 events wait for it. What to do: compare the clocks",
    ),
    "no_such_schema": (
        lambda: statistics(
            partition(open=7, lag=9),
            waiting_for_schema=7,
            schemas=(SchemaWait("id", "17", 6, 44.0, 41.0), SchemaWait("id", "18", 1, 31.0, None)),
        ),
        "Waiting for schemas: 7 records. Why: the registry (or the folder) has said for 41 s that it does not know "
        "schema id 17; its records have waited 44 s. The records of 1 other schema wait too. All other records "
        "continue. What to do: register the schema",
    ),
    "no_schema_yet": (
        lambda: statistics(
            partition(open=1, lag=9),
            waiting_for_schema=1,
            schemas=(SchemaWait("id", "17", 1, 44.0, None),),
        ),
        "Waiting for schemas: 1 record. Why: the registry has not answered yet for schema id 17; its records have "
        "waited 44 s. All other records continue. What to do: check the registry",
    ),
    "schemas_from_disk": (
        lambda: statistics(partition(lag=7), schemas_from_disk=1),
        "The schema registry does not answer: 7 records to go. Only records of new schemas wait. What to do: check",
    ),
    "idle": (idle, "Caught up: no record is waiting.", "takes events 0 calls in flight, 0 events queued"),
    "stopping": (lambda: statistics(partition(), stopping=True), "Stopping."),
    "short_throttle": (
        lambda: statistics(partition(open=3), accounts=[account(state="throttled", queued=3, seconds=0.8)]),
        "Keeping up: 3 records open.",
        "is at its call limit Calls continue in 0.8 s.",
    ),
    "one_refused": (
        lambda: statistics(
            partition(open=3, lag=3), accounts=[account(), account("7", "halted", queued=3)], ages=[10**7]
        ),
        "Pinterest refuses 1 of 2 ad accounts; the others continue.",
        "takes events",
    ),
    "receipts": (
        lambda: statistics(partition(open=5, lag=5), receipts_error="the topic receipts is gone: create it"),
        "Receipts cannot be written: 5 records to go. Why: the topic receipts is gone: create it. No record settles "
        "without its receipt, and sending stops before too many are missing. Nothing is lost",
    ),
    "lost_a_record": (
        lambda: statistics(partition(delivered=3), mismatch=2),
        "The ledger does not add up.",
    ),
    "stuck": (
        lambda: statistics(partition(open=5, lag=5), seconds_since_progress=44.0),
        "Nothing settles: 5 records to go. No record was settled for 44 s.",
    ),
    "stalled": (
        lambda: statistics(partition(lag=7), stalled_for=130.0, seconds_since_progress=0.0),
        "Nothing settles: 7 records to go. No record was settled for 2 min.",
    ),
    "stalled_beside_a_clock": (
        lambda: statistics(
            partition(open=1, lag=7),
            stalled_for=130.0,
            clock=ClockStatistics(70.0, 0.0, 70.0, 0),
            oldest_open=OldestOpen(TOPIC, 0, 7, 133.0, WaitsFor.KEY_STORE, None),
        ),
        "Nothing settles: 7 records to go. No record was settled for 2 min. The oldest open event waits for the "
        "key",
    ),
    "stalled_for_a_schema": (
        lambda: statistics(
            partition(open=1, lag=7),
            stalled_for=130.0,
            waiting_for_schema=1,
            schemas=(SchemaWait("id", "17", 1, 133.0, None),),
            oldest_open=OldestOpen(TOPIC, 0, 7, 133.0, WaitsFor.SCHEMA, None),
        ),
        "Waiting for schemas: 1 record. Why: the registry has not answered yet for schema id 17; its records have "
        "waited 2 min. No other record settles either.",
    ),
}
"""Of each state: the scene, the headline, and what the destination's card says, if anything was sent."""


async def test_each_state_is_shown_in_words(visit: Visit) -> None:
    """The first thing on the page is the state, why it is so, and what to do, whatever it showed before."""
    async with check(visit, scenes.full(), {"steps": []}) as (server, shown):
        for name, (scene, state, *destination) in STATES.items():
            print(name)
            server.report(**scenes.scene(scene))
            await shows(shown, state, "#state")
            assert (await text(shown, "#state")).startswith(state)
            await shoot(shown, f"state-{name}", full=False)
            for view in VIEWS:
                await turn(shown, view)
                assert not re.search(r"NaN|undefined|\bnull\b|Infinity|\[object", await text(shown, "body"))
                if view == "delivery":
                    assert (*destination, "Nothing sent yet.")[0] in await text(shown, "#destination")
                if name == "one_refused" and view == "quality":
                    assert "Half within more than 7 days" in await text(shown, "#freshness")
            await turn(shown, "overview")


async def test_a_member_that_lags_says_how_far_and_for_how_long(visit: Visit) -> None:
    """Lag in records and in time, in red once it breaks the one-hour rule."""
    async with check(visit, scenes.lagging(), scenes.history()) as (server, shown):
        await shows(
            shown, "Behind: 31,866 records to go. The oldest has waited 21 min. Nothing is lost", "#state"
        )
        assert "waits for the call quota: calls are paced or throttled" in await text(shown, "#tiles")
        then = scenes.history()["steps"][0]["series"]["lag"][-31]
        await shows(shown, f"5 min ago: {then:,}", "#tiles")
        server.report(**scenes.lagging(5_000.0))
        late = "Too late for the one-hour rule: 31,866 records to go. The oldest has waited 83 min."
        await shows(shown, late, "#state")
        await shoot(shown, "lagging", full=False)


async def test_records_outside_the_ledger_are_shown_below_it(visit: Visit) -> None:
    """Records removed unread, recreated topics, positions that went back, commits for another destination; or none."""
    counters = Counters(removed_unread=3_600, positions_went_back=1)
    counters.topics_made_anew["orders"] = 1
    outside = statistics(partition(), counters=counters, other_destination=4)
    async with check(visit, scenes.scene(lambda: statistics(partition()))) as (server, shown):
        assert await shown.locator("#missing").is_hidden()
        server.report(**scenes.scene(lambda: outside))
        await shows(
            shown,
            "Kafka removed up to 3,600 records before they were read: raise the topic's retention "
            "(docs/runbook.md#records-were-removed-unread). orders was deleted and created again, and read from "
            "the beginning. Records that were unread before are lost (docs/runbook.md#a-topic-was-recreated). The "
            "position went back 1 time: a log was truncated, or a topic created again "
            "(docs/runbook.md#a-log-was-cut). 4 partitions began at an offset that the group had committed for "
            "another destination: earlier records are not sent to this one (docs/runbook.md#another-destination). "
            "Since the start; see the log for details.",
            "#missing",
        )


async def test_partitions_have_their_order(visit: Visit) -> None:
    """By topic and number, in whatever order they were assigned."""
    made = scenes.scene(
        lambda: statistics(*(partition(number) for number in (10, 2, 0)), partition(1, topic="a"))
    )
    async with check(visit, made, view="delivery") as (_, shown):
        names = await shown.locator("#partitions tbody th").all_inner_texts()
        assert names == ["a [1]", "orders [0]", "orders [2]", "orders [10]"]


async def test_a_ledger_that_does_not_add_up_is_not_hidden(visit: Visit) -> None:
    """Whether the page finds it, or the engine: the most severe state."""
    async with check(visit, scenes.full(ledger_mismatch=2)) as (server, shown):
        assert (await text(shown, "#state")).startswith("The ledger does not add up.")
        assert (await text(shown, "#sum")).startswith("It does not add up:")
        ledger = server.status["ledger"]
        server.report(ledger_mismatch=0, ledger={**ledger, "delivered": ledger["delivered"] - 1})
        await shows(shown, "≠ 5,207,980 read", "#sum")
        assert (await text(shown, "#state")).startswith("The ledger does not add up.")


# -- figures


async def test_coverage_has_every_parameter_with_its_advice_by_event_name(visit: Visit) -> None:
    """The table of coverage: the most frequent event first; the last day at a click."""
    async with check(visit, scenes.full(), view="quality") as (_, shown):
        heads = await shown.eval_on_selector_all("#coverage thead th", "all => all.map(e => e.innerText)")
        assert [one.split("\n")[0] for one in heads][1:] == [
            "All", "page_visit", "add_to_cart", "view_category", "checkout", "signup",
        ]  # fmt: skip
        assert await shown.locator("#coverage tbody tr").count() == 1 + len(scenes.IDS) == 18
        events = await text(shown, "#coverage tbody tr:first-child")
        assert events.endswith("59,222 48,210 6,120 3,377 1,204 311")
        phone = await text(shown, "#coverage tbody tr:nth-child(14)")
        assert phone.startswith("Phone, hashed ph The customer's phone number")
        # Below the goal, and blank where the parameter does not apply.
        assert phone.endswith("5 % 62 % 18 % of 50 %")
        assert await shown.locator("#coverage tbody tr:nth-child(14) .under").count() == 1
        first = await text(shown, "#fixes li:first-child")
        assert first.startswith(
            "Page address: in 70 % of checkout events in the last day; the goal is 95 %, 301 events more. The absolute"
        )
        assert "5 more figures below the goal" in await text(shown, "#fixes")
        note = await text(shown, "#coverage-note")
        assert note == "Of 59,222 events delivered in the last hour."
        await shown.check("input[value='86400']")
        await shows(shown, "Of 59,225 events delivered in the last day", "#coverage-note")
        assert "search" in await text(shown, "#coverage thead")


async def test_value_is_shown_by_event_name_and_currency(visit: Visit) -> None:
    """Of the chosen window, each currency for itself; nothing is said of fewer than ten events."""
    hour = {"checkout": {"EUR": {"events": 31, "value": 2_904}, "USD": {"events": 12, "value": 98_000}}}
    day = {**hour, "add_to_cart": {"EUR": {"events": 900, "value": 61_000}}}
    async with check(visit, scenes.full(delivered_value={"hour": hour, "day": day}), view="quality") as (
        server,
        shown,
    ):
        lines = "#value tbody tr"
        assert [one.split() for one in await shown.locator(lines).all_inner_texts()] == [
            ["checkout", "EUR", "31", "2,904"], ["checkout", "USD", "12", "98,000"],
        ]  # fmt: skip
        await shown.check("input[value='86400']")
        await shows(shown, "add_to_cart EUR 900 61,000 checkout EUR", "#value")
        server.report(delivered_value={"hour": {}, "day": {}})
        await shows(shown, "Not yet ten events with a value in the last day.", "#value")


async def test_what_pinterest_sees_stands_beside_what_was_sent(visit: Visit) -> None:
    """Only with a token that may read: gaps in words, each score, and a table with ours after the slash. Words of
    Pinterest's are text, never markup."""
    async with check(visit, scenes.full(), view="quality") as (server, shown):
        assert not await shown.locator("#by-sees").is_visible()
        server.report(event_quality=scenes.event_quality())
        await shows(
            shown, "Of checkout, Pinterest found hashed_email in 61 %, and em was sent in 97 %.", "#sees"
        )
        said = await text(shown, "#sees")
        assert "WEB, CONVERSIONS_API: FAIR" in said
        assert "WEB, TAG: unknown" in said
        assert "checkout, hashed_email: <b>Few</b> have it." in said
        cells = await shown.locator("#sees tbody td").all_inner_texts()
        assert [one.replace("\u00a0", " ") for one in cells] == [
            "100 % / 100 %, overlap 37 %", "–", "61 % / 97 %", "97 % / 100 %",
        ]  # fmt: skip
        server.report(event_quality=scenes.scene(unasked)["event_quality"])
        await shows(shown, "no answer yet. Not known: the token is refused (HTTP 401).", "#sees")


async def test_all_names_together_weigh_as_much_as_they_have_events(visit: Visit) -> None:
    """Weighted by events, not by names, and rounded down."""
    document = scenes.full()
    window = {
        name: scenes.covered(name, events, carried)
        for name, events, carried in (("page_visit", 900, 300), ("checkout", 90, 60), ("signup", 10, 10))
    }
    document["coverage"] = {**document["coverage"], "hour": window}
    async with check(visit, document, view="quality") as (server, shown):
        cells = await shown.locator("#coverage tbody tr:nth-child(2) td").all_inner_texts()
        assert [one.replace("\u00a0", " ") for one in cells] == ["37 %", "33 %", "66 %\nof 90 %", "100 %"]
        for name, one in window.items():
            window[name] = scenes.covered(name, one["events"], one["events"])
        server.report(coverage=document["coverage"])
        await shows(shown, "100 % 100 % 100 % 100 %", "#coverage tbody tr:nth-child(2)")


async def test_freshness_has_the_colours_of_the_alert_s_target(visit: Visit) -> None:
    """Green from 99 %, where no alert fires; red below 95 %; as on the dashboard."""
    async with check(visit, scenes.full(), view="quality") as (server, shown):
        for late, tone in ((6, "bad"), (5, "warn"), (2, "warn"), (1, "good"), (0, "good")):
            seen = statistics(partition(delivered=100), ages=[5] * (100 - late) + [4_000] * late)
            server.report(**status_document(seen, INFO))
            await shows(shown, f"{100 - late}.00 %" if late else "100 %", "#freshness")
            assert await shown.locator(f"#freshness .big.{tone}").count() == 1
            assert await shown.locator(f"#tiles .big.{tone}").count() == 1


SHARES = {
    (0, 0, 2): "–", (0, 7, 2): "0 %", (7, 7, 2): "100 %", (1, 3, 2): "33.33 %", (2, 3, 2): "66.66 %",
    (999_999, 1_000_000, 2): "99.99 %", (999_999_999, 1_000_000_000, 2): "99.99 %", (1, 1_000_000, 2): "< 0.01 %",
    (199, 200, 0): "99 %", (1, 200, 0): "< 1 %", (0.999999, 1, 2): "99.99 %", (0.29, 1, 2): "29.00 %",
}  # fmt: skip


async def test_what_a_reader_could_take_for_something_else(visit: Visit) -> None:
    """The page says that in test mode events are not recorded. The time of day alone of a dead letter would look like
    today's. 100 % means all and 0 % means none; what lies between is rounded down."""
    before = scenes.letters(1)[0] | {"at": 1_700_000_000.0}
    info = {"process": {**INFO["process"], "test_mode": True}}
    async with check(visit, scenes.full(latest_dead_letters=[before], **info)) as (_, shown):
        assert await text(shown, "#mode") == "test mode: events are validated, not recorded"
        await turn(shown, "refusals")
        said = await shown.evaluate("all => all.map(one => share(...one))", [list(one) for one in SHARES])
        assert [one.replace("\u00a0", " ") for one in said] == list(SHARES.values())
        assert await shown.locator("#latest time").all_inner_texts() == ["14 Nov, 22:13"]
        now = await shown.evaluate("moment(Date.now() / 1000)")
        assert re.fullmatch(r"\d\d:\d\d:\d\d", now)


async def test_freshness_is_of_the_window_that_is_chosen(visit: Visit) -> None:
    """The last hour, the last day at a click, and the total beside it; the tile is of the last hour."""
    document = scenes.scene(
        lambda: statistics(partition(delivered=40), ages=[5] * 9 + [4_000], earlier=[7] * 30)
    )
    async with check(visit, document, scenes.history(), view="quality") as (_, shown):
        assert (await text(shown, "#freshness")).startswith(
            "90.00 % of 10 events delivered in the last hour arrived within one hour Half within 5 s"
        )
        assert "Since the start: 97.50 % of 40 events within one hour." in await text(shown, "#freshness")
        await shown.check("input[value='86400']")
        await shows(
            shown, "97.50 % of 40 events delivered in the last day arrived within one hour", "#freshness"
        )
        await turn(shown, "overview")
        assert "90.00 % of 10 events delivered in the last hour" in await text(shown, "#tiles")
        plot = shown.locator("#overview [data-plot=within]")
        assert re.search(r"within one hour 9\d\.\d\d % latest", " ".join((await plot.inner_text()).split()))
        ticks = " ".join(await plot.locator(".canvas text").all_text_contents()).replace("\u00a0", " ")
        assert "0 % 25 % 50 % 75 % 100 %" in ticks


async def test_an_hour_without_deliveries_says_so(visit: Visit) -> None:
    """Nothing delivered in the last hour, or ever: no share is invented; earlier deliveries are shown as since the
    start."""
    document = scenes.scene(lambda: statistics(partition(delivered=30), earlier=[7] * 30))
    async with check(visit, document) as (server, shown):
        assert "Delivered within 1 h – nothing delivered in the last hour" in await text(shown, "#tiles")
        await turn(shown, "quality")
        assert await text(shown, "#freshness") == (
            "Nothing delivered in the last hour. Since the start: 100 % of 30 events within one hour."
        )
        await shown.check("input[value='86400']")
        await shows(shown, "100 % of 30 events delivered in the last day", "#freshness")
        server.report(freshness=scenes.scene(empty)["freshness"])
        await shows(shown, "Nothing delivered yet.", "#freshness")


async def test_figures_change_as_they_come_and_nothing_else_does(visit: Visit) -> None:
    """New figures show at once; what the reader has opened, chosen or focused stays."""
    async with check(visit, scenes.full(), scenes.history(), view="delivery") as (server, shown):
        await shown.click("#delivery [data-plot=calls] summary")
        await shown.focus("[data-plot=behind] .canvas")
        await shown.evaluate("window.before = document.querySelector('#partitions tbody tr')")
        partitions = [{**one, "lag": 5, "lag_seconds": 0.5} for one in server.status["partitions"]]
        server.report(partitions=partitions)
        await shows(shown, "Keeping up: 6,600 records open.", "#state")
        assert await shown.evaluate("window.before === document.querySelector('#partitions tbody tr')")
        assert await shown.evaluate("document.activeElement.closest('figure').dataset.plot") == "behind"
        assert await shown.is_visible("#delivery [data-plot=calls] details table")


async def test_a_screen_reader_announces_a_change_once(visit: Visit) -> None:
    """The line that a screen reader announces changes with the state, not with the figures."""
    async with stand(scenes.full()) as server, visit(server.url) as shown:
        await shows(shown, "Keeping up", "#announce")
        await shown.evaluate(
            "window.said = []; new MutationObserver(() => said.push($('announce').textContent))"
            ".observe($('announce'), { childList: true, characterData: true, subtree: true })"
        )
        for lag in (10, 20, 30):
            server.report(partitions=[{**one, "lag": 9_000 + lag} for one in server.status["partitions"]])
            await shows(shown, f"Keeping up: {4 * (9_000 + lag):,} records to go.", "#state")
        server.report(
            **{name: scenes.scene(halted)[name] for name in ("ledger", "destination", "partitions")}
        )
        await shows(shown, "Halted", "#announce")
        assert await shown.evaluate("said") == ["Halted: Pinterest refuses the token or the ad account."]


async def test_many_partitions_show_the_worst_first_and_all_on_demand(visit: Visit) -> None:
    """Sixteen rows, those with most lag, in their order; a button shows the others."""
    many = scenes.full()
    many["partitions"] = [
        {**many["partitions"][0], "partition": number, "lag": number, "lag_seconds": float(number)}
        for number in range(40)
    ]
    async with check(visit, many, view="delivery") as (_, shown):
        assert await shown.locator("#partitions tbody tr").count() == 16
        assert (await text(shown, "#partitions tbody tr")).startswith("orders [24]")
        await shown.focus("#more")
        await shown.keyboard.press("Enter")
        assert await shown.locator("#partitions tbody tr").count() == 40


async def test_a_message_of_the_api_stays_text(visit: Visit) -> None:
    """Markup in messages of the API is shown as text."""
    counters = Counters()
    nasty = "<img src=x onerror=alert(1)>"
    counters.api_warnings[nasty] = 3
    letter = {**scenes.letters(1)[0], "message": nasty, "code": nasty, "topic": nasty}
    document = scenes.scene(lambda: statistics(partition(), counters=counters), latest_dead_letters=[letter])
    async with check(visit, document, view="quality") as (_, shown):
        assert nasty in await text(shown, "#warnings")
        await turn(shown, "refusals")
        # Also in the command, in quotes of the shell.
        assert (await text(shown, "#latest")).count(nasty) == 4
        assert f"--origin '{nasty}:0:" in await text(shown, "#latest")
        assert await shown.locator("img").count() == 0
