"""Deliberate bugs in how members share one quota, and share what they have met."""

from __future__ import annotations

import pytest

from consumer.engine import messages
from consumer.engine.model import THROTTLED, Note
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.gate import Allowance, Gate, Quota
from consumer.engine.sending.halts import Halts
from consumer.engine.sending.queue import AccountQueue
from tests.simulation.mutations.mutating import mutation

# -- members that divide the quota


@mutation
def each_member_takes_the_whole_quota(patch: pytest.MonkeyPatch) -> None:
    """The number of members is ignored."""
    patch.setattr(Quota, "group_has", lambda *_: None)


@mutation
def a_larger_part_is_taken_at_once(patch: pytest.MonkeyPatch) -> None:
    """A member takes a larger part at once, although the calls of its former owners are less than a minute old."""

    def group_has(self: Quota, members: int, _: float) -> None:
        if self.divided:
            self.members = max(1, members)

    patch.setattr(Quota, "group_has", group_has)


@mutation
def a_part_never_grows_again(patch: pytest.MonkeyPatch) -> None:
    """The quota stays divided by members that left long ago."""
    group_has = Quota.group_has

    def only_more(self: Quota, members: int, now: float) -> None:
        group_has(self, max(self.members, members), now)

    patch.setattr(Quota, "group_has", only_more)


@mutation
def a_member_waits_as_if_it_were_alone(patch: pytest.MonkeyPatch) -> None:
    """Small batches of each member use half of the whole quota."""
    patch.setattr(Quota, "wait", property(lambda self: 120.0 / self._whole))


@mutation
def a_part_s_first_calls_are_a_burst(patch: pytest.MonkeyPatch) -> None:
    """A part's first calls go at once, although the partitions' former owners may have used the whole quota."""
    patch.setattr(Gate, "_evenly_at", lambda _, now: now)


# -- members that share a key store, which counts their calls


@mutation
def no_member_asks_for_calls(patch: pytest.MonkeyPatch) -> None:
    """Each member keeps the quota by itself, so all together exceed it."""
    patch.setattr(Allowance, "given", lambda *_: True)


@mutation
def other_live_sessions_are_not_counted(patch: pytest.MonkeyPatch) -> None:
    """With a shared key store, small batches of each member use half of the whole quota."""
    patch.setattr(Quota, "shared_with", lambda *_: None)


@mutation
def given_calls_hold_for_ever(patch: pytest.MonkeyPatch) -> None:
    """Calls that the store gave stay valid after the store has stopped counting them."""
    patch.setattr(Allowance, "given", lambda self, _: self.calls > 0)


@mutation
def given_calls_are_never_used_up(patch: pytest.MonkeyPatch) -> None:
    """Every call that begins in time uses the same one that the store gave."""
    called = Gate.called

    def kept(self: Gate, now: float) -> None:
        called(self, now)
        self.allowance.calls += 1

    patch.setattr(Gate, "called", kept)


@mutation
def a_used_up_quota_is_asked_for_at_once(patch: pytest.MonkeyPatch) -> None:
    """The store is asked again at once, although it has said when there will be calls."""
    answered = Allowance.answered

    def at_once(self: Allowance, calls: int, wait: float, now: float) -> None:
        answered(self, calls, 0.0 * wait, now)

    patch.setattr(Allowance, "answered", at_once)


@mutation
def a_store_that_gave_no_answer_is_asked_at_once(patch: pytest.MonkeyPatch) -> None:
    """A store in trouble is asked for calls without a pause."""
    calls_given = Dispatcher.calls_given

    def at_once(self: Dispatcher, number: int, account: str, given: messages.CallsGiven | None) -> None:
        calls_given(self, number, account, given)
        if given is None:
            self.queue(account).gate.allowance.ask_at = 0.0

    patch.setattr(Dispatcher, "calls_given", at_once)


# -- what members that share a key store tell each other


@mutation
def a_throttle_is_not_reported(patch: pytest.MonkeyPatch) -> None:
    """A member does not report its throttle, so each other member meets it, too."""
    patch.setattr(Halts, "throttled", lambda *_: None)


@mutation
def a_refusal_is_not_reported(patch: pytest.MonkeyPatch) -> None:
    """A member does not report its refusal, so each other member meets it, too."""
    tell = Halts._tell

    def throttles(self: Halts, account: str, status: int, code: int | None, seconds: float) -> None:
        if status == THROTTLED:
            tell(self, account, status, code, seconds)

    patch.setattr(Halts, "_tell", throttles)


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


@mutation
def a_note_concerns_another_account(patch: pytest.MonkeyPatch) -> None:
    """A note about one account halts the others instead."""
    apply = Halts._apply

    def of_others(self: Halts, note: Note, until: float, queue: AccountQueue) -> None:
        if note.account:
            note = note._replace(account=queue.account if queue.account != note.account else "none")
        apply(self, note, until, queue)

    patch.setattr(Halts, "_apply", of_others)
