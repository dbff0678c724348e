"""Members that share a key store, driven at random: no key is held by two, and what is delivered stays delivered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.errors import KeyStoreError
from consumer.ports import KeyStore
from tests.adapters.key_store.helpers import NOON, key
from tests.adapters.key_store.shared.shops import Shop
from tests.support.shared_keys import SharedMember

KEYS = 40
MEMBERS = 3
STEPS = 150


class Driven:
    """A member as the engine drives it, with the keys that it holds or has sent."""

    def __init__(self, store: KeyStore) -> None:
        self.store = store
        self.session = 0
        self.held: set[int] = set()
        """Numbers of keys claimed under the present session."""
        self.sent: set[int] = set()
        """Numbers of keys delivered and not confirmed yet."""
        self.late: list[Callable[[], Awaitable[Any]]] = []
        """Calls that were not answered and that the server does later."""

    async def renew(self) -> None:
        """Renew the session; a new one voids the keys held, and keys that were sent stay sent."""
        session = (await self.store.renew()).session
        if session != self.session:
            self.session, self.held = session, set()

    async def claim(self, numbers: list[int]) -> list[int]:
        """Claim these keys; return those that were delivered already, for the test to check."""
        numbers = [
            one for one in numbers if one not in self.sent
        ]  # the engine does not claim keys that it has sent
        claimed = await self.store.claim(b"".join(map(key, numbers)), NOON)
        if claimed.session == self.session:
            self.held |= {one for one, flag in zip(numbers, claimed.found, strict=True) if flag == 0}
        return [one for one, flag in zip(numbers, claimed.found, strict=True) if flag == 1]

    async def confirm(self) -> set[int]:
        """Confirm the keys that were sent; return those that are durable."""
        asked = sorted(self.sent)
        flags = await self.store.confirm(b"".join(map(key, asked)), NOON)
        done = {one for one, flag in zip(asked, flags, strict=True) if flag}
        self.sent -= done
        return done

    async def release(self, numbers: list[int]) -> None:
        """Release those of these keys that are held."""
        given = [one for one in numbers if one in self.held]
        self.held.difference_update(given)
        await self.store.release(b"".join(map(key, given)))


async def lose_an_answer(member: Driven, ask: Callable[[], Any], chance: random.Random) -> None:
    """Break the connection before the server does the call or before it answers, or let it do the call later."""
    store = member.store
    if isinstance(store, SharedMember):
        if chance.random() < 0.5:  # otherwise the connection breaks before the call
            await ask()
        store.end_session()
        raise KeyStoreError("the connection broke")
    assert isinstance(store, RedisKeyStore)
    run, when = store._server.run, chance.choice(["never", "now", "later", "later"])

    async def broken(*asked: Any) -> Any:
        if when == "now":
            await run(*asked)
        elif when == "later":
            member.late.append(partial(run, *asked))
        raise store._server.explain(ConnectionError("reset by peer"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._server, "run", broken)
        await ask()


async def take_a_step(one: Driven, members: list[Driven], delivered: set[int], chance: random.Random) -> None:
    """Let one member do its next step at random, or lose an answer."""
    numbers = chance.sample(range(KEYS), chance.randint(1, 4))
    match chance.choice(
        ["claim", "claim", "claim", "send", "confirm", "release", "renew", "lose", "late", "together"]
    ):
        case "claim":
            assert set(await one.claim(numbers)) <= delivered
        case "send":
            sent = one.held.intersection(numbers)
            assert not any(sent & other.sent for other in members), "sent what another had sent"
            one.sent |= sent
            one.held -= sent
        case "confirm":
            delivered |= await one.confirm()
        case "release":
            await one.release(numbers)
        case "renew":
            await one.renew()
        case "lose":
            ask = chance.choice([one.claim, one.release])
            await lose_an_answer(one, partial(ask, numbers), chance)
        case "late":
            chance.shuffle(one.late)
            while one.late:
                with suppress(KeyStoreError):
                    await one.late.pop()()
        case "together":
            others = [number for number in range(KEYS) if number not in numbers and number not in one.held]
            await asyncio.gather(
                one.release(numbers),
                one.claim(others),
                *(member.claim(numbers) for member in members if member is not one),
                return_exceptions=True,
            )


@pytest.mark.parametrize("seed", range(8))
async def test_no_key_is_held_by_two_members_at_once(shop: Shop, seed: int) -> None:
    """With lost answers, ended sessions and simultaneous calls, each key has one holder, and none indefinitely."""
    chance = random.Random(seed)
    members = [Driven(await shop.member()) for _ in range(MEMBERS)]
    delivered: set[int] = set()
    for one in members:
        await one.renew()
    for _ in range(STEPS):
        one = chance.choice(members)
        try:
            await take_a_step(one, members, delivered, chance)
        except KeyStoreError:
            await one.renew()
        holders = [number for member in members for number in member.held]
        assert len(holders) == len(set(holders)), "two members hold the same key"
        assert not delivered.intersection(holders), "held although it is delivered"
    last, *others = members
    for one in others:
        await one.renew()
        delivered |= await one.confirm()
        await one.store.close()
    await last.renew()
    delivered |= await last.confirm()
    left = sorted(set(range(KEYS)) - delivered)
    assert left
    await last.claim(left)
    assert last.held == set(left)
