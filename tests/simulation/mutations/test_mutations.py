"""The simulation catches deliberate bugs: a test that cannot fail proves nothing."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.engine.model import Policy
from consumer.engine.records.offset_map import MAX_IDS
from tests.simulation.knobs import AWAY, DESTINATION, UNREACHABLE_AFTER, Incidents, Rates
from tests.simulation.mutations import MUTATIONS
from tests.simulation.runs import first_failure

pytestmark = pytest.mark.slow("deliberate bugs, in up to 300 worlds each")
SEEDS = 300


def policy(**more: Any) -> Policy:
    """The policy of these worlds, changed by `more`."""
    defaults: dict[str, Any] = {
        "destination": DESTINATION, "away": AWAY, "unreachable_after": UNREACHABLE_AFTER, "schema_patience": 3.0,
    }  # fmt: skip
    return Policy(**defaults | more)


_APART: dict[str, Any] = {
    "own_stores": True, "members": 3, "rebalances": 8, "late_schemas": 0.3, "incidents": Incidents(crashes=4),
}  # fmt: skip
"""Members on different machines, many rebalances, and records that wait among settled ones."""
_FAST: dict[str, Any] = {"reading": "fast"}
_GUARDED: dict[str, Any] = {"guarded": True, "odd": 0.5}
_FROM_DISK: dict[str, Any] = {"rates": Rates(registry_fails=0.6), "late_schemas": 0.3, "restarts": 3}
_SELDOM_BAD: dict[str, Any] = {
    "guarded": True, "odd": 0.1, "bad": 0.1, "partitions": 2, "records": 160, "restarts": 3, "rebalances": 4,
    "late_schemas": 0.2, "incidents": Incidents(setbacks=3),
}  # fmt: skip
"""Few bad records, and many that are read again: the guard must not trip."""
_RECREATED: dict[str, Any] = {
    "incidents": Incidents(recreated=3), "rates": Rates(), "metadata_limit": 4096, "rebalances": 6, "guarded": False,
}  # fmt: skip
_SHARED: dict[str, Any] = {"shared": True, "notes": False}
_OFTEN_FROZEN: dict[str, Any] = {
    "shared": True, "notes": False, "latency": 0.1, "incidents": Incidents(freezes=12), "rates": Rates(slow=0.1),
    "records": 160, "policy": policy(batch_events=1, concurrency=1, linger=0.1),
}  # fmt: skip
"""Many events wait while a member stands still, often while its lease is being renewed."""
_DIVIDED: dict[str, Any] = {
    "divided": True, "members": 3, "partitions": 4, "accounts": 1, "rebalances": 8, "records": 160, "arrival": 150.0,
    "quiet_at": 200.0, "incidents": Incidents(), "rates": Rates(), "guarded": False, "odd": 0.0, "late_schemas": 0.0,
    "window": 1e6, "grace": 60.0, "policy": policy(batch_events=1, calls_per_minute=60, linger=0.1),
}  # fmt: skip
"""Partitions move among members for minutes, and there are enough calls for the quota to matter."""
_SHARED_QUOTA: dict[str, Any] = {
    "shared": True, "accounts": 1, "records": 80, "members": 3, "partitions": 4, "arrival": 3.0, "guarded": False,
    "policy": policy(batch_events=1, calls_per_minute=20, linger=0.1),
}  # fmt: skip
"""Several members make more calls than the quota has."""
_CLOCKS: dict[str, Any] = {
    "incidents": Incidents(clock_jumps=8), "window": 3600.0, "duplicates": 0.3, "restarts": 4, "rates": Rates(),
    "guarded": False, "own_stores": False,
}  # fmt: skip
"""The machines' clocks jump by more than the window, and copies of delivered events come."""
_NOTES: dict[str, Any] = {
    "shared": True, "notes": True, "accounts": 2, "records": 160, "members": 3, "guarded": False,
    "rates": Rates(api_429=0.1), "incidents": Incidents(token_spells=2, account_spells=2),
    "policy": policy(batch_events=1, linger=0.1),
}  # fmt: skip
"""Throttles and refusals that one of several members meets first."""
_FROZEN: dict[str, Any] = {
    "incidents": Incidents(freezes=8), "members": 2, "odd": 0.3, "guarded": False,
    "rates": Rates(commit_fails=0.3, letters_fail=0.3),
}  # fmt: skip
"""Processes stand still while letters and commits are under way, and another member takes over."""
_BEHIND_A_PROXY: dict[str, Any] = {
    "proxy_limit": 700, "rates": Rates(api_stranger=0.1), "guarded": False,
    "policy": policy(batch_events=20, linger=0.1),
}  # fmt: skip
_RECEIPTS: dict[str, Any] = {"receipts": True}
_READ_AGAIN: dict[str, Any] = {
    "receipts": True, "receipts_fail": 0.3, "incidents": Incidents(setbacks=12, expulsions=3), "rates": Rates(slow=0.1),
    "rebalances": 8,
}  # fmt: skip
"""Positions go back, and partitions move, while receipts are being written."""
FOCUS: dict[str, dict[str, Any]] = {
    "a_key_is_stored_without_a_receipt": _RECEIPTS,
    "a_letter_is_enough": _RECEIPTS,
    "what_is_filtered_gets_no_receipt": _RECEIPTS,
    "followers_get_no_receipt": _RECEIPTS,
    "receipts_forget_the_call": _RECEIPTS,
    "a_receipt_that_was_not_stored_counts": _READ_AGAIN,
    "unacknowledged_receipts_are_no_risk": _READ_AGAIN,
    "receipts_outlive_their_assignment": _READ_AGAIN,
    "receipts_of_delivered_events_end_with_their_assignment": _READ_AGAIN,
    "drains_do_not_wait_for_receipts": _READ_AGAIN,
    "what_is_read_again_loses_its_record": _READ_AGAIN,
    "a_failed_commit_is_proof": _FROZEN,
    "an_absence_goes_unnoticed": _FROZEN,
    "letters_need_no_proof": _FROZEN,
    "a_commit_from_before_the_absence_is_proof": _FROZEN,
    "what_is_too_large_for_a_proxy_is_a_dead_letter": _BEHIND_A_PROXY,
    "bodies_stay_as_large_as_they_are": _BEHIND_A_PROXY,
    "ended_assignments_settle": {
        "members": 3,
        "rebalances": 12,
        "rates": Rates(slow=0.1),
        "incidents": Incidents(expulsions=6),
        "guarded": False,
    },
    "a_position_that_went_back_voids_all_that_is_open": {
        "incidents": Incidents(setbacks=12),
        "rates": Rates(slow=0.1),
        "guarded": False,
        "restarts": 0,
    },
    "one_record_s_wait_counts_for_all": {
        "late_schemas": 0.5,
        "members": 1,
        "rates": Rates(),
        "policy": policy(),
        "guarded": False,
        "registry_lag": 2.5,
    },
    "failed_look_up_means_new": {
        "rates": Rates(look_up_fails=0.3),
        "members": 1,
        "records": 40,
        "incidents": Incidents(),
        "rebalances": 0,
        "restarts": 0,
    },
    "a_throttle_is_not_reported": _NOTES,
    "a_refusal_is_not_reported": _NOTES,
    "a_throttle_of_another_member_is_ignored": _NOTES,
    "a_refusal_of_another_member_is_ignored": _NOTES,
    "a_note_concerns_another_account": _NOTES,
    "small_batches_use_up_what_the_headers_leave": {
        "rates": Rates(api_limit_headers=0.5),
        "arrival": 30.0,
        "guarded": False,
        "policy": policy(batch_events=20),
    },
    "no_member_asks_for_calls": _SHARED_QUOTA,
    "permits_never_expire": _SHARED_QUOTA,
    "permits_are_never_used_up": _SHARED_QUOTA,
    "a_used_up_quota_is_asked_for_at_once": _SHARED_QUOTA,
    "a_store_that_gave_no_answer_is_asked_at_once": _SHARED_QUOTA,
    "each_member_takes_the_whole_quota": _DIVIDED,
    "a_larger_part_is_taken_at_once": _DIVIDED,
    "a_part_never_grows_again": _DIVIDED,
    "a_part_s_first_calls_are_a_burst": _DIVIDED,
    "claims_of_others_are_ignored": _SHARED,
    "the_lease_is_not_checked": _SHARED,
    "the_lease_counts_from_the_answer": _OFTEN_FROZEN,
    "a_new_session_claims_nothing_again": _SHARED,
    "what_comes_back_is_not_claimed_again": _SHARED,
    "what_was_taken_over_counts_as_stored": {**_OFTEN_FROZEN, "policy": policy(batch_events=3, linger=0.1)},
    "claims_are_not_released": _SHARED,
    "an_ended_session_s_answer_is_believed": _OFTEN_FROZEN,
    "a_lost_lease_is_believed_in": _SHARED,
    "keys_are_forgotten_by_our_clock": _CLOCKS,
    "keys_are_forgotten_before_the_clock_is_confirmed": _CLOCKS,
    "keys_are_stored_under_our_clock": _CLOCKS,
    "records_do_not_wait_for_the_function": {"function": True},
    "what_the_function_returned_is_another_record_s": {"function": True},
    "room_ignores_bytes": {"odd": 0.0, "policy": policy(max_open_bytes=1500, max_open_events=500)},
    # What is queued must fill the budget, so that there is no room when a schema comes.
    "deferred_records_are_forgotten": {
        "late_schemas": 0.4,
        "duplicates": 0.0,
        "records": 150,
        "policy": policy(
            max_open_bytes=3000,
            max_open_events=500,
            batch_events=20,
            calls_per_minute=10,
            concurrency=1,
            linger=5.0,
        ),
    },
    "other_followers_are_forgotten": {"bad": 0.5, "duplicates": 0.4},
    "failed_commit_is_taken_for_done": {"rates": Rates(commit_fails=0.3)},
    "letters_outlive_their_assignment": {"rates": Rates(letters_fail=0.5), "odd": 0.3},
    "inherited_maps_are_forgotten": {**_APART, "rates": Rates(registry_fails=0.7)},
    "offset_maps_are_not_read": {**_APART, "rates": Rates(registry_fails=0.7)},
    "maps_of_a_cut_log_are_believed": {**_APART, "rates": Rates(registry_fails=0.7, cut_logs=1.0)},
    "a_log_that_outgrew_the_committed_offset_is_read_on": {
        **_APART,
        "rates": Rates(registry_fails=0.7, cut_logs=1.0),
    },
    "what_is_removed_before_a_first_read_is_not_counted": {"incidents": Incidents(removals=12)},
    "maps_are_as_long_as_they_come": {
        **_APART,
        "rates": Rates(registry_fails=0.7),
        "partitions": 1,
        "policy": policy(map_bytes=MAX_IDS + 4),
    },
    "another_id_goes_unnoticed": _RECREATED,
    "the_committed_id_is_not_compared": _RECREATED,
    "a_map_of_a_deleted_topic_is_believed": {
        **_RECREATED,
        "rates": Rates(registry_fails=0.7),
        "late_schemas": 0.3,
    },
    "drains_do_not_wait_for_what_was_read_again": {
        "incidents": Incidents(setbacks=12),
        "rates": Rates(slow=0.1),
        "rebalances": 12,
        "restarts": 4,
        "shared": False,
    },
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
    "fast_path_does_not_check_where_the_datum_ends": {**_FAST, "odd": 0.3},
    "fast_path_keeps_items": _FAST,
    "fast_path_takes_what_it_cannot_read_for_a_tombstone": _FAST,
    "questions_go_on_behind_the_guard": {**_GUARDED, "late_schemas": 0.3},
    "registry_outage_is_final": {
        "rates": Rates(registry_fails=0.95),
        "late_schemas": 0.3,
        "policy": policy(schema_patience=1.0),
    },
    "a_schema_from_disk_is_not_doubted": _FROM_DISK,
    "a_schema_from_disk_ends_the_questions": _FROM_DISK,
    "an_unavailable_schema_is_asked_for_once": {"rates": Rates(registry_fails=0.5), "late_schemas": 0.2},
}
"""Worlds in which a bug that needs a coincidence shows within few seeds."""

BEGIN: dict[str, int] = {
    "a_commit_from_before_the_absence_is_proof": 20,
    "a_member_waits_as_if_it_were_alone": 34,
    "a_part_never_grows_again": 11,
    "acknowledgements_are_taken_in_any_order": 73,
    "an_ended_session_s_answer_is_believed": 33,
    "deadlines_are_ignored": 26,
    "followers_of_dropped_leaders_are_forgotten": 19,
    "followers_share_their_leaders_refusal": 20,
    "guard_counts_what_is_read_again_twice": 22,
    "guard_passes_over_what_is_passed_over": 122,
    "guard_stops_fetches_alone": 34,
    "inherited_maps_are_forgotten": 62,
    "maps_wait_for_the_watermark": 45,
    "other_live_sessions_are_not_counted": 34,
    "records_after_a_gap_are_taken_for_settled": 51,
    "the_lease_counts_from_the_answer": 54,
    "what_comes_back_is_not_claimed_again": 127,
}
"""Where the search for a bug that shows in few worlds begins: it saves two and a half minutes. A change of the worlds
makes a number worthless, not wrong: all seeds are tried."""


@pytest.mark.parametrize("name", sorted({id(worlds): name for name, worlds in FOCUS.items()}.values()))
def test_without_a_bug_such_a_world_holds(name: str) -> None:
    """Without the bug every invariant holds in such a world: otherwise the test would catch anything."""
    failure = first_failure(range(10), **FOCUS[name])
    assert failure is None, failure


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_the_simulation_catches_this_bug(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 300 seeds some invariant fails, because of the bug and not because the mutation is broken Python."""
    MUTATIONS[name](monkeypatch)
    begin = BEGIN.get(name, 0)
    failure = first_failure((*range(begin, SEEDS), *range(begin)), **FOCUS.get(name, {}))
    assert failure is not None, f"{name} went unnoticed for {SEEDS} seeds"
    assert failure.invariant != "nothing else is raised", failure.message
