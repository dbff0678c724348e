"""Every setting, defined once: a field with its variable, default, unit and bounds, and its reason as docstring.

Defaults are written as text, as a person would write them, and go through the same parser as values from the
environment. `REGISTRY` holds the rows of the settings table in the order of the definitions below. Names, defaults and
meanings are a contract with users: changing one needs a line in CHANGELOG.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr

# Its parser runs before pydantic's own, because its message says what is allowed, in the words of docs/settings.md.
from pydantic import BeforeValidator as Parser

from consumer.settings import values
from consumer.settings.passthrough import REGISTRY_PROPERTIES
from consumer.settings.values import HttpAddress, SecretFile, duration, size, whole


class SettingDoc(NamedTuple):
    """One row of the settings table."""

    name: str
    default: str
    """As a person would write it; in words where `load` computes it."""
    unit: str
    """Kind of number: duration, size, events, …; empty for text."""
    secret: bool
    """The value is never shown, and can also come from the file that ``X_FILE`` names."""
    reread: bool
    """That file is read again when it changes (`SecretFile`)."""
    needed_for: str
    """The member of `load`'s ``needs`` that requires it; empty if it is optional."""
    reason: str
    """Sentences for the table and ``--help``: what the setting does, and why."""


# The type is `Any`, so that a field may have any type (as pydantic's own `Field`).
def _setting(
    default: Any, *, unit: str = "", shown: str | None = None, needed_for: str = "", name: str | None = None
) -> Any:
    """Define a setting. `default` is ``...`` if `load` computes it; `shown` is the default's text in the table.

    `name`: its variable, if that is not the group's prefix with the name of the field.
    """
    if shown is None:
        shown = "required" if needed_for else "none" if default in (None, "") else default
    # pydantic keeps these with the field and makes nothing of them; `_rows` reads them back.
    columns: Any = {"default": shown, "unit": unit, "needed_for": needed_for}
    # Defaults are text too, and go through the parser. None is the value of what is not set: parsers never see it.
    return Field(default, alias=name, validate_default=default is not None, json_schema_extra=columns)


# The record type of the packaged mapping.
DEFAULT_SCHEMA: Final = "commerce.v1.CommerceEvent"

_OptionalPath = Annotated[Path | None, Parser(values.parse_path)]
_OptionalSecret = Annotated[SecretStr | SecretFile | None, Parser(values.or_file(values.parse_header_text))]
_OptionalLogin = Annotated[SecretStr | SecretFile | None, Parser(values.or_file(values.parse_login))]
_ProxyUrl = Annotated[SecretStr, Parser(values.parse_proxy)]  # it may have a password in it
_Address = Annotated[HttpAddress | None, Parser(values.parse_http_address)]
_Flag = Annotated[bool, Parser(values.parse_flag)]
_LOWER, _UPPER = Parser(str.lower), Parser(str.upper)
_OffsetReset = Annotated[Literal["earliest", "error", "latest"], _LOWER]
_Mechanism = Annotated[
    Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI", "AWS_MSK_IAM"], _UPPER
]
_Destination = Annotated[Literal["pinterest"], _LOWER]
_LogFormat = Annotated[Literal["json", "console"], _LOWER]
_LogLevel = Annotated[Literal["debug", "info", "warning", "error"], _LOWER]


class SettingsGroup(BaseModel):
    """Base of the groups of settings: frozen, and its repr shows no secret.

    A field's variable is the group's prefix with the name of the field in capitals.
    """

    model_config = ConfigDict(
        frozen=True,  # parts that are built from it keep what they have read
        hide_input_in_errors=True,  # it may be a secret
        use_attribute_docstrings=True,  # for `SettingDoc.reason`
    )


class KafkaSettings(SettingsGroup, alias_generator=lambda field: f"KAFKA_{field.upper()}"):
    """Where the records come from."""

    bootstrap_servers: Annotated[str, Parser(values.parse_brokers)] = _setting("", needed_for="kafka")
    """Brokers to connect to first: host:port, comma-separated."""
    topics: Annotated[tuple[str, ...], Parser(values.parse_topics)] = _setting("", needed_for="topics")
    """Topics to read, comma-separated. An item that starts with ^ is a pattern (POSIX extended), which matches
    neither dead-letter topics nor Kafka's own. New topics and partitions are found within 30 s."""
    group_id: str = _setting("pinstream")
    """Consumer group. Its committed offsets mark what is settled."""
    auto_offset_reset: _OffsetReset = _setting("earliest")
    """Where to start without a valid offset. earliest loses nothing; error stops. latest starts at the end,
    with a warning, only while the group has no offset for any topic."""
    sasl_mechanism: _Mechanism | None = _setting(None)
    """How to log in: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER, with the KAFKA_SASL_… properties of
    librdkafka. AWS_MSK_IAM logs in to Amazon MSK, with the extra pinstream[msk]. See docs/kafka.md."""
    # All are wrapped, because no list of the properties that may be secret is complete.
    properties: Mapping[str, SecretStr] = _setting({}, shown="librdkafka's", name="KAFKA_…")
    """Any other librdkafka property, with underscores for dots. Properties that would weaken the delivery
    guarantee are refused. Passwords and keys can also come from a file: KAFKA_…_FILE."""

    def client_properties(self) -> dict[str, str]:
        """Properties for every librdkafka client. Secrets are in clear text: never log them."""
        revealed = {name: value.get_secret_value() for name, value in self.properties.items()}
        login = {} if self.sasl_mechanism is None else {"sasl.mechanism": self.sasl_mechanism}
        # No name is there twice: what has a setting of its own is not passed through.
        return {"bootstrap.servers": self.bootstrap_servers, **login, **revealed}

    @property
    def uses_iam(self) -> bool:
        """Whether the login is Amazon MSK's, with AWS credentials."""
        return self.sasl_mechanism == "AWS_MSK_IAM"


class RegistrySettings(SettingsGroup, alias_generator=lambda field: f"SCHEMA_REGISTRY_{field.upper()}"):
    """The schema registry that writer schemas come from, if there is one."""

    url: Annotated[str, Parser(values.parse_registry)] = _setting("")
    """Confluent-compatible schema registry; or glue:REGION for AWS Glue (glue: for the region of AWS_REGION), which
    needs the extra pinstream[glue]. Without it, schemas come from PINSTREAM_SCHEMAS_DIR."""
    properties: Mapping[str, SecretStr] = _setting({}, shown="the client's", name="SCHEMA_REGISTRY_…")
    """Any other property of Confluent's registry client, with underscores for dots, such as
    SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO or SCHEMA_REGISTRY_SSL_CA_LOCATION. Secrets can also come from a
    file: …_FILE."""

    @property
    def is_glue(self) -> bool:
        """Whether it is AWS Glue."""
        return self.url.startswith("glue:")

    def client_configuration(self) -> dict[str, str | float]:
        """Properties for Confluent's registry client. Secrets are in clear text: never log them."""
        configuration: dict[str, str | float] = {"url": self.url}
        for name, value in self.properties.items():
            configuration[name] = REGISTRY_PROPERTIES[name](value.get_secret_value())
        # The client insists on these. Confluent Cloud needs the first, and other registries ignore it.
        if source := configuration.get("bearer.auth.credentials.source"):
            configuration.setdefault("bearer.auth.logical.cluster", "")
            if source == "OAUTHBEARER":
                configuration.setdefault("bearer.auth.scope", "")
        return configuration


class PinterestSettings(SettingsGroup, alias_generator=lambda field: f"PINTEREST_{field.upper()}"):
    """Where the conversion events go."""

    ad_account_id: Annotated[str, Parser(values.parse_account)] = _setting("", needed_for="account")
    """Ad account that receives the events; digits."""
    extra_ad_account_ids: Annotated[tuple[str, ...], Parser(values.parse_accounts)] = _setting("")
    """Further ad accounts that a record may name in ad_account_id, comma-separated. Each has its own
    batches, quota and gate. A record that names any other account becomes a dead letter."""
    access_token: _OptionalSecret = _setting(None, needed_for="token")
    """Token of the Conversions API. PINTEREST_ACCESS_TOKEN_FILE may also be a folder with a file for each ad account,
    named by the account, with its token."""
    read_token: _OptionalSecret = _setting(None)
    """Token with the scope ads:read, to show what Pinterest sees of the events: its event quality score on the page,
    tags and registered event names in pinstream check. Nothing else needs it."""
    api_url: Annotated[str, Parser(values.parse_url)] = _setting("https://api.pinterest.com/v5")
    """URL of the API. Point it at a sandbox for tests."""
    test_mode: _Flag = _setting("false")
    """Sends ?test=true: Pinterest validates the events and does not record them. Limits: 20 events per
    call, 10 calls per second."""

    @property
    def token_by_account(self) -> bool:
        """Whether each account has a token of its own: the path is a folder."""
        return isinstance(self.access_token, SecretFile) and os.path.isdir(self.access_token.path)

    @property
    def ad_account_ids(self) -> tuple[str, ...]:
        """All accounts that may receive events, the main one first."""
        return (self.ad_account_id, *self.extra_ad_account_ids)


class PinstreamSettings(SettingsGroup, alias_generator=lambda field: f"PINSTREAM_{field.upper()}"):
    """How pinstream itself works. Times in seconds, sizes in bytes."""

    schemas_dir: Annotated[Path, Parser(values.parse_path)] = _setting(..., shown="the packaged schemas/")
    """Folder of .avsc files; subfolders are not searched. It holds the schema that PINSTREAM_SCHEMA names
    and, without a registry, the schemas that records were written with."""
    schema_name: Annotated[str | None, Parser(values.parse_full_name)] = _setting(
        None, shown=DEFAULT_SCHEMA, name="PINSTREAM_SCHEMA"
    )
    """Full name (namespace.Name) of the record schema in PINSTREAM_SCHEMAS_DIR that every event is read
    as. The mapping is written for it. Not needed where the mapping file has sections for record types."""
    mapping_file: _OptionalPath = _setting(None, shown="the packaged mapping")
    """TOML file that overrides entries of the packaged mapping: which field of a record becomes which
    field of a conversion event."""
    transform: Annotated[str | None, Parser(values.parse_function)] = _setting(None)
    """Python function that each decoded record goes through before the mapping, as package.module:function. It
    returns the record, or None to filter it. The module is looked for in PYTHONPATH. With it, the fast path is
    not used. See docs/transform.md."""
    state_dir: Annotated[Path, Parser(values.parse_path)] = _setting(
        ..., shown="$XDG_STATE_HOME/pinstream or ~/.local/state/pinstream"
    )
    """Folder for what must survive a restart. In the container: /var/lib/pinstream."""
    destination: _Destination | None = _setting(None)
    """pinterest: PINTEREST_API_URL is a gateway to Pinterest (no sandbox), so what it accepts counts as
    delivered to Pinterest, under one quota. Not set: each URL has a quota and a memory of delivered events of
    its own."""
    key_store: Annotated[SecretStr, Parser(values.parse_key_store)] = _setting(
        ..., shown="disk: under the state folder"
    )
    """Where the keys of delivered events are remembered: disk:/path on a local disk, redis://host or
    rediss://host (shared by members on several machines; docs/scaling.md), or memory: (lost at a
    restart)."""
    key_store_password: _OptionalSecret = _setting(None)
    """Password of the shared key store, instead of one in PINSTREAM_KEY_STORE."""
    key_store_max_bytes: Annotated[int, size("16MiB", "1TiB")] = _setting("4GiB", unit="size")
    """Hard limit of the key store on disk. When it is reached, the oldest keys are dropped."""
    dedup_window: Annotated[float, duration("1s", "90d")] = _setting("48h", unit="duration")
    """How long a delivered key is remembered. Pinterest itself deduplicates within 48 hours."""
    max_event_age: Annotated[float, duration("1m", "365d", zero="no limit")] = _setting("7d", unit="duration")
    """Older events become dead letters (expired), because conversions older than a week are of no use. 0:
    no limit."""
    batch_events: Annotated[int, whole(1, 1000)] = _setting("1000", unit="events")
    """Maximum number of events in one call. 1000 is the limit of the API."""
    linger: Annotated[float, duration("0s", "10m")] = _setting("100ms", unit="duration")
    """How long a batch fills: it goes when it is full, or its oldest event has waited so long. Where calls are
    few it is two minutes divided by this member's calls a minute, if that is longer. 0: no wait of its own."""
    concurrency: Annotated[int, whole(1, 1000)] = _setting("8", unit="requests")
    """Maximum number of requests in flight, over all accounts and workers."""
    calls_per_minute: Annotated[int, whole(1, 1_000_000)] = _setting("5000", unit="calls")
    """Call quota of each ad account, over all members of the group and their workers: give the whole. Members
    with a shared key store take from it together; others divide it. Where the x-ratelimit headers of answers
    allow fewer calls, those decide."""
    request_timeout: Annotated[float, duration("100ms", "10m")] = _setting("30s", unit="duration")
    """Time limit of one call, from connecting to the last byte."""
    halt_patience: Annotated[float, duration("1s", "365d", zero="no limit")] = _setting(
        "15m", unit="duration"
    )
    """How long Pinterest may refuse this token or account before pinstream exits with code 3. 0: no limit."""
    schema_patience: Annotated[float, duration("100ms", "365d", zero="no limit")] = _setting(
        "5m", unit="duration"
    )
    """How long the registry may deny that it has a schema before the records that wait for it become dead
    letters. 0: no limit."""
    max_open_events: Annotated[int, whole(1, 10_000_000)] = _setting("20000", unit="events")
    """Maximum number of events that are fetched and not yet settled: one budget for the process, or for
    all its workers. It bounds memory."""
    max_open_bytes: Annotated[int, size("64KiB", "64GiB")] = _setting("128MiB", unit="size")
    """The same budget in bytes."""
    dead_letter_topic: Annotated[str, Parser(values.parse_dead_letter_topic)] = _setting(
        "{topic}.dead-letters"
    )
    """Topic for records that cannot be delivered; {topic} stands for the record's topic. It is created
    with the first dead letter if it is missing and the cluster allows it."""
    receipts_topic: Annotated[str | None, Parser(values.check_topic)] = _setting(None)
    """Topic for receipts: what became of each record, written before the record is committed. It holds event ids, order
    ids and values. It is created if it is missing and the cluster allows it."""
    dead_letter_share: Annotated[float, Parser(values.parse_share)] = _setting("0.5", unit="share")
    """Intake stops when more than this share of a topic's latest records would be dead letters, so that a wrong
    mapping cannot empty a topic. 1: never."""
    dead_letter_sample: Annotated[int, whole(10, 1_000_000)] = _setting("1000", unit="records")
    """Window of PINSTREAM_DEAD_LETTER_SHARE: the share is computed over the latest N records of a topic,
    in the order of their offsets. Intake never stops on fewer."""
    shutdown_grace: Annotated[float, duration("100ms", "1h")] = _setting("25s", unit="duration")
    """Deadline of the whole shutdown. Keep it below the 30 s after which Kubernetes kills the process."""
    http_address: _Address = _setting("0.0.0.0:8080")
    """Address of the page, /status, health and metrics. Empty turns them off."""
    page_address: _Address = _setting(None)
    """Separate address for the page, /status, /history, /group and /events. PINSTREAM_HTTP_ADDRESS then serves
    only /healthz, /readyz and /metrics, and may be open to more people."""
    http_token: _OptionalSecret = _setting(None)
    """Token that the page, /status, /history, /group, /events and /metrics require; /healthz and /readyz stay open. A
    browser asks for it (any user, the token as password). Prometheus (authorization: credentials) and scripts
    send it as Authorization: Bearer. Without a token, everyone who reaches the address may read, by an IP
    address or a local name only."""
    proxy_credentials: _OptionalLogin = _setting(None)
    """User and password for the proxy of HTTPS_PROXY or HTTP_PROXY, as user:password, instead of those in
    its URL."""
    ca_file: _OptionalPath = _setting(None)
    """PEM file of authorities to trust beside those of the system, for Pinterest, the schema registry and the
    endpoints of their tokens and Kafka's: for a private authority, or a proxy that opens TLS. What is added
    to it is trusted without a restart (by Kafka's endpoint: after one)."""
    log_format: _LogFormat | None = _setting(None, shown="console on a terminal, else json")
    """json: one object per line. console: lines for people."""
    log_level: _LogLevel = _setting("info")
    """debug, info, warning or error."""

    @property
    def shares_key_store(self) -> bool:
        """Whether members on other machines use the same key store."""
        return self.key_store.get_secret_value().startswith(("redis:", "rediss:"))

    @property
    def own_topics(self) -> tuple[str, ...]:
        """The topics that pinstream writes, which no pattern selects: names, or templates with ``{topic}``."""
        return tuple(filter(None, (self.dead_letter_topic, self.receipts_topic)))

    def dead_letter_topic_of(self, topic: str) -> str:
        """The dead-letter topic for records of `topic`."""
        return self.dead_letter_topic.replace("{topic}", topic)


class NetworkSettings(SettingsGroup, alias_generator=str.upper):
    """What programs share: the proxy for the way out, and whom this machine trusts."""

    https_proxy: _ProxyUrl = _setting("")
    """Proxy for https:// URLs (Pinterest, the schema registry, the endpoints of tokens): http://host:port.
    The name in small letters is preferred, also of the next two."""
    http_proxy: _ProxyUrl = _setting("")
    """Proxy for http:// URLs, such as that of a registry without TLS."""
    no_proxy: str = _setting("")
    """What is reached without a proxy, comma-separated: hosts with all below them, addresses, networks
    (10.0.0.0/8), host:port, or * for everything."""
    ssl_cert_file: _OptionalPath = _setting(None, shown="the system's")
    """PEM file of the authorities to trust, in place of the system's."""


class Settings(BaseModel):
    """All settings, validated and with effective values; frozen, and its repr shows no secret."""

    model_config = ConfigDict(frozen=True)

    kafka: KafkaSettings
    registry: RegistrySettings
    pinterest: PinterestSettings
    pinstream: PinstreamSettings
    network: NetworkSettings
    warnings: tuple[str, ...] = ()
    """Lines to log at start for values that are allowed but may surprise; each names its variable."""
    workers: int = 1
    """As many processes on this machine have these settings, each with its part of what is divided (``--workers``)."""


def _rows(group: type[SettingsGroup]) -> Iterator[SettingDoc]:
    """The rows of a group's settings, in the order of its fields."""
    for field in group.model_fields.values():
        name, columns = field.alias or "", cast(Any, field.json_schema_extra)
        # Not the properties that pass through: they have no variable of their own.
        reread = field.annotation == SecretStr | SecretFile | None
        secret = reread or field.annotation == SecretStr
        reason = " ".join((field.description or "").split())
        yield SettingDoc(name, secret=secret, reread=reread, reason=reason, **columns)


# Variable -> its row, in the order of the table.
REGISTRY: Mapping[str, SettingDoc] = {
    row.name: row
    for group in (KafkaSettings, RegistrySettings, PinterestSettings, PinstreamSettings, NetworkSettings)
    for row in _rows(group)
}
