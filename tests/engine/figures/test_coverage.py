"""Parameter coverage: parameters of payloads, moving windows, exact counts, and bounds."""

from __future__ import annotations

import math
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
    "client_ip_address": {"user_data": {"client_ip_address": "192.0.2.1"}},
    "client_user_agent": {"user_data": {"client_user_agent": "agent"}},
    "hashed_maids": {"user_data": {"hashed_maids": ["digest"]}},
    "event_id": {},
    "value": {"custom_data": {"value": "0"}},
    "currency": {"custom_data": {"currency": "EUR"}},
    "content_ids": {"custom_data": {"content_ids": ["007"]}},
    "order_id": {"custom_data": {"order_id": "1"}},
    "event_source_url": {"event_source_url": "https://shop.example/"},
    "name": {"user_data": {"fn": ["digest"], "ln": ["digest"]}},
    "place": {"user_data": {"country": ["digest"], "zp": ["digest"]}},
    "birth": {"user_data": {"db": ["digest"]}},
    "opt_out": {"opt_out": False},
}
"""The smallest payload that carries each parameter. Every event has its id."""
NOTHING: dict[str, Any] = {}


def make(name: str = "checkout", payload: dict[str, Any] = NOTHING) -> tuple[Kind, int]:
    """Return an event with this payload."""
    return Kind(ACCOUNT, name, written_in(payload)), 1


def carried(one: Covered) -> dict[str, int]:
    """Return how many events carried each parameter, without the id, which all did."""
    found = {name: count for name, count in zip(IDS, one.carried, strict=True) if count}
    assert found.pop("event_id", 0) == one.events
    return found


def coverage_of(payload: dict[str, Any]) -> dict[str, int]:
    """Return the parameters that one event with this payload carries."""
    coverage = Coverage()
    coverage.add([make(payload=payload)], 0.0)
    return carried(coverage.snapshot(0.0).hour["checkout"])


def test_places_are_fields_of_a_payload() -> None:
    """Every path of a parameter is a field of a conversion event."""
    assert {*BITS, ITEM_ID} <= set(TARGETS)
    for payload in PRESENT.values():
        for name, value in payload.items():
            fields = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
            assert set(fields) <= set(TARGETS)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("fn", {}),
        ("ln", {}),
        ("country", {}),
        ("ct zp st", {}),
        ("country ct", {"place": 1}),
        ("country zp ct", {"place": 1}),
    ],
)
def test_name_and_place_need_several_fields(keys: str, found: dict[str, int]) -> None:
    """A name has two parts; a place is a country, and a city or a postal code."""
    assert coverage_of({"user_data": {key: ["digest"] for key in keys.split()}}) == found


def test_the_score_s_eleven_components_are_counted() -> None:
    """As the platform names them."""
    assert {one.component for one in PARAMETERS if one.component} == {
        "advertiser_external_id", "click_id_epik", "external_event_id", "hashed_email", "hashed_maid", "ip_address",
        "order_id", "order_value", "product_id", "source_url", "user_agent",
    }  # fmt: skip


def targets(name: str, **of_sources: int) -> dict[str, float]:
    """Return the targets of a name whose events happened at these places, in percent."""
    coverage = Coverage()
    for source, count in of_sources.items():
        kind = Kind(ACCOUNT, name, written_in({"action_source": source}))
        coverage.add([(kind, count)], 0.0)
    covered = coverage.snapshot(0.0).hour[name]
    return {
        one: round(100 * target, 1)
        for one, target in zip(IDS, covered.targets, strict=True)
        if target is not None
    }


TARGETS_OF = {
    "checkout": ({"web": 10}, {
        "em": 90, "click_id": 1, "external_id": 90, "client_ip_address": 95, "client_user_agent": 95, "event_id": 100,
        "value": 95, "currency": 95, "content_ids": 95, "order_id": 95, "event_source_url": 95, "ph": 50, "name": 50,
        "place": 50, "birth": 10,
    }),
    "search": ({"app_ios": 10}, {
        "em": 30, "external_id": 30, "client_ip_address": 95, "client_user_agent": 95, "hashed_maids": 30,
        "event_id": 100,
    }),
    "lead (com.shop.Lead)": ({"offline": 10}, {
        "em": 90, "external_id": 90, "event_id": 100, "ph": 50, "name": 50, "place": 50, "birth": 10,
    }),
    "page_visit": ({"web": 60, "app_android": 20, "offline": 20}, {
        "em": 30, "click_id": 0.6, "external_id": 30, "client_ip_address": 76, "client_user_agent": 76,
        "hashed_maids": 6, "event_id": 100, "content_ids": 30, "event_source_url": 57,
    }),
    "our_own": ({"offline": 1}, {"em": 30, "external_id": 30, "event_id": 100}),
}  # fmt: skip


@pytest.mark.parametrize("name", TARGETS_OF)
def test_targets_are_for_what_an_event_can_carry(name: str) -> None:
    """None where a parameter does not apply to an event name, or to the places where its events happened; of those of
    several places, in proportion."""
    of_sources, expected = TARGETS_OF[name]
    assert targets(name, **of_sources) == expected


COMPLETE: dict[str, Any] = {
    "action_source": "web",
    "event_source_url": "https://shop.example/",
    "user_data": dict.fromkeys(
        "em ph external_id fn ln country zp db client_ip_address client_user_agent click_id".split(),  # noqa: SIM905
        "x",
    ),
    "custom_data": {"value": "1", "currency": "EUR", "content_ids": ["1"], "order_id": "1"},
}


def without(payload: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the payload without this field."""
    parent, _, key = path.rpartition(".")
    if parent:
        return {**payload, parent: {name: one for name, one in payload[parent].items() if name != key}}
    return {name: one for name, one in payload.items() if name != key}


_IN_APP = {**COMPLETE, "action_source": "app_ios"}
_LACKS = {
    **{path: (path.rpartition(".")[2], path) for path in (
        "user_data.em", "user_data.external_id", "user_data.click_id", "user_data.client_ip_address",
        "user_data.client_user_agent", "custom_data.value", "custom_data.currency", "custom_data.content_ids",
        "custom_data.order_id", "event_source_url", "user_data.ph",
    )},
    "first name": ("name", "user_data.fn"), "country": ("place", "user_data.country"),
    "postal code": ("place", "user_data.zp"), "birth": ("birth", "user_data.db"),
}  # fmt: skip


@pytest.mark.parametrize(("missed", "path"), _LACKS.values(), ids=_LACKS.keys())
def test_a_missing_parameter_is_named(missed: str, path: str) -> None:
    """Each of fifteen gaps is named, and nothing else: 400 checkouts of which all lack it, among 400 complete
    sign-ups."""
    coverage = Coverage()
    coverage.add([(Kind(ACCOUNT, "signup", written_in(COMPLETE)), 400)], 0.0)
    coverage.add([(Kind(ACCOUNT, "checkout", written_in(without(COMPLETE, path))), 400)], 0.0)
    [gap] = coverage.snapshot(0.0).gaps
    assert (gap.event_name, gap.id, gap.share) == ("checkout", missed, 0.0)
    assert gap.events == math.ceil(400 * gap.target)


def test_gaps_are_sorted_by_what_is_worth_most() -> None:
    """Conversions first, then in the order of the parameters, then by the number of events; an advertising id is
    missed in apps only."""
    coverage = Coverage()
    poor: dict[str, Any] = {"user_data": {}, "custom_data": {"value": "1", "currency": "EUR"}}
    for name, payload, count in (
        ("page_visit", without(COMPLETE, "user_data.em"), 9_000),
        ("checkout", without(without(COMPLETE, "user_data.em"), "custom_data.order_id"), 100),
        ("signup", without(_IN_APP, "user_data.em"), 500),
        ("subscribe", {**COMPLETE, **poor}, 2),
    ):
        coverage.add([(Kind(ACCOUNT, name, written_in(payload)), count)], 0.0)
    assert [(one.event_name, one.id, one.events) for one in coverage.snapshot(0.0).gaps] == [
        ("signup", "em", 450),
        ("checkout", "em", 90),
        ("signup", "hashed_maids", 150),
        ("checkout", "order_id", 95),
        ("page_visit", "em", 2_700),
    ]


def test_what_chance_explains_is_no_gap() -> None:
    """Of a hundred visits of which one in a hundred should come from an ad, none may."""
    for count, gaps in ((299, 0), (300, 1)):
        coverage = Coverage()
        payload = without(COMPLETE, "user_data.click_id")
        coverage.add([(Kind(ACCOUNT, "page_visit", written_in(payload)), count)], 0.0)
        assert len(coverage.snapshot(0.0).gaps) == gaps


def test_ids_of_contents_are_content_ids() -> None:
    """An item's id in ``contents`` counts as a content id; an item without an id does not."""
    for contents, found in (
        ([{"item_name": "shirt"}, {"id": "7"}], {"content_ids": 1}),
        ([{"item_name": "shirt"}], {}),
        ([], {}),
    ):
        assert coverage_of({"user_data": {}, "custom_data": {"contents": contents}}) == found


def test_advice_is_one_plain_sentence_each() -> None:
    """Each advice is one sentence that begins with a capital letter, ends with a full stop and fits on two lines."""
    for one in PARAMETERS:
        assert one.advice[0].isupper()
        assert one.advice.endswith(".")
        assert ". " not in one.advice
        assert len(one.advice) < 180
    assert len(set(IDS)) == len(IDS) == 17


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
    return {parameter for place, parameter in enumerate(IDS) if bits >> place & 1} | {"event_id"}


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
