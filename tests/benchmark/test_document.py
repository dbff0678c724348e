"""docs/performance.md and docs/benchmarks.md have the figures of docs/performance.json, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.document import FIGURES, PAGES, rendered
from benchmarks.tables import tables

PART = {
    "at": "2026-11-25T10:00:00Z",
    "machine": {
        "cpu": "some processor",
        "cores": 2,
        "memory_gib": 23.5,
        "python": "3.11.7",
        "kafka": "4.3.1",
        "load_before": 0.25,
    },
}
FOUND = {
    "name": "pinstream",
    "version": "1",
    "how": "with its defaults",
    "lacks": "",
    "cpu_us": 20.0,
    "events_per_second": 30_000,
    "peak_mib": 150.0,
    "first_delivery": 1.5,
    "drain": 0.25,
    "disk_bytes_per_key": 100.0,
}

LARGE_STORE = {"disk_mib": 900.0, "disk_bytes_per_key": 60.0}


def paced(cpu_ms: float) -> dict[str, Any]:
    """What is measured at a rate."""
    return {"cpu_ms": cpu_ms, "peak_mib": 100.0, "p50_ms": 60.0, "p99_ms": 111.0}


def document() -> dict[str, Any]:
    """A small whole document."""
    idle = {"cpu_ms": 9.04, "peak_mib": 99.0}
    pinstream = {**FOUND, "rates": {"0": idle, "1000": paced(80.0)}}
    redis: dict[str, Any] = {"name": "pinstream, Redis", "version": "1", "how": "shared", "lacks": ""}
    redis["rates"] = {"1000": {**paced(120.0), "server_cpu_ms": 20.0}}
    plain = {**FOUND, "name": "plain consumer", "lacks": "much", "cpu_us": 40.0, "drain": None}
    return {
        "figures": {
            **PART,
            "plan": {"events": 200_000, "warm_up": 20_000, "runs": 5, "rates": [0, 1_000], "seconds": 12.0},
            "stages_cpu_us": {"decode": 5.0},
            "systems": {
                "pinstream": pinstream,
                "redis": redis,
                "plain": {**plain, "rates": {"1000": paced(200.0)}},
            },
            "not_measured": {"Benthos (Go)": "no `go` on the PATH\nto build it | with"},
            "open_bytes_per_event": 5_000,
            "base_mib": 80.0,
        },
        "growth": {
            **PART,
            "plan": {"events": 100_000, "warm_up": 20_000},
            "keys": [{"at": 1_000, **FOUND, "disk_mib": 1.0}, {"at": 9_000_000, **FOUND, **LARGE_STORE}],
            "partitions": [{"at": 1_000, **FOUND}, {"at": 10_000, "not_measured": "the broker\nhas no room"}],
        },
    }


def rows(key: str) -> dict[str, tuple[str, ...]]:
    """A table of the small document, as rows by their first cell."""
    [table] = [one for one in tables(document()) if one.key == key]
    return {row[0]: row[1:] for row in table.rows}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_pages_have_the_committed_figures(path: Path) -> None:
    """They are what `make bench ARGS=--document` makes of the JSON."""
    page = path.read_text("utf-8")
    assert page == rendered(page, json.loads(FIGURES.read_text("utf-8"))), (
        "run `python -m benchmarks.document`"
    )


def test_every_table_has_its_place_on_a_page() -> None:
    """No table of the committed JSON is omitted, and none stands twice."""
    pages = "".join(path.read_text("utf-8") for path in PAGES)
    for table in tables(json.loads(FIGURES.read_text("utf-8"))):
        assert pages.count(f"<!-- bench:{table.key} -->") == 1


def test_what_is_between_markers_is_replaced_and_the_rest_kept() -> None:
    """Text around a marker stays as it is."""
    page = "before\n<!-- bench:own -->\nold\n<!-- /bench -->\nafter\n"
    first = rendered(page, document())
    assert first.startswith("before\n<!-- bench:own -->\n| what | figure |\n| --- | ---: |\n")
    assert first.endswith("<!-- /bench -->\nafter\n")
    assert "old" not in first
    assert rendered(first, document()) == first


def test_a_marker_without_figures_is_an_error() -> None:
    """A misspelt marker would keep old figures."""
    with pytest.raises(KeyError, match="nonesuch"):
        rendered("<!-- bench:nonesuch -->\n<!-- /bench -->\n", document())


def test_systems_are_compared_with_the_plain_consumer() -> None:
    """Cost is shown as a share of the plain consumer's; a kill is named; what was not run is omitted."""
    found = rows("systems")
    assert found["pinstream 1"] == ("20.0", "0.50", "30,000", "150", "1.5", "0.2")
    assert found["plain consumer 1"] == ("40.0", "1.00", "30,000", "150", "1.5", "none: killed")
    assert "pinstream, Redis 1" not in found


def test_systems_are_compared_with_the_floor_where_it_was_measured() -> None:
    """A share of the plain consumer's CPU and a multiple of the floor's."""
    measured = document()
    measured["figures"]["systems"]["floor"] = {**FOUND, "name": "floor (C)", "cpu_us": 2.0, "rates": {}}
    [table] = [one for one in tables(measured) if one.key == "systems"]
    assert table.columns[:5] == ("system", "µs an event", "of plain", "of floor", "events/s")
    assert [row[:4] for row in table.rows] == [
        ("pinstream 1", "20.0", "0.50", "10.00"),
        ("plain consumer 1", "40.0", "1.00", "20.00"),
        ("floor (C) 1", "2.0", "0.05", "1.00"),
    ]


def test_all_systems_are_compared_at_each_rate() -> None:
    """CPU of an event, or of a second where there are none; age and memory; blank for what was not measured."""
    assert rows("rates") == {
        "pinstream 1": ("9.0", "", "80.0", "0.40"),
        "pinstream, Redis 1": ("", "", "120", "0.60"),
        "plain consumer 1": ("", "", "200", "1.00"),
    }
    assert rows("ages")["pinstream 1"] == ("99", "60", "111", "100")
    assert rows("ages")["pinstream, Redis 1"] == ("", "60", "111", "100")


def test_readme_speaks_of_a_rate_that_users_have() -> None:
    """Of 1,000 a second: cores, share of the plain consumer's, age."""
    line = rendered("<!-- bench:headline -->\n<!-- /bench -->\n", document()).replace("\n", " ")
    assert "At 1,000 events a second pinstream takes 0.08 of a core, 0.4 times what" in line
    assert "half of the events within 60 ms, 99 % within 111 ms" in line


def test_what_could_not_be_measured_is_said_in_one_cell() -> None:
    """A reason with several lines or a bar does not break the table."""
    assert rows("lacks")["Benthos (Go)"] == ("not measured: no `go` on the PATH to build it / with", "")
    assert rows("growth-partitions")["10,000"][0] == "not measured: the broker has no room"


def test_what_a_rate_takes_is_what_was_measured_there() -> None:
    """Cores are the CPU at that rate; keys of 48 hours and the disk that they take in the largest store measured are
    computed."""
    found = rows("capacity")
    assert found["idle"][:2] == ("0.009", "99")
    assert found["1,000"][:6] == ("0.080", "100", "0.120", "0.020", "", "")
    assert found["1,000"][6:] == ("173", f"{1_000 * 172_800 * 60 / 2**30:,.1f}")
