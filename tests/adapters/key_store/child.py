"""A process with a key store of its own, for tests of shared stores and of sudden ends of a process.

``python -m tests.adapters.key_store.child FOLDER WINDOW MAX_BYTES`` answers each line with one line:
``remember FROM TO NOW``, ``look_up FROM TO NOW`` (the number of keys found), ``expire NOW``, ``statistics`` (the number
of keys evicted early); ``stream FROM TO STEP NOW`` remembers keys step by step and prints its position after each.
"""

from __future__ import annotations

import asyncio
import sys

from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.interface import Window
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import keys


def _say(text: object) -> None:
    print(text, flush=True)


async def _obey(store: DiskKeyStore, words: list[str]) -> None:
    match words:
        case ["remember", first, last, now]:
            await store.confirm(keys(range(int(first), int(last))), float(now))
            _say("stored")
        case ["look_up", first, last, now]:
            _say(sum(await store.look_up(keys(range(int(first), int(last))), float(now))))
        case ["expire", now]:
            await store.expire(float(now))
            _say("expired")
        case ["statistics"]:
            _say(store.statistics().evicted_early)
        case ["stream", first, last, step, now]:
            for position in range(int(first), int(last), int(step)):
                await store.confirm(keys(range(position, position + int(step))), float(now))
                _say(position + int(step))


async def _main(folder: str, window: str, max_bytes: str) -> None:
    store = DiskKeyStore(folder, Window.of(float(window)), int(max_bytes))
    _say("open")
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            await _obey(store, line.split())
        except KeyStoreError as failure:
            _say(f"error {failure}")
    await store.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
