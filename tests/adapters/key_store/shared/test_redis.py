"""The shared key store on real servers that misbehave: gone, frozen, full, read-only, set back, secured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis as client

from consumer.adapters.key_store.shared.address import parse_address
from consumer.adapters.key_store.shared.server import Unclear
from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.errors import KeyStoreError, SettingsError
from tests.adapters.key_store.helpers import (
    NOON,
    REPOSITORY,
    RIGHTS,
    WINDOW,
    key,
    keys,
    member,
    until_answered,
    used,
    works,
)
from tests.support.certificates import Authority
from tests.support.kafka.broker import free_ports
from tests.support.redis_server import RedisServer, redis_server


@pytest.mark.parametrize(
    "url",
    [
        *("redis://", "redis://user:secret@host:port", "redis://user:secret@one,two"),
        *("redis://user:secret@host?colour=red", "rediss://user:secret@host/1?cluster=true"),
        *("redis://user:secret@h?prefix=a{b}", "redis://user:secret@h:99999", "redis://user:secret@h/x"),
        "redis://user:secret@h?cluster=maybe",
        # What looks like an option may be the end of a password with a question mark.
        *("redis://:so?secret=1@h", "redis://h?secret=1", "redis://h?prefix=a&secret"),
    ],
)
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    """The error names the variable and where its forms are, and repeats no secret."""
    with pytest.raises(SettingsError, match=r"PINSTREAM_KEY_STORE: .*docs/scaling.md") as refused:
        parse_address(url)
    assert "secret" not in str(refused.value)


async def test_a_server_that_cannot_be_reached_is_an_error_of_one_line() -> None:
    """When the server cannot be reached the error names its address without the password."""
    async with member(f"redis://user:hush@127.0.0.1:{free_ports(1)[0]}") as store:
        for ask in (store.renew, partial(store.expire, NOON)):
            with pytest.raises(KeyStoreError, match=r"redis://127\.0\.0\.1:\d+ cannot be reached") as refused:
                await ask()
            assert "hush" not in str(refused.value)


async def test_a_frozen_server_is_an_error_in_time_and_heals(tmp_path: Path) -> None:
    """A new session begins after the time-out, and late answers to the previous one do not disturb it."""
    with redis_server(tmp_path) as server:
        async with member(server.url, time_limit=0.5) as store, member(server.url) as other:
            await store.renew()
            await other.renew()
            await store.claim(key(1), NOON)
            server.freeze()
            with pytest.raises(KeyStoreError, match=r"does not answer within 0\.5 s"):
                await store.claim(key(2), NOON)
            with pytest.raises(KeyStoreError, match=r"does not answer within 0\.5 s"):
                await store.renew()
            server.thaw()
            await until_answered(store.renew)
            assert (await store.claim(keys([1, 2]), NOON)) == (b"\0\0", 2)
            assert (await other.claim(keys([1, 2]), NOON)).found == b"\2\2"


@pytest.mark.parametrize(
    ("arguments", "lost"), [((), 7), (("--appendonly", "yes", "--appendfsync", "always"), 0)]
)
async def test_a_server_that_is_killed_and_started_again(
    tmp_path: Path, arguments: tuple[str, ...], lost: int
) -> None:
    """With an append-only file no key, claim or lease is lost; without it the keys are counted, a session begins."""
    with redis_server(tmp_path, *arguments) as server:
        async with member(server.url) as store:
            await store.renew()
            await store.claim(key(8), NOON)
            await store.confirm(keys(range(7)), NOON)
            server.kill()
            with pytest.raises(KeyStoreError, match="cannot be reached"):
                await store.renew()
            server.start()
            await until_answered(store.renew)
            assert store.statistics().lost == lost
            assert (await store.claim(keys([6, 8]), NOON)) == ((b"\0\0", 2) if lost else (b"\1\0", 1))


async def test_a_full_server_refuses_and_goes_on_when_it_has_room(tmp_path: Path) -> None:
    """A full server evicts nothing and refuses writes; once it has memory again, keys are confirmed."""
    with redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        async with member(server.url) as store:
            await store.renew()
            with pytest.raises(KeyStoreError, match=r"is full \(maxmemory\)"):
                await store.confirm(keys(range(100_000)), NOON)
            direct = client.Redis(port=server.port)
            # What clients hold meanwhile counts, too: without it there may be room for one more call.
            direct.config_set("maxmemory", "2mb")
            with pytest.raises(KeyStoreError, match="is full"):
                await store.claim(key(200_000), NOON)
            direct.config_set("maxmemory", "100mb")
            await store.renew()
            assert await store.confirm(keys(range(100)), NOON) == b"\1" * 100


async def test_a_replica_is_refused_by_name(tmp_path: Path) -> None:
    """A read-only replica is refused by an error that says so, since it could answer look-ups but not claims."""
    with redis_server(tmp_path / "one") as primary:
        of = ("--replicaof", f"127.0.0.1 {primary.port}")
        with redis_server(tmp_path / "two", *of) as replica:
            async with member(replica.url) as store:
                with pytest.raises(KeyStoreError, match="read-only replica"):
                    await store.renew()


async def test_a_user_with_the_least_rights_is_enough(tmp_path: Path) -> None:
    """The rights in docs/scaling.md do for all calls; a wrong password is an error of one clear line."""
    assert f"user pinstream on >PASSWORD {RIGHTS}\n" in (REPOSITORY / "docs/scaling.md").read_text()
    with redis_server(tmp_path, configuration=f"user shop on >hush {RIGHTS}\nuser default off\n") as server:
        url = server.url.replace("//", "//shop@")
        async with member(url, word="hush") as store, member(url, word="hush") as other:
            await works(store)
            await store.review()
            # Where sets are made and joined, and another's claim is asked for.
            await store.confirm(keys(range(100, 4_000)), NOON - 1e8)
            await store.expire(NOON)
            await store.confirm(keys(range(100)), NOON)
            await other.renew()
            await other.claim(key(9_999), NOON)
            assert await store.confirm(key(9_999), NOON) == b"\0"
        for wrong, word in ((url, "wrong"), (server.url, None)):
            async with member(wrong, word=word) as store:
                with pytest.raises(KeyStoreError, match="refuses the user or the password") as refused:
                    await store.renew()
                assert "wrong" not in str(refused.value)


@pytest.mark.parametrize(
    ("right", "named"), [("+evalsha", "evalsha"), ("+hmget", "docs/scaling.md"), ("~pinstream:*", "keys")]
)
async def test_a_missing_right_is_named(tmp_path: Path, right: str, named: str) -> None:
    """As far as the server says it, which it does not for a command within a script."""
    user = f"user shop on >hush {RIGHTS.replace(right, '')}\nuser default off\n"
    with redis_server(tmp_path, configuration=user) as server:
        async with member(server.url.replace("//", "//shop:hush@")) as store:
            with pytest.raises(KeyStoreError, match=f"denies its user a right.*{named}"):
                await works(store)


async def test_a_password_that_changes_is_read_again(tmp_path: Path) -> None:
    """The password is read again for each new connection."""
    with redis_server(tmp_path, "--requirepass", "old") as server:
        word = "old"
        store = RedisKeyStore(parse_address(server.url), WINDOW, lease=30.0, password=lambda: word)
        await store.renew()
        direct = client.Redis(port=server.port, password="old")
        direct.config_set("requirepass", "new")
        direct.client_kill_filter(_type="normal", skipme=True)
        word = "new"
        await until_answered(store.renew)
        await store.close()


async def test_over_tls(tmp_path: Path) -> None:
    """A server with a certificate of an own authority is accepted with `ca=`; without it the error names the reason."""
    authority = Authority(tmp_path, "ca")
    pair, port = str(authority.issue()), free_ports(1)[0]
    tls = ("--tls-port", str(port), "--tls-cert-file", pair, "--tls-key-file", pair)
    trust = ("--tls-ca-cert-file", str(authority.file), "--tls-auth-clients", "no")
    with redis_server(tmp_path / "redis", "--port", "0", *tls, *trust, port=port) as server:
        async with member(f"rediss://127.0.0.1:{server.port}?ca={authority.file}") as store:
            await works(store)
        async with member(f"rediss://127.0.0.1:{server.port}") as store:
            with pytest.raises(KeyStoreError, match=r"cannot be reached .*certificate verify failed"):
                await store.renew()


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        (b"3 60 12 34", r"is used with another PINSTREAM_DEDUP_WINDOW: set the same"),
        (b"2 1800", r"another version of pinstream.* \?prefix= .*upgrading\.md"),
        (b"4 3600 12 34", r"another version of pinstream.* \?prefix= .*upgrading\.md"),
    ],
    ids=["another window", "an earlier version", "a later version"],
)
async def test_a_store_of_another_window_or_version_is_refused(
    redis: RedisServer, layout: bytes, says: str
) -> None:
    """Whatever is asked, nothing is changed: with a shorter window a member would remove what others need."""
    prefix = uuid4().hex
    direct = client.Redis(port=redis.port)
    direct.set(f"{prefix}:{{0}}:layout", layout)
    async with member(f"{redis.url}?prefix={prefix}") as store:
        for ask in (
            store.renew,
            store.members,
            partial(store.expire, NOON + 3000),
            partial(store.look_up, key(1), NOON),
            partial(store.confirm, key(1), NOON),
        ):
            with pytest.raises(KeyStoreError, match=says):
                await ask()
    assert direct.keys(f"{prefix}:*") == [f"{prefix}:{{0}}:layout".encode()]


async def test_what_a_member_leaves_in_the_store(redis: RedisServer) -> None:
    """A layout that earlier versions refuse, no name that their housekeeping removes, and no claim that has ended."""
    async with used(redis) as (store, direct, names):
        await works(store)
        assert direct.hlen(f"{names}claims") == 0
        assert direct.get(f"{names}layout").split()[:2] == [b"3", b"3600"]  # type: ignore[union-attr]  # synchronous
        assert not direct.exists(f"{names}slices", f"{names}removing")


async def test_a_review_names_eviction_and_missing_persistence(tmp_path: Path) -> None:
    """The review names an eviction policy, and a server with neither an append-only file nor a replica."""
    with redis_server(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        async with member(server.url) as store:
            said = await store.review()
    assert [one.partition(":")[0] for one in said] == [
        "maxmemory-policy is allkeys-lru",
        "there is neither an append-only file nor a replica",
    ]


async def test_a_claim_that_waits_for_a_release_does_not_go_under_the_session_that_it_ended(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release without an answer may be done later, and would undo the claim that waited for it."""
    async with member(f"{redis.url}?prefix=late") as store, member(f"{redis.url}?prefix=late") as other:
        await store.renew()
        await other.renew()
        await store.claim(key(1), NOON)
        run, asked = store._server.run, asyncio.Event()

        async def unanswered(script: str, calls: Any) -> Any:
            if script != "release":
                return await run(script, calls)
            asked.set()
            await asyncio.sleep(0.05)
            raise Unclear("no answer")

        monkeypatch.setattr(store._server, "run", unanswered)
        release = asyncio.create_task(store.release(key(1)))
        await asked.wait()
        with pytest.raises(KeyStoreError, match="starts again by itself"):
            await store.claim(key(1), NOON)
        with pytest.raises(Unclear):
            await release


@pytest.mark.parametrize(
    "nonsense",
    [b":1", b"$-1", b"+OK", b"*0", b"*3\r\n$1\r\n\0\r\n$1\r\nx\r\n:1", b"*3\r\n$2\r\n\0\0\r\n:1\r\n:1",
     b"*4\r\n$1\r\n\0\r\n:1\r\n:1\r\n:1", b"*3\r\n$1\r\n\7\r\n:1\r\n:1", b"*3\r\n$0\r\n\r\n:1\r\n:1",
     b"*x", b"?", b"-ERR what"],
)  # fmt: skip
async def test_answers_that_make_no_sense_are_errors(nonsense: bytes) -> None:
    """An answer that makes no sense raises an error, and is never taken for a claim or a delivered key."""
    async with pretender(nonsense) as url, member(url, time_limit=0.2) as store:
        for ask in (
            partial(store.claim, key(1), NOON),
            partial(store.confirm, key(1), NOON),
            partial(store.look_up, key(1), NOON),
            partial(store.release, key(1)),
            store.renew,
            partial(store.acquire_permits, "shop", 1, 1, 1.0),
            partial(store.expire, NOON),
        ):
            store._name = "session"
            with pytest.raises(KeyStoreError):
                await ask()


async def test_a_server_that_repeats_the_password_does_not_bring_it_into_the_log() -> None:
    """When the server's error repeats the password, as some do with an unknown command's arguments, ours does not."""
    answer = b"-ERR hush: unknown command 'AUTH', with args beginning with: 'user' 'hush'"
    async with pretender(answer) as url, member(url.replace("//", "//user@"), word="hush") as store:
        with pytest.raises(KeyStoreError) as refused:
            await store.renew()
        assert "hush" not in str(refused.value)
        assert "hush" not in repr(parse_address(url.replace("//", "//user:hush@")))


@asynccontextmanager
async def pretender(answer: bytes) -> AsyncIterator[str]:
    """Yield the URL of a server that greets as Redis does and answers all other commands with `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while asked := await reader.read(65536):
                if b"HELLO" in asked and b"ERR" not in answer:
                    writer.write(b"%1\r\n+proto\r\n:3\r\n")
                elif b"CLIENT" in asked:
                    writer.write(b"+OK\r\n" * asked.count(b"CLIENT"))
                else:
                    writer.write(answer + b"\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def test_a_note_that_makes_no_sense_is_an_error(redis: RedisServer) -> None:
    """At the next renewal; it does not end the service."""
    async with used(redis) as (store, direct, names):
        direct.hset(f"{names}notes", "somewhere", f"{int(time.time() + 60) * 1000} x")
        with pytest.raises(KeyStoreError):
            await store.renew()
