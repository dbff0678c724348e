"""The stand-ins for the outside in a dry run, and a replay's view of key stores, over the real stores."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import time
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


@pytest.fixture(params=["memory:", "disk:"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> KeyStore:
    """A key store, in memory or on disk."""
    url = request.param if request.param == "memory:" else f"{request.param}{tmp_path}/keys"
    return open_key_store(url, window=WINDOW, max_bytes=32 * MIB)


async def test_a_dry_run_reads_the_store_and_writes_nothing_to_it(store: KeyStore) -> None:
    """A dry run knows the keys of the store, and those that it would have delivered, which are not written to
    the store."""
    await store.confirm(key(1), NOON)
    dry = ReadOnlyKeys(store, Window.of(WINDOW))
    assert await dry.look_up(keys([1, 2]), NOON) == bytes([True, False])
    await dry.confirm(key(2), NOON)
    assert await dry.look_up(keys([1, 2, 3]), NOON) == bytes([True, True, False])
    assert await store.look_up(keys([1, 2, 3]), NOON) == bytes([True, False, False])
    await dry.expire(NOON + 2 * WINDOW)
    assert await store.look_up(key(1), NOON + WINDOW) == bytes([True])
    await dry.close()


async def test_what_was_delivered_before_is_sent_again_and_counted(store: KeyStore) -> None:
    """What was delivered before the replay is sent again and counted, once however often it is in the range.
    What was not is sent and not counted."""
    await store.confirm(keys([1, 2]), NOON - 10)
    again = SendingAgain(store, int(NOON))
    assert (await again.claim(keys([1, 3]), NOON)).found == bytes([False, False])
    assert again.again == 0
    await again.confirm(keys([1, 3]), NOON)
    assert again.again == 1
    assert (await again.claim(keys([1, 2, 3]), NOON + 1)).found == bytes([True, False, True])
    await store.close()


async def test_an_interrupted_replay_goes_on_with_what_it_did(store: KeyStore) -> None:
    """A second run that began at the same moment knows what the first delivered: nothing is sent a third time."""
    await store.confirm(keys([1, 2]), NOON - 10)
    await SendingAgain(store, int(NOON)).confirm(key(1), NOON + 5)
    resumed = SendingAgain(store, int(NOON))
    assert (await resumed.claim(keys([1, 2]), NOON + 60)).found == bytes([True, False])
    await store.close()


async def test_a_replay_on_a_clock_that_is_ahead_knows_what_it_delivered(store: KeyStore) -> None:
    """A replay begins by this machine's clock and stores keys under the platform's: what it delivered itself is a
    duplicate, although that was before it began."""
    await store.confirm(key(1), NOON - 10)
    again = SendingAgain(store, int(NOON + WINDOW))
    assert (await again.claim(keys([1, 2]), NOON)).found == bytes([False, False])
    await again.confirm(keys([1, 2]), NOON + 5)
    assert (await again.claim(keys([1, 2]), NOON + 6)).found == bytes([True, True])
    await store.close()


async def test_refused_or_forgotten_keys_count_nothing(store: KeyStore) -> None:
    """A key that was looked up and never delivered is not counted as sent again, nor is one out of the window,
    which the platform has forgotten too."""
    await store.confirm(keys([1, 2]), NOON - 10)
    again = SendingAgain(store, int(NOON + WINDOW))
    assert (await again.claim(keys([1, 2]), NOON + 5)).found == bytes([False, False])
    assert (await again.claim(key(2), NOON + WINDOW + 5)).found == bytes([False])
    await again.confirm(key(3), NOON + WINDOW)
    assert again.again == 0
    await again.confirm(key(2), NOON + WINDOW)
    assert again.again == 1
    await store.close()


async def test_a_dry_run_that_ignores_dedup_reports_how_many_would_go_twice(store: KeyStore) -> None:
    """A dry run with ``--ignore-dedup`` writes nothing to the store, and counts how many events would be sent again."""
    await store.confirm(key(1), NOON - 10)
    dry = SendingAgain(ReadOnlyKeys(store, Window.of(WINDOW)), int(NOON))
    assert (await dry.claim(keys([1, 2]), NOON)).found == bytes([False, False])
    await dry.confirm(keys([1, 2]), NOON)
    assert dry.again == 1
    assert await store.look_up(keys([1, 2]), NOON) == bytes([True, False])
    await store.close()


def test_what_lies_ahead_is_not_waited_for_one_a_second() -> None:
    """The date of a dry run's answers is this machine's time: events and records whose times are ahead of it
    are all judged with the first answer, instead of one a second."""
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
