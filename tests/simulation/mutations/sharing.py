"""Deliberate bugs in the rules for members that share a key store: claims, leases, sessions, the fence."""

from __future__ import annotations

from math import inf

import pytest

from consumer.engine import messages
from consumer.engine.context import Context
from consumer.engine.dedup.lease import Lease
from consumer.engine.sending.answers import Judged
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.steps import Steps
from tests.simulation.mutations.mutating import mutation


@mutation
def claims_of_others_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """This member sends events that another member has claimed."""
    looked_up = Steps.looked_up

    def all_ours(self: Steps, happened: messages.KeysLookedUp) -> None:
        looked_up(self, happened._replace(found=[flag % 2 for flag in happened.found]))

    patch.setattr(Steps, "looked_up", all_ours)


@mutation
def the_lease_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """A call begins although its claims may end before its answer."""
    may_risk = Dispatcher._may_risk

    patch.setattr(Dispatcher, "_may_risk", lambda self, at_risk, _: may_risk(self, at_risk, inf))


@mutation
def the_lease_counts_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """The lease is counted from the renewal's answer, however late the answer was read."""
    answered = Lease._answered

    def late(self: Lease, number: int) -> float:
        answered(self, number)
        return self._context.now.monotonic

    patch.setattr(Lease, "_answered", late)


@mutation
def a_new_session_claims_nothing_again(patch: pytest.MonkeyPatch) -> None:
    """Queued events are sent although the session that had claimed them has ended."""
    patch.setattr(Steps, "new_session", lambda _: None)


@mutation
def what_comes_back_is_not_claimed_again(patch: pytest.MonkeyPatch) -> None:
    """A batch without a verdict goes back into the queue although its session has ended."""
    judged = Steps.judged

    def put_back(self: Steps, ends: Judged, attempts: int) -> None:
        for batch in ends.again:
            batch.session = self.lease.session
        judged(self, ends, attempts)

    patch.setattr(Steps, "judged", put_back)


@mutation
def what_was_taken_over_counts_as_stored(patch: pytest.MonkeyPatch) -> None:
    """A record settles although another member took its key over, which may fail to deliver it."""
    stored = Steps.keys_stored

    def all_stored(self: Steps, happened: messages.KeysStored) -> None:
        stored(self, messages.KeysStored(happened.number))

    patch.setattr(Steps, "keys_stored", all_stored)


@mutation
def claims_are_not_released(patch: pytest.MonkeyPatch) -> None:
    """Claims are kept after their events are done, so members with copies wait."""
    emit = Context.emit

    def but_releases(self: Context, command: messages.Command) -> None:
        if not isinstance(command, messages.ReleaseKeys):
            emit(self, command)

    patch.setattr(Context, "emit", but_releases)


@mutation
def an_ended_session_s_answer_is_believed(patch: pytest.MonkeyPatch) -> None:
    """A look-up is believed whose answer belongs to the session before, although its claims are void."""
    looked_up = Steps.looked_up

    def believed(self: Steps, happened: messages.KeysLookedUp) -> None:
        looked_up(self, happened._replace(session=self.lease.session))

    patch.setattr(Steps, "looked_up", believed)


@mutation
def a_lost_lease_is_believed_in(patch: pytest.MonkeyPatch) -> None:
    """The store has said that the claims are lost, and calls go on until the next renewal."""
    patch.setattr(Lease, "lost", lambda _: None)
