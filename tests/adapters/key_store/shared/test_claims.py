"""What a key store that members share guarantees beyond other stores: one suite, on Redis and on the tests'
stand-in."""

from __future__ import annotations

import asyncio
import re
from importlib.resources import files
from typing import Any

import pytest

from consumer.adapters.key_store.shared.server import script_text
from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.engine.messages import Found, Stored
from consumer.engine.model import Announcement, Note
from consumer.errors import KeyStoreError
from consumer.ports import KeyStore
from tests.adapters.key_store.helpers import NOON, key, keys
from tests.adapters.key_store.shared.shops import Shop
from tests.support.shared_keys import SharedMember

NEW, DELIVERED, CLAIMED_BY_OTHER = Found


async def found(member: KeyStore, *numbers: int) -> list[int]:
    """Return the flags of the store's answer when `member` claims the keys with these numbers."""
    return [*(await member.claim(keys(numbers), NOON)).found]


def test_the_scripts_know_the_answers_by_name() -> None:
    """Each name of `Found` and `Stored` is defined for the scripts, and none of these writes an answer as a number."""
    folder = files("consumer.adapters.key_store.shared")
    for script in ("claim", "confirm", "release"):
        written = folder.joinpath(f"{script}.lua").read_text("utf-8")
        defined = {
            *re.findall(
                r"^local ((?:FOUND|STORED)_\w+) = '\\\d'$", script_text(script).decode(), re.MULTILINE
            )
        }
        assert defined == {
            f"{kind.__name__}_{each.name}".upper() for kind in (Found, Stored) for each in kind
        }
        assert {*re.findall(r"\b(?:FOUND|STORED)_\w+", written)} <= defined
        assert not re.findall(r"'\\\d", written)


async def test_of_two_members_one_claims(shop: Shop) -> None:
    """The other learns that a key is in flight, until its member releases it; then it is delivered for all members."""
    one, other = await shop.member(), await shop.member()
    assert await found(one, 1, 2) == [NEW, NEW]
    assert await found(other, 2, 3) == [CLAIMED_BY_OTHER, NEW]
    assert await found(one, 1, 2, 3) == [NEW, NEW, CLAIMED_BY_OTHER]
    await other.release(key(1))
    assert await found(other, 1) == [CLAIMED_BY_OTHER]
    await one.release(key(1))
    assert await found(other, 1, 2) == [NEW, CLAIMED_BY_OTHER]
    assert await one.confirm(key(2), NOON) == b"\1"
    assert await found(other, 2, 3) == [DELIVERED, NEW]
    assert await found(one, 2, 3) == [DELIVERED, CLAIMED_BY_OTHER]
    assert await other.look_up(keys([2, 3]), NOON) == b"\1\0"


async def test_members_that_claim_at_the_same_moment_agree(shop: Shop) -> None:
    """When four members claim a thousand keys at the same moment, each key is claimed by exactly one of them."""
    members = [await shop.member() for _ in range(4)]
    answers = await asyncio.gather(*(member.claim(keys(range(1000)), NOON) for member in members))
    assert all(
        sorted(flags) == [NEW, CLAIMED_BY_OTHER, CLAIMED_BY_OTHER, CLAIMED_BY_OTHER]
        for flags in zip(*(one.found for one in answers), strict=True)
    )


async def test_members_learn_what_the_others_announce(shop: Shop) -> None:
    """With each renewal; one that announces nothing is of no group, and one that leaves takes its own with it."""
    said = Announcement("group", "mapp" + "sche" + "func", "REAL_API", ("1", "22"))
    one, other = await shop.member(said), await shop.member(said._replace(group="other"))
    assert [*(await one.renew()).others] == [said._replace(group="other")]
    assert [*(await other.renew()).others] == [said]
    silent = await shop.member()
    assert sorted((await silent.renew()).others) == sorted([said, said._replace(group="other")])
    assert {each.group for each in await one.members()} >= {"other"}
    for former in (one, other, silent):
        await former.close()
    later = await shop.member(said._replace(destination="a gateway"))
    assert [*(await later.renew()).others] == []


async def test_a_member_that_is_gone_loses_its_claims_when_its_lease_ends(shop: Shop) -> None:
    """And not before; one that closes its store frees them at once."""
    gone, leaving, other = await shop.member(), await shop.member(), await shop.member()
    await found(gone, 1)
    await found(leaving, 2)
    await leaving.close()
    assert await found(other, 1, 2) == [CLAIMED_BY_OTHER, NEW]
    shop.end_leases()
    await other.renew()
    assert await found(other, 1) == [NEW]


async def test_a_session_whose_lease_has_ended_claims_nothing(shop: Shop) -> None:
    """The next renewal begins a new session, which claims name."""
    member = await shop.member()
    assert (await member.claim(key(1), NOON)).session == 1
    assert (await member.renew()).session == 1
    shop.end_leases()
    with pytest.raises(KeyStoreError, match="lease"):
        await member.claim(key(2), NOON)
    assert (await member.renew()).session == 2
    assert (await member.claim(keys([1, 2]), NOON)) == (b"\0\0", 2)


async def test_a_member_that_stood_still_does_not_confirm_what_is_anothers_now(shop: Shop) -> None:
    """It cannot confirm what another has claimed since, until that one delivers or releases it."""
    slow, other = await shop.member(), await shop.member()
    await found(slow, 1, 2, 3)
    shop.end_leases()
    await other.renew()
    assert await found(other, 1, 2) == [NEW, NEW]
    assert await slow.confirm(keys([1, 2, 3]), NOON) == b"\0\0\1"
    await other.confirm(key(1), NOON)
    await other.release(key(2))
    assert await slow.confirm(keys([1, 2]), NOON) == b"\2\1"  # the first event was sent twice
    assert await other.look_up(keys([1, 2, 3]), NOON) == b"\1\1\1"


async def test_a_new_session_may_claim_keys_of_its_earlier_session(shop: Shop) -> None:
    """Other members wait for them."""
    member, other = await shop.member(), await shop.member()
    await found(member, 1)
    with pytest.raises(KeyStoreError):
        await _lose_the_answer(member, 2)
    assert (await member.renew()).session == 2
    assert await found(other, 1, 2) == [CLAIMED_BY_OTHER, CLAIMED_BY_OTHER]
    assert await found(member, 1, 2) == [NEW, NEW]
    assert await member.confirm(key(1), NOON) == b"\1"


async def _lose_the_answer(member: KeyStore, number: int) -> None:
    """Let the store claim a key for `member`, and break the connection before its answer arrives."""
    if isinstance(member, SharedMember):
        await member.claim(key(number), NOON)
        member.end_session()
        raise KeyStoreError("the connection broke")
    assert isinstance(member, RedisKeyStore)
    run = member._server.run

    async def broken(*asked: Any) -> Any:
        await run(*asked)
        raise member._server.explain(ConnectionError("reset by peer"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member._server, "run", broken)
        await member.claim(key(number), NOON)


async def test_a_release_that_is_refused_ends_the_session(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not tried again: renewals would keep those keys from all others."""
    member = await shop.member()
    await found(member, 1)
    with monkeypatch.context() as patch:
        patch.setattr(member._server, "release" if isinstance(member, SharedMember) else "run", _refuse)  # type: ignore[attr-defined]  # both have one
        with pytest.raises(KeyStoreError, match="full"):
            await member.release(key(1))
    assert (await member.renew()).session == 2


def _refuse(*_: object) -> None:
    raise KeyStoreError("the shared key store is full")


async def test_what_was_delivered_before_the_window_may_be_claimed(shop: Shop) -> None:
    """A key that was delivered before the window, or before `since`, may be claimed again."""
    member = await shop.member()
    await member.confirm(key(1), NOON)
    assert (await member.claim(key(1), NOON + 3600)).found == b"\1"
    assert (await member.claim(key(1), NOON + 3601)).found == b"\0"
    assert (await member.claim(key(1), NOON + 10, since=NOON + 5)).found == b"\0"


async def test_a_store_that_was_set_back_is_noticed(shop: Shop) -> None:
    """The keys that it lost are counted once, and the session ends: claims may be lost. So it is if it was flushed."""
    member = await shop.member()
    await member.confirm(keys(range(10)), NOON)
    shop.keep()
    await member.confirm(keys(range(10, 25)), NOON)
    shop.go_back()
    with pytest.raises(KeyStoreError, match="lost 15 keys"):
        await member.claim(key(99), NOON)
    assert member.statistics().lost == 15
    assert (await member.renew()).session == 2
    assert await found(member, 9, 10) == [DELIVERED, NEW]
    await member.confirm(key(30), NOON)
    assert member.statistics().lost == 15
    flushed = await shop.member()
    await flushed.confirm(keys(range(40, 50)), NOON)
    shop.go_back()
    with pytest.raises(KeyStoreError, match="lost 10 keys"):
        await flushed.renew()
    assert (await flushed.renew()).session == 2
    assert await found(flushed, 41) == [NEW]


async def test_members_share_a_quota(shop: Shop) -> None:
    """Each gets the calls that are free, then a time to wait; none above its own limit on the calls of all members."""
    members = [await shop.member() for _ in range(4)]
    one, other = members[:2]
    assert await one.acquire_permits("shop", 3, 5, 2.0) == (3, 0.0)
    assert await other.acquire_permits("shop", 4, 5, 2.0) == (2, 0.0)
    calls, wait = await one.acquire_permits("shop", 1, 5, 2.0)
    assert calls == 0
    assert 60.0 < wait <= 63.0
    assert (await one.acquire_permits("another", 4, 10, 2.0)).calls == 4
    # While members restart with another quota.
    assert (await other.acquire_permits("another", 4, 5, 2.0)).calls == 1
    assert (await other.acquire_permits("another", 4, 3, 2.0)).calls == 0
    assert (await one.acquire_permits("another", 9, 10, 2.0)).calls == 5
    at_once = [member.acquire_permits("third", 4, 100, 2.0) for member in members for _ in range(10)]
    assert sum(given.calls for given in await asyncio.gather(*at_once)) == 100


async def test_later_writes_of_others_do_not_hide_that_a_store_was_set_back(shop: Shop) -> None:
    """A session whose claim was lost ends, also if others have confirmed many keys since."""
    member, other = await shop.member(), await shop.member()
    await member.confirm(key(1), NOON)
    shop.keep()
    await found(member, 2)
    shop.go_back()
    await other.confirm(keys(range(100, 200)), NOON)
    with pytest.raises(KeyStoreError, match="lost 0 keys") as said:
        await member.renew()
    assert said.value.lease_lost
    assert (await member.renew()).session == 2


async def test_what_a_large_block_has_lost_is_counted_once(shop: Shop) -> None:
    """Even if several large blocks in several calls each find the keys missing."""
    member = await shop.member()
    await member.confirm(keys(range(2500)), NOON)
    shop.go_back()
    blocks = [keys(range(10_000 * n, 10_000 * n + 2500)) for n in range(1, 4)]
    answers = await asyncio.gather(*(member.confirm(one, NOON) for one in blocks), return_exceptions=True)
    assert any(isinstance(one, KeyStoreError) for one in answers)
    assert member.statistics().lost == 2500


async def test_what_a_member_reports_the_others_get_with_their_next_renewal(shop: Shop) -> None:
    """With the time that is left; its writer does not get it, nor does anyone once it expired."""
    one, other = await shop.member(), await shop.member()
    throttle = Note("AAAAAAAA", "549755885175", 429, None, 30.0)
    await one.share_note(throttle)
    await one.share_note(Note("AAAAAAAA", "", 401, 2, 60.0))
    heard = sorted((await other.renew()).notes, key=lambda note: note.seconds)
    assert [(note.account, note.status, note.code) for note in heard] == [
        ("549755885175", 429, None),
        ("", 401, 2),
    ]
    assert 25.0 < heard[0].seconds <= 30.0
    assert len({note.name for note in heard}) == 2
    assert (await one.renew()).notes in ([], ())
    await other.share_note(throttle._replace(seconds=5.0))  # shorter, so the longer one stays
    assert {note.name for note in (await other.renew()).notes} == {note.name for note in heard}
    await other.share_note(throttle._replace(account="1", seconds=0.0))
    assert (await one.renew()).notes in ([], ())
