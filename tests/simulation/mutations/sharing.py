"""Deliberate bugs in the rules for members that share a key store: claims, leases, sessions, the fence."""

from __future__ import annotations

from math import inf
from typing import Any

from consumer.engine import messages
from consumer.engine.context import Context
from consumer.engine.dedup.lease import Lease
from consumer.engine.sending.answers import Judged
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.steps import Steps
from tests.simulation.mutations.mutating import around, replaced


@around(Steps, "looked_up")
def claims_of_others_are_ignored(looked_up: Any, self: Steps, happened: messages.KeysLookedUp) -> None:
    """This member sends events that another member has claimed."""
    looked_up(self, happened._replace(found=[flag % 2 for flag in happened.found]))


@around(Dispatcher, "_may_risk")
def the_lease_is_not_checked(may_risk: Any, self: Dispatcher, at_risk: Any, _: Any) -> Any:
    """A call begins although its claims may end before its answer."""
    return may_risk(self, at_risk, inf)


@around(Lease, "_answered")
def the_lease_counts_from_the_answer(answered: Any, self: Lease, number: int) -> Any:
    """The lease is counted from the renewal's answer, however late the answer was read."""
    answered(self, number)
    return self._context.now.monotonic


# Queued events are sent although the session that had claimed them has ended.
replaced("a_new_session_claims_nothing_again", Steps, "new_session", lambda _: None)


@around(Steps, "judged")
def what_comes_back_is_not_claimed_again(judged: Any, self: Steps, ends: Judged, *about: Any) -> None:
    """A batch without a verdict goes back into the queue although its session has ended."""
    for batch in ends.again:
        batch.session = self.lease.session
    judged(self, ends, *about)


@around(Steps, "keys_stored")
def what_was_taken_over_counts_as_stored(stored: Any, self: Steps, happened: messages.KeysStored) -> None:
    """A record settles although another member took its key over, which may fail to deliver it."""
    stored(self, messages.KeysStored(happened.number))


@around(Context, "emit")
def claims_are_not_released(emit: Any, self: Context, command: messages.Command) -> None:
    """Claims are kept after their events are done, so members with copies wait."""
    if not isinstance(command, messages.ReleaseKeys):
        emit(self, command)


@around(Steps, "looked_up")
def an_ended_session_s_answer_is_believed(
    looked_up: Any, self: Steps, happened: messages.KeysLookedUp
) -> None:
    """A look-up is believed whose answer belongs to the session before, although its claims are void."""
    looked_up(self, happened._replace(session=self.lease.session))


# The store has said that the claims are lost, and calls go on until the next renewal.
replaced("a_lost_lease_is_believed_in", Lease, "lost", lambda _: None)
