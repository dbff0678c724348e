"""The shared key store behind Sentinels and in a cluster: real servers, of which some fail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis as client
from redis.crc import key_slot

from consumer.adapters.key_store.shared.address import CONNECTIONS
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import NOON, RIGHTS, key, keys, member, until_answered, wait_for, works
from tests.support.limits import LATE
from tests.support.redis_server import RedisServer, redis_cluster, redis_server


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Yield the three nodes of a cluster."""
    with redis_cluster(tmp_path, 3) as nodes:
        yield nodes


async def test_sentinels_lead_to_the_primary_and_what_a_failover_lost_is_counted(tmp_path: Path) -> None:
    """Sentinels lead to the new primary, and the keys confirmed while its replica stood still are counted as lost."""
    with ExitStack() as stack:
        primary = stack.enter_context(redis_server(tmp_path / "one", "--repl-diskless-sync-delay", "0"))
        of = ("--replicaof", f"127.0.0.1 {primary.port}")
        replica = stack.enter_context(redis_server(tmp_path / "two", *of))
        follower = client.Redis(port=replica.port)
        wait_for(lambda: follower.info("replication")["master_link_status"] == "up")
        reported = (
            f"sentinel monitor shop 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 3000\n"
        )
        watch = stack.enter_context(redis_server(tmp_path / "three", "--sentinel", configuration=reported))
        async with member(f"redis://127.0.0.1:{watch.port}?sentinel=shop") as store:
            await until_answered(store.renew)
            await store.confirm(keys(range(10)), NOON)
            wait_for(lambda: follower.hget("pinstream:{0}:sets", "entries") == b"10")
            replica.freeze()
            # Otherwise the keys that it lacks would still be in its socket when it continues.
            assert client.Redis(port=primary.port).client_kill_filter(_type="replica") == 1
            await store.confirm(keys(range(10, 13)), NOON)
            primary.kill()
            replica.thaw()
            await until_answered(store.renew)
            assert store.statistics().lost == 3
            assert (await store.renew()).session == 2
            assert await store.look_up(keys([9, 10]), NOON) == b"\1\0"


SENTINEL_RIGHTS = "allchannels +sentinel|masters +client|setname"
"""The rights that the user needs at Sentinels, as in docs/scaling.md."""


def ask_sentinels(
    stack: ExitStack, folder: Path, primary: RedisServer, secured: str, count: int = 3
) -> list[RedisServer]:
    """Start Sentinels that watch `primary` as "shop"; `secured`: the lines of their files that say whom they answer."""
    reported = f"sentinel monitor shop 127.0.0.1 {primary.port} 1\nsentinel auth-pass shop hush\n{secured}\n"
    return [
        stack.enter_context(redis_server(folder / f"sentinel-{n}", "--sentinel", configuration=reported))
        for n in range(count)
    ]


def url_of(sentinels: list[RedisServer], user: str = "") -> str:
    """Return the address of a store behind `sentinels`."""
    return f"redis://{user}{','.join(f'127.0.0.1:{one.port}' for one in sentinels)}?sentinel=shop"


@pytest.mark.parametrize(
    ("user", "secured"),
    [
        ("", ""),
        ("", "requirepass hush"),
        ("shop@", f"user default off\nuser shop on >hush {SENTINEL_RIGHTS}"),
    ],
    ids=["open", "a password", "a user"],
)
async def test_sentinels_may_ask_for_the_same_password(tmp_path: Path, user: str, secured: str) -> None:
    """They get it only if they ask for it; the error for a wrong one says whether Sentinels refuse it."""
    word = {"": "--requirepass", "shop@": "--masterauth"}[user]
    acl = f"user shop on >hush {RIGHTS}\n" if user else ""
    with ExitStack() as stack:
        primary = stack.enter_context(redis_server(tmp_path / "one", word, "hush", configuration=acl))
        sentinels = ask_sentinels(stack, tmp_path, primary, secured)
        async with member(url_of(sentinels, user), word="hush") as store:
            await works(store)
        if not secured:
            assert not client.Redis(port=sentinels[0].port).acl_log()
        async with member(url_of(sentinels, user), word="wrong") as store:
            refused = "has Sentinels that refuse the user or the" if secured else "refuses the user or the"
            with pytest.raises(KeyStoreError, match=f"{refused} password"):
                await store.renew()
        async with member(url_of(sentinels)) as store:
            with pytest.raises(KeyStoreError, match=f"{refused} password"):
                await store.renew()


@pytest.mark.parametrize("word", [None, "hush"])
async def test_sentinels_that_do_not_answer_leave_time_for_the_others(
    tmp_path: Path, word: str | None
) -> None:
    """Of three, two may stand still; when all do, or none knows the name, an error says so."""
    secured = ("--requirepass", word) if word else ()
    with ExitStack() as stack:
        primary = stack.enter_context(redis_server(tmp_path / "one", *secured))
        sentinels = ask_sentinels(stack, tmp_path, primary, f"requirepass {word}" if word else "")
        async with member(url_of(sentinels).replace("=shop", "=shoes"), word=word) as store:
            with pytest.raises(KeyStoreError, match="has Sentinels that name no primary"):
                await store.renew()
        sentinels[0].freeze()
        sentinels[1].freeze()
        async with member(url_of(sentinels), word=word, time_limit=3.0) as store:
            await works(store)
        sentinels[2].freeze()
        async with member(url_of(sentinels), word=word, time_limit=3.0) as store:
            with pytest.raises(KeyStoreError, match="has Sentinels that name no primary"):
                await store.renew()


async def test_a_primary_with_too_few_replicas_is_reported(tmp_path: Path) -> None:
    """With `min-replicas-to-write` and too few replicas a primary takes no writes, and the error names the setting."""
    with redis_server(tmp_path, "--min-replicas-to-write", "1") as server:
        async with member(server.url) as store:
            with pytest.raises(KeyStoreError, match=r"takes no writes, .* \(min-replicas-to-write\)"):
                await store.renew()
            client.Redis(port=server.port).config_set("min-replicas-to-write", 0)
            await works(store)


@pytest.mark.parametrize("how", ["killed", "silent"])
async def test_a_node_of_a_cluster_that_is_lost_is_replaced(tmp_path: Path, how: str) -> None:
    """Members follow its replica, also if calls to it end by their time limit only, and go on when it returns."""
    with redis_cluster(tmp_path, 3, replicas=1) as nodes:
        async with member(
            f"redis://127.0.0.1:{nodes[0].port},127.0.0.1:{nodes[1].port}?cluster=true"
        ) as store:
            await until_answered(store.renew)
            await store.confirm(keys(range(100)), NOON)
            replicas = [client.Redis(port=node.port) for node in nodes[3:]]
            for node in nodes[:3]:
                client.Redis(port=node.port).wait(1, 30_000)
            nodes[0].kill() if how == "killed" else nodes[0].freeze()
            with pytest.raises(KeyStoreError):
                await store.renew()
            wait_for(lambda: any(one.info("replication")["role"] == "master" for one in replicas))
            await until_answered(store.renew)
            assert await store.look_up(keys(range(100)), NOON) == b"\1" * 100
            assert store.statistics().lost == 0
            nodes[0].start() if how == "killed" else nodes[0].thaw()
            wait_for(lambda: client.Redis(port=nodes[0].port).info("replication")["role"] == "slave")
            await until_answered(store.renew)
            # The new primary does not know the script yet, so only its part of the call is made again.
            assert await store.confirm(keys(range(100, 200)), NOON) == b"\1" * 100


async def test_in_a_cluster(cluster: list[RedisServer]) -> None:
    """Keys are spread over all nodes, any node leads to the others, and an error names the cluster's address. More
    calls at once than there are connections wait for one; renewals do not."""
    url = f"redis://127.0.0.1:{cluster[0].port},127.0.0.1:{cluster[1].port}?cluster=true"
    async with member(url) as store:
        await works(store)
        assert [bool(client.Redis(port=node.port).dbsize()) for node in cluster] == [True] * 3
        assert await store.review()
        blocks = [keys(range(100 * n, 100 * n + 100)) for n in range(5, 25)]
        claimed = await asyncio.gather(*(store.claim(one, NOON) for one in blocks))
        assert all(one.found == bytes(100) for one in claimed)
        turns = store._server._turns
        async with AsyncExitStack() as all_are_taken, asyncio.timeout(LATE):
            for _ in range(CONNECTIONS):
                await all_are_taken.enter_async_context(turns)
            assert (await store.renew()).session == 1
        cluster[2].kill()
        with pytest.raises(KeyStoreError, match=r"the shared key store redis://127\.0\.0\.1:\d+,127"):
            await store.renew()


async def test_while_a_cluster_moves_a_slot_calls_there_fail(cluster: list[RedisServer]) -> None:
    """Its keys are on two nodes meanwhile; afterwards none is lost."""
    slot = key_slot(b"0")
    async with member(f"{cluster[0].url}?cluster=true") as store:
        await until_answered(store.renew)
        mine = [n for n in range(200) if key(n)[-1] % 16 == 0]
        await store.claim(keys(mine), NOON)
        await store.confirm(keys(mine[:5]), NOON)
        nodes: list[Any] = [client.Redis(port=node.port) for node in cluster]
        names = [node.execute_command("CLUSTER MYID").decode() for node in nodes]
        source = next(
            n for n, node in enumerate(nodes) if node.execute_command(f"CLUSTER COUNTKEYSINSLOT {slot}")
        )
        target = (source + 1) % 3
        nodes[target].execute_command(f"CLUSTER SETSLOT {slot} IMPORTING {names[source]}")
        nodes[source].execute_command(f"CLUSTER SETSLOT {slot} MIGRATING {names[target]}")
        moved = nodes[source].execute_command(f"CLUSTER GETKEYSINSLOT {slot} 1000")
        for some in (moved[::2], moved[1::2]):
            for _ in range(3):  # the client may follow the keys to the other node
                with pytest.raises(KeyStoreError, match="moves keys to another node"):
                    await store.look_up(keys(mine), NOON)
                with pytest.raises(KeyStoreError):
                    await store.confirm(keys(mine[5:]), NOON)
            nodes[source].migrate("127.0.0.1", cluster[target].port, some, 0, 5000)
        # The script refuses also if the client has sent ASKING.
        asking: Any = client.Redis(port=cluster[target].port, single_connection_client=True)
        asking.execute_command("ASKING")
        with pytest.raises(client.ResponseError, match="non local key"):
            asking.eval(
                store._server._scripts["claim"].script, 1, "pinstream:{0}:", "", "", "", 0, 1, key(mine[0])
            )
        with pytest.raises(KeyStoreError, match="moves keys to another node"):
            await store.look_up(keys(mine), NOON)
        for node in (nodes[target], nodes[source]):
            node.execute_command(f"CLUSTER SETSLOT {slot} NODE {names[target]}")
        await until_answered(store.renew)
        assert await store.look_up(keys(mine), NOON) == b"\1" * 5 + bytes(len(mine) - 5)
        assert store.statistics().lost == 0
