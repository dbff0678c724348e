"""docs/performance.md has the figures of docs/performance.json, and no others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.document import FIGURES, PAGE, rendered
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


def document() -> dict[str, Any]:
    """A small whole document."""
    plain = {**FOUND, "name": "plain consumer", "lacks": "much", "cpu_us": 40.0, "drain": None}
    steady = {"rate": 15_000, "p50_ms": 12.0, "p99_ms": 34.0}
    return {
        "figures": {
            **PART,
            "plan": {"events": 200_000, "warm_up": 20_000, "runs": 5},
            "stages_cpu_us": {"decode": 5.0},
            "systems": {"pinstream": {**FOUND, "steady": steady}, "plain": plain},
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


def test_the_page_has_the_committed_figures() -> None:
    """The page is what `make bench ARGS=--document` makes of the JSON beside it."""
    page = PAGE.read_text("utf-8")
    assert page == rendered(page, json.loads(FIGURES.read_text("utf-8"))), (
        "run `python -m benchmarks.document`"
    )


def test_every_table_has_its_place_on_the_page() -> None:
    """No table of the committed JSON is left out."""
    page = PAGE.read_text("utf-8")
    for table in tables(json.loads(FIGURES.read_text("utf-8"))):
        assert f"<!-- bench:{table.key} -->" in page


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
    """Cost is shown as a share of the plain consumer's; a figure that was not measured is blank, a kill is named."""
    found = rows("systems")
    assert found["pinstream 1"] == ("20.0", "0.50", "30,000", "150", "15,000", "12", "34", "1.5", "0.2")
    assert found["plain consumer 1"] == ("40.0", "1.00", "30,000", "150", "", "", "", "1.5", "none: killed")


def test_systems_are_compared_with_the_floor_where_it_was_measured() -> None:
    """A share of the plain consumer's CPU and a multiple of the floor's; the floor has no half load."""
    measured = document()
    measured["figures"]["systems"]["floor"] = {**FOUND, "name": "floor (C)", "cpu_us": 2.0}
    table = tables(measured)[0]
    assert table.rows[2][6:9] == ("", "", "")
    assert table.columns[:5] == ("system", "µs an event", "of plain", "of floor", "events/s")
    assert [row[:4] for row in table.rows] == [
        ("pinstream 1", "20.0", "0.50", "10.00"),
        ("plain consumer 1", "40.0", "1.00", "20.00"),
        ("floor (C) 1", "2.0", "0.05", "1.00"),
    ]


def test_all_systems_are_compared_at_one_rate_where_that_was_measured() -> None:
    """CPU, median and 99th percentile at the same rate; blank for a system that did not keep up."""
    measured = document()
    figures = measured["figures"]
    figures["plan"]["same_rate"] = 7_000.0
    figures["systems"]["pinstream"]["same_rate"] = {
        "rate": 7_000,
        "p50_ms": 9.4,
        "p99_ms": 21.0,
        "cpu_us": 33.0,
    }
    table = tables(measured)[0]
    at = table.columns.index("at 7,000/s: µs an event")
    assert table.columns[at + 1 : at + 3] == ("p50 ms", "p99 ms")
    assert [row[at : at + 3] for row in table.rows] == [("33.0", "9", "21"), ("", "", "")]


def test_what_could_not_be_measured_is_said_in_one_cell() -> None:
    """A reason with several lines or a bar does not break the table."""
    assert rows("lacks")["Benthos (Go)"] == ("not measured: no `go` on the PATH to build it / with", "")
    assert rows("growth-partitions")["10,000"][0] == "not measured: the broker has no room"


def test_capacity_follows_from_the_figures() -> None:
    """Cores at seven tenths of a core by CPU time, memory with a full budget, keys of 48 hours, and the
    disk they take in the largest store that was measured."""
    cores, workers, memory, keys, disk = rows("capacity")["50,000"]
    assert (cores, workers) == ("1.43", "2")
    assert memory == f"{(2 * 80 + 20_000 * 5_000 / 2**20) / 1024:.1f}"
    assert (keys, disk) == ("8,640", f"{50_000 * 172_800 * 60 / 2**30:,.0f}")
