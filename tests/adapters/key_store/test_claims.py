"""What a key store that members share promises beyond the others: one suite, on Redis and on the tests' stand-in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from consumer.adapters.key_store import KeyStore
from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.engine.model import Note
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import NOON, key, keys
from tests.adapters.key_store.shops import Shop
from tests.support.shared_keys import SharedMember


async def found(member: KeyStore, *numbers: int) -> list[int]:
    """What the store says when this member claims these."""
    return [*(await member.claim(keys(numbers), NOON)).found]


async def test_of_two_members_one_claims(shop: Shop) -> None:
    """The other is told that it is in flight; who has claimed it may ask again."""
    one, other = await shop.member(), await shop.member()
    assert await found(one, 1, 2) == [0, 0]
    assert await found(other, 2, 3) == [2, 0]
    assert await found(one, 1, 2, 3) == [0, 0, 2]


async def test_members_that_claim_at_the_same_moment_agree(shop: Shop) -> None:
    """Of a thousand keys, each is claimed by exactly one of four."""
    members = [await shop.member() for _ in range(4)]
    answers = await asyncio.gather(*(member.claim(keys(range(1000)), NOON) for member in members))
    assert all(sorted(flags) == [0, 2, 2, 2] for flags in zip(*(one.found for one in answers), strict=True))


async def test_what_is_confirmed_is_delivered_for_all(shop: Shop) -> None:
    """And claimed by none any more."""
    one, other = await shop.member(), await shop.member()
    await found(one, 1, 2)
    assert await one.confirm(key(1), NOON) == b"\1"
    assert await found(other, 1, 2) == [1, 2]
    assert await other.look_up(keys([1, 2]), NOON) == b"\1\0"


async def test_what_is_released_may_be_claimed_by_another(shop: Shop) -> None:
    """Only one's own claims are released."""
    one, other = await shop.member(), await shop.member()
    await found(one, 1, 2)
    await other.release(key(1))
    assert await found(other, 1) == [2]
    await one.release(key(1))
    assert await found(other, 1, 2) == [0, 2]


async def test_a_member_that_is_gone_loses_its_claims_when_its_lease_ends(shop: Shop) -> None:
    """Not before."""
    gone, other = await shop.member(), await shop.member()
    await found(gone, 1)
    assert await found(other, 1) == [2]
    shop.end_leases()
    await other.renew()
    assert await found(other, 1) == [0]


async def test_who_leaves_frees_its_claims_at_once(shop: Shop) -> None:
    """The others need not wait for its lease."""
    leaving, other = await shop.member(), await shop.member()
    await found(leaving, 1)
    await leaving.close()
    assert await found(other, 1) == [0]


async def test_a_session_whose_lease_has_ended_claims_nothing(shop: Shop) -> None:
    """The next renewal begins another one; claims say of which they are."""
    member = await shop.member()
    assert (await member.claim(key(1), NOON)).session == 1
    assert (await member.renew()).session == 1
    shop.end_leases()
    with pytest.raises(KeyStoreError, match="lease"):
        await member.claim(key(2), NOON)
    assert (await member.renew()).session == 2
    assert (await member.claim(keys([1, 2]), NOON)) == (b"\0\0", 2)


async def test_a_member_that_stood_still_does_not_confirm_what_is_anothers_now(shop: Shop) -> None:
    """It is told which; they can be confirmed when the other has delivered or released them."""
    slow, other = await shop.member(), await shop.member()
    await found(slow, 1, 2, 3)
    shop.end_leases()
    await other.renew()
    assert await found(other, 1, 2) == [0, 0]
    assert await slow.confirm(keys([1, 2, 3]), NOON) == b"\0\0\1"
    await other.confirm(key(1), NOON)
    await other.release(key(2))
    assert await slow.confirm(keys([1, 2]), NOON) == b"\2\1"  # the first one went twice
    assert await other.look_up(keys([1, 2, 3]), NOON) == b"\1\1\1"


async def test_claims_of_our_earlier_session_are_ours(shop: Shop) -> None:
    """What it is not known to have claimed, a new session may claim at once; others wait."""
    member, other = await shop.member(), await shop.member()
    await found(member, 1)
    with pytest.raises(KeyStoreError):
        await _lose_the_answer(member, 2)
    assert (await member.renew()).session == 2
    assert await found(other, 1, 2) == [2, 2]
    assert await found(member, 1, 2) == [0, 0]
    assert await member.confirm(key(1), NOON) == b"\1"


async def _lose_the_answer(member: KeyStore, number: int) -> None:
    """The store claims for this member, and the connection breaks before it says so."""
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
    """It is not tried again: as long as the session is renewed, nobody else could claim these."""
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
    """The window is that of look-ups."""
    member = await shop.member()
    await member.confirm(key(1), NOON)
    assert (await member.claim(key(1), NOON + 3600)).found == b"\1"
    assert (await member.claim(key(1), NOON + 3601)).found == b"\0"
    assert (await member.claim(key(1), NOON + 10, since=NOON + 5)).found == b"\0"


async def test_a_store_that_was_set_back_is_noticed(shop: Shop) -> None:
    """The keys that it lost are counted, and the session ends: claims may be lost, too."""
    member = await shop.member()
    await member.confirm(keys(range(10)), NOON)
    shop.keep()
    await member.confirm(keys(range(10, 25)), NOON)
    shop.go_back()
    with pytest.raises(KeyStoreError, match="lost 15 keys"):
        await member.claim(key(99), NOON)
    assert member.statistics().lost == 15
    assert (await member.renew()).session == 2
    assert await found(member, 9, 10) == [1, 0]
    await member.confirm(key(30), NOON)
    assert member.statistics().lost == 15


async def test_a_flushed_store_is_noticed_by_the_next_renewal(shop: Shop) -> None:
    """Nothing that it held is left."""
    member = await shop.member()
    await member.confirm(keys(range(10)), NOON)
    shop.go_back()
    with pytest.raises(KeyStoreError, match="lost 10 keys"):
        await member.renew()
    assert (await member.renew()).session == 2
    assert await found(member, 1) == [0]


async def test_members_share_a_quota(shop: Shop) -> None:
    """Each is given what is free; then the store says how long to wait. Every quota has a count of its own."""
    one, other = await shop.member(), await shop.member()
    assert await one.ask_calls("shop", 3, 5, 2.0) == (3, 0.0, 2)
    assert await other.ask_calls("shop", 4, 5, 2.0) == (2, 0.0, 0)
    calls, wait, left = await one.ask_calls("shop", 1, 5, 2.0)
    assert (calls, left) == (0, 0)
    assert 60.0 < wait <= 63.0
    assert (await one.ask_calls("another", 1, 5, 2.0)).calls == 1


async def test_each_member_is_held_to_its_own_limit_on_the_calls_of_all(shop: Shop) -> None:
    """While members are restarted with another quota, no one goes beyond the one that it has."""
    one, other = await shop.member(), await shop.member()
    assert (await one.ask_calls("shop", 4, 10, 2.0)).calls == 4
    assert (await other.ask_calls("shop", 4, 5, 2.0)).calls == 1
    assert (await other.ask_calls("shop", 4, 3, 2.0)).calls == 0
    assert (await one.ask_calls("shop", 9, 10, 2.0)).calls == 5


async def test_members_that_ask_for_calls_at_the_same_moment_get_no_more_than_the_quota(shop: Shop) -> None:
    """Forty questions for four calls, and a hundred calls a minute."""
    members = [await shop.member() for _ in range(4)]
    given = await asyncio.gather(
        *(member.ask_calls("shop", 4, 100, 2.0) for member in members for _ in range(10))
    )
    assert sum(one.calls for one in given) == 100


async def test_what_others_write_meanwhile_does_not_hide_that_a_store_was_set_back(shop: Shop) -> None:
    """A claim may be lost, so its session ends, however much the others have confirmed since."""
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
    """However many calls it takes, and however many blocks are under way."""
    member = await shop.member()
    await member.confirm(keys(range(2500)), NOON)
    shop.go_back()
    blocks = [keys(range(10_000 * n, 10_000 * n + 2500)) for n in range(1, 4)]
    answers = await asyncio.gather(*(member.confirm(one, NOON) for one in blocks), return_exceptions=True)
    assert any(isinstance(one, KeyStoreError) for one in answers)
    assert member.statistics().lost == 2500


async def test_a_wrong_clock_makes_nobody_forget(shop: Shop) -> None:
    """A member whose clock is years ahead tidies up; what the others look up is there."""
    member, other = await shop.member(), await shop.member()
    await member.confirm(key(1), NOON)
    if not isinstance(other, SharedMember):
        await other.expire(NOON + 1e8)
    assert await found(member, 1) == [1]


async def test_what_a_member_tells_the_others_get_with_their_next_renewal(shop: Shop) -> None:
    """With the time that is left; not the member itself, nor anyone once it has expired."""
    one, other = await shop.member(), await shop.member()
    throttle = Note("AAAAAAAA", "549755885175", 429, None, 30.0)
    await one.tell(throttle)
    await one.tell(Note("AAAAAAAA", "", 401, 2, 60.0))
    heard = sorted((await other.renew()).notes, key=lambda note: note.seconds)
    assert [(note.account, note.status, note.code) for note in heard] == [
        ("549755885175", 429, None),
        ("", 401, 2),
    ]
    assert 25.0 < heard[0].seconds <= 30.0
    assert len({note.name for note in heard}) == 2
    assert (await one.renew()).notes in ([], ())
    await other.tell(throttle._replace(seconds=5.0))  # shorter: the longer one stays
    assert {note.name for note in (await other.renew()).notes} == {note.name for note in heard}
    await other.tell(throttle._replace(account="1", seconds=0.0))
    assert (await one.renew()).notes in ([], ())
