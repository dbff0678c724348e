"""Questions to this machine: schema, mapping, state folder, key store, the page's address, the token."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

from consumer.adapters.key_store import open_key_store
from consumer.app import building
from consumer.app.check.rows import Found, Said, Skip, count
from consumer.app.workers.shares import check as divide
from consumer.app.workers.shares import count_of, share
from consumer.errors import PinstreamError, SettingsError
from consumer.settings import Settings

_ASK_WITHIN = 3.0
_OURS = b"server: pinstream"
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - asked, not listened on
_ONLY_HERE = ("127.0.0.1", "::1", "localhost")
_MIB = 1024 * 1024


async def workers(found: Found) -> Said:
    """Whether what is set can be divided by so many, and what each would get."""
    number = count_of(found.workers or "1", found.settings)
    divide(found.settings, number)
    own = share(found.settings, number, number).pinstream
    return Said(
        f"{number}; each has {count(own.concurrency, 'request')} in flight, {own.calls_per_minute:,} calls a minute, "
        f"{own.max_open_events:,} open events and {own.max_open_bytes // _MIB:,} MiB of them"
    )


async def schema(found: Found) -> Said:
    """The shape that the mapping is written for."""
    found.schema = building.reader_schema(found.settings, building.local_schemas(found.settings))
    return Said(f"{found.settings.pinstream.schema_name} in {found.settings.pinstream.schemas_dir}")


async def mapping(found: Found) -> Said:
    """How records become conversion events."""
    if found.schema is None:
        raise Skip("needs the schema")
    fitting = building.mapping(found.settings, found.schema)
    name = found.settings.pinstream.mapping_file or "the packaged mapping"
    return Said(f"{name} fits the schema: {len(fitting.sources)} fields have a source")


async def state_folder(found: Found) -> Said:
    """Whether what must survive a restart can be written."""
    folder = found.settings.pinstream.state_dir
    building.make_state_folder(folder)
    _write(folder, "PINSTREAM_STATE_DIR")
    return Said(f"{folder} can be written")


async def key_store(found: Found) -> Said:
    """Whether it opens, and has room to grow."""
    own = found.settings.pinstream
    url = own.key_store.get_secret_value()
    building.make_state_folder(own.state_dir)
    store = open_key_store(url, window=own.dedup_window, max_bytes=own.key_store_max_bytes)
    try:
        await store.look_up([b"\0" * 16], time.time())
        keys = store.statistics()
        # A real write, beside the store: it shows that the disk takes one, and leaves no key behind.
        warnings = _lmdb(found.settings, url, keys.bytes_used) if url.startswith("lmdb:") else ()
    finally:
        await store.close()
    return Said(f"opens; {keys.keys:,} keys, {keys.bytes_used:,} bytes", warnings)


def _lmdb(settings: Settings, url: str, used: int) -> list[str]:
    folder = Path(url.removeprefix("lmdb:")).parent
    _write(folder, "PINSTREAM_KEY_STORE")
    free, most = shutil.disk_usage(folder).free, settings.pinstream.key_store_max_bytes
    if free >= most - used:
        return []
    return [
        f"it may grow to {most // _MIB:,} MiB and only {free // _MIB:,} MiB are free: make room, or lower "
        "PINSTREAM_KEY_STORE_MAX_BYTES"
    ]


def _write(folder: Path, variable: str) -> None:
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as probe:
            probe.write(b"pinstream check")
            probe.flush()
    except OSError as error:
        raise PinstreamError(
            f"{variable}: {folder} cannot be written ({error.strerror}); name a folder that this user may write to, "
            "with room"
        ) from error


async def page(found: Found) -> Said:
    """Whether page, /status, health and metrics can be served where they should be."""
    address = found.settings.pinstream.http_address
    if address is None:
        raise Skip("PINSTREAM_HTTP_ADDRESS is empty: no page, no health, no metrics")
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        server = await asyncio.start_server(_hang_up, host, port)
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return await _in_use(host, port, where)
        raise SettingsError(
            f"PINSTREAM_HTTP_ADDRESS: cannot listen on {where} ({_why(error)}); choose another address, or set it "
            "empty to serve nothing"
        ) from error
    server.close()
    await server.wait_closed()
    return Said((f"{where} is free" if port else f"{host}, any free port") + _openness(found.settings, host))


def _openness(settings: Settings, host: str) -> str:
    """Who may look at what is served there."""
    own = settings.pinstream
    if own.http_token is not None or own.http_token_file is not None:
        return "; all but health asks for PINSTREAM_HTTP_TOKEN"
    if host in _ONLY_HERE:
        return ""
    return "; whoever reaches it may look, since PINSTREAM_HTTP_TOKEN is not set"


async def _in_use(host: str, port: int, where: str) -> Said:
    if await _is_ours(host, port):
        return Said(f"{where}: a pinstream serves it already; a second one here needs an address of its own")
    raise SettingsError(
        f"PINSTREAM_HTTP_ADDRESS: {where} is used by another program; choose another address, or stop that program"
    )


async def _is_ours(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_ASK_WITHIN):
            reader, writer = await asyncio.open_connection(_LOOPBACK.get(host, host), port)
            try:
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                return _OURS in (await reader.readuntil(b"\r\n\r\n")).lower()
            finally:
                writer.close()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def _why(error: Exception) -> str:
    """In the system's words: asyncio's would repeat the address."""
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "no such host"


async def token(found: Found) -> Said:
    """Whether there is one."""
    building.token(found.settings).value()
    where = found.settings.pinterest.access_token_file or "PINTEREST_ACCESS_TOKEN"
    return Said(f"read from {where}; only --send-test-event shows whether the API takes it")
