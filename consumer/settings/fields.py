"""Every setting, defined once: a field with its variable, default, unit, bounds and reason.

Defaults are written as text, as a person would write them, and go through the same parser as values from the
environment. `REGISTRY` holds the rows of the settings table in the order of the definitions below. Names, defaults and
meanings are a contract with users: changing one needs a line in CHANGELOG.md.
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
    share_of_one,
    size,
    whole,
)

REQUIRED = "required"


class SettingDoc(NamedTuple):
    """One row of the settings table."""

    name: str
    default: str
    """As a person would write it; in words where `load` computes it."""
    unit: str
    """Kind of number: duration, size, events, …; empty for text."""
    reason: str
    """Sentences for the table and ``--help``: what the setting does, and why."""
    secret: bool
    """The value is never shown, and can also come from the file that ``X_FILE`` names."""
    needed_for: str
    """The member of `load`'s ``needs`` that requires it; empty if it is optional."""


REGISTRY: dict[str, SettingDoc] = {}
"""Variable -> its row. `_setting` adds the rows."""


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
    """Register a setting. `default` is ``...`` if `load` computes it; `shown` is the default's text in the table."""
    if shown is None:
        shown = REQUIRED if needed_for else str(default)
    REGISTRY[name] = SettingDoc(name, shown, unit, reason, secret, needed_for)
    return Field(default, alias=name)


class SettingsGroup(BaseModel):
    """Base of the groups of settings: frozen, and its repr shows no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class KafkaSettings(SettingsGroup):
    """Where the records come from."""

    bootstrap_servers: Annotated[str, BeforeValidator(parse_brokers)] = _setting(
        "KAFKA_BOOTSTRAP_SERVERS",
        "",
        "Brokers to connect to first: host:port, comma-separated.",
        needed_for="kafka",
    )
    topics: Annotated[tuple[str, ...], BeforeValidator(parse_topics)] = _setting(
        "KAFKA_TOPICS",
        "",
        "Topics to read, comma-separated. An item that starts with ^ is a pattern (POSIX extended). "
        "Topics that newly match a pattern, and added partitions, are found within 30 s.",
        needed_for="topics",
    )
    group_id: str = _setting(
        "KAFKA_GROUP_ID", "pinstream", "Consumer group. Its committed offsets mark what is settled."
    )
    auto_offset_reset: Annotated[
        Literal["earliest", "error", "latest"], one_of("earliest", "error", "latest")
    ] = _setting(
        "KAFKA_AUTO_OFFSET_RESET",
        "earliest",
        "Where to start without a valid offset. earliest loses nothing; error stops. latest starts at "
        "the end, with a warning, but only while the group has no offset for any topic; in any other "
        "group, a new topic is read from the beginning.",
    )
    properties: Mapping[str, SecretStr] = _setting(
        "KAFKA_…",
        {},
        "Any other librdkafka property, with underscores for dots. Properties that would weaken the "
        "delivery guarantee are refused. Passwords and keys can also come from a file: KAFKA_…_FILE.",
        shown="librdkafka's",
    )

    def client_properties(self) -> dict[str, str]:
        """Properties for every librdkafka client. Secrets are in clear text: never log them."""
        revealed = {name: value.get_secret_value() for name, value in self.properties.items()}
        return {"bootstrap.servers": self.bootstrap_servers, **revealed}


class RegistrySettings(SettingsGroup):
    """The schema registry that writer schemas come from, if there is one."""

    url: Annotated[str, BeforeValidator(parse_urls)] = _setting(
        "SCHEMA_REGISTRY_URL",
        "",
        "Confluent-compatible schema registry. Without it, schemas come from PINSTREAM_SCHEMAS_DIR.",
        shown="none",
    )
    properties: Mapping[str, SecretStr] = _setting(
        "SCHEMA_REGISTRY_…",
        {},
        "Any other property of Confluent's registry client, with underscores for dots, such as "
        "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO or SCHEMA_REGISTRY_SSL_CA_LOCATION. Secrets can also come "
        "from a file: …_FILE.",
        shown="the client's",
    )

    def client_configuration(self) -> dict[str, str | float]:
        """Properties for Confluent's registry client. Secrets are in clear text: never log them."""
        revealed = {
            name: number_if_registry_wants_one(name, value.get_secret_value())
            for name, value in self.properties.items()
        }
        return {"url": self.url, **revealed}


class PinterestSettings(SettingsGroup):
    """Where the conversion events go."""

    ad_account_id: Annotated[str, BeforeValidator(parse_account)] = _setting(
        "PINTEREST_AD_ACCOUNT_ID", "", "Ad account that receives the events; digits.", needed_for="account"
    )
    extra_ad_account_ids: Annotated[tuple[str, ...], BeforeValidator(parse_accounts)] = _setting(
        "PINTEREST_EXTRA_AD_ACCOUNT_IDS",
        "",
        "Further ad accounts that a record may name in ad_account_id, comma-separated. Each has its own "
        "batches, quota and gate. A record that names any other account becomes a dead letter.",
        shown="none",
    )
    access_token: Annotated[SecretStr | None, BeforeValidator(parse_header_text)] = _setting(
        "PINTEREST_ACCESS_TOKEN",
        None,
        "Conversions API token. Set it here or in PINTEREST_ACCESS_TOKEN_FILE.",
        secret=True,
        shown=REQUIRED,
    )
    access_token_file: Annotated[Path | None, BeforeValidator(parse_path)] = _setting(
        "PINTEREST_ACCESS_TOKEN_FILE",
        None,
        "File with the token. It is read again when it changes, so a new token needs no restart.",
        shown="none",
    )
    api_url: Annotated[str, BeforeValidator(parse_url)] = _setting(
        "PINTEREST_API_URL",
        "https://api.pinterest.com/v5",
        "URL of the API. Point it at a sandbox for tests.",
    )
    test_mode: Annotated[bool, BeforeValidator(parse_flag)] = _setting(
        "PINTEREST_TEST_MODE",
        "false",
        "Sends ?test=true: Pinterest validates the events and does not record them. Limits: 20 events "
        "per call, 10 calls per second.",
    )
    partner_name: str | None = _setting(
        "PINTEREST_PARTNER_NAME",
        None,
        "partner_name of every event. Partners get it from Pinterest.",
        shown="none",
    )

    @property
    def ad_account_ids(self) -> tuple[str, ...]:
        """All accounts that may receive events, the main one first."""
        return (self.ad_account_id, *self.extra_ad_account_ids)


class PinstreamSettings(SettingsGroup):
    """How pinstream itself works. Times in seconds, sizes in bytes."""

    schemas_dir: Annotated[Path, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_SCHEMAS_DIR",
        ...,
        "Folder of .avsc files; subfolders are not searched. It holds the schema that PINSTREAM_SCHEMA "
        "names and, without a registry, the schemas that records were written with.",
        shown="the packaged schemas/",
    )
    schema_name: Annotated[str, BeforeValidator(parse_full_name)] = _setting(
        "PINSTREAM_SCHEMA",
        "commerce.v1.CommerceEvent",
        "Full name (namespace.Name) of the record schema in PINSTREAM_SCHEMAS_DIR that every event is "
        "read as. The mapping is written for it.",
    )
    wire_format: Annotated[
        Literal["auto", "confluent", "header", "single-object"],
        one_of("auto", "confluent", "header", "single-object"),
    ] = _setting(
        "PINSTREAM_WIRE_FORMAT",
        "auto",
        "How records name their schema: confluent, header or single-object. auto detects the format of "
        "each record.",
    )
    fast_path: Annotated[bool, BeforeValidator(parse_flag)] = _setting(
        "PINSTREAM_FAST_PATH",
        "true",
        "Decodes and converts in one step. false uses the plain implementation that it is tested "
        "against, at about six times the cost.",
    )
    mapping_file: Annotated[Path | None, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_MAPPING_FILE",
        None,
        "TOML file that overrides entries of the packaged mapping: which field of a record becomes which "
        "field of a conversion event.",
        shown="the packaged mapping",
    )
    state_dir: Annotated[Path, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_STATE_DIR",
        ...,
        "Folder for what must survive a restart. In the container: /var/lib/pinstream.",
        shown="$XDG_STATE_HOME/pinstream or ~/.local/state/pinstream",
    )
    key_store: Annotated[SecretStr, BeforeValidator(parse_key_store)] = _setting(
        "PINSTREAM_KEY_STORE",
        ...,
        "Where the keys of delivered events are remembered: lmdb:/path on a local disk, or memory: (lost "
        "at a restart).",
        shown="lmdb: under the state folder",
        secret=True,
    )
    key_store_max_bytes: Annotated[int, size("16MiB", "1TiB")] = _setting(
        "PINSTREAM_KEY_STORE_MAX_BYTES",
        "4GiB",
        "Hard limit of the key store on disk. When it is reached, the oldest keys are dropped.",
        unit="size",
    )
    dedup_window: Annotated[float, duration("1s", "90d")] = _setting(
        "PINSTREAM_DEDUP_WINDOW",
        "48h",
        "How long a delivered key is remembered. Pinterest itself deduplicates within 48 hours.",
        unit="duration",
    )
    max_event_age: Annotated[float, duration("1m", "365d", zero="no limit")] = _setting(
        "PINSTREAM_MAX_EVENT_AGE",
        "7d",
        "Older events become dead letters (expired), because conversions older than a week are of no "
        "use. 0: no limit.",
        unit="duration",
    )
    batch_events: Annotated[int, whole(1, 1000)] = _setting(
        "PINSTREAM_BATCH_EVENTS",
        "1000",
        "Maximum number of events in one call. 1000 is the limit of the API.",
        unit="events",
    )
    batch_bytes: Annotated[int, size("1KiB", "64MiB")] = _setting(
        "PINSTREAM_BATCH_BYTES",
        "4MiB",
        "Maximum number of bytes in one call. Pinterest documents no limit; other clients stay under 4 MB.",
        unit="size",
    )
    linger: Annotated[float, duration("0s", "10m")] = _setting(
        "PINSTREAM_LINGER", "500ms", "How long an event waits for its batch to fill.", unit="duration"
    )
    concurrency: Annotated[int, whole(1, 1000)] = _setting(
        "PINSTREAM_CONCURRENCY",
        "8",
        "Maximum number of requests in flight, over all accounts and workers.",
        unit="requests",
    )
    calls_per_minute: Annotated[int, whole(1, 1_000_000)] = _setting(
        "PINSTREAM_CALLS_PER_MINUTE",
        "5000",
        "Call quota of each ad account, over all workers. The default is Pinterest's published limit. "
        "Where the x-ratelimit headers of its answers allow fewer calls, those decide.",
        unit="calls",
    )
    request_timeout: Annotated[float, duration("100ms", "10m")] = _setting(
        "PINSTREAM_REQUEST_TIMEOUT",
        "30s",
        "Time limit of one call, from connecting to the last byte.",
        unit="duration",
    )
    halt_patience: Annotated[float, duration("1s", "365d", zero="for ever")] = _setting(
        "PINSTREAM_HALT_PATIENCE",
        "15m",
        "How long Pinterest may refuse this token or account before pinstream exits with code 3. 0: for "
        "ever.",
        unit="duration",
    )
    schema_patience: Annotated[float, duration("100ms", "365d", zero="for ever")] = _setting(
        "PINSTREAM_SCHEMA_PATIENCE",
        "5m",
        "How long the registry may deny that it has a schema before the records that wait for it become "
        "dead letters. A registry may learn of a new schema late. 0: for ever.",
        unit="duration",
    )
    max_open_events: Annotated[int, whole(1, 10_000_000)] = _setting(
        "PINSTREAM_MAX_OPEN_EVENTS",
        "20000",
        "Maximum number of events that are fetched and not yet settled: one budget for the process, or "
        "for all its workers. It bounds memory.",
        unit="events",
    )
    max_open_bytes: Annotated[int, size("64KiB", "64GiB")] = _setting(
        "PINSTREAM_MAX_OPEN_BYTES", "128MiB", "The same budget in bytes.", unit="size"
    )
    dead_letter_topic: Annotated[str, BeforeValidator(parse_dead_letter_topic)] = _setting(
        "PINSTREAM_DEAD_LETTER_TOPIC",
        "{topic}.dead-letters",
        "Topic for records that cannot be delivered; {topic} stands for the record's topic. It is "
        "created with the first dead letter if it is missing and the cluster allows it.",
    )
    dead_letter_share: Annotated[float, share_of_one()] = _setting(
        "PINSTREAM_DEAD_LETTER_SHARE",
        "0.5",
        "Intake stops when more than this share of a topic's latest records would be dead letters, so "
        "that a wrong mapping cannot turn a whole topic into dead letters. 1: never.",
        unit="share",
    )
    dead_letter_sample: Annotated[int, whole(10, 1_000_000)] = _setting(
        "PINSTREAM_DEAD_LETTER_SAMPLE",
        "1000",
        "Window of PINSTREAM_DEAD_LETTER_SHARE: the share is computed over the latest N records of a "
        "topic, in the order of their offsets. Intake never stops on fewer.",
        unit="records",
    )
    commit_interval: Annotated[float, duration("10ms", "5m")] = _setting(
        "PINSTREAM_COMMIT_INTERVAL",
        "1s",
        "How often settled offsets are committed. After a crash, records settled since the last commit "
        "are read again, and not sent again if the key store remembers them.",
        unit="duration",
    )
    shutdown_grace: Annotated[float, duration("100ms", "1h")] = _setting(
        "PINSTREAM_SHUTDOWN_GRACE",
        "25s",
        "Deadline of the whole shutdown. Keep it below the 30 s after which Kubernetes kills the process.",
        unit="duration",
    )
    stall_after: Annotated[float, duration("1s", "1d")] = _setting(
        "PINSTREAM_STALL_AFTER",
        "2m",
        "How long nothing may settle while there is work before the page, the log, the metrics and an "
        "alert report a stall. /healthz stays good because a restart would not help.",
        unit="duration",
    )
    http_address: Annotated[HttpAddress | None, BeforeValidator(parse_http_address)] = _setting(
        "PINSTREAM_HTTP_ADDRESS",
        "0.0.0.0:8080",
        "Address of the page, /status, health and metrics. Empty turns them off.",
    )
    page_address: Annotated[HttpAddress | None, BeforeValidator(parse_http_address)] = _setting(
        "PINSTREAM_PAGE_ADDRESS",
        None,
        "Separate address for the page, /status, /history and /events. PINSTREAM_HTTP_ADDRESS then "
        "serves only /healthz, /readyz and /metrics, and may be open to more people.",
        shown="none",
    )
    http_token: Annotated[SecretStr | None, BeforeValidator(parse_header_text)] = _setting(
        "PINSTREAM_HTTP_TOKEN",
        None,
        "Token that the page, /status, /history, /events and /metrics require; /healthz and /readyz stay "
        "open. A browser asks for it (any user, the token as password). Prometheus (authorization: "
        "credentials) and scripts send it as Authorization: Bearer. Without a token, everyone who "
        "reaches the address may read, but only by an IP address or a local name, so that no website can "
        "read the figures through a browser.",
        shown="none",
        secret=True,
    )
    http_token_file: Annotated[Path | None, BeforeValidator(parse_path)] = _setting(
        "PINSTREAM_HTTP_TOKEN_FILE",
        None,
        "File with that token. It is read again when it changes.",
        shown="none",
    )
    log_format: Annotated[Literal["json", "console"] | None, one_of("json", "console")] = _setting(
        "PINSTREAM_LOG_FORMAT",
        None,
        "json: one object per line. console: lines for people.",
        shown="console on a terminal, else json",
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], one_of("debug", "info", "warning", "error")
    ] = _setting("PINSTREAM_LOG_LEVEL", "info", "debug, info, warning or error.")

    def dead_letter_topic_of(self, topic: str) -> str:
        """The dead-letter topic for records of `topic`."""
        return self.dead_letter_topic.replace("{topic}", topic)


class Settings(BaseModel):
    """All settings, validated and with effective values; frozen, and its repr shows no secret."""

    model_config = ConfigDict(frozen=True)

    kafka: KafkaSettings
    registry: RegistrySettings
    pinterest: PinterestSettings
    pinstream: PinstreamSettings
    warnings: tuple[str, ...] = ()
    """Lines to log at start for values that are allowed but may surprise; each names its variable."""
