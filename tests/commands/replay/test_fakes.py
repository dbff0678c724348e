"""The stand-ins for the outside in a dry run, and a replay's view of key stores, over the real stores."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from consumer.adapters.key_store import open_key_store
from consumer.adapters.key_store.interface import Window
from consumer.commands.replay.fakes import DryRun, ReadOnlyKeys, SendingAgain, alone
from consumer.engine import messages as m
from consumer.engine.model import Chunk, Record
from consumer.errors import SettingsError
from consumer.ports import KeyStore
from tests.adapters.key_store.helpers import MIB, NOON, key, keys
from tests.engine.building import START, UNIX, Core, event

WINDOW = 1000.0


def test_one_process_at_a_time_holds_a_lock(tmp_path: Path) -> None:
    """A second holder of a lock is told so; of a shared one too, which both may then hold."""
    for shared in (False, True):
        with (
            alone(tmp_path, "a.lock", shared=shared) as first,
            alone(tmp_path, "a.lock", shared=shared) as second,
        ):
            assert (first, second) == (True, False)
        with alone(tmp_path, "a.lock", shared=shared) as third:
            assert third


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_without_locks_is_no_other_replay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: bool
) -> None:
    """Where the file system has no locks, the error names the setting, and no other replay."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(SettingsError, match=r"PINSTREAM_STATE_DIR: .* locked \(No locks available\)"),
        alone(tmp_path, "a.lock", shared=shared),
    ):
        raise AssertionError("it is not locked")


@pytest.fixture
async def store() -> AsyncIterator[KeyStore]:
    """A key store. (All of them answer alike: tests/adapters/key_store.)"""
    found = open_key_store("memory:", window=WINDOW, max_bytes=32 * MIB)
    yield found
    await found.close()


async def test_a_dry_run_reads_the_store_and_writes_nothing_to_it(store: KeyStore) -> None:
    """It knows the keys of the store and its own, and counts what ``--ignore-dedup`` would send again."""
    await store.confirm(key(1), NOON)
    dry = ReadOnlyKeys(store, Window.of(WINDOW))
    assert await dry.look_up(keys([1, 2]), NOON) == bytes([True, False])
    await dry.confirm(key(2), NOON)
    assert await dry.look_up(keys([1, 2, 3]), NOON) == bytes([True, True, False])
    assert await store.look_up(keys([1, 2, 3]), NOON) == bytes([True, False, False])
    await dry.expire(NOON + 2 * WINDOW)
    assert await store.look_up(key(1), NOON + WINDOW) == bytes([True])
    again = SendingAgain(dry, int(NOON + 10))
    assert (await again.claim(keys([1, 3]), NOON + 10)).found == bytes([False, False])
    await again.confirm(keys([1, 3]), NOON + 10)
    assert again.again == 1
    assert await store.look_up(keys([1, 3]), NOON) == bytes([True, False])
    await dry.close()


async def test_what_was_delivered_before_is_sent_again_and_counted(store: KeyStore) -> None:
    """Once however often it is in the range; a second run sends nothing a third time."""
    await store.confirm(keys([1, 2]), NOON - 10)
    again = SendingAgain(store, int(NOON))
    assert (await again.claim(keys([1, 3]), NOON)).found == bytes([False, False])
    assert again.again == 0
    for _ in range(2):
        await again.confirm(keys([1, 3]), NOON)
        assert again.again == 1
    for one in (again, SendingAgain(store, int(NOON))):
        assert (await one.claim(keys([1, 2, 3]), NOON + 1)).found == bytes([True, False, True])


async def test_a_replay_on_a_clock_that_is_ahead_knows_what_it_delivered(store: KeyStore) -> None:
    """What was never delivered, or is out of the window, is not counted."""
    await store.confirm(keys([1, 2, 4]), NOON - 10)
    again = SendingAgain(store, int(NOON + WINDOW))
    assert (await again.claim(keys([1, 2, 3]), NOON)).found == bytes([False, False, False])
    await again.confirm(keys([1, 3]), NOON + 5)
    assert (await again.claim(keys([1, 2, 3]), NOON + 6)).found == bytes([True, False, True])
    assert again.again == 1
    assert (await again.claim(key(4), NOON + WINDOW + 5)).found == bytes([False])
    await again.confirm(key(4), NOON + WINDOW + 5)
    assert again.again == 1


def test_what_lies_ahead_is_not_waited_for_one_a_second() -> None:
    """The date of a dry run's answers is this machine's time: all that is ahead is judged with the first answer."""
    answer = asyncio.run(DryRun().send(m.Send(1, "1", [b"{}"], 1)))
    said = parsedate_to_datetime(answer.headers["date"]).timestamp()
    assert abs(said - time.time()) < 5
    core = Core(linger=0.0)
    core.clock_off = said - UNIX
    core.assign()
    hour = core.instant().unix + 3600
    core.fetch(event("right"))
    stamped = [
        Chunk("shop", 0, 1, 7, [Record(1 + n, int(hour * 1000), None, event(f"{n}", time=hour), ())])
        for n in range(3)
    ]
    core.feed(m.Fetched(stamped))
    assert core.statistics().clock.future_dated == 3
    core.look_up()
    send = core.take(m.Send)
    body = asyncio.run(DryRun().send(send))
    core.feed(body)
    assert core.statistics().clock.future_dated == 0
    assert core.now == START
