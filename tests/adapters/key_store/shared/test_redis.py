"""The shared key store on real servers that misbehave: gone, frozen, full, read-only, set back, secured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis as client

from consumer.adapters.key_store.interface import Window
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
    works,
)
from tests.support.certificates import Authority
from tests.support.kafka.broker import free_ports
from tests.support.redis_server import RedisServer, redis_server


async def test_a_server_that_cannot_be_reached_is_an_error_of_one_line() -> None:
    """When the server cannot be reached the error names its address without the password."""
    async with member(f"redis://user:hush@127.0.0.1:{free_ports(1)[0]}") as store:
        for ask in (store.renew, partial(store.expire, NOON)):
            with pytest.raises(KeyStoreError, match=r"redis://127\.0\.0\.1:\d+ cannot be reached") as refused:
                await ask()
            assert "hush" not in str(refused.value)


async def test_a_frozen_server_is_an_error_in_time_and_heals(tmp_path: Path) -> None:
    """After a frozen server's time-out a new session begins, and late answers to the previous session do not
    disturb it."""
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


async def test_a_server_that_forgot_all_is_noticed(tmp_path: Path) -> None:
    """When the server restarts without its data, the keys that it lost are counted and a new session begins."""
    with redis_server(tmp_path) as server:
        async with member(server.url) as store:
            await store.renew()
            await store.confirm(keys(range(7)), NOON)
            server.kill()
            with pytest.raises(KeyStoreError, match="cannot be reached"):
                await store.renew()
            server.start()
            await until_answered(store.renew)
            assert store.statistics().lost == 7
            assert (await store.renew()).session == 2


async def test_a_server_with_an_append_only_file_forgets_nothing(tmp_path: Path) -> None:
    """A server with an append-only file that is killed and restarted has lost no key, claim or lease."""
    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        async with member(server.url) as store:
            await store.renew()
            await store.claim(key(8), NOON)
            await store.confirm(keys(range(7)), NOON)
            server.kill()
            server.start()
            await until_answered(store.renew)
            assert (await store.claim(keys([6, 8]), NOON)).found == b"\1\0"
            assert store.statistics().lost == 0


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
    """The rights listed in docs/scaling.md are enough for all calls, also where sets are made, joined and asked for
    another's claim; a wrong password is an error of one clear line."""
    assert f"user pinstream on >PASSWORD {RIGHTS}\n" in (REPOSITORY / "docs/scaling.md").read_text()
    with redis_server(tmp_path, configuration=f"user shop on >hush {RIGHTS}\nuser default off\n") as server:
        url = server.url.replace("//", "//shop@")
        async with member(url, word="hush") as store:
            await works(store)
            await store.review()
            await store.confirm(keys(range(100, 4_000)), NOON - 1e8)
            await store.expire(NOON)
            await store.confirm(keys(range(100)), NOON)
            async with member(url, word="hush") as other:
                await other.renew()
                await other.claim(key(9_999), NOON)
                assert await store.confirm(key(9_999), NOON) == b"\0"
        async with member(url, word="wrong") as store:
            with pytest.raises(KeyStoreError, match="refuses the user or the password") as refused:
                await store.renew()
            assert "wrong" not in str(refused.value)
        async with member(server.url) as store:
            with pytest.raises(KeyStoreError, match="refuses the user or the password"):
                await store.renew()


@pytest.mark.parametrize(
    ("right", "named"), [("+evalsha", "evalsha"), ("+hmget", "docs/scaling.md"), ("~pinstream:*", "keys")]
)
async def test_a_missing_right_is_named(tmp_path: Path, right: str, named: str) -> None:
    """An error names the missing right as far as the server says it, which it does not for a command within a
    script."""
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


async def test_a_member_with_another_window_or_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    """A member with another window is refused whatever it asks, and changes nothing: with a shorter one it would remove
    what the others need. An earlier version compares all of the layout with "2" and its slices of time, and refuses
    too; the names that its housekeeping would remove are not used. No claim stays of what was confirmed or released."""
    with redis_server(tmp_path) as server:
        async with member(server.url) as store:
            await works(store)
            direct = client.Redis(port=server.port)
            assert direct.hlen("pinstream:{0}:claims") == 0
            assert direct.get("pinstream:{0}:layout").split()[:2] == [b"3", b"3600"]  # type: ignore[union-attr]  # synchronous
            assert not direct.exists("pinstream:{0}:slices", "pinstream:{0}:removing")
            before = direct.hgetall("pinstream:{0}:sets")
            other = RedisKeyStore(parse_address(server.url), Window.of(60.0), lease=30.0)
            for ask in (
                other.renew,
                other.members,
                partial(other.expire, NOON + 3000),
                partial(other.look_up, key(1), NOON),
            ):
                with pytest.raises(
                    KeyStoreError, match=r"is used with another PINSTREAM_DEDUP_WINDOW: set the same"
                ):
                    await ask()
            await other.close()
            assert direct.hgetall("pinstream:{0}:sets") == before


@pytest.mark.parametrize(
    "layout", [b"2 1800", b"4 3600 12 34"], ids=["an earlier version", "a later version"]
)
async def test_a_store_of_another_version_is_refused(tmp_path: Path, layout: bytes) -> None:
    """What another version stored is left as it is, and the error says in one line to set another prefix."""
    with redis_server(tmp_path) as server:
        direct = client.Redis(port=server.port)
        direct.set("pinstream:{0}:layout", layout)
        async with member(server.url) as store:
            for ask in (store.renew, partial(store.expire, NOON), partial(store.confirm, key(1), NOON)):
                with pytest.raises(
                    KeyStoreError, match=r"another version of pinstream.* \?prefix= .*upgrading\.md"
                ):
                    await ask()
        assert direct.keys() == [b"pinstream:{0}:layout"]


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
    """A claim that waited for a release without an answer fails: that release may be done later and would undo
    the claim."""
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
        store._name = "session"
        for ask in (store.claim, store.confirm, store.look_up):
            with pytest.raises(KeyStoreError):
                await ask(key(1), NOON)
            store._name = "session"
        with pytest.raises(KeyStoreError):
            await store.release(key(1))
        with pytest.raises(KeyStoreError):
            await store.renew()
        with pytest.raises(KeyStoreError):
            await store.acquire_permits("shop", 1, 1, 1.0)
        with pytest.raises(KeyStoreError):
            await store.expire(NOON)


async def test_a_server_that_repeats_the_password_does_not_bring_it_into_the_log() -> None:
    """When the server's error repeats the password, as some do with an unknown command's arguments, ours does not."""
    answer = b"-ERR unknown command 'AUTH', with args beginning with: 'user' 'hush', or hush"
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


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hush@h?prefix=a{b}",
        "redis://user:hush@h:99999",
        "redis://user:hush@h/x",
        "redis://user:hush@h?cluster=maybe",
        "redis://:so?hush=1@h",
        "redis://h?hush=1",
        "redis://h?prefix=a&hush",
    ],
)
def test_a_wrong_url_says_what_is_wrong(url: str) -> None:
    """The error for a wrong URL names the variable and repeats no password, also where what looks like an option may be
    the end of one with a question mark."""
    with pytest.raises(SettingsError, match="PINSTREAM_KEY_STORE") as refused:
        parse_address(url)
    assert "hush" not in str(refused.value)


async def test_a_note_that_makes_no_sense_is_an_error(tmp_path: Path) -> None:
    """A note that makes no sense raises an error at the next renewal and does not end the service."""
    with redis_server(tmp_path) as server:
        async with member(server.url) as store:
            await store.renew()
            client.Redis(port=server.port).hset(
                "pinstream:{0}:notes", "somewhere", f"{int(time.time() + 60) * 1000} x"
            )
            with pytest.raises(KeyStoreError):
                await store.renew()
