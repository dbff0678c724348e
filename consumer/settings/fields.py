"""Every setting, defined once: a field with its variable, default, unit, bounds and reason.

Defaults are written as a person would write them and go through the same parser as what is set. `REGISTRY`
holds the rows of the settings table in the order of the definitions below. Names, defaults and meanings that the
contract fixes are as it has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from consumer.settings.passthrough import number_if_registry_wants_one
from consumer.settings.values import (
    HttpAddress,
    duration,
    one_of,
    parse_account,
    parse_accounts,
    parse_brokers,
    parse_dead_letter_topic,
    parse_flag,
    parse_full_name,
    parse_header_text,
    parse_http_address,
    parse_key_store,
    parse_path,
    parse_topics,
    parse_url,
    parse_urls,
    share,
    size,
    whole,
)

REQUIRED = "required"


class SettingDoc(NamedTuple):
    """One row of the settings table."""

    name: str
    default: str
    """As a person would write it, or in words where it is worked out."""
    unit: str
    """What a value is counted in; empty for text."""
    reason: str
    secret: bool
    """Never shown; can also be read from the file that ``X_FILE`` names."""
    needed_for: str
    """Which of `load`'s needs cannot do without it; empty if it may always be absent."""


REGISTRY: dict[str, SettingDoc] = {}
"""Variable -> its row; filled by the definitions below."""


def _setting(
    name: str,
    default: Any,
    reason: str,
    *,
    unit: str = "",
    shown: str | None = None,
    secret: bool = False,
    needed_for: str = "",
) -> Any:
    """Register a setting; `default` is ``...`` where `load` works it out, `shown` is how the table has it."""
    if shown is None:
        shown = REQUIRED if needed_for else str(default)
    REGISTRY[name] = SettingDoc(name, shown, unit, reason, secret, needed_for)
    return Field(default, alias=name)


class Group(BaseModel):
    """Settings that belong together; frozen, and without secrets in its repr."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class KafkaSettings(Group):
    """Where the records come from."""

    bootstrap_servers: Annotated[str, BeforeValidator(parse_brokers)] = _setting(
        "KAFKA_BOOTSTRAP_SERVERS",
        "",
        "the brokers to start from: host:port, comma-separated",
        needed_for="kafka",
    )
    topics: Annotated[tuple[str, ...], BeforeValidator(parse_topics)] = _setting(
        "KAFKA_TOPICS",
        "",
        "topics to read, comma-separated; an item that starts with ^ is a pattern (POSIX extended); topics that are new"
        " under a pattern, and partitions that are added, are seen within 30 s",
        needed_for="topics",
    )
    group_id: str = _setting(
        "KAFKA_GROUP_ID", "pinstream", "the consumer group; its committed offsets say what is settled"
    )
    auto_offset_reset: Annotated[
        Literal["earliest", "error", "latest"], one_of("earliest", "error", "latest")
    ] = _setting(
        "KAFKA_AUTO_OFFSET_RESET",
        "earliest",
        "where to start without a valid offset: earliest loses nothing; error stops; latest begins at the end, with a"
        " warning, and only in a group without offsets of any topic: any other reads what is new to it from the"
        " beginning",
    )
    properties: Mapping[str, SecretStr] = _setting(
        "KAFKA_…",
        {},
        "any other librdkafka property, dots as underscores; what would weaken the delivery guarantee is"
        " refused by name; passwords and keys also from KAFKA_…_FILE",
        shown="librdkafka's",
    )

    def client_properties(self) -> dict[str, str]:
        """What every librdkafka client is made with, secrets in the clear: not for logs."""
        revealed = {name: value.get_secret_value() for name, value in self.properties.items()}
        return {"bootstrap.servers": self.bootstrap_servers, **revealed}


class RegistrySettings(Group):
    """Where writer schemas come from, if not from files."""

    url: Annotated[str, BeforeValidator(parse_urls)] = _setting(
        "SCHEMA_REGISTRY_URL",
        "",
        "a Confluent-compatible registry; without it, schemas come from PINSTREAM_SCHEMAS_DIR",
        shown="none",
    )
    properties: Mapping[str, SecretStr] = _setting(
        "SCHEMA_REGISTRY_…",
        {},
        "any other property of Confluent's registry client, dots as underscores:"
        " SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO, SCHEMA_REGISTRY_SSL_CA_LOCATION; secrets also from …_FILE",
        shown="the client's",
    )

    def client_configuration(self) -> dict[str, str | float]:
        """What Confluent's registry client is made with, secrets in the clear: not for logs."""
        revealed = {
            name: number_if_registry_wants_one(name, value.get_secret_value())
            for name, value in self.properties.items()
        }
        return {"url": self.url, **revealed}


class PinterestSettings(Group):
    """Where the conversion events go."""

    ad_account_id: Annotated[str, BeforeValidator(parse_account)] = _setting(
        "PINTEREST_AD_ACCOUNT_ID", "", "the ad account that events are for; digits", needed_for="account"
    )
    extra_ad_account_ids: Annotated[tuple[str, ...], BeforeValidator(parse_accounts)] = _setting(
        "PINTEREST_EXTRA_AD_ACCOUNT_IDS",
        "",
        "further accounts that a record may name in ad_account_id, comma-separated; each has its own batches,"
        " quota and gate; a record that names any other is a dead letter",
        shown="none",
    )
    access_token: Annotated[SecretStr | None, BeforeValidator(parse_header_text)] = _setting(
        "PINTEREST_ACCESS_TOKEN",
        None,
        "the Conversions API token; or its file, below",
        secret=True,
        shown=REQUIRED,
    )
    access_token_file: Annotated[Path | None, BeforeValidator(parse_path)] = _setting(
        "PINTEREST_ACCESS_TOKEN_FILE",
        None,
        "a file with the token; read again when it changes, so that a new token needs no restart",
        shown="none",
    )
    api_url: Annotated[str, BeforeValidator(parse_url)] = _setting(
        "PINTEREST_API_URL", "https://api.pinterest.com/v5", "the API; point it at a sandbox for tests"
    )
    test_mode: Annotated[bool, BeforeValidator(parse_flag)] = _setting(
        "PINTEREST_TEST_MODE",
        "false",
        "sends ?test=true: events are validated, not recorded; at most 20 events a call, 10 calls a second",
    )
    partner_name: str | None = _setting(
        "PINTEREST_PARTNER_NAME",
        None,
        "partner_name of every event; a partner gets it from Pinterest",
        shown="none",
    )

    @property
    def ad_account_ids(self) -> tuple[str, ...]:
        """All accounts that events may go to, the main one first."""
        return (self.ad_account_id, *self.extra_ad_account_ids)


class PinstreamSettings(Group):
    """How pinstream itself works. Times in seconds, sizes in bytes."""

    schemas_dir: Annotated[Path, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_SCHEMAS_DIR",
        ...,
        "a folder of .avsc files, those in it only: the schema that PINSTREAM_SCHEMA names, and without a registry"
        " those that records were written with",
        shown="the packaged schemas/",
    )
    schema_name: Annotated[str, BeforeValidator(parse_full_name)] = _setting(
        "PINSTREAM_SCHEMA",
        "commerce.v1.CommerceEvent",
        "full name, namespace.Name, of the record in PINSTREAM_SCHEMAS_DIR that every event is read as: the shape the"
        " mapping is written for",
    )
    wire_format: Annotated[
        Literal["auto", "confluent", "header", "single-object"],
        one_of("auto", "confluent", "header", "single-object"),
    ] = _setting(
        "PINSTREAM_WIRE_FORMAT",
        "auto",
        "how records name their schema: confluent, header, single-object; auto tells them apart by their bytes",
    )
    fast_path: Annotated[bool, BeforeValidator(parse_flag)] = _setting(
        "PINSTREAM_FAST_PATH",
        "true",
        "decodes and converts in one go; false takes the two steps that it is checked against, at several times"
        " the cost",
    )
    mapping_file: Annotated[Path | None, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_MAPPING_FILE",
        None,
        "TOML laid over the packaged mapping: which field of a record becomes which of a conversion event",
        shown="the packaged mapping",
    )
    state_dir: Annotated[Path, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_STATE_DIR",
        ...,
        "what survives a restart; in the container /var/lib/pinstream",
        shown="$XDG_STATE_HOME/pinstream or ~/.local/state/pinstream",
    )
    key_store: Annotated[SecretStr, BeforeValidator(parse_key_store)] = _setting(
        "PINSTREAM_KEY_STORE",
        ...,
        "where delivered keys are remembered: lmdb:/path on a local disk, or memory: (forgotten at a restart)",
        shown="lmdb: under the state folder",
        secret=True,
    )
    key_store_max_bytes: Annotated[int, size("16MiB", "1TiB")] = _setting(
        "PINSTREAM_KEY_STORE_MAX_BYTES",
        "4GiB",
        "a hard cap on the key store's disk, so that a full disk is never how one learns of it",
        unit="size",
    )
    dedup_window: Annotated[float, duration("1s", "90d")] = _setting(
        "PINSTREAM_DEDUP_WINDOW",
        "48h",
        "how long a delivered key is remembered; the platform itself deduplicates within 48 hours",
        unit="duration",
    )
    max_event_age: Annotated[float, duration("1m", "365d", zero="no limit")] = _setting(
        "PINSTREAM_MAX_EVENT_AGE",
        "7d",
        "older events are dead letters (expired); conversions older than a week are of no use; 0: no limit",
        unit="duration",
    )
    batch_events: Annotated[int, whole(1, 1000)] = _setting(
        "PINSTREAM_BATCH_EVENTS",
        "1000",
        "the most events in one call; 1000 is the API's limit",
        unit="events",
    )
    batch_bytes: Annotated[int, size("1KiB", "64MiB")] = _setting(
        "PINSTREAM_BATCH_BYTES",
        "4MiB",
        "the most bytes in one call; no limit is documented, others stay under 4 MB",
        unit="size",
    )
    linger: Annotated[float, duration("0s", "10m")] = _setting(
        "PINSTREAM_LINGER", "500ms", "how long an event waits for its batch to fill", unit="duration"
    )
    concurrency: Annotated[int, whole(1, 1000)] = _setting(
        "PINSTREAM_CONCURRENCY",
        "8",
        "requests in flight at once, all accounts and workers together",
        unit="requests",
    )
    calls_per_minute: Annotated[int, whole(1, 1_000_000)] = _setting(
        "PINSTREAM_CALLS_PER_MINUTE",
        "5000",
        "per ad account, all workers together: the platform's published limit; where the x-ratelimit headers of its"
        " answers leave fewer, those decide",
        unit="calls",
    )
    request_timeout: Annotated[float, duration("100ms", "10m")] = _setting(
        "PINSTREAM_REQUEST_TIMEOUT", "30s", "for one call, from connecting to the last byte", unit="duration"
    )
    halt_patience: Annotated[float, duration("1s", "365d", zero="for ever")] = _setting(
        "PINSTREAM_HALT_PATIENCE",
        "15m",
        "how long the destination may refuse this token or account before exit 3; 0: for ever",
        unit="duration",
    )
    schema_patience: Annotated[float, duration("100ms", "365d", zero="for ever")] = _setting(
        "PINSTREAM_SCHEMA_PATIENCE",
        "5m",
        "how long the registry has to deny that it has a schema before the records that wait for it become dead "
        "letters: a registry may know a new one late; 0: for ever",
        unit="duration",
    )
    max_open_events: Annotated[int, whole(1, 10_000_000)] = _setting(
        "PINSTREAM_MAX_OPEN_EVENTS",
        "20000",
        "fetched and not yet settled; one budget for the process, or for all its workers, so that memory has a bound",
        unit="events",
    )
    max_open_bytes: Annotated[int, size("64KiB", "64GiB")] = _setting(
        "PINSTREAM_MAX_OPEN_BYTES", "128MiB", "the same budget in bytes", unit="size"
    )
    dead_letter_topic: Annotated[str, BeforeValidator(parse_dead_letter_topic)] = _setting(
        "PINSTREAM_DEAD_LETTER_TOPIC",
        "{topic}.dead-letters",
        "where records go that cannot be delivered; {topic} is the record's topic; made with the first dead letter"
        " if it is not there and the cluster allows it",
    )
    dead_letter_share: Annotated[float, share()] = _setting(
        "PINSTREAM_DEAD_LETTER_SHARE",
        "0.5",
        "intake stops when more than this share of a topic's latest records would be dead letters: a wrong mapping"
        " must not empty a topic into them; 1: it never stops",
        unit="share",
    )
    dead_letter_sample: Annotated[int, whole(10, 1_000_000)] = _setting(
        "PINSTREAM_DEAD_LETTER_SAMPLE",
        "1000",
        "how many of a topic's latest records, in the order of their offsets, the share is taken of; fewer never stop"
        " intake: a few bad ones say nothing",
        unit="records",
    )
    commit_interval: Annotated[float, duration("10ms", "5m")] = _setting(
        "PINSTREAM_COMMIT_INTERVAL",
        "1s",
        "how often settled offsets are committed; what is settled and not committed yet is read again after a crash,"
        " and is not sent again where the key store knows it",
        unit="duration",
    )
    shutdown_grace: Annotated[float, duration("100ms", "1h")] = _setting(
        "PINSTREAM_SHUTDOWN_GRACE",
        "25s",
        "one deadline for all of the shutdown; below the 30 s after which Kubernetes kills",
        unit="duration",
    )
    stall_after: Annotated[float, duration("1s", "1d")] = _setting(
        "PINSTREAM_STALL_AFTER",
        "2m",
        "how long nothing may settle while there is work, before page, log, metrics and an alert say so; /healthz"
        " stays good: a restart would not help",
        unit="duration",
    )
    http_address: Annotated[HttpAddress | None, BeforeValidator(parse_http_address)] = _setting(
        "PINSTREAM_HTTP_ADDRESS", "0.0.0.0:8080", "page, /status, health and metrics; empty turns it off"
    )
    page_address: Annotated[HttpAddress | None, BeforeValidator(parse_http_address)] = _setting(
        "PINSTREAM_PAGE_ADDRESS",
        None,
        "an address of their own for the page, /status, /history and /events: then PINSTREAM_HTTP_ADDRESS has only"
        " /healthz, /readyz and /metrics, and may be open to more people",
        shown="none",
    )
    http_token: Annotated[SecretStr | None, BeforeValidator(parse_header_text)] = _setting(
        "PINSTREAM_HTTP_TOKEN",
        None,
        "who knows it sees page, /status, /history, /events and /metrics: a browser asks for it (any user, the token"
        " as password), Prometheus (authorization: credentials) and scripts send Authorization: Bearer; /healthz and"
        " /readyz stay open; none: whoever reaches the address may look, at the page by an IP address or a local name"
        " only, so that no website can read it through a browser",
        shown="none",
        secret=True,
    )
    http_token_file: Annotated[Path | None, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_HTTP_TOKEN_FILE",
        None,
        "a file with that token; read again when it changes",
        shown="none",
    )
    log_format: Annotated[Literal["json", "console"] | None, one_of("json", "console")] = _setting(
        "PINSTREAM_LOG_FORMAT",
        None,
        "json: one object a line; console: for people",
        shown="console on a terminal, else json",
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], one_of("debug", "info", "warning", "error")
    ] = _setting("PINSTREAM_LOG_LEVEL", "info", "debug, info, warning or error")

    def dead_letter_topic_of(self, topic: str) -> str:
        """The dead-letter topic of records of `topic`."""
        return self.dead_letter_topic.replace("{topic}", topic)


class Settings(BaseModel):
    """Everything that can be set, validated, effective and frozen. No secret is in its repr."""

    model_config = ConfigDict(frozen=True)

    kafka: KafkaSettings
    registry: RegistrySettings
    pinterest: PinterestSettings
    pinstream: PinstreamSettings
    warnings: tuple[str, ...] = ()
    """What is allowed but worth a line at start; each names its variable."""
