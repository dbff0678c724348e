"""Parameter coverage: presence as the payload has it, windows that move, a sample that is fair, and bounds.

What is random is seeded, or is made to go through all that can be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.conversion.targets import TARGETS
from consumer.engine import messages as m
from consumer.engine.block import Delivery
from consumer.engine.claims import dedup_key
from consumer.engine.coverage import OTHER, PARAMETERS, Coverage, Covered
from tests.engine.building import (
    ACCOUNT,
    PROPERTY,
    UNIX,
    Core,
    answer_body,
    event,
    event_ids,
    filtered,
    unconvertible,
)

IDS = [one.id for one in PARAMETERS]
PRESENT: dict[str, dict[str, Any]] = {
    "em": {"user_data": {"em": ["digest"]}},
    "ph": {"user_data": {"ph": ["digest"]}},
    "external_id": {"user_data": {"external_id": ["digest"]}},
    "click_id": {"user_data": {"click_id": "Click"}},
    "ip_and_agent": {"user_data": {"client_ip_address": "192.0.2.1", "client_user_agent": "agent"}},
    "value": {"custom_data": {"value": "0"}},
    "currency": {"custom_data": {"currency": "EUR"}},
    "content_ids": {"custom_data": {"content_ids": ["007"]}},
    "order_id": {"custom_data": {"order_id": "1"}},
    "event_source_url": {"event_source_url": "https://shop.example/"},
    "opt_out": {"opt_out": False},
}
"""The least payload that carries each parameter."""
NOTHING: dict[str, Any] = {}


def make(name: str = "checkout", payload: dict[str, Any] = NOTHING) -> Delivery:
    """An event with this payload."""
    return Delivery(ACCOUNT, name, "id", int(UNIX), False, orjson.dumps(payload), ())


def make_coverage(seed: int = 0) -> Coverage:
    """Seeded, as the pipeline's."""
    return Coverage(Random(seed).random)


def shares(one: Covered) -> dict[str, float]:
    """The shares of those parameters that have one."""
    return {name: share for name, share in zip(IDS, one.shares, strict=True) if share}


def carried(one: Covered) -> dict[str, int]:
    """How many of those looked at carried each parameter; those that none did are left out."""
    return {name: count for name, count in zip(IDS, one.carried, strict=True) if count}


def look_at(payload: dict[str, Any]) -> dict[str, int]:
    """What one event with this payload carries."""
    coverage = make_coverage()
    coverage.add([make(payload=payload)], 0.0)
    return carried(coverage.snapshot(0.0).hour["checkout"])


@pytest.mark.parametrize("parameter", IDS)
def test_each_parameter_is_read_from_its_place(parameter: str) -> None:
    """The least payload that carries it carries it alone; an empty one carries nothing."""
    assert look_at(PRESENT[parameter]) == {parameter: 1}
    assert look_at({}) == {}
    assert look_at({"user_data": {}, "custom_data": {"contents": []}}) == {}


def test_places_are_fields_of_a_payload() -> None:
    """No name here is one that a conversion event does not have."""
    for payload in PRESENT.values():
        for name, value in payload.items():
            fields = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
            assert set(fields) <= set(TARGETS)


def test_address_and_agent_count_only_together() -> None:
    """As the platform has it: one of them is no identity."""
    assert look_at({"user_data": {"client_ip_address": "192.0.2.1"}}) == {}
    assert look_at({"user_data": {"client_user_agent": "agent"}}) == {}


def test_ids_of_contents_are_content_ids() -> None:
    """Either place will do, and an item without an id is none."""
    assert look_at({"custom_data": {"contents": [{"item_name": "shirt"}, {"id": "7"}]}}) == {"content_ids": 1}
    assert look_at({"custom_data": {"contents": [{"item_name": "shirt"}]}}) == {}


def test_advice_is_one_plain_sentence_each() -> None:
    """It begins with a capital letter, ends with a stop, has no other, and fits on two lines."""
    for one in PARAMETERS:
        assert one.advice[0].isupper()
        assert one.advice.endswith(".")
        assert ". " not in one.advice
        assert len(one.advice) < 180
    assert len(set(IDS)) == len(IDS) == 11


def test_all_of_a_small_stream_is_looked_at() -> None:
    """Up to 256 events of a name in a minute nothing is left to chance, in each minute again."""
    coverage = make_coverage()
    for minute in range(50):
        for place in range(0, 240, 4):
            events = [make(payload=PRESENT["em"] if one < 30 else NOTHING) for one in range(place, place + 4)]
            coverage.add(events, minute * 60.0 + place / 4)
    covered = coverage.snapshot(49 * 60.0 + 59).hour["checkout"]
    assert covered[:2] == (12_000, 12_000)
    assert (carried(covered), shares(covered)) == ({"em": 1_500}, {"em": 0.125})


def test_of_many_events_one_in_sixteen_is_looked_at() -> None:
    """So that it costs next to nothing: 256 of the first 256, then half, a quarter, an eighth, and a sixteenth."""
    coverage = make_coverage()
    for events, sampled in ((256, 256), (512, 384), (1024, 512), (2048, 640), (2048 + 16 * 100, 740)):
        now = events * 60.0
        coverage.add([make()] * events, now)
        assert coverage.snapshot(now).hour["checkout"][:2] == (events, sampled)
        coverage = make_coverage()


def test_a_rare_name_is_seen_among_many_others() -> None:
    """Wherever it stands."""
    coverage = make_coverage()
    for minute in range(30):
        events = [make("page_visit") for _ in range(64)]
        events[minute] = make("signup", PRESENT["em"])
        coverage.add(events, minute * 60.0)
    covered = coverage.snapshot(29 * 60.0).hour
    assert covered["signup"][:2] == (30, 30)
    assert carried(covered["signup"]) == {"em": 30}
    assert covered["page_visit"].events == 30 * 63


def test_the_hour_forgets_and_the_day_does_not() -> None:
    """An event is in the hour for 59 to 60 minutes, in the day for 23 hours 45 minutes to 24 hours."""
    coverage = make_coverage()
    coverage.add([make()], 30.0)
    for now, hour, day in (
        (59 * 60.0, 1, 1),
        (60 * 60.0 + 29, 0, 1),
        (23.7 * 3600, 0, 1),
        (24 * 3600.0, 0, 0),
        (90 * 3600.0, 0, 0),
    ):
        taken = coverage.snapshot(now)
        assert (len(taken.hour), len(taken.day)) == (hour, day), now
    coverage.add([make("lead")], 90 * 3600.0)
    assert set(coverage.snapshot(90 * 3600.0).day) == {"lead"}


def test_looking_changes_nothing() -> None:
    """Two that differ only in how often somebody looked come to the same."""
    watched, alone = make_coverage(), make_coverage()
    for second in range(0, 7200, 7):
        slice_ = [
            make("checkout", PRESENT["em"] if (second + n) % 3 else NOTHING) for n in range(second % 11 + 1)
        ]
        watched.add(slice_, float(second))
        alone.add(slice_, float(second))
        watched.snapshot(float(second))
    assert watched.snapshot(7200.0) == alone.snapshot(7200.0)


def test_a_snapshot_is_frozen() -> None:
    """What is read later does not change with what comes later."""
    coverage = make_coverage()
    coverage.add([make()], 0.0)
    before = coverage.snapshot(0.0)
    coverage.add([make()], 0.0)
    assert before.hour["checkout"].events == 1


def test_names_are_bounded() -> None:
    """Ten thousand names are 64 and ``other``; no event is lost, and each name has a sample."""
    coverage = make_coverage()
    for n in range(0, 10_000, 50):
        coverage.add([make(f"name{n + one}") for one in range(50)], n / 10)
    covered = coverage.snapshot(1000.0).hour
    assert len(covered) == 65
    assert sum(one.events for one in covered.values()) == 10_000
    assert covered[OTHER].events == 10_000 - 64
    assert all(0 < one.sampled <= one.events for one in covered.values())


# -- a sample that is fair


Flags = list[bool]
"""Of each event, whether it carries the parameter that a test is about."""


def tell(
    coverage: Coverage, flags: Iterable[bool], size: int, now: float = 0.0, name: str = "checkout"
) -> None:
    """Events of one name, in slices of that size."""
    plain, marked = make(name), make(name, PRESENT["em"])
    events = [marked if flag else plain for flag in flags]
    for start in range(0, len(events), size):
        coverage.add(events[start : start + size], now)


def estimates(coverage: Coverage, now: float = 0.0, name: str = "checkout") -> tuple[int, int]:
    """How many events, and how many carriers, those that were looked at stand for."""
    coverage.snapshot(now)
    row = coverage._windows.sums(coverage._running()).hour[name]
    return row[2], row[3 + len(IDS)]


_RUNS = st.lists(st.tuples(st.booleans(), st.integers(1, 600)), min_size=1, max_size=12)
"""Bursts of carriers and of others: adversarial orders are among them."""


@PROPERTY
@given(_RUNS, st.sampled_from([1, 5, 16, 63, 64, 1000]))
def test_an_estimate_is_right_on_average_whatever_the_order(runs: list[tuple[bool, int]], size: int) -> None:
    """Exactly: over all the places that can be drawn in a block, what the chosen stand for is what there is."""
    flags = [flag for flag, count in runs for _ in range(count)]
    stood_for = carriers = 0
    for draw in range(16):
        coverage = Coverage(lambda draw=draw: draw / 16)  # type: ignore[misc]
        tell(coverage, flags, size)
        weight, weighted = estimates(coverage)
        stood_for, carriers = stood_for + weight, carriers + weighted
        assert abs(weight - len(flags)) <= min(15, len(flags) // 128)  # the block that is cut short
    assert (stood_for, carriers) == (16 * len(flags), 16 * sum(flags))


ORDERS: dict[str, Flags] = {
    "all carriers first": [True] * 2_000 + [False] * 6_000,
    "all carriers last": [False] * 6_000 + [True] * 2_000,
    "the first sixteen": [True] * 16 + [False] * 4_000,
    "all but the first sixteen": [False] * 16 + [True] * 4_000,
    "every second": [n % 2 == 0 for n in range(8_000)],
    "every fourth": [n % 4 == 0 for n in range(8_000)],
    "every sixteenth, as long as a block": [n % 16 == 0 for n in range(8_000)],
    "one of each slice": [n % 64 == 63 for n in range(8_000)],
    "bursts of a slice": [n // 64 % 8 == 0 for n in range(8_000)],
    "bursts that grow": [n.bit_length() % 2 == 0 for n in range(8_000)],
}


def bound(events: int, unlikely: float) -> float:
    """By how much a share is off at most, but for an `unlikely` chance (Hoeffding: blocks err independently).

    A block of 16 is off by 16 events at most, there is one for each 16 events, and one more that is cut short.
    """
    return math.sqrt(8 * (events + 16) * math.log(2 / unlikely)) / (events - 15)


@pytest.mark.parametrize("order", ORDERS)
def test_a_share_is_near_the_truth_in_any_order(order: str) -> None:
    """In each of 40 draws within the bound, and their mean within that of forty times as many events."""
    flags = ORDERS[order]
    truth, found = sum(flags) / len(flags), []
    for seed in range(40):
        coverage = make_coverage(seed)
        tell(coverage, flags, 64)
        found.append(shares(coverage.snapshot(0.0).hour["checkout"]).get("em", 0.0))
    assert max(abs(share - truth) for share in found) <= bound(len(flags), 1e-3)
    assert abs(sum(found) / len(found) - truth) <= bound(40 * len(flags), 1e-3)


def test_the_error_is_as_small_as_the_page_says() -> None:
    """docs/status.md: more than 400/√N points off once in twenty times at most; in the worst case, a coin's toss."""
    toss, off, events = Random(1), 0, 4_000
    for seed in range(100):
        flags, coverage = [toss.random() < 0.5 for _ in range(events)], make_coverage(seed)
        tell(coverage, flags, 64)
        share = shares(coverage.snapshot(0.0).hour["checkout"])["em"]
        off += abs(share - sum(flags) / events) > 4 / math.sqrt(events)
    assert off <= 5


def test_minutes_count_for_what_happened_in_them() -> None:
    """A quiet minute is looked at in full, a busy one in part: that does not make its events count for more."""
    found, truth = [], 0.0
    for seed in range(20):
        coverage, events = make_coverage(seed), []
        for minute in range(40):
            flags = [True] * 16 if minute % 2 else [False] * 1_600
            tell(coverage, flags, 64, minute * 60.0)
            events += flags
        truth = sum(events) / len(events)
        found.append(shares(coverage.snapshot(39 * 60.0).hour["checkout"])["em"])
    assert max(abs(share - truth) for share in found) < 0.001  # pooled, it would be 2 % instead of 1 %


def test_a_name_is_not_another() -> None:
    """Names that come in turn, with a period of the block: each has its own share, and its own events."""
    coverage = make_coverage()
    for _ in range(200):
        coverage.add([make("page_visit")] * 15 + [make("checkout", PRESENT["em"])], 0.0)
    covered = coverage.snapshot(0.0).hour
    assert {name: one.events for name, one in covered.items()} == {"page_visit": 3_000, "checkout": 200}
    assert (shares(covered["page_visit"]), shares(covered["checkout"])) == ({}, {"em": 1.0})


# -- against a list of all events


_EVENTS = st.tuples(st.sampled_from(["checkout", "lead", "search"]), st.integers(0, 2 ** len(IDS) - 1))
_WAITS = st.sampled_from([0, 1, 30, 61, 899, 3500, 3601, 40_000])
_SLICES = st.lists(st.tuples(_WAITS, st.lists(_EVENTS, min_size=1, max_size=8)), min_size=1, max_size=8)
_MANY = st.lists(st.tuples(_WAITS, _EVENTS, st.integers(1, 3_000)), min_size=1, max_size=6)
Happened = list[tuple[int, str, set[str]]]


def _some(bits: int) -> set[str]:
    return {parameter for place, parameter in enumerate(IDS) if bits >> place & 1}


def _payload(parameters: set[str]) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    for parameter in parameters:
        for name, value in PRESENT[parameter].items():
            if isinstance(value, dict):
                payload.setdefault(name, {}).update(value)
            else:
                payload[name] = value
    return payload


def _inside(happened: Happened, since: int) -> Mapping[str, list[set[str]]]:
    return {
        name: [some for at, other, some in happened if other == name and at >= since]
        for name in sorted({name for at, name, _ in happened if at >= since})
    }


def _exactly(window: Mapping[str, Covered], inside: Mapping[str, list[set[str]]]) -> None:
    assert {name: one.events for name, one in window.items()} == {
        name: len(all_) for name, all_ in inside.items()
    }
    for name, one in window.items():
        had = Counter(parameter for some in inside[name] for parameter in some)
        assert one.sampled == one.events
        assert one.carried == tuple(had[parameter] for parameter in IDS)
        assert one.shares == tuple(had[parameter] / one.events for parameter in IDS)


@PROPERTY
@given(_SLICES, st.integers(0, 2**32))
def test_few_events_are_counted_exactly(slices: list[tuple[int, list[tuple[str, int]]]], seed: int) -> None:
    """Both windows, at every step: events, carriers and shares are those of a list of all events."""
    coverage, now, happened = make_coverage(seed), 0, Happened()
    met = Counter[tuple[int, str]]()
    for wait, events in slices:
        now += wait
        events = [(name, bits) for name, bits in events if met[now // 60, name] < 256]
        met.update((now // 60, name) for name, _ in events)
        coverage.add([make(name, _payload(_some(bits))) for name, bits in events], now)
        happened += [(now, name, _some(bits)) for name, bits in events]
        hour, day = coverage.snapshot(now)
        _exactly(hour, _inside(happened, (now // 60 - 59) * 60))
        _exactly(day, _inside(happened, (now // 900 - 95) * 900))


@PROPERTY
@given(_MANY, st.integers(0, 2**32))
def test_many_events_are_counted_and_looked_at_in_part(
    bursts: list[tuple[int, tuple[str, int], int]], seed: int
) -> None:
    """Events are exact, as many of those looked at carry a parameter as can be, all or nothing is never an estimate."""
    coverage, now, happened = make_coverage(seed), 0, Happened()
    for wait, (name, bits), count in bursts:
        now += wait
        coverage.add([make(name, _payload(_some(bits)))] * count, now)
        happened += [(now, name, _some(bits))] * count
    hour, _ = coverage.snapshot(now)
    inside = _inside(happened, (now // 60 - 59) * 60)
    assert {name: one.events for name, one in hour.items()} == {
        name: len(all_) for name, all_ in inside.items()
    }
    for name, one in hour.items():
        had = Counter(parameter for some in inside[name] for parameter in some)
        assert 0 < one.sampled <= one.events
        for parameter, count, share in zip(IDS, one.carried, one.shares, strict=True):
            assert max(0, had[parameter] - (one.events - one.sampled)) <= count <= had[parameter]
            assert 0 <= share <= 1
            assert share == 1 or had[parameter] < one.events
            assert share == 0 or had[parameter] > 0


def test_the_core_counts_what_was_delivered() -> None:
    """The very events that freshness and the ledger count: no duplicate, of now or of an earlier day, nothing that is
    filtered, cannot be converted or is refused by the platform, and nothing before it is delivered."""
    core = Core(linger=0.0)
    core.stored_keys.add(dedup_key(ACCOUNT, "checkout", "old"))
    core.assign()
    core.fetch(event("a", value="1"), event("b"), event("a"), event("old"), event("bad", value="2"))
    core.fetch(filtered(), None, unconvertible(), b"\xff")
    core.send_all()
    assert core.statistics().coverage.hour == {}
    send = core.take(m.Send)
    assert event_ids(send) == ["a", "b", "bad"]
    processed, failed = ("processed", None, None), ("failed", "no", None)
    core.answer(send, 200, answer_body([processed, processed, failed]))
    core.store_keys()
    statistics = core.statistics()
    assert (statistics.totals.delivered, statistics.totals.duplicate) == (2, 2)
    assert statistics.freshness.hour.delivered == 2
    assert {name: one[:2] for name, one in statistics.coverage.hour.items()} == {"checkout": (2, 2)}
    assert carried(statistics.coverage.hour["checkout"]) == {"value": 1}


def test_an_event_that_waited_for_room_is_counted_once() -> None:
    """What is prepared over and over until it fits is delivered once, and that counts."""
    core = Core(max_open_bytes=3_000, linger=0.0)
    core.assign()
    core.fetch(*(event(f"{n}", text="x" * 500) for n in range(12)))
    assert core.statistics().held
    for _ in range(12):
        core.deliver()
    assert core.statistics().totals.delivered == 12
    assert core.statistics().coverage.hour["checkout"].events == 12
