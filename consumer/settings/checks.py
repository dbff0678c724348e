"""What one field cannot know: contradictions between settings, files that are missing, test mode's limits.

Each check yields one line that names the variable and says what to change; `load` reports the first one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from consumer.settings.fields import PinstreamSettings, Settings
from consumer.settings.passthrough import read_secret_file, registry_variable
from consumer.settings.values import MAX_TOPIC_LENGTH, HttpAddress, parse_header_text

TEST_MODE_BATCH_EVENTS = 20
"""``?test=true`` processes at most so many events of a request (help page on test events)."""
TEST_MODE_CALLS_PER_MINUTE = 600
"""Test mode takes 10 requests a second."""
DEFAULT_MAX_POLL_INTERVAL_MS = 300_000
"""librdkafka's own default."""
REVOKE_MARGIN = 5.0
"""Seconds that the consumer's thread waits longer than the core's own deadline for a revoke."""
_ALL_ADDRESSES = frozenset({"0.0.0.0", "::"})  # noqa: S104 - read, not bound
PUBLISHED_CALLS_PER_MINUTE = 5000
"""Per ad account; the endpoint's description. Another page says 120,000, and the headers said so when measured."""


def token_trouble(settings: Settings, needs: Collection[str]) -> Iterator[str]:
    """Both, none, or a file without a token in it. The file is looked at only by who needs it."""
    pinterest, own = settings.pinterest, settings.pinstream
    if pinterest.access_token and pinterest.access_token_file:
        yield "PINTEREST_ACCESS_TOKEN and PINTEREST_ACCESS_TOKEN_FILE are both set; keep one of them"
    if own.http_token and own.http_token_file:
        yield "PINSTREAM_HTTP_TOKEN and PINSTREAM_HTTP_TOKEN_FILE are both set; keep one of them"
    if "token" not in needs:
        return
    if pinterest.access_token_file:
        yield from _file_trouble("PINTEREST_ACCESS_TOKEN_FILE", pinterest.access_token_file)
    elif not pinterest.access_token:
        yield "PINTEREST_ACCESS_TOKEN is not set; set it, or PINTEREST_ACCESS_TOKEN_FILE to the file with the token"
    # Who reads the topics is who serves the page; a replay does not.
    if "topics" in needs and own.http_token_file and own.http_address:
        yield from _file_trouble("PINSTREAM_HTTP_TOKEN_FILE", own.http_token_file)


def _file_trouble(name: str, path: Path) -> Iterator[str]:
    try:
        parse_header_text(read_secret_file(name, path).strip())
    except ValueError as error:
        yield f"{name}: the text in it {error}"


def missing_paths(settings: Settings) -> Iterator[str]:
    """What has to be there before anything starts. `os.path` takes what we may not look at as absent."""
    own = settings.pinstream
    if os.path.isfile(own.schemas_dir):
        folder = str(own.schemas_dir.parent)
        yield f"PINSTREAM_SCHEMAS_DIR={str(own.schemas_dir)!r}: is a file; name the folder that it is in: {folder!r}"
    elif not os.path.isdir(own.schemas_dir):
        yield f"PINSTREAM_SCHEMAS_DIR={str(own.schemas_dir)!r}: no such folder; name that of the .avsc files"
    if own.mapping_file is not None and not os.path.isfile(own.mapping_file):
        yield f"PINSTREAM_MAPPING_FILE={str(own.mapping_file)!r}: no such file; name a TOML file, or unset it"
    if os.path.exists(own.state_dir) and not os.path.isdir(own.state_dir):
        yield f"PINSTREAM_STATE_DIR={str(own.state_dir)!r}: not a folder; name a folder, or a path yet to be made"


def contradictions(settings: Settings) -> Iterator[str]:
    """What is valid by itself and cannot be together; the first one is reported."""
    yield from _budget_contradictions(settings.pinstream)
    yield from _time_contradictions(settings.pinstream)
    yield from _poll_contradictions(settings)
    yield from _topic_contradictions(settings.kafka.topics, settings.pinstream)
    yield from _address_contradictions(settings.pinstream)
    pinterest, registry = settings.pinterest, settings.registry
    if pinterest.ad_account_id and pinterest.ad_account_id in pinterest.extra_ad_account_ids:
        yield "PINTEREST_EXTRA_AD_ACCOUNT_IDS names PINTEREST_AD_ACCOUNT_ID again; list only further accounts"
    if registry.properties and not registry.url:
        yield (
            f"SCHEMA_REGISTRY_URL is not set, but {registry_variable(next(iter(registry.properties)))} is;"
            " set the URL too, or remove both"
        )


def _budget_contradictions(own: PinstreamSettings) -> Iterator[str]:
    if own.batch_events > own.max_open_events:
        yield (
            f"PINSTREAM_MAX_OPEN_EVENTS={own.max_open_events} is below"
            f" PINSTREAM_BATCH_EVENTS={own.batch_events}: no batch could ever fill; raise the one or lower the other"
        )
    if own.batch_bytes > own.max_open_bytes:
        yield (
            f"PINSTREAM_MAX_OPEN_BYTES={own.max_open_bytes} is below"
            f" PINSTREAM_BATCH_BYTES={own.batch_bytes}: no batch could ever fill; raise the one or lower the other"
        )


def _time_contradictions(own: PinstreamSettings) -> Iterator[str]:
    reread = own.commit_interval + own.request_timeout
    if own.dedup_window <= reread:
        yield (
            f"PINSTREAM_DEDUP_WINDOW ({own.dedup_window:g} s) is not above PINSTREAM_COMMIT_INTERVAL +"
            f" PINSTREAM_REQUEST_TIMEOUT ({reread:g} s): what a crash makes us read again would be sent again"
        )
    longest = own.linger + own.request_timeout
    if own.stall_after <= longest:
        yield (
            f"PINSTREAM_STALL_AFTER ({own.stall_after:g} s) is not above PINSTREAM_LINGER +"
            f" PINSTREAM_REQUEST_TIMEOUT ({longest:g} s): one slow call would look like a stall"
        )


def _poll_contradictions(settings: Settings) -> Iterator[str]:
    """A revoke may take the whole grace, and the group must not throw us out meanwhile."""
    given = settings.kafka.properties.get("max.poll.interval.ms")
    text = given.get_secret_value() if given is not None else str(DEFAULT_MAX_POLL_INTERVAL_MS)
    longest = settings.pinstream.shutdown_grace + REVOKE_MARGIN
    if re.fullmatch(r"[0-9]{1,18}", text) and int(text) / 1000 <= longest:
        yield (
            f"KAFKA_MAX_POLL_INTERVAL_MS={text} is not above PINSTREAM_SHUTDOWN_GRACE + {REVOKE_MARGIN:g} s"
            f" ({longest:g} s): a revoke that drains would lose its partitions; raise the one or lower the other"
        )


def _address_contradictions(own: PinstreamSettings) -> Iterator[str]:
    """An address of the page's own stands beside that of health and metrics, never instead of it."""
    if own.page_address is None:
        return
    if own.http_address is None:
        yield (
            "PINSTREAM_PAGE_ADDRESS is set, but PINSTREAM_HTTP_ADDRESS is empty, which turns page, health and metrics"
            " off; set PINSTREAM_HTTP_ADDRESS too, or remove PINSTREAM_PAGE_ADDRESS"
        )
    elif _collide(own.page_address, own.http_address):
        yield (
            "PINSTREAM_PAGE_ADDRESS and PINSTREAM_HTTP_ADDRESS need the same port of the same address; choose another"
            " port, or remove PINSTREAM_PAGE_ADDRESS to serve all at PINSTREAM_HTTP_ADDRESS"
        )


def _collide(one: HttpAddress, other: HttpAddress) -> bool:
    """Whether only one of them can be listened on, as far as their text tells. Port 0 is a free one each time."""
    hosts = {one.host.lower(), other.host.lower()}
    return one.port == other.port != 0 and (len(hosts) == 1 or not hosts.isdisjoint(_ALL_ADDRESSES))


def _topic_contradictions(topics: tuple[str, ...], own: PinstreamSettings) -> Iterator[str]:
    for topic in topics:
        if topic.startswith("^"):
            continue
        if own.dead_letter_topic_of(topic) in topics:
            yield (
                f"PINSTREAM_DEAD_LETTER_TOPIC={own.dead_letter_topic!r} is in KAFKA_TOPICS for the dead letters of"
                f" {topic!r}: dead letters would be read as events; choose another name"
            )
        if len(own.dead_letter_topic_of(topic)) > MAX_TOPIC_LENGTH:
            yield (
                f"PINSTREAM_DEAD_LETTER_TOPIC={own.dead_letter_topic!r} makes a name longer than"
                f" {MAX_TOPIC_LENGTH} characters for {topic[:60]!r}…; shorten it"
            )
    if own.dead_letter_topic == "{topic}":
        yield "PINSTREAM_DEAD_LETTER_TOPIC='{topic}' is the topic itself; write {topic}.dead-letters"


def effective(settings: Settings) -> Settings:
    """The settings as they take effect: test mode has limits of its own."""
    own, warnings = settings.pinstream, tuple(_warnings(settings))
    if settings.pinterest.test_mode:
        limits = {
            "batch_events": min(own.batch_events, TEST_MODE_BATCH_EVENTS),
            "calls_per_minute": min(own.calls_per_minute, TEST_MODE_CALLS_PER_MINUTE),
        }
        own = own.model_copy(update=limits)
    return settings.model_copy(update={"pinstream": own, "warnings": warnings})


def _warnings(settings: Settings) -> Iterator[str]:
    """What is allowed, and may still surprise."""
    kafka, pinterest, own = settings.kafka, settings.pinterest, settings.pinstream
    if kafka.auto_offset_reset == "latest":
        yield "KAFKA_AUTO_OFFSET_RESET=latest: a group without offsets skips all that is in the topics now"
    if any(topic.startswith("^") and not topic.endswith("$") for topic in kafka.topics):
        yield "KAFKA_TOPICS has a pattern without $ at its end: it matches every topic that begins so"
    if pinterest.test_mode:
        yield "PINTEREST_TEST_MODE=true: events are checked, not recorded; 20 events a call, 600 calls a minute"
    if urlsplit(pinterest.api_url).scheme == "http":
        yield "PINTEREST_API_URL is not https: token and events travel in the clear; for a sandbox only"
    if own.calls_per_minute > PUBLISHED_CALLS_PER_MINUTE:
        yield (
            f"PINSTREAM_CALLS_PER_MINUTE={own.calls_per_minute} is above the published limit of"
            f" {PUBLISHED_CALLS_PER_MINUTE} per ad account; the x-ratelimit headers of the answers decide"
        )
    if own.key_store.get_secret_value() == "memory:":
        yield "PINSTREAM_KEY_STORE=memory: forgets delivered keys at a restart; later duplicates are sent again"
