"""Parameter coverage: parameters of payloads, moving windows, exact counts, and bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.conversion.targets import TARGETS
from consumer.engine import messages as m
from consumer.engine.figures.counters import OTHER
from consumer.engine.figures.delivered import (
    _MAX_MASKS,
    BITS,
    ITEM_ID,
    PARAMETERS,
    Coverage,
    Covered,
    written_in,
)
from consumer.engine.reading import Keys, Kind
from tests.engine.building import (
    ACCOUNT,
    PROPERTY,
    Core,
    answer_body,
    event,
    event_ids,
    filtered,
    reading,
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
"""The smallest payload that carries each parameter."""
NOTHING: dict[str, Any] = {}


def make(name: str = "checkout", payload: dict[str, Any] = NOTHING) -> tuple[Kind, int]:
    """Return an event with this payload."""
    return Kind(ACCOUNT, name, written_in(payload)), 1


def shares(one: Covered) -> dict[str, float]:
    """Return the shares of the parameters that have one above zero."""
    return {name: share for name, share in zip(IDS, one.shares, strict=True) if share}


def carried(one: Covered) -> dict[str, int]:
    """Return the number of events that carried each parameter, without parameters that none carried."""
    return {name: count for name, count in zip(IDS, one.carried, strict=True) if count}


def coverage_of(payload: dict[str, Any]) -> dict[str, int]:
    """Return the parameters that one event with this payload carries."""
    coverage = Coverage()
    coverage.add([make(payload=payload)], 0.0)
    return carried(coverage.snapshot(0.0).hour["checkout"])


@pytest.mark.parametrize("parameter", IDS)
def test_each_parameter_is_read_from_its_place(parameter: str) -> None:
    """The smallest payload with a parameter counts for that parameter alone; an empty payload counts for none."""
    assert coverage_of(PRESENT[parameter]) == {parameter: 1}
    assert coverage_of({}) == {}
    assert coverage_of({"user_data": {}, "custom_data": {"contents": []}}) == {}


def test_places_are_fields_of_a_payload() -> None:
    """Every path of a parameter is a field of a conversion event."""
    assert {*BITS, ITEM_ID} <= set(TARGETS)
    for payload in PRESENT.values():
        for name, value in payload.items():
            fields = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
            assert set(fields) <= set(TARGETS)


def test_address_and_agent_count_only_together() -> None:
    """Address and user agent count only together: for the platform one of them alone is no identity."""
    assert coverage_of({"user_data": {"client_ip_address": "192.0.2.1"}}) == {}
    assert coverage_of({"user_data": {"client_user_agent": "agent"}}) == {}


def test_ids_of_contents_are_content_ids() -> None:
    """An item's id in ``contents`` counts as a content id; an item without an id does not."""
    assert coverage_of({"custom_data": {"contents": [{"item_name": "shirt"}, {"id": "7"}]}}) == {
        "content_ids": 1
    }
    assert coverage_of({"custom_data": {"contents": [{"item_name": "shirt"}]}}) == {}


def test_advice_is_one_plain_sentence_each() -> None:
    """Each advice is one sentence that begins with a capital letter, ends with a full stop and fits on two lines."""
    for one in PARAMETERS:
        assert one.advice[0].isupper()
        assert one.advice.endswith(".")
        assert ". " not in one.advice
        assert len(one.advice) < 180
    assert len(set(IDS)) == len(IDS) == 11


def test_a_snapshot_is_frozen() -> None:
    """A snapshot does not change with events that come later."""
    coverage = Coverage()
    coverage.add([make()], 0.0)
    before = coverage.snapshot(0.0)
    coverage.add([make()], 0.0)
    assert before.hour["checkout"].events == 1


def test_names_are_bounded() -> None:
    """Ten thousand names become 64 and ``other``, and no event is lost."""
    coverage = Coverage()
    for n in range(0, 10_000, 50):
        coverage.add([make(f"name{n + one}", PRESENT["em"]) for one in range(50)], n / 10)
    covered = coverage.snapshot(1000.0).hour
    assert len(covered) == 65
    assert sum(one.events for one in covered.values()) == 10_000
    assert covered[OTHER].events == covered[OTHER].carried[0] == 10_000 - 64
    assert covered["name0"].events == 1


def test_what_is_kept_of_a_minute_is_bounded() -> None:
    """What one minute keeps is bounded for any number of names and masks, and no event is lost."""
    coverage = Coverage()
    for n in range(200):
        coverage.add([make(f"name{n}", _payload(_some(bits))) for bits in range(100)], 0.0)
        assert len(coverage._masks) <= _MAX_MASKS + 100
    assert sum(one.events for one in coverage.snapshot(0.0).hour.values()) == 20_000


# -- against a list of all events


_EVENTS = st.tuples(st.sampled_from(["checkout", "lead", "search"]), st.integers(0, 2 ** len(IDS) - 1))
_WAITS = st.sampled_from([0, 1, 30, 61, 899, 3500, 3601, 40_000])
_TIMES = st.sampled_from([1, 1, 3, 300])
_SLICES = st.lists(
    st.tuples(_WAITS, st.lists(_EVENTS, min_size=1, max_size=8), _TIMES), min_size=1, max_size=8
)
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
        assert one.carried == tuple(had[parameter] for parameter in IDS)
        assert one.shares == tuple(had[parameter] / one.events for parameter in IDS)


@PROPERTY
@given(_SLICES)
def test_events_are_counted_exactly(slices: list[tuple[int, list[tuple[str, int]], int]]) -> None:
    """In both windows, at every step, events, carriers and shares equal those of a list of all events."""
    coverage, now, happened = Coverage(), 0, Happened()
    for wait, events, times in slices:
        now += wait
        coverage.add([make(name, _payload(_some(bits))) for name, bits in events] * times, now)
        happened += [(now, name, _some(bits)) for name, bits in events] * times
        found = coverage.snapshot(now)
        _exactly(found.hour, _inside(happened, (now // 60 - 59) * 60))
        _exactly(found.day, _inside(happened, (now // 900 - 95) * 900))


def test_the_core_counts_what_was_delivered() -> None:
    """Coverage counts the events that freshness and the ledger count: no duplicate, of now or of an earlier
    day, nothing that is filtered, cannot be converted or is refused by the platform, and nothing before it is
    delivered."""
    core = Core()
    core.stored_keys.add(Keys().of(ACCOUNT, "checkout", "old"))
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
    assert {name: one.events for name, one in statistics.coverage.hour.items()} == {"checkout": 2}
    assert carried(statistics.coverage.hour["checkout"]) == {"value": 1}


def test_an_event_that_waited_for_room_is_counted_once() -> None:
    """An event that is prepared several times until it fits in the budget is counted once, when it is delivered."""
    core = reading(*(event(f"{n}", text="x" * 500) for n in range(12)), max_open_bytes=3_000)
    assert core.statistics().held
    for _ in range(12):
        core.deliver()
    assert core.statistics().totals.delivered == 12
    assert core.statistics().coverage.hour["checkout"].events == 12
