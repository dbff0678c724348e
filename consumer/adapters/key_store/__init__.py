"""Key stores: where the keys of delivered events are remembered for the dedup window.

`open_key_store` opens one by its URL; `interface` says what all of them promise.

``memory:``      lost with the process: for tests, the demo, and if duplicates after a restart do no harm
``disk:/path``   a folder on a local disk; survives restarts and kills; may be shared by processes of one host
``redis://…``    a server that members on several machines share, which keeps their claims too (`shared`)

Theory of operation of the store on disk. The set of remembered keys grows at one end in time and is forgotten at the
other, and keys are hashes. So nothing is ever changed in place. There are three kinds of files (`files`):

* The **journal**: keys of the latest deliveries in the order in which they came, 16 bytes a key, appended and flushed
  for each chunk. Each process has them in a table in memory too.
* **Segments**: sorted keys with their times, which never change. A full journal is *sealed*: it becomes a segment, and
  the next one begins. Since keys are spread evenly, a directory by their first bits leads to two to four entries,
  so a look-up is two places in memory a segment. A few segments of one slice of time are *merged* into one now and
  then, on a thread. A segment is dropped whole: when its slice is out of the window, or when the store is full.
* The **list** of these files, called ``format``: replaced as a whole, it is the one point at which the store changes.

Everything has a checksum, and the end of the certain part of a journal is recorded: so a flipped bit and a cut file are
reported, and never taken for keys that were not delivered. Data that a kill or a full disk leaves half written are not
certain yet: no caller has had an answer for them, and they are cut off.

Processes share a folder by its lock (`folder`): one at a time appends, seals or enters a merge, and keeps no state from
the last time. Looking up takes no lock (`view`): files of the list never change, and the journal is read up to its
certain end. Network file systems are not supported.

`disk_store` is the boundary to the event loop. `native` has the operations on many keys at once, in Cython, with a twin
in plain Python.
"""

from __future__ import annotations

from collections.abc import Callable

from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.memory import MemoryKeyStore
from consumer.engine.model import Announcement
from consumer.ports import KeyStore

__all__ = ["open_key_store"]


def open_key_store(
    url: str,
    *,
    window: float,
    max_bytes: int,
    lease: float = 60.0,
    password: Callable[[], str | None] | None = None,
    announcement: Announcement | None = None,
) -> KeyStore:
    """Open the key store that `url` names, or create it.

    The settings have checked the form of `url`, `window` (seconds) and `max_bytes` (the hard limit of the store's
    size). For a shared store: `lease`, the seconds for which claims hold without a renewal; `password`, which is asked
    for each connection and takes the place of the one in `url`; and `announcement`, which the other members learn.

    Raises `SettingsError` for an invalid address of a server, and `KeyStoreError` if the store cannot be opened (not
    writable, damaged, of another format, locked by another process). The message says what to do.
    """
    scheme, _, path = url.partition(":")
    bounds = Window.of(window)
    if scheme == "memory":
        return MemoryKeyStore(bounds, max_bytes)
    if scheme == "disk":
        return DiskKeyStore(path, bounds, max_bytes)
    # Imported here: the others need neither.
    from consumer.adapters.key_store.shared.address import parse_address
    from consumer.adapters.key_store.shared.store import RedisKeyStore

    return RedisKeyStore(
        parse_address(url), bounds, lease=lease, password=password, announcement=announcement
    )
