"""The simulation catches deliberate bugs: a test that cannot fail proves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.engine.model import Policy
from consumer.engine.offset_map import IDS_MOST
from tests.simulation.knobs import AWAY, DESTINATION, UNREACHABLE_AFTER, Incidents, Rates
from tests.simulation.mutations import MUTATIONS
from tests.simulation.runs import first_failure

SEEDS = 300


def policy(**more: Any) -> Policy:
    """A policy as these worlds have them, but for `more`."""
    usual: dict[str, Any] = {
        "destination": DESTINATION, "away": AWAY, "unreachable_after": UNREACHABLE_AFTER, "schema_patience": 3.0,
    }  # fmt: skip
    return Policy(**usual | more)


_APART: dict[str, Any] = {
    "own_stores": True, "members": 3, "rebalances": 8, "late_schemas": 0.3, "incidents": Incidents(crashes=4),
}  # fmt: skip
"""Members on different machines, much moving about, and records that wait in the middle of others."""
_FAST: dict[str, Any] = {"reading": "fast"}
_GUARDED: dict[str, Any] = {"guarded": True, "odd": 0.5}
_SELDOM_BAD: dict[str, Any] = {
    "guarded": True, "odd": 0.1, "bad": 0.1, "partitions": 2, "records": 160, "restarts": 3, "rebalances": 4,
    "late_schemas": 0.2, "incidents": Incidents(setbacks=3),
}  # fmt: skip
"""Few bad records, and much that is read again: a guard that trips has no reason to."""
_NEW_LIVES: dict[str, Any] = {
    "incidents": Incidents(new_lives=3), "rates": Rates(), "metadata_limit": 4096, "rebalances": 6, "guarded": False,
}  # fmt: skip
FOCUS: dict[str, dict[str, Any]] = {
    "room_ignores_bytes": {"odd": 0.0, "policy": policy(max_open_bytes=1500, max_open_events=500)},
    "deferred_records_are_forgotten": {
        "late_schemas": 0.3,
        "policy": policy(max_open_bytes=1500, max_open_events=500, batch_events=3),
    },
    "other_followers_are_forgotten": {"bad": 0.5, "duplicates": 0.4},
    "failed_commit_is_taken_for_done": {"rates": Rates(commit_fails=0.3)},
    "letters_outlive_their_assignment": {"rates": Rates(letters_fail=0.5), "odd": 0.3},
    "inherited_maps_are_forgotten": {**_APART, "rates": Rates(registry_fails=0.7)},
    "offset_maps_are_not_read": {**_APART, "rates": Rates(registry_fails=0.7)},
    "maps_of_a_cut_log_are_believed": {**_APART, "rates": Rates(registry_fails=0.7, cut_logs=1.0)},
    "maps_are_as_long_as_they_come": {
        **_APART,
        "rates": Rates(registry_fails=0.7),
        "partitions": 1,
        "policy": policy(map_bytes=IDS_MOST + 4),
    },
    "another_id_goes_unnoticed": _NEW_LIVES,
    "the_committed_id_is_not_compared": _NEW_LIVES,
    "a_map_of_another_life_is_believed": {
        **_NEW_LIVES,
        "rates": Rates(registry_fails=0.7),
        "late_schemas": 0.3,
    },
    "a_commit_from_before_the_absence_is_proof": {"incidents": Incidents(freezes=8), "members": 2},
    "records_after_a_gap_are_taken_for_settled": {"restarts": 4, "rebalances": 4},
    "guard_writes_on": _GUARDED,
    "guard_settles_what_it_drops": _GUARDED,
    "guard_stops_fetches_alone": {**_GUARDED, "policy": policy(max_open_bytes=1500, batch_events=3)},
    "guard_waits_for_letters_it_does_not_write": _GUARDED,
    "guard_sample_is_in_the_order_of_verdicts": _SELDOM_BAD,
    "guard_passes_over_what_is_passed_over": _SELDOM_BAD,
    "guard_does_not_count_duplicates": _SELDOM_BAD,
    "guard_counts_what_is_read_again_twice": _SELDOM_BAD,
    "guard_overlooks_refusals": {"guarded": True, "partitions": 1, "bad": 0.5, "odd": 0.0},
    "guard_weighs_only_what_is_new": {"guarded": True, "partitions": 1, "bad": 0.5, "odd": 0.0},
    "fast_path_gives_the_event_before": _FAST,
    "fast_path_does_not_look_where_the_datum_ends": {**_FAST, "odd": 0.3},
    "fast_path_keeps_items": _FAST,
    "fast_path_takes_what_it_cannot_read_for_a_tombstone": _FAST,
    "questions_go_on_behind_the_guard": {**_GUARDED, "late_schemas": 0.3},
    "registry_outage_is_final": {
        "rates": Rates(registry_fails=0.95),
        "late_schemas": 0.3,
        "policy": policy(schema_patience=1.0),
    },
    "an_unavailable_schema_is_asked_for_once": {"rates": Rates(registry_fails=0.5), "late_schemas": 0.2},
}
"""Worlds in which a bug that needs a coincidence shows soon."""


NAMES = sorted(MUTATIONS)
"""A third of them is here, the others are in the two files beside this one: so several processes share them."""


def check_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 300 seeds some invariant fails, by itself and not because the mutation is broken Python."""
    MUTATIONS[name](monkeypatch)
    failure = first_failure(range(SEEDS), **FOCUS.get(name, {}))
    assert failure is not None, f"{name} went unnoticed for {SEEDS} seeds"
    assert failure.invariant != "nothing else is raised", failure.message


@pytest.mark.parametrize("name", sorted(FOCUS))
def test_without_a_bug_such_a_world_holds(name: str) -> None:
    """Else it would catch anything."""
    failure = first_failure(range(10), **FOCUS[name])
    assert failure is None, failure


@pytest.mark.parametrize("name", NAMES[0::3])
def test_the_simulation_catches_this_bug(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 300 seeds some invariant fails."""
    check_caught(name, monkeypatch)
