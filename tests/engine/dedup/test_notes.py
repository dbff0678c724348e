"""Notes: a member writes throttles and refusals of a token or account to the shared key store for the other members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.dedup.lease import RENEW_EVERY
from consumer.engine.model import REAL_API, Announcement, Note, settings_digests
from tests.engine.building import ACCOUNT, NO, OTHER_ACCOUNT, Core, event, sending
from tests.engine.dedup.test_shared import LEASE, TIMEOUT, answer_claims, pass_time, renew


def member(**policy: Any) -> Core:
    """Return a core with a shared key store, a lease and a partition."""
    core = Core(
        lease=LEASE, call_timeout=TIMEOUT, linger=0.0, unreachable_after=1e9, destination=REAL_API, **policy
    )
    core.tick()
    renew(core)
    core.assign()
    return core


def send(core: Core, name: str, account: str = ACCOUNT) -> None:
    """Fetch an event, grant its claim, and let it be sent if that is possible."""
    core.fetch(event(name, account))
    answer_claims(core, 0)
    core.advance(0.0)


def reported(core: Core) -> list[Note]:
    """Return all notes that this member wrote."""
    return [one.note for one in core.log if isinstance(one, m.ShareNote)]


def note(status: int, account: str = ACCOUNT, seconds: float = 60.0, name: str = "other-1") -> Note:
    """Return a note of another member."""
    return Note(REAL_API, account, status, None, seconds, name)


def hear(core: Core, *notes: Note) -> None:
    """Let the next renewal bring these notes."""
    if not core.has(m.RenewLease):
        core.advance(RENEW_EVERY)
    core.feed(m.LeaseRenewed(core.take(m.RenewLease).number, 1, notes))


GROUP = "group"
OURS = Announcement(GROUP, settings_digests("mapping", "schemas", ""), REAL_API, (ACCOUNT, OTHER_ACCOUNT))


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        (OURS, ()),
        (OURS._replace(fingerprint=settings_digests("mapping", "others", "")), ("schemas",)),
        # Members of another group may have another mapping; a quota belongs to an account, whatever the group.
        (OURS._replace(group="other", fingerprint=settings_digests("other", "others", "x")), ()),
        (OURS._replace(group="other", destination="AAAAAAAA", accounts=(OTHER_ACCOUNT,)), ("destination",)),
        (OURS._replace(group="other", destination="AAAAAAAA", accounts=("1",)), ()),
        (Announcement("", "", "", ("",)), ()),
    ],
)
def test_members_that_share_the_store_and_differ_are_named(
    other: Announcement, differ: tuple[str, ...]
) -> None:
    """What a member announces is compared with our settings: mapping, schemas and function within the group, the
    destination for each account. Readiness does not change."""
    core = member(announcement=OURS, fingerprint=OURS.fingerprint)
    for _ in range(3):
        core.advance(RENEW_EVERY)
        core.feed(m.LeaseRenewed(core.take(m.RenewLease).number, 1, (), (other,)))
    assert core.statistics().members_differ == differ
    assert [one.fields for one in core.reports("members_differ")] == [
        {"differ": name, "seen_in": "key store"} for name in differ
    ]


def states(core: Core) -> Sequence[tuple[str, bool]]:
    """Return each account's state, and whether it is due to another member's note."""
    return [(one.state, one.by_member) for one in core.statistics().accounts]


def test_a_throttle_is_noted_once() -> None:
    """A throttle is noted once, although several calls meet it, and again when a later one lasts longer."""
    core = member()
    for name in "ab":
        send(core, name)
    for wait in ("30", "30"):
        core.answer(core.take(m.Send), 429, NO, {"retry-after": wait})
    assert reported(core) == [Note(REAL_API, ACCOUNT, 429, None, 30.0)]
    pass_time(core, 30.0)
    core.answer(core.take(m.Send), 429, NO, {"retry-after": "10"})
    assert reported(core)[1:] == [Note(REAL_API, ACCOUNT, 429, None, 10.0)]


def test_a_refused_token_of_one_account_is_noted_for_that_account() -> None:
    """With a token for each account, the note of a refused token is for that account alone."""
    core = member(accounts=2, token_by_account=True)
    send(core, "a")
    send(core, "b", OTHER_ACCOUNT)
    calls = [core.take(m.Send), core.take(m.Send)]
    core.answer(next(one for one in calls if one.account == OTHER_ACCOUNT), 401, NO)
    assert [(one.account, one.status) for one in reported(core)] == [(OTHER_ACCOUNT, 401)]


def test_a_refused_token_is_noted_for_all_accounts_and_a_refused_account_for_itself() -> None:
    """A refused token is noted for all accounts, a refused account for itself, once each and not for each probe."""
    core = member()
    send(core, "a")
    core.answer(core.take(m.Send), 403, NO)
    send(core, "b", OTHER_ACCOUNT)
    core.answer(core.take(m.Send), 401, NO)
    assert [(one.account, one.status, one.seconds) for one in reported(core)] == [
        (ACCOUNT, 403, 60.0),
        ("", 401, 60.0),
    ]
    pass_time(core, 5.0)
    core.feed(m.TokenRead(False))
    core.answer(core.take(m.Send), 401, NO)
    assert len(reported(core)) == 2


def test_a_store_that_is_not_shared_gets_no_notes() -> None:
    """Without a shared key store there are no notes."""
    core = sending(event("a"))
    core.answer(core.take(m.Send), 429, NO, {"retry-after": "30"})
    assert reported(core) == []


def test_a_throttle_that_another_member_met_closes_the_account_for_as_long() -> None:
    """Another member's throttle closes the account for its time, and /status says so; the other account goes on."""
    core = member()
    send(core, "a")
    core.accept()
    send(core, "b", OTHER_ACCOUNT)
    core.accept()
    hear(core, note(429, seconds=20.0))
    assert states(core) == [("throttled", True), ("open", False)]
    send(core, "c")
    send(core, "d", OTHER_ACCOUNT)
    assert core.take(m.Send).account == OTHER_ACCOUNT
    pass_time(core, 19.999)
    assert not core.has(m.Send)
    pass_time(core, 0.001)
    assert core.take(m.Send).account == ACCOUNT


def test_notes_before_the_first_event_of_an_account_hold_for_it() -> None:
    """Notes that came before an account's first event hold for it."""
    core = member()
    hear(core, note(429, seconds=20.0), note(401, account="", name="other-2"))
    send(core, "a")
    send(core, "b", OTHER_ACCOUNT)
    assert not core.has(m.Send)
    assert states(core) == [("halted", True), ("halted", True)]


def test_a_refusal_that_another_member_met_halts_until_our_own_probe_is_accepted() -> None:
    """Another member's refusal halts all accounts until our own probe is accepted; the same note halts once."""
    core = member()
    for name, account in (("a", ACCOUNT), ("b", OTHER_ACCOUNT)):
        send(core, name, account)
        core.accept()
    refusal = note(401, account="")
    hear(core, refusal)
    assert states(core) == [("halted", True), ("halted", True)]
    assert core.statistics().accounts[0].reason == (
        "the access token is refused (HTTP 401), as another member reported"
    )
    send(core, "c")
    assert not core.has(m.Send)
    core.advance(2.0)
    core.feed(m.TokenRead(True))
    core.accept()
    assert states(core) == [("open", False), ("open", False)]
    hear(core, refusal)
    send(core, "d", "549755885177")
    assert states(core) == [("open", False)] * 3


def test_after_a_wrong_note_such_notes_are_ignored_for_a_while() -> None:
    """When our probe succeeds despite a note, such notes are ignored for a while: another member's token
    differs. Throttles still hold."""
    core = member()
    send(core, "a")
    core.accept()
    hear(core, note(401, account=""))
    send(core, "b")
    core.advance(2.0)
    core.feed(m.TokenRead(False))
    core.accept()
    hear(core, note(401, account="", name="other-2"))
    assert states(core) == [("open", False)]
    hear(core, note(429, name="other-3", seconds=5.0))
    assert states(core) == [("throttled", True)]
    pass_time(core, 600.0)
    hear(core, note(401, account="", name="other-4"))
    assert states(core) == [("halted", True)]


def test_our_own_refusal_replaces_the_note() -> None:
    """A refusal that we meet ourselves replaces the note as the reason of the halt in /status."""
    core = member()
    send(core, "a")
    core.accept()
    hear(core, note(401, account=""))
    send(core, "b")
    core.advance(2.0)
    core.feed(m.TokenRead(False))
    core.answer(core.take(m.Send), 401, NO)
    assert states(core) == [("halted", False)]


@pytest.mark.parametrize("status", [401, 403, 404, 429])
def test_notes_of_another_destination_are_ignored(status: int) -> None:
    """Notes for another destination are ignored: a sandbox refuses other tokens than the platform."""
    core = member()
    send(core, "a")
    core.accept()
    hear(core, note(status)._replace(destination="AAAAAAAA"))
    assert states(core) == [("open", False)]
