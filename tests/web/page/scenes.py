"""Whole /status and /history documents for the tests of the page: everything in them that a page could show.

They begin as the scenes of `building`, through the real `status_document`; what a test is about is set on top.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from consumer.engine.figures.counters import StoredLetter
from consumer.engine.figures.delivered import PARAMETERS, CoverageSnapshot, Covered
from consumer.engine.figures.statistics import Statistics
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.engine.model import Stage
from consumer.web.history import STEPS
from consumer.web.status import document_of, status_document
from consumer.workers.showing import WorkerFigures
from consumer.workers.supervision import WorkerState
from tests.web.building import ACCOUNT, INFO, TOPIC, UNIX, account, busy, compared, totals

IDS = [one.id for one in PARAMETERS]
_NAMES = {
    "page_visit": 48_210,
    "add_to_cart": 6_120,
    "view_category": 3_377,
    "checkout": 1_204,
    "signup": 311,
}
_CARRIED = {
    "em": (31, 55, 28, 97, 100), "ph": (4, 9, 3, 62, 18), "external_id": (44, 71, 41, 99, 100),
    "click_id": (18, 20, 17, 22, 11), "value": (0, 99, 0, 100, 0),
    "client_ip_address": (100, 100, 100, 96, 100), "client_user_agent": (100, 100, 100, 97, 100),
    "hashed_maids": (8, 12, 9, 10, 14), "event_id": (100, 100, 100, 100, 100), "name": (2, 3, 1, 88, 40),
    "place": (2, 3, 1, 90, 35), "birth": (0, 0, 0, 4, 12),
    "currency": (0, 99, 0, 100, 0), "content_ids": (64, 100, 12, 99, 0), "order_id": (0, 0, 0, 100, 0),
    "event_source_url": (86, 81, 88, 70, 79), "opt_out": (100, 100, 100, 100, 100),
}  # fmt: skip


def scene(statistics: Callable[[], Statistics] = busy, **changes: Any) -> dict[str, Any]:
    """The /status document of a scene, with `changes` on top."""
    made: dict[str, Any] = copy.deepcopy({**status_document(statistics(), INFO), **changes})
    made["open"]["oldest"] = [one for one in [made["oldest_open"]] if one]
    return made


def full(**changes: Any) -> dict[str, Any]:
    """A busy member, keeping up, with something in every panel."""
    quiet = {"coverage": coverage(), "latest_dead_letters": letters(), "samples": SAMPLES}
    made = scene(**({**quiet, "oldest_open": oldest("batch")} | changes))
    for number, one in enumerate(made["partitions"]):
        one["lag_seconds"] = 1.5 + number
    return made


def crowd() -> dict[str, Any]:
    """`full` with workers, a shared key store, sections, and an ad account in each state."""
    states = {
        account("1"): {},
        account("2", "halted", queued=9_120): {"told_by_member": True},
        account("3", "throttled"): {},
        account("4", "unreachable", in_flight=1): {},
    }
    more = {"workers": workers(), "event_quality": event_quality()}
    made = full(oldest_open=oldest("member"), claimed_elsewhere=14, **more)
    made["destination"]["accounts"] = [{**document_of(one), **more} for one, more in states.items()]
    made["destination"] |= {"state": "halted", "quota_divided_by": 3}
    made["counts"]["by_section"] = {
        "com.shop.Order": {"delivered": 31_000, "filtered": 3, "dead_lettered": 44},
        "com.shop.account.Registration": {"delivered": 311},
    }
    return made


def event_quality() -> dict[str, Any]:
    """One account with scores and a gap."""
    shown: dict[str, Any] = status_document(compared(), INFO)["event_quality"]
    return shown


def workers() -> list[dict[str, Any]]:
    """Two that run, one that ended, one that starts."""
    running, ended = WorkerState.RUNNING, WorkerState.PAUSING
    rows = [(running, 0, 2), (running, 3, 2), (ended, 7, 0), (WorkerState.STARTING, 0, 0)]
    made = []
    for number, (state, restarts, count) in enumerate(rows, start=1):
        heard = None if state is ended else 0.3
        read, open_ = (120_000 * number, 40 * number) if count else (None, None)
        one = WorkerFigures(number, state, 4_000 + number, restarts, heard, False, count, read, open_, None)
        made.append(document_of(one))
    return made


def lagging(seconds: float = 1_260.0) -> dict[str, Any]:
    """`full`, but far behind."""
    made = full(oldest_open=oldest("quota", seconds))
    for one in made["partitions"]:
        one["lag_seconds"] = seconds
    return made


def enormous() -> dict[str, Any]:
    """`full` with counts of twelve digits. The ledger still adds up."""
    made = full()
    made["ledger"] = document_of(
        totals(387_654_321_098, 200_000_000_000, 150_000_000_000, 125_000_000_000, 125_000_000_000)
    )
    for one in made["partitions"]:
        one["ledger"] = dict(made["ledger"])
        one |= dict.fromkeys(("lag", "committed", "position", "end"), 201_348_765_123)
    made["released"] = made["passed_over"] = 123_456_789_012
    made["counts"] = _twelve_digits(made["counts"])
    made["freshness"]["delivered"] = made["key_store"]["keys"] = 387_654_321_098
    made["key_store"]["evicted_early"] = 123_456_789_012
    for one in made["destination"]["accounts"]:
        one |= {"in_flight": 123_456_789_012, "queued": 123_456_789_012}
    for name in ("hour", "day"):
        for one in made["coverage"][name].values():
            one["events"] *= 10 ** (12 - len(str(one["events"])))
    for one in made["latest_dead_letters"]:
        one["offset"] = 201_348_765_123
    made["oldest_open"]["offset"] = 201_348_765_123
    return made


def enormous_history() -> dict[str, Any]:
    """Rates and a lag of twelve digits."""
    made = history()
    for step in made["steps"]:
        for name, values in step["series"].items():
            if name.endswith("_per_second") or name == "lag":
                step["series"][name] = [None if value is None else value * 10**8 for value in values]
    return made


def _twelve_digits(counts: Any) -> Any:
    if isinstance(counts, Mapping):
        return {name: _twelve_digits(one) for name, one in counts.items()}
    return counts * 10 ** (12 - len(str(counts))) if isinstance(counts, int) and counts else counts


def oldest(waits_for: str, age: float = 12.4, account: str | None = ACCOUNT) -> dict[str, Any]:
    """An oldest open event."""
    return document_of(OldestOpen(TOPIC, 3, 1_200_348, age, WaitsFor[waits_for.upper()], account))


SAMPLES: Mapping[str, Any] = {
    "rejections": {
        "convert": {"no_identity": "none of em, hashed_maids, or client_ip_address and client_user_agent"},
        "decode": {"malformed": "the bytes end within a field (order.items[].price)"},
    },
    "convert_warnings": {
        "malformed": {"user_data.em": "user_data.em is not an e-mail address: omitted"},
    },
}


def coverage(times: int = 1) -> dict[str, Any]:
    """Five event names, and a sixth in the day."""
    hour = {
        name: _covered(
            name, events * times, [-(-events * times * _CARRIED[id_][column] // 100) for id_ in IDS]
        )
        for column, (name, events) in enumerate(_NAMES.items())
    }
    day = {**hour, "search": _covered("search", 3, [0 if id_ == "ph" else 3 for id_ in IDS])}
    return document_of(CoverageSnapshot(hour, day))


def covered(name: str, events: int, carried: int) -> dict[str, Any]:
    """One event name: so many of its events carried each parameter."""
    return document_of(_covered(name, events, [carried] * len(IDS)))


def _covered(name: str, events: int, carried: Iterable[int]) -> Covered:
    return Covered(events, tuple(carried), web=events, name=name)


def letters(count: int = 6) -> list[dict[str, Any]]:
    """The latest dead letters, newest first."""
    said = SAMPLES["rejections"]
    reasons = [
        (Stage.CONVERT, "no_identity", said["convert"]["no_identity"]),
        (Stage.DECODE, "malformed", said["decode"]["malformed"]),
        (Stage.DELIVER, "refused", "'event_time' is in the future"),
    ]
    return [
        document_of(StoredLetter(UNIX - 37.5 * n, TOPIC, n % 4, 1_200_340 - 311 * n, *reasons[n % 3]))
        for n in range(count)
    ]


def history(now: float = UNIX, gap: bool = True) -> dict[str, Any]:
    """An hour and a day with a wave, an outage and a gap."""
    return {"steps": [_step(seconds, points, now, gap) for seconds, points in STEPS]}


def _step(seconds: int, points: int, now: float, gap: bool) -> dict[str, Any]:
    at = [now - seconds * (points - 1 - i) for i in range(points)]
    names = (
        "settled_per_second", "delivered_per_second", "duplicates_per_second", "dead_lettered_per_second",
        "lag", "lag_seconds", "age_p50", "age_p95", "keys", "within_hour", "age_p99", "call_p50", "call_p95",
    )  # fmt: skip
    rows = [None if gap and 0.3 < i / points < 0.36 else _point(i / points) for i in range(points)]
    series: dict[str, list[float | None]] = {
        name: [None if row is None else row[column] for row in rows] for column, name in enumerate(names)
    }
    return {"seconds": seconds, "points": points, "series": {"at": at, **series}}


def _point(x: float) -> tuple[float, ...]:
    outage = 0.6 < x < 0.7
    behind = max(0.0, 1 - abs(x - 0.7) / 0.1)
    rate = 0.0 if outage else 900 + 250 * math.sin(x * 9) + 60 * math.sin(x * 140) + 700 * behind
    return (
        rate, rate * 0.93, rate * 0.05, rate * 0.002,
        round(900 + 400 * math.sin(x * 40) ** 2 + 160_000 * behind), 1.5 + 400 * behind, 2 if behind < 0.1 else 120,
        10 if behind < 0.1 else 600, 1_000_000 + round(200_000 * x),
        0.998 - 0.04 * math.sin(x * 30) ** 2 - 0.5 * behind, 150 if behind < 0.1 else 9_000,
        0.18 + 0.02 * math.sin(x * 60), 0.6 + 0.15 * math.sin(x * 90) + 3 * behind,
    )  # fmt: skip
