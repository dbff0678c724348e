"""Deliberate bugs in the rules for members that share a key store: claims, leases, sessions, the fence."""

from __future__ import annotations

from math import inf

import pytest

from consumer.engine import messages
from consumer.engine.account import Batch
from consumer.engine.answers import Answers
from consumer.engine.claims import Lookups
from consumer.engine.context import Context
from consumer.engine.outcomes import Outcomes
from consumer.engine.sending import Dispatcher
from tests.simulation.mutations.mutating import mutation


@mutation
def claims_of_others_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """This member sends events that another member has claimed."""
    looked_up = Lookups.looked_up

    def all_ours(self: Lookups, happened: messages.KeysLookedUp) -> None:
        looked_up(self, happened._replace(found=[flag % 2 for flag in happened.found]))

    patch.setattr(Lookups, "looked_up", all_ours)


@mutation
def the_lease_is_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """A call begins although its claims may end before its answer."""
    may_risk = Dispatcher._may_risk

    def always(self: Dispatcher) -> bool:
        until, self.lease_until = self.lease_until, inf
        may = may_risk(self)
        self.lease_until = until
        return may

    patch.setattr(Dispatcher, "_may_risk", always)


@mutation
def the_lease_counts_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    """The lease is counted from the renewal's answer, however late the answer was read."""
    answered = Lookups._answered

    def late(self: Lookups, number: int) -> float:
        answered(self, number)
        return self._context.now.monotonic

    patch.setattr(Lookups, "_answered", late)


@mutation
def a_new_session_claims_nothing_again(patch: pytest.MonkeyPatch) -> None:
    """Queued events are sent although the session that had claimed them has ended."""
    renewed = Lookups.renewed

    def unnoticed(self: Lookups, happened: messages.LeaseRenewed) -> None:
        self._dispatcher.session = happened.session
        renewed(self, happened)

    patch.setattr(Lookups, "renewed", unnoticed)


@mutation
def what_comes_back_is_not_claimed_again(patch: pytest.MonkeyPatch) -> None:
    """A batch without a verdict goes back into the queue although its session has ended."""
    again = Answers._again

    def put_back(self: Answers, batch: Batch, at: float) -> None:
        batch.session = self._dispatcher.session
        again(self, batch, at)

    patch.setattr(Answers, "_again", put_back)


@mutation
def what_was_taken_over_counts_as_stored(patch: pytest.MonkeyPatch) -> None:
    """A record settles although another member took its key over, which may fail to deliver it."""
    stored = Outcomes.keys_stored

    def all_stored(self: Outcomes, happened: messages.KeysStored) -> None:
        stored(self, messages.KeysStored(happened.number))

    patch.setattr(Outcomes, "keys_stored", all_stored)


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
    looked_up = Lookups.looked_up

    def believed(self: Lookups, happened: messages.KeysLookedUp) -> None:
        looked_up(self, happened._replace(session=self._dispatcher.session))

    patch.setattr(Lookups, "looked_up", believed)


@mutation
def a_lost_lease_is_believed_in(patch: pytest.MonkeyPatch) -> None:
    """The store has said that the claims are lost, and calls go on until the next renewal."""
    patch.setattr(Lookups, "lease_lost", lambda _: None)
