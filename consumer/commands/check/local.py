"""Questions to this machine: schema, mapping, state folder, key store, the page's address, the token."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

from consumer.adapters.key_store import open_key_store
from consumer.app import building
from consumer.commands.base import first_of
from consumer.commands.check.rows import Found, Said, Skip, counted
from consumer.conversion.targets import MOST_OWN_EVENTS, NEW_TARGETS
from consumer.errors import PinstreamError, SettingsError
from consumer.settings import Settings
from consumer.web.listening import (
    LOCAL_HOSTS,
    LOOPBACK,
    ListenAddress,
    is_taken,
    main_address,
    page_address,
    try_out,
)
from consumer.workers.shares import check_divisible, worker_count, worker_settings

_ASK_WITHIN = 3.0
_OURS = b"server: pinstream"
_MIB = 1024 * 1024


async def workers(found: Found) -> Said:
    """Whether what is set can be divided by so many, and what each would get."""
    number = worker_count(found.workers or "1", found.settings)
    check_divisible(found.settings, number)
    own = worker_settings(found.settings, number, number).pinstream
    return Said(
        f"{number}; each has {counted(own.concurrency, 'request')} in flight, {own.calls_per_minute:,} calls a minute, "
        f"{own.max_open_events:,} open events and {own.max_open_bytes // _MIB:,} MiB of them"
    )


async def schema(found: Found) -> Said:
    """The shape that the mapping is written for."""
    found.schema = building.reader_schema(found.settings, building.local_schemas(found.settings))
    return Said(f"{found.settings.pinstream.schema_name} in {found.settings.pinstream.schemas_dir}")


async def check_mapping(found: Found) -> Said:
    """How records become conversion events."""
    if found.schema is None:
        raise Skip("needs the schema")
    fitting = building.mapping(found.settings, found.schema)
    file = found.settings.pinstream.mapping_file
    said = f"{file or 'the packaged mapping'} fits the schema: {counted(len(fitting.sources), 'field')} with a source"
    # With an own file, a name that the schema happens to have in common with ours may be a surprise.
    proposed = [name for name in fitting.sources if file is not None and name in fitting.proposed]
    said += f"; by the packaged mapping's lines: {first_of(proposed)}" if proposed else ""
    if fitting.own_events:
        said += (
            f"; own events: {len(fitting.own_events)} of the {MOST_OWN_EVENTS} that may be registered with Pinterest: "
            f"{', '.join(fitting.own_events)}"
        )
    new = [f"{name} ({since})" for name, since in NEW_TARGETS.items() if name in fitting.sources]
    asked = (
        [f"new at Pinterest, check with --send-test-event that it is accepted: {', '.join(new)}"]
        if new
        else []
    )
    found.mapping = fitting
    return Said(said, [*fitting.warnings, *asked])


async def state_folder(found: Found) -> Said:
    """Whether what must survive a restart can be written."""
    folder = found.settings.pinstream.state_dir
    building.make_state_folder(folder)
    _write(folder, "PINSTREAM_STATE_DIR")
    return Said(f"{folder} is writable")


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
            f"{variable}: {folder} cannot be written ({error.strerror}); name a folder with free space that this user "
            f"may write to"
        ) from error


async def page(found: Found) -> Said:
    """Whether page, /status, health and metrics can be served where they should be."""
    own = found.settings.pinstream
    if own.http_address is None:
        raise Skip("PINSTREAM_HTTP_ADDRESS is empty: no page, no health, no metrics")
    places = [main_address(*own.http_address)]
    if own.page_address is not None:
        places.append(page_address(*own.page_address))
    free = [await _is_free(place) for place in places]
    # Each alone can be had; together, too? A name and a number may be the same address.
    if all(free):
        await try_out(*places)
    said = [_said(place, is_free) for place, is_free in zip(places, free, strict=True)]
    return Said("; ".join(said) + _openness(found.settings, places[-1].host))


async def _is_free(place: ListenAddress) -> bool:
    """Whether it is free; False: a pinstream serves there. Raises `SettingsError` if neither."""
    try:
        await try_out(place)
    except SettingsError as error:
        if not is_taken(error):
            raise
        if not await _is_ours(place):
            raise SettingsError(
                f"{place.variable}: {place} is used by another program; choose another address, or stop that program"
            ) from error
        return False
    return True


def _said(place: ListenAddress, is_free: bool) -> str:
    if not is_free:
        return (
            f"{place}: another pinstream uses it already; a second one on this machine needs its own address"
        )
    return f"{place} is free" if place.port else f"{place.host}, any free port"


def _openness(settings: Settings, host: str) -> str:
    """Who may look at what is served there."""
    own = settings.pinstream
    if own.http_token is not None or own.http_token_file is not None:
        return "; everything but health requires PINSTREAM_HTTP_TOKEN"
    if host in LOCAL_HOSTS:
        return ""
    return "; everyone who reaches it may read it, because PINSTREAM_HTTP_TOKEN is not set"


async def _is_ours(place: ListenAddress) -> bool:
    try:
        async with asyncio.timeout(_ASK_WITHIN):
            reader, writer = await asyncio.open_connection(LOOPBACK.get(place.host, place.host), place.port)
            try:
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                return _OURS in (await reader.readuntil(b"\r\n\r\n")).lower()
            finally:
                writer.close()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False


async def check_token(found: Found) -> Said:
    """Whether there is one."""
    building.token(found.settings).value()
    where = found.settings.pinterest.access_token_file or "PINTEREST_ACCESS_TOKEN"
    return Said(f"read from {where}; only --send-test-event shows whether the API accepts it")
