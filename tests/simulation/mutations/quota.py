"""Deliberate bugs in how members share one quota, and share what they have met."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.engine import messages
from consumer.engine.model import THROTTLED, Note
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.gate import Gate, Permits, Quota
from consumer.engine.sending.halts import Halts
from consumer.engine.sending.queue import AccountQueue
from tests.simulation.mutations.mutating import around, mutation, replaced, replaces

# -- members that divide the quota


# The number of members is ignored.
replaced("each_member_takes_the_whole_quota", Quota, "group_has", lambda *_: None)


@replaces(Quota, "group_has")
def a_larger_part_is_taken_at_once(self: Quota, members: int, _: float) -> None:
    """A member takes a larger part at once, although the calls of its former owners are less than a minute old."""
    if self.divided:
        self.members = max(1, members)


@around(Quota, "group_has")
def a_part_never_grows_again(group_has: Any, self: Quota, members: int, now: float) -> None:
    """The quota stays divided by members that left long ago."""
    group_has(self, max(self.members, members), now)


# Small batches of each member use half of the whole quota.
replaced("a_member_waits_as_if_it_were_alone", Quota, "wait", property(lambda self: 120.0 / self._whole))
# A part's first calls go at once, although the partitions' former owners may have used the whole quota.
replaced("a_part_s_first_calls_are_a_burst", Gate, "_evenly_at", lambda _, now: now)


# -- members that share a key store, which counts their calls


# Each member keeps the quota by itself, so all together exceed it.
replaced("no_member_asks_for_calls", Permits, "are_left", lambda *_: True)
# With a shared key store, small batches of each member use half of the whole quota.
replaced("other_live_sessions_are_not_counted", Quota, "shared_with", lambda *_: None)
# Calls that the store gave stay valid after the store has stopped counting them.
replaced("permits_never_expire", Permits, "are_left", lambda self, _: self.calls > 0)


@around(Gate, "called")
def permits_are_never_used_up(called: Any, self: Gate, now: float) -> None:
    """Every call that begins in time uses the same one that the store gave."""
    called(self, now)
    self.permits.calls += 1


@around(Permits, "answered")
def a_used_up_quota_is_asked_for_at_once(
    answered: Any, self: Permits, calls: int, wait: float, now: float
) -> None:
    """The store is asked again at once, although it has said when there will be calls."""
    answered(self, calls, 0.0 * wait, now)


@mutation
def a_store_that_gave_no_answer_is_asked_at_once(patch: pytest.MonkeyPatch) -> None:
    """A store in trouble is asked for calls without a pause."""
    permits_granted = Dispatcher.permits_granted

    def at_once(self: Dispatcher, number: int, account: str, given: messages.PermitsGranted | None) -> None:
        permits_granted(self, number, account, given)
        if given is None:
            self.queue(account).gate.permits.ask_at = 0.0

    patch.setattr(Dispatcher, "permits_granted", at_once)


# -- what members that share a key store tell each other


# A member does not report its throttle, so each other member meets it, too.
replaced("a_throttle_is_not_reported", Halts, "throttled", lambda *_: None)


@around(Halts, "_report")
def a_refusal_is_not_reported(
    report: Any, self: Halts, account: str, status: int, code: int | None, seconds: float
) -> None:
    """A member does not report its refusal, so each other member meets it, too."""
    if status == THROTTLED:
        report(self, account, status, code, seconds)


def _ignoring(patch: pytest.MonkeyPatch, throttles: bool) -> None:
    apply = Halts._apply

    def some(self: Halts, note: Note, until: float, queue: AccountQueue) -> None:
        if (note.status == THROTTLED) is not throttles:
            apply(self, note, until, queue)

    patch.setattr(Halts, "_apply", some)


@mutation
def a_throttle_of_another_member_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """A throttle that another member reported is ignored until this member meets it."""
    _ignoring(patch, throttles=True)


@mutation
def a_refusal_of_another_member_is_ignored(patch: pytest.MonkeyPatch) -> None:
    """A refusal that another member reported is ignored until this member meets it."""
    _ignoring(patch, throttles=False)


@around(Halts, "_apply")
def a_note_concerns_another_account(
    apply: Any, self: Halts, note: Note, until: float, queue: AccountQueue
) -> None:
    """A note about one account halts the others instead."""
    if note.account:
        note = note._replace(account=queue.account if queue.account != note.account else "none")
    apply(self, note, until, queue)
