"""The /status document: its shape (docs/status.md), and a ledger that adds up."""

from __future__ import annotations

import json
import re
from collections import Counter
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
from consumer.engine.figures.statistics import Statistics
from consumer.engine.figures.waits import WaitsFor
from consumer.engine.messages import KeysLookedUp, LookUpKeys
from consumer.web.status import VERSION, document_of, status_document
from consumer.workers.merging import NO_WORKER
from tests.engine.building import Core, event, filtered, unconvertible
from tests.web.building import (
    INFO,
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
    totals,
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


def through_json(document: dict[str, Any]) -> dict[str, Any]:
    """The document, read from the answer's bytes as strict JSON."""
    strict = json.dumps(document, allow_nan=False)
    loaded: dict[str, Any] = orjson.loads(orjson.dumps(document))
    assert loaded == json.loads(strict)
    return loaded


def adds_up(ledger: dict[str, int]) -> bool:
    """read = delivered + duplicate + filtered + dead_lettered + open."""
    return ledger["read"] == sum(count for name, count in ledger.items() if name != "read")


def starting() -> Statistics:
    """The brokers are not found yet."""
    return replace(empty(), starting="the brokers have not answered yet (kafka:9092)")


SCENES = (
    busy, halted, guarded, throttled, hanging, empty, silent, uncoordinated, starting, idle, compared, unasked,
)  # fmt: skip


@pytest.mark.parametrize("scene", SCENES)
def test_document_has_the_shape_of_the_contract(scene: Any) -> None:
    """Ledger, partitions, destination and freshness are there in every state, under the contract's names; each ledger
    adds up, and the partitions hold no more than the total."""
    document = through_json(status_document(scene(), INFO))
    assert document["version"] == VERSION == 1
    assert document["destination"]["state"] in ("open", "throttled", "halted")
    assert isinstance(document["freshness"], dict)
    for one in document["partitions"]:
        assert {"topic", "partition", "committed", "position", "end", "lag"} <= set(one)
    for one in (document, *document["partitions"]):
        assert list(one["ledger"]) == LEDGER
        assert adds_up(one["ledger"])
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


def test_every_field_is_explained_and_no_other() -> None:
    """docs/status.md has a row for each field of the document, under its type, and none for what does not exist."""
    fields = set[tuple[str, str]]().union(*(_fields(status_document(scene(), INFO)) for scene in SCENES))
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
    """Counts are neither rounded nor mixed up in JSON; seconds have three digits."""
    partitions = [replace(partition(n), totals=totals(*row)) for n, row in enumerate(rows)]
    document = through_json(status_document(replace(NO_WORKER, partitions=partitions), {}))
    ledgers = [one["ledger"] for one in document["partitions"]]
    assert [tuple(one[name] for name in LEDGER[1:]) for one in ledgers] == rows
    assert all(map(adds_up, ledgers))
    assert document_of(replace(NO_WORKER, lease_left=1.23456))["lease_seconds_left"] == 1.235


def _ages(delivered: int, *figures: float | None) -> dict[str, float | None]:
    names = ("within_one_hour", "age_p50", "age_p95", "age_p99")
    return {"delivered": delivered, **dict(zip(names, figures or (None,) * 4, strict=True))}


@pytest.mark.parametrize(
    ("ages", "earlier", "hour", "day"),
    [
        ([], [], _ages(0), _ages(0)),
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


def test_coverage_says_of_each_parameter_how_many_carried_it() -> None:
    """By event name, for the hour and the day, under the ids of the advice; empty at first."""
    coverage = through_json(status_document(busy(), {}))["coverage"]
    ids = [one["id"] for one in coverage["parameters"]]
    assert ids == [one.id for one in PARAMETERS]
    assert all(one["advice"] for one in coverage["parameters"])
    assert set(coverage["hour"]) < set(coverage["day"])
    checkout = coverage["hour"]["checkout"]
    assert (checkout["events"], checkout["sampled"]) == (1_310, 1_310)
    assert list(checkout["carried"]) == list(checkout["share"]) == ids
    carried, shares = (
        [checkout[of][one] for one in ("click_id", "currency", "em")] for of in ("carried", "share")
    )
    assert (carried, shares) == ([0, 1_310, 1_271], [0, 1, 1_271 / 1_310])
    nothing = status_document(empty(), {})["coverage"]
    assert (nothing["hour"], nothing["day"], len(nothing["parameters"])) == ({}, {}, 17)


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
    # In any order of counting.
    assert list(document_of(Counters(filtered=Counter({"b": 1, "a": 2})))["filtered"]) == ["a", "b"]


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
    assert (check()["ledger"]["open"], seen[-1]["open"]["claims"]) == (1, 1)
    core.lose(0)
    gone = check()
    assert (gone["ledger"]["read"], gone["released"], gone["partitions"]) == (6, 1, [])
    core.feed(KeysLookedUp(asked.number, [False]))
    assert check()["ledger"] == done["ledger"]
    assert all(adds_up(one["ledger"]) for one in seen)
