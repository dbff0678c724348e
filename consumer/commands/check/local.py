"""Questions to this machine: settings, workers, schema, mapping, state folder, key store, certificates, page address,
token, OpenTelemetry."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp

from consumer.adapters.network import date
from consumer.app import building
from consumer.app.telemetry import environment
from consumer.commands.check.rows import OF_SETTINGS, CheckContext, Row, Skip, failed, ok, warning
from consumer.commands.results import counted
from consumer.conversion.computed.expressions import Computed
from consumer.conversion.computed.tables import numbers_in_text
from consumer.conversion.sections import Section, Sections
from consumer.conversion.targets import MAX_OWN_EVENTS, NEW_TARGETS
from consumer.conversion.transform import load_transform
from consumer.engine.reading import NO_KEY
from consumer.engine.records.commits import differing_from
from consumer.errors import MappingError, PinstreamError, SettingsError, first_of, nearest
from consumer.settings import Settings
from consumer.settings.values import SecretFile
from consumer.web import listening
from consumer.web.listening import ListenAddress, try_out
from consumer.workers.shares import check_divisible, worker_count, worker_settings

_ASK_WITHIN = 3.0
_MIB = 1024 * 1024
_DAY = 24 * 60 * 60
# Days before its end from which a certificate is a warning; the page and the alert have the same.
_ENDS_SOON = 14


async def settings(found: CheckContext) -> Sequence[Row]:
    """Is anything in the settings likely to surprise? (They are loaded and valid.)"""
    building.require_limits(found.settings)
    return [ok("every variable is known and valid"), *map(warning, found.settings.warnings)]


async def workers(found: CheckContext) -> Sequence[Row]:
    """Can the settings be divided among the workers, and what does each get?"""
    if found.workers is None:
        return []
    number = worker_count(found.workers, found.settings)
    check_divisible(found.settings, number)
    # The last worker: of what cannot be divided evenly, it has the smaller part.
    own = worker_settings(found.settings, number, number).pinstream
    calls = own.calls_per_minute
    quota = (
        f"together with all other members they make {calls:,} calls a minute (shared key store)"
        if own.shares_key_store
        else f"and {calls // number:,} of the {calls:,} calls a minute, fewer if more members hold partitions"
    )
    text = (
        f"{number}; each has {counted(own.concurrency, 'request')} in flight, {own.max_open_events:,} open events and "
        f"{own.max_open_bytes // _MIB:,} MiB of them; {quota}"
    )
    return [ok(text)]


async def transform(found: CheckContext) -> Sequence[Row]:
    """Can the user's function be loaded?"""
    name = found.settings.pinstream.transform
    if name is None:
        return []
    load_transform(name)
    text = (
        "takes each record; so the fast path is not used, and an event costs more than twelve times as much"
    )
    return [ok(f"{name} {text}: try it with pinstream explain")]


async def schema(found: CheckContext) -> Sequence[Row]:
    """Are the schemas there that the mapping is written for?"""
    folder = found.settings.pinstream.schemas_dir
    try:
        found.sections = building.sections(found.settings)
    except MappingError as error:
        # The schemas could be read. An error of the mapping is reported in the row of the next question.
        found.mapping_error = error
        return [ok(f"schemas are in {folder}")]
    return [ok(f"{', '.join(found.sections.records)} in {folder}")]


async def mapping(found: CheckContext) -> Sequence[Row]:
    """Does the mapping fit the schemas?"""
    own, mapped = found.settings.pinstream, found.sections
    if found.mapping_error is not None:
        raise found.mapping_error
    if mapped is None:
        raise Skip("needs the schema")
    file = own.mapping_file or "the packaged mapping"
    text = f"{file} fits the schema: {_sources(found.settings, mapped.all[0])}"
    if mapped.names:
        rest = "dead letters" if mapped.unknown_record == "refuse" else "filtered"
        sections = counted(len(mapped.all), "section")
        text = f"{file} has {sections} that fit their schemas; records of other types are {rest}"
    if mapped.own_events:
        text += (
            f"; own events: {len(mapped.own_events)} of the {MAX_OWN_EVENTS} that may be registered with Pinterest: "
            f"{', '.join(mapped.own_events)}"
        )
    # Without sections, the fields of the one mapping need no row of their own.
    own_rows = mapped.all if mapped.names else ()
    warnings = [*mapped.warnings, *_unread_topics(found.settings, mapped)]
    filled = {name for section in mapped.all for name in section.mapping.sources}
    if new := [f"{name} ({since})" for name, since in NEW_TARGETS.items() if name in filled]:
        warnings.append(f"new at Pinterest; --send-test-event shows whether it is accepted: {', '.join(new)}")
    texts = [text, *(f"{section.name}: {_sources(found.settings, section)}" for section in own_rows)]
    return [*map(ok, texts), *map(warning, warnings)]


def _sources(settings: Settings, section: Section) -> str:
    """Return how many fields a section fills, and which of them by lines that are not the user's."""
    mapping = section.mapping
    said = f"{counted(len(mapping.sources), 'field')} with a source"
    # With a mapping file, a field that only has the same name as one of ours may be sent by surprise.
    own_file = settings.pinstream.mapping_file is not None
    proposed = [name for name in mapping.sources if own_file and name in mapping.proposed]
    said += f"; by the packaged mapping's lines: {first_of(proposed)}" if proposed else ""
    computed = [name for name, source in mapping.sources.items() if isinstance(source, Computed)]
    said += f"; computed, each by a call of Python: {first_of(computed)}" if computed else ""
    texts = dict.fromkeys(path for source in mapping.sources.values() for path in numbers_in_text(source))
    return f"{said}; computed with as numbers, though they are text: {first_of([*texts])}" if texts else said


def _unread_topics(settings: Settings, mapped: Sections) -> Iterator[str]:
    """Warn of sections for topics that are not read: most likely they are misspelled."""
    topics = settings.kafka.topics
    for topic in mapped.topics:
        if topic not in topics and not any(one.startswith("^") and re.match(one, topic) for one in topics):
            near = nearest(topic, topics)
            hint = f"; the nearest is {near}" if near else ""
            yield f"the mapping has a section for the topic {topic}, which KAFKA_TOPICS does not name{hint}"


async def state_folder(found: CheckContext) -> Sequence[Row]:
    """Can the state folder be written?"""
    folder = found.settings.pinstream.state_dir
    building.make_state_folder(folder)
    _write(folder, "PINSTREAM_STATE_DIR")
    return [ok(f"{folder} is writable")]


async def key_store(found: CheckContext) -> Sequence[Row]:
    """Does the key store open, and does it have room to grow?"""
    own = found.settings.pinstream
    store = building.service_key_store(found.settings)
    try:
        # Opening alone reads little of it.
        await store.look_up(NO_KEY, time.time())
        keys = store.statistics()
        warnings = [*await store.review()]
        if found.sections is not None:
            ours = building.announcement_of(found.settings, found.sections)
            differing = differing_from(ours, await store.members())
            warnings += [
                f"a member that shares it has another {OF_SETTINGS[name]}" for name in sorted(differing)
            ]
    finally:
        await store.close()
    scheme, _, path = own.key_store.get_secret_value().partition(":")
    if scheme == "disk":
        # A file beside the store: this tests the disk and leaves no key behind.
        folder = Path(path).parent
        _write(folder, "PINSTREAM_KEY_STORE")
        # The store may grow up to its limit; the bytes that it uses already count.
        free, maximum = shutil.disk_usage(folder).free, own.key_store_max_bytes
        if free < maximum - keys.bytes_used:
            warnings.append(
                f"it may grow to {maximum // _MIB:,} MiB and only {free // _MIB:,} MiB are free: make room, or lower "
                "PINSTREAM_KEY_STORE_MAX_BYTES"
            )
    return [ok(f"opens; {keys.keys:,} keys, {keys.bytes_used:,} bytes"), *map(warning, warnings)]


def _write(folder: Path, variable: str) -> None:
    try:
        # Written and flushed, because a full disk does not refuse an empty file.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".check-") as probe:
            probe.write(b"pinstream check")
            probe.flush()
    except OSError as error:
        raise PinstreamError(
            f"{variable}: {folder} cannot be written ({error.strerror}); name a folder with free space that this user "
            f"may write to"
        ) from error


async def certificates(found: CheckContext) -> Sequence[Row]:
    """When do the client's certificates end?"""
    rows = []
    for setting, ends in ((one.setting, one.expires) for one in building.client_certificates(found.settings)):
        days, text = (ends - time.time()) / _DAY, f"{setting}: it ends at {date(ends)}"
        if days < 0:
            rows.append(failed(f"{setting}: it ended at {date(ends)}; put a new one in place"))
        elif days < _ENDS_SOON:
            left = counted(int(days), "day")
            rows.append(warning(f"{text}, in {left}: put a new one in place, and start the members again"))
        else:
            rows.append(ok(text))
    return rows


async def page(found: CheckContext) -> Sequence[Row]:
    """Can page, /status, health and metrics be served at their addresses?"""
    own = found.settings.pinstream
    # Empty turns the page off.
    if own.http_address is None:
        raise Skip("PINSTREAM_HTTP_ADDRESS is empty: no page, no health, no metrics")
    places = [listening.main_address(*own.http_address)]
    if own.page_address is not None:
        places.append(listening.page_address(*own.page_address))
    # An address that is taken may be of another pinstream that runs already.
    free = [await _is_free(place) for place in places]
    # Each address alone is free. Both together may not be: a name and a number may be the same address.
    if all(free):
        await try_out(*places)
    said = []
    for place, is_free in zip(places, free, strict=True):
        if not is_free:
            said.append(
                f"{place}: another pinstream uses it already; a second one on this machine needs its own address"
            )
        else:
            said.append(f"{place} is free" if place.port else f"{place.host}, any free port")
    # Who may read the page. Health never needs the token, since probes have none.
    if own.http_token is not None:
        said.append("everything but health requires PINSTREAM_HTTP_TOKEN")
    elif places[-1].host not in listening.LOCAL_HOSTS:
        said.append("everyone who reaches it may read it, because PINSTREAM_HTTP_TOKEN is not set")
    return [ok("; ".join(said))]


async def _is_free(place: ListenAddress) -> bool:
    """Return True if the address is free, False if a pinstream serves there. Raises `SettingsError` for anything
    else."""
    try:
        await try_out(place)
        return True
    except SettingsError as error:
        if not listening.is_taken(error):
            raise
        taken = error
    server = ""
    # "All addresses" is no address to connect to: ask this machine. Health needs no token.
    url = f"http://{place._replace(host=listening.LOOPBACK.get(place.host, place.host))}/healthz"
    # Another program may answer with anything, or with nothing.
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(_ASK_WITHIN), aiohttp.request("GET", url, allow_redirects=False) as answer:
            server = answer.headers.get("Server", "")  # names us with any status
    if not server.startswith("pinstream"):
        raise SettingsError(
            f"{place.variable}: {place} is used by another program; choose another address, or stop that program"
        ) from taken
    return False


async def token(found: CheckContext) -> Sequence[Row]:
    """Is there an access token?"""
    building.open_token(found.settings)
    pinterest, warnings = found.settings.pinterest, list[str]()
    token = pinterest.access_token
    file = token.path if isinstance(token, SecretFile) else None
    where = f"read from {file or 'PINTEREST_ACCESS_TOKEN'}"
    if file is not None and pinterest.token_by_account:
        where = f"{counted(len(pinterest.ad_account_ids), 'token')} {where}, one for each ad account"
        # A mounted Secret also has hidden entries, by which Kubernetes swaps it.
        names = {one.name for one in file.iterdir() if not one.name.startswith(".")}
        if others := sorted(names - {*pinterest.ad_account_ids}):
            warnings.append(
                f"the folder also has {first_of(others)}: no ad account of PINTEREST_AD_ACCOUNT_ID and "
                "PINTEREST_EXTRA_AD_ACCOUNT_IDS, so it is not read"
            )
    if not found.sends:
        where += "; only --send-test-event shows whether the API accepts it"
    return [ok(where), *map(warning, warnings)]


async def telemetry(_: CheckContext) -> Sequence[Row]:
    """Can metrics and traces be exported as the OTEL_… variables configure?"""
    good, wrong = environment.planned_exports(os.environ)
    if not good and not wrong:
        return []
    text = f"{' and '.join(good)} would be exported; `pinstream run` shows whether the collector takes them"
    return [ok(text if good else "nothing would be exported"), *map(warning, wrong)]
