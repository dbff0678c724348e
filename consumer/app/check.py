"""``pinstream check``: is this configuration fit to run? One row a question, each answered on its own.

A check that fails says what to change, and the rest goes on, so that one run shows all there is to mend. A check
that needs what an earlier one could not get is skipped, by name.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.adapters.conversions_api import ConversionsApi
from consumer.adapters.kafka import ClusterView, dead_letter_topic, describe
from consumer.adapters.key_store import open_key_store
from consumer.app import building
from consumer.core.delivery import PerEvent, Refused, read_answer
from consumer.core.interface import FetchSchema, SchemaUnavailable, Send, Unanswered
from consumer.core.masking import mask
from consumer.core.model import SchemaRef
from consumer.errors import KafkaError, PinstreamError, RegistryError
from consumer.settings import Settings, load

_TIMEOUT = 10.0
_PASSED, _WARNED, _FAILED, _SKIPPED = "ok", "warning", "failed", "skipped"
_COLOURS = {_PASSED: "green", _WARNED: "yellow", _FAILED: "red", _SKIPPED: "dim"}


@dataclass(frozen=True, slots=True)
class Row:
    """One answered question."""

    what: str
    verdict: str
    text: str


class _Skip(Exception):
    """The check needs what an earlier one could not get; the text says what."""


@dataclass(slots=True)
class _Found:
    """What the checks learn from each other."""

    settings: Settings
    schema: dict[str, Any] | None = None
    cluster: ClusterView | None = None
    rows: list[Row] = field(default_factory=list)


def run_checks(environ: Mapping[str, str], *, send_test_event: bool) -> int:
    """Print the table; gives the exit code: 0 if nothing failed, else 1."""
    try:
        settings = load(environ)
    except PinstreamError as error:
        rows = [Row("settings", _FAILED, str(error))]
    else:
        rows = asyncio.run(_check(settings, send_test_event))
    _print(rows)
    return 1 if any(row.verdict == _FAILED for row in rows) else 0


async def _check(settings: Settings, send_test_event: bool) -> list[Row]:
    found = _Found(settings)
    found.rows.append(Row("settings", _PASSED, "every variable is known and possible"))
    found.rows += [Row("settings", _WARNED, text) for text in settings.warnings]
    checks: list[tuple[str, Callable[[_Found], Awaitable[str]]]] = [
        ("schema", _schema),
        ("mapping", _mapping),
        ("brokers and topics", _cluster),
        ("dead-letter topics", _dead_letters),
        ("schema registry", _registry),
        ("key store", _key_store),
        ("access token", _token),
    ]
    if send_test_event:
        checks.append(("Conversions API, test mode", _test_event))
    for what, check in checks:
        found.rows.append(await _answer(what, check, found))
    return found.rows


async def _answer(what: str, check: Callable[[_Found], Awaitable[str]], found: _Found) -> Row:
    try:
        return Row(what, _PASSED, await check(found))
    except _Skip as skip:
        return Row(what, _SKIPPED, str(skip))
    except PinstreamError as error:
        return Row(what, _FAILED, str(error))


async def _schema(found: _Found) -> str:
    found.schema = building.reader_schema(found.settings, building.local_schemas(found.settings))
    return f"{found.settings.pinstream.schema_name} in {found.settings.pinstream.schemas_dir}"


async def _mapping(found: _Found) -> str:
    if found.schema is None:
        raise _Skip("needs the schema")
    mapping = building.mapping(found.settings, found.schema)
    name = found.settings.pinstream.mapping_file or "the packaged mapping"
    return f"{name} fits the schema: {len(mapping.sources)} fields have a source"


async def _cluster(found: _Found) -> str:
    kafka = found.settings.kafka
    found.cluster = view = await describe(
        kafka.client_properties(),
        kafka.topics,
        timeout=_TIMEOUT,
        dead_letter_topic=found.settings.pinstream.dead_letter_topic,
    )
    if view.leaderless:
        names = ", ".join(f"{one.topic}[{one.partition}]" for one in view.leaderless)
        raise KafkaError(f"partitions without a leader cannot be read now: {names}; look after the brokers")
    topics = ", ".join(f"{name} ({count})" for name, count in view.topics.items()) or "no topic matches yet"
    return f"{len(view.brokers)} broker(s); topics and partitions: {topics}"


async def _dead_letters(found: _Found) -> str:
    if found.cluster is None:
        raise _Skip("needs the brokers")
    template = found.settings.pinstream.dead_letter_topic
    names = {dead_letter_topic(template, topic) for topic in found.cluster.topics}
    missing = sorted(name for name in names if name not in found.cluster.known)
    if missing:
        return f"will be made with the first dead letter: {', '.join(missing)}"
    return f"there: {', '.join(sorted(names))}"


async def _registry(found: _Found) -> str:
    if not found.settings.registry.url:
        raise _Skip("none is set: writers' schemas come from the folder")
    source = building.writer_schemas(found.settings, building.local_schemas(found.settings))
    try:
        # Any verdict on any id shows that it answers; 1 is the first a registry gives.
        answer = await source.fetch(FetchSchema(SchemaRef("id", "1")))
    finally:
        await source.close()
    if isinstance(answer, SchemaUnavailable):
        raise RegistryError(
            f"SCHEMA_REGISTRY_URL: {answer.reason}; correct the address, or look after the registry"
        )
    return "answers"


async def _key_store(found: _Found) -> str:
    own = found.settings.pinstream
    url = own.key_store.get_secret_value()
    building.make_state_folder(own.state_dir)
    store = open_key_store(url, window=own.dedup_window, max_bytes=own.key_store_max_bytes)
    try:
        now = time.time()
        await store.look_up([b"\0" * 16], now)
        keys = store.statistics()
        if url.startswith("lmdb:"):
            # A real write, beside the store: it shows that the disk takes one, and leaves no key behind.
            with tempfile.NamedTemporaryFile(dir=Path(url.removeprefix("lmdb:")).parent) as probe:
                probe.write(b"pinstream check")
    except OSError as error:
        raise PinstreamError(
            f"PINSTREAM_KEY_STORE: cannot be written ({error.strerror}); correct the folder"
        ) from error
    finally:
        await store.close()
    return f"opens; {keys.keys:,} keys, {keys.bytes_used:,} bytes"


async def _token(found: _Found) -> str:
    building.token(found.settings).value()
    where = found.settings.pinterest.access_token_file or "PINTEREST_ACCESS_TOKEN"
    return f"read from {where}; only --send-test-event shows whether the API takes it"


async def _test_event(found: _Found) -> str:
    pinterest = found.settings.pinterest
    api = ConversionsApi(
        pinterest.api_url,
        building.token(found.settings),
        timeout=found.settings.pinstream.request_timeout,
        concurrency=1,
        test_mode=True,
        agent="pinstream check",
    )
    event = _event()
    try:
        body = orjson.dumps({"data": [event]})
        answers = [
            await api.send(Send(n, account, body, 1)) for n, account in enumerate(pinterest.ad_account_ids)
        ]
    finally:
        await api.close()
    return "; ".join(
        f"ad account {account}: {_verdict(answer, event)}"
        for account, answer in zip(pinterest.ad_account_ids, answers, strict=True)
    )


def _verdict(answer: Any, event: dict[str, Any]) -> str:
    if isinstance(answer, Unanswered):
        raise PinstreamError(
            f"PINTEREST_API_URL: no answer ({answer.reason}); correct the address, or try again"
        )
    verdict = read_answer(answer.status, answer.headers, answer.body, 1, time.time())
    if isinstance(verdict, Refused):
        raise PinstreamError(
            f"the API refuses the token or the account (HTTP {verdict.status}, code {verdict.code}); "
            "check PINTEREST_ACCESS_TOKEN and PINTEREST_AD_ACCOUNT_ID"
        )
    if not isinstance(verdict, PerEvent):
        raise PinstreamError(f"the API gave no verdict on the test event (HTTP {answer.status}); try again")
    outcome = verdict.outcomes[0]
    if not outcome.processed:
        raise PinstreamError(
            f"the API refused the test event: {mask(outcome.error or '', orjson.dumps(event))}"
        )
    return "processed the test event" + (f", warning: {mask(outcome.warning)}" if outcome.warning else "")


def _event() -> dict[str, Any]:
    """An event of nobody: the digest of an address under example.com."""
    digest = "973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b"
    return {
        "event_name": "page_visit",
        "action_source": "web",
        "event_time": int(time.time()),
        "event_id": f"pinstream-check-{uuid.uuid4()}",
        "user_data": {"em": [digest]},
    }


def _print(rows: list[Row]) -> None:
    table = Table(title="pinstream check", title_justify="left")
    for column in ("what", "verdict", "found"):
        table.add_column(column, overflow="fold")
    for row in rows:
        colour = _COLOURS[row.verdict]
        table.add_row(row.what, f"[{colour}]{row.verdict}[/{colour}]", escape(row.text))
    Console().print(table)
