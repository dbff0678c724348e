"""The /status document: its shape (docs/status.md), and a ledger that adds up."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.app.run import Member
from consumer.app.start import Start
from consumer.engine.figures.counters import Counters
from consumer.engine.figures.delivered import PARAMETERS
from consumer.engine.figures.statistics import PartitionStatistics, Statistics
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.engine.messages import KeysLookedUp, LookUpKeys
from consumer.web.status import VERSION, document_of, status_document
from tests.engine.building import Core, event, filtered, unconvertible
from tests.web.building import (
    ACCOUNT,
    INFO,
    account,
    busy,
    compared,
    empty,
    full_counters,
    guarded,
    halted,
    hanging,
    idle,
    partition,
    silent,
    statistics,
    throttled,
    unasked,
    uncoordinated,
)

PAGE = (Path(__file__).parents[2] / "docs" / "status.md").read_text("utf-8")
LEDGER = ["read", "delivered", "duplicate", "filtered", "dead_lettered", "open"]
COUNTS = st.integers(min_value=0, max_value=2**53)
_NAMES = {
    "bisected": "batches_bisected",
    "retried_batches": "batches_retried",
    "unclear_offline": "offline_events_unclear",
    "delivered_by_name": "delivered_by_event_name",
    "call_buckets": "calls_ended",
    "call_milliseconds": "calls_ended",
}
"""Counters that /status calls by a longer name."""


def _counted(number: int, row: tuple[int, ...]) -> PartitionStatistics:
    delivered, duplicate, filtered_out, dead_lettered, still_open = row
    return partition(
        number,
        delivered=delivered,
        duplicate=duplicate,
        filtered=filtered_out,
        dead_lettered=dead_lettered,
        open=still_open,
    )


def through_json(document: dict[str, Any]) -> dict[str, Any]:
    """The document, read from the answer's bytes as strict JSON."""
    strict = json.dumps(document, allow_nan=False)
    loaded: dict[str, Any] = orjson.loads(orjson.dumps(document))
    assert loaded == json.loads(strict)
    return loaded


def adds_up(ledger: dict[str, int]) -> bool:
    """read = delivered + duplicate + filtered + dead_lettered + open."""
    return ledger["read"] == sum(count for name, count in ledger.items() if name != "read")


@pytest.mark.parametrize("scene", [busy, halted, guarded, throttled, hanging, empty, idle])
def test_document_has_the_shape_of_the_contract(scene: Any) -> None:
    """Ledger, partitions, destination and freshness are there in every state, under the contract's names; each ledger
    adds up, and the partitions hold no more than the total."""
    document = through_json(status_document(scene(), INFO))
    assert document["version"] == VERSION == 1
    assert list(document["ledger"]) == LEDGER
    assert document["destination"]["state"] in ("open", "throttled", "halted")
    assert isinstance(document["freshness"], dict)
    for one in document["partitions"]:
        assert {"topic", "partition", "committed", "position", "end", "lag"} <= set(one)
        assert list(one["ledger"]) == LEDGER
    assert all(adds_up(one["ledger"]) for one in (document, *document["partitions"]))
    for name in LEDGER:
        assert sum(one["ledger"][name] for one in document["partitions"]) <= document["ledger"][name]
    assert document["process"] == INFO["process"]


_TYPES = {int: "int", float: "float", str: "str", bool: "bool", type(None): "null"}


def _fields(value: Any, path: str = "") -> set[tuple[str, str]]:
    """Path and type of each value that is no object and no array."""
    if isinstance(value, dict):
        # Names of conversion fields have dots of their own.
        names = {name: name.replace(".", "_") for name in value}
        inner = [(f"{path}.{names[name]}" if path else names[name], one) for name, one in value.items()]
    elif isinstance(value, list):
        inner = [(f"{path}[]", one) for one in value]
    else:
        return {(path, _TYPES[type(value)])}
    return {field for place, one in inner for field in _fields(one, place)}


def starting() -> Statistics:
    """The brokers are not found yet."""
    return replace(empty(), starting="the brokers have not answered yet (kafka:9092)")


def test_every_field_is_explained_and_no_other() -> None:
    """docs/status.md has a row for each field of the document, under its type, and none for what does not exist."""
    scenes = (
        busy,
        halted,
        guarded,
        throttled,
        hanging,
        silent,
        uncoordinated,
        starting,
        idle,
        compared,
        unasked,
    )
    fields = set[tuple[str, str]]().union(*(_fields(status_document(scene(), INFO)) for scene in scenes))
    section = PAGE.split("## GET /status")[1].split("###")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \| [^|]*\|$", section, re.MULTILINE)
    reported = [(_pattern(row), types.split(", ")) for row, types in rows]
    assert {
        (field, kind)
        for field, kind in fields
        if not any(pattern.fullmatch(field) and kind in kinds for pattern, kinds in reported)
    } == set()
    assert [row for row, _ in rows if not any(_pattern(row).fullmatch(field) for field, _ in fields)] == []


def test_a_member_says_of_itself_what_the_scenes_say() -> None:
    """The page also explains the fields that come from the process and not from the engine."""
    settings: Any = SimpleNamespace(
        kafka=SimpleNamespace(group_id="pinstream", topics=("orders",)),
        pinterest=SimpleNamespace(api_url="https://api.pinterest.com/v5", test_mode=False),
        pinstream=SimpleNamespace(transform=None),
    )
    none: Any = None
    assert _fields(Member(Start(settings), none, none).info()) == _fields(dict(INFO))


def _pattern(row: str) -> re.Pattern[str]:
    """Of a row's field: `{name}` is any name, `{…}` any fields of an object that the table has elsewhere."""
    return re.compile(re.sub(r"\\{[^}]*\}", r"[^.]+", re.escape(row).replace(r"\{…\}", ".+")))


def test_every_way_to_wait_is_explained() -> None:
    """docs/status.md says what each one means and where to look."""
    section = PAGE.split("### What the oldest open record waits for")[1].split("###")[0]
    assert re.findall(r"^\| `(\w+)` \| [^|]{10,} \| [^|]{3,} \|$", section, re.MULTILINE)[1:] == [
        *dict.fromkeys(one.value for one in WaitsFor)
    ]


def test_what_the_process_says_of_itself_never_takes_the_place_of_a_figure() -> None:
    """`info` adds to the document; it cannot replace a field of it."""
    document = status_document(
        idle(), {"ledger": "mine", "version": "0.1.0", "sandbox": {"accepted_events": 3}}
    )
    assert document["version"] == VERSION
    assert document["ledger"]["delivered"] == 5_000
    assert document["sandbox"] == {"accepted_events": 3}


@given(st.lists(st.tuples(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS), max_size=5))
def test_any_figures_come_through_exactly(rows: list[tuple[int, ...]]) -> None:
    """Numbers are neither rounded nor mixed up in JSON."""
    partitions = [_counted(n, row) for n, row in enumerate(rows)]
    document = through_json(status_document(statistics(*partitions), {}))
    assert [[one["ledger"][name] for name in LEDGER[1:]] for one in document["partitions"]] == [
        list(r) for r in rows
    ]
    assert all(adds_up(one["ledger"]) for one in (document, *document["partitions"]))


def test_end_and_lag_are_null_until_the_end_is_known() -> None:
    """A fresh assignment has no committed position and no end yet: null, not zero."""
    document = through_json(status_document(statistics(partition(3, committed=None, lag=None)), {}))
    (one,) = document["partitions"]
    assert (one["partition"], one["committed"], one["end"], one["lag"]) == (3, None, None, None)


def _ages(delivered: int, within: float | None, *ages: float | None) -> dict[str, float | None]:
    named = dict(zip(("age_p50", "age_p95", "age_p99"), ages, strict=True))
    return {"delivered": delivered, "within_one_hour": within, **named}


@pytest.mark.parametrize(
    ("ages", "earlier", "hour", "day"),
    [
        ([], [], _ages(0, None, None, None, None), _ages(0, None, None, None, None)),
        ([10_000_000], [], _ages(1, 0.0, None, None, None), _ages(1, 0.0, None, None, None)),
        (
            [5] * 9 + [4_000],
            [7] * 30,
            _ages(10, 0.9, 5.0, 4_500.0, 4_500.0),
            _ages(40, 0.975, 7.0, 7.0, 4_500.0),
        ),
    ],
    ids=["nothing delivered", "older than all buckets", "a bad hour"],
)
def test_freshness_of_the_last_hour_and_day(ages: Any, earlier: Any, hour: Any, day: Any) -> None:
    """A bad hour is not hidden by good ones before it, and does not count in later hours. Of nothing, and beyond the
    last bucket, it is null: not zero and not an error."""
    freshness = through_json(status_document(statistics(ages=ages, earlier=earlier), {}))["freshness"]
    assert freshness == {**day, "hour": hour, "day": day, "late": 0, "catching_up": None}


def test_a_guard_that_tripped_says_where_and_why() -> None:
    """The topic, how many of its latest records would be dead letters, why, and what to do; null while intake runs."""
    expected = {
        "topic": "orders",
        "rejected": 1_640,
        "of": 2_000,
        "mostly": "convert no_identity",
        "cause": "mapping",
        "section": "",
        "why": "records cannot be converted: the mapping, or the data from the producer, is wrong.",
        "advice": "correct the mapping or the producer and start again",
    }
    assert through_json(status_document(guarded(), INFO))["guard"] == expected
    document = status_document(idle(), INFO)
    assert "guard" in document
    assert document["guard"] is None


def test_the_oldest_open_record_says_what_it_waits_for() -> None:
    """Its position, its age and the reason; null while nothing is open; an unknown age is null."""
    shown = through_json(status_document(halted(), {}))
    assert shown["oldest_open"] == shown["open"]["oldest"][0] == {
        "topic": "orders", "partition": 0, "offset": 88_000, "age_seconds": 756.0, "waits_for": "halt",
        "account": ACCOUNT, "waits_in_words": "Pinterest to accept this account again",
    }  # fmt: skip
    assert status_document(idle(), {})["oldest_open"] is None
    nameless = OldestOpen("orders", 0, 7, None, WaitsFor.SCHEMA, None)
    found = through_json(status_document(statistics(oldest_open=nameless), {}))["oldest_open"]
    assert (found["age_seconds"], found["waits_for"], found["account"]) == (None, "schema", None)


def test_coverage_says_of_each_parameter_how_many_carried_it() -> None:
    """By event name, for the hour and the day, under the ids of the advice; empty at first."""
    coverage = through_json(status_document(busy(), {}))["coverage"]
    ids = [one["id"] for one in coverage["parameters"]]
    assert ids == [one.id for one in PARAMETERS]
    assert all(one["advice"] for one in coverage["parameters"])
    assert set(coverage["hour"]) < set(coverage["day"])
    checkout = coverage["hour"]["checkout"]
    assert (checkout["events"], checkout["sampled"]) == (1_310, 1_310)
    assert list(checkout["carried"]) == ids
    assert (checkout["carried"]["click_id"], checkout["carried"]["currency"]) == (0, 1_310)
    assert list(checkout["share"]) == ids
    assert (checkout["share"]["click_id"], checkout["share"]["currency"], checkout["share"]["em"]) == (
        0,
        1,
        1_271 / 1_310,
    )
    nothing = status_document(empty(), {})["coverage"]
    assert (nothing["hour"], nothing["day"], len(nothing["parameters"])) == ({}, {}, 17)


def test_dead_letters_and_samples_show_single_cases() -> None:
    """The latest twenty with their origin, newest first; a message under each kind that is counted."""
    document = through_json(status_document(busy(), {}))
    letters = document["latest_dead_letters"]
    assert len(letters) == 20
    assert list(letters[0]) == ["at", "topic", "partition", "offset", "stage", "code", "message", "section"]
    assert (letters[0]["stage"], letters[0]["code"]) == ("decode", "malformed")
    assert [one["at"] for one in letters] == sorted((one["at"] for one in letters), reverse=True)
    for kind in ("rejections", "convert_warnings"):
        assert set(document["samples"][kind]) == set(document["counts"][kind])
        for outer, inner in document["samples"][kind].items():
            assert set(inner) == set(document["counts"][kind][outer])


def test_lag_in_seconds_is_that_of_the_core() -> None:
    """A number for a member that is behind or has caught up; null while it is unknown."""
    core = Core()
    core.assign()
    assert status_document(core.statistics(), {})["partitions"][0]["lag_seconds"] is None
    core.fetch(event("a"))
    core.advance(4.0004)
    assert status_document(core.statistics(), {})["partitions"][0]["lag_seconds"] == 5.0


def test_halted_account_says_why_and_when_it_is_tried_again() -> None:
    """The worst state of any account is the destination's; each account has its own reason and times."""
    snapshot = statistics(accounts=[account(queued=3), account("7", "halted", seconds=2.0004)])
    destination = through_json(status_document(snapshot, {}))["destination"]
    assert destination["state"] == "halted"
    good, bad = destination["accounts"]
    assert (good["state"], good["reason"], good["queued"], good["halted_for"]) == ("open", None, 3, None)
    assert (bad["state"], bad["halted_for"], bad["next_probe_in"]) == ("halted", 2.0, 2.0)
    assert "401" in bad["reason"]


def test_every_counter_is_in_the_document() -> None:
    """Each counter of the engine is in the document, and none is mixed up with another."""
    counters = full_counters()
    document = document_of(counters)
    for name, value in vars(counters).items():
        if name in ("call_buckets", "call_milliseconds"):
            assert document["calls_ended"]["verdict"] == {"count": 990, "seconds": 231.5}
        elif name == "rejections":
            assert document[name]["convert"] == {"expired": 7, "no_identity": 41}
        elif name == "by_section":
            assert document[name]["com.shop.Order"] == {"delivered": 31_000}
        elif name == "convert_warnings":
            assert document[name] == {
                "malformed": {"user_data.em": 77, "user_data.ph": 5}, "zero_value": {"custom_data.value": 12},
            }  # fmt: skip
        else:
            assert document[_NAMES.get(name, name)] == value, name
    assert set(document) == {_NAMES.get(name, name) for name in vars(Counters())}


def test_names_come_in_a_stable_order() -> None:
    """In any order of counting."""
    counters = Counters()
    counters.filtered.update({"b": 1, "a": 2})
    assert list(document_of(counters)["filtered"]) == ["a", "b"]


def test_document_of_a_running_core_adds_up_at_every_step() -> None:
    """The engine's own snapshots, from an assignment over every disposition to a revoke, give a document that adds
    up."""
    core = Core()
    seen: list[dict[str, Any]] = []

    def check() -> dict[str, Any]:
        seen.append(through_json(status_document(core.statistics(), {})))
        return seen[-1]

    assert check()["ledger"]["read"] == 0
    core.assign()
    core.fetch(event("a"), event("a"), filtered(), None, unconvertible(), b"\xff")
    assert check()["ledger"]["read"] == 6
    core.store_letters()
    core.deliver()
    done = check()
    assert done["ledger"] == {
        "read": 6, "delivered": 1, "duplicate": 1, "filtered": 2, "dead_lettered": 2, "open": 0,
    }  # fmt: skip
    assert done["partitions"][0]["ledger"] == done["ledger"]
    core.fetch(event("b"))
    asked = core.take(LookUpKeys)
    assert check()["ledger"]["open"] == 1
    core.lose(0)
    gone = check()
    assert (gone["ledger"]["read"], gone["released"], gone["partitions"]) == (6, 1, [])
    core.feed(KeysLookedUp(asked.number, [False]))
    assert check()["ledger"] == done["ledger"]
    assert all(adds_up(one["ledger"]) for one in seen)
