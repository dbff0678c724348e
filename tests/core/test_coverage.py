"""Parameter coverage: presence as the payload has it, windows that move, a sample that is fair, and bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.core.convert_targets import TARGETS
from consumer.core.coverage import OTHER, PARAMETERS, Coverage, Covered
from consumer.core.model import ConversionEvent
from tests.core.building import ACCOUNT, PROPERTY, UNIX, Core, event, filtered, unconvertible

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


def make(name: str = "checkout", payload: dict[str, Any] = NOTHING) -> ConversionEvent:
    """An event with this payload."""
    return ConversionEvent(ACCOUNT, name, "id", "id", int(UNIX), "web", payload, ())


def carried(one: Covered) -> dict[str, int]:
    """How many of those looked at carried each parameter; those that none did are left out."""
    return {name: count for name, count in zip(IDS, one.carried, strict=True) if count}


def look_at(payload: dict[str, Any]) -> dict[str, int]:
    """What one event with this payload carries."""
    coverage = Coverage()
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


def test_all_of_a_small_slice_is_looked_at() -> None:
    """Where little happens nothing is left to chance."""
    coverage = Coverage()
    for _ in range(50):
        coverage.add([make(payload=PRESENT["em"]), make(), make(), make(payload=PRESENT["em"])], 1.0)
    assert coverage.snapshot(1.0).hour["checkout"][:2] == (200, 200)
    assert carried(coverage.snapshot(1.0).hour["checkout"]) == {"em": 100}


@pytest.mark.parametrize("size", [5, 7, 8, 63, 64])
def test_every_place_of_a_slice_has_its_turn(size: int) -> None:
    """Four of each slice, and over some slices each place as often: a pattern in the stream does not hide."""
    rounds = size * 2
    plain, marked = make(), make(payload=PRESENT["em"])
    looked = []
    for place in range(size):
        coverage = Coverage()
        events = [plain] * size
        events[place] = marked
        for _ in range(rounds):
            coverage.add(events, 1.0)
        covered = coverage.snapshot(1.0).hour["checkout"]
        assert covered.events == rounds * size
        assert rounds * 4 <= covered.sampled <= rounds * 4 + 16
        looked.append(carried(covered).get("em", 0))
    assert min(looked) >= 8
    assert max(looked) <= 8 + 16  # the first ones of the minute


def test_the_first_events_of_a_name_are_all_looked_at() -> None:
    """Sixteen of each minute, and the next minute's again: a short run shows shares, not one event's luck."""
    coverage = Coverage()
    for minute in range(3):
        coverage.add(
            [make("checkout" if place % 4 else "lead", PRESENT["em"]) for place in range(64)], minute * 60.0
        )
    covered = coverage.snapshot(120.0).hour
    assert covered["lead"].events == 3 * 16
    assert carried(covered["lead"]) == {"em": covered["lead"].sampled} == {"em": 3 * 16}
    assert 3 * 16 <= covered["checkout"].sampled <= 3 * 20


def test_a_rare_name_is_seen_among_many_others() -> None:
    """Wherever it stands."""
    coverage = Coverage()
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
    coverage = Coverage()
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
    watched, alone = Coverage(), Coverage()
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
    coverage = Coverage()
    coverage.add([make()], 0.0)
    before = coverage.snapshot(0.0)
    coverage.add([make()], 0.0)
    assert before.hour["checkout"].events == 1


def test_names_are_bounded() -> None:
    """Ten thousand names are 64 and ``other``; no event is lost, and each name has a sample."""
    coverage = Coverage()
    for n in range(0, 10_000, 50):
        coverage.add([make(f"name{n + one}") for one in range(50)], n / 10)
    covered = coverage.snapshot(1000.0).hour
    assert len(covered) == 65
    assert sum(one.events for one in covered.values()) == 10_000
    assert covered[OTHER].events == 10_000 - 64
    assert all(0 < one.sampled <= one.events for one in covered.values())


_EVENTS = st.tuples(st.sampled_from(["checkout", "lead", "search"]), st.integers(0, 2 ** len(IDS) - 1))
_WAITS = st.sampled_from([0, 1, 30, 61, 899, 3500, 3601, 40_000])
_SLICES = st.lists(st.tuples(_WAITS, st.lists(_EVENTS, min_size=1, max_size=8)), min_size=1, max_size=8)


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


def _agree(window: Mapping[str, Covered], inside: list[tuple[str, set[str]]]) -> None:
    assert {name: one.events for name, one in window.items()} == Counter(name for name, _ in inside)
    for name, one in window.items():
        had = Counter(each for other, parameters in inside if other == name for each in parameters)
        assert 0 < one.sampled <= one.events
        for parameter, count in zip(IDS, one.carried, strict=True):
            assert max(0, had[parameter] - (one.events - one.sampled)) <= count <= had[parameter]


@PROPERTY
@given(_SLICES)
def test_windows_agree_with_a_list_of_all_events(slices: list[tuple[int, list[tuple[str, int]]]]) -> None:
    """Events are counted exactly; of those looked at as many carry a parameter as can be."""
    coverage, now, happened = Coverage(), 0, []
    for wait, events in slices:
        now += wait
        coverage.add([make(name, _payload(_some(bits))) for name, bits in events], now)
        happened += [(now, name, _some(bits)) for name, bits in events]
        hour, day = coverage.snapshot(now)
        _agree(hour, [(name, some) for at, name, some in happened if at >= (now // 60 - 59) * 60])
        _agree(day, [(name, some) for at, name, some in happened if at >= (now // 900 - 95) * 900])


def test_the_core_counts_what_goes_on_to_be_sent() -> None:
    """Events that lead their keys; not followers, nor what is filtered, refused, or waits for its schema."""
    core = Core()
    core.assign()
    core.fetch(event("a", value="1"), event("b"), event("a"), filtered(), None, unconvertible(), b"\xff")
    covered = core.statistics().coverage.hour
    assert {name: one[:2] for name, one in covered.items()} == {"checkout": (2, 2)}
    assert carried(covered["checkout"]) == {"value": 1}
    core.deliver()
    assert core.statistics().coverage.hour == covered


def test_an_event_that_waited_for_room_is_counted_once() -> None:
    """What is prepared over and over until it fits is claimed once, and that counts."""
    core = Core(max_open_bytes=3_000, linger=0.0)
    core.assign()
    core.fetch(*(event(f"{n}", text="x" * 500) for n in range(12)))
    assert core.statistics().held
    for _ in range(12):
        core.deliver()
    assert core.statistics().totals.delivered == 12
    assert core.statistics().coverage.hour["checkout"].events == 12
