"""Checks across settings: contradictions between them, missing files, the limits of test mode.

Each check yields lines that name the variable and say what to change; `load` reports the first one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from consumer.settings import values
from consumer.settings.fields import KafkaSettings, PinstreamSettings, RegistrySettings, Settings
from consumer.settings.passthrough import kafka_variable, read_secret_file, registry_variable
from consumer.settings.values import SecretFile

# With ``?test=true``, Pinterest processes at most this number of events per request (help page on test events).
TEST_MODE_BATCH_EVENTS = 20
# Test mode accepts 10 requests per second.
TEST_MODE_CALLS_PER_MINUTE = 600
# Seconds between two commits.
COMMIT_INTERVAL = 1.0
# librdkafka's own default.
DEFAULT_MAX_POLL_INTERVAL_MS = "300000"
# Seconds by which the consumer's thread waits longer for a revoke than the engine's own deadline.
REVOKE_MARGIN = 5.0
_ALL_ADDRESSES = frozenset({"0.0.0.0", "::"})  # noqa: S104 - read, not bound
# Per ad account, by the endpoint's description. Another page says 120,000, and so did the headers when measured.
PUBLISHED_CALLS_PER_MINUTE = 5000


def token_problems(settings: Settings, needs: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with the files of tokens and passwords. A file is read only if the command needs it."""
    pinterest, own = settings.pinterest, settings.pinstream
    if needs and isinstance(own.proxy_credentials, SecretFile):
        read_secret_file(*own.proxy_credentials, values.parse_login)
    secrets: list[SecretStr | SecretFile | None] = []
    if "token" in needs:
        token = pinterest.access_token
        secrets += [pinterest.read_token, own.key_store_password, token]
        if isinstance(token, SecretFile) and pinterest.token_by_account:
            secrets.pop()
            for path in (token.path / account for account in pinterest.ad_account_ids):
                if not os.path.isfile(path):
                    yield (
                        f"{token.variable}: the folder has no token for ad account {path.name}; put it into the file"
                        f" {path}"
                    )
                secrets.append(token._replace(path=path))
        # Only commands that read the topics serve the page; a replay does not.
        if "topics" in needs and own.http_address:
            secrets.append(own.http_token)
    for secret in secrets:
        if isinstance(secret, SecretFile):
            read_secret_file(*secret, values.parse_header_text)


def missing_paths(settings: Settings) -> Iterator[str]:
    """Yield files and folders that are missing."""
    # `os.path`, because it reports what we may not read as missing, where `Path` raises.
    own = settings.pinstream
    if os.path.isfile(own.schemas_dir):
        folder = str(own.schemas_dir.parent)
        yield f"PINSTREAM_SCHEMAS_DIR={str(own.schemas_dir)!r}: is a file; name the folder that contains it: {folder!r}"
    elif not os.path.isdir(own.schemas_dir):
        yield f"PINSTREAM_SCHEMAS_DIR={str(own.schemas_dir)!r}: no such folder; name the folder of the .avsc files"
    if own.mapping_file is not None and not os.path.isfile(own.mapping_file):
        yield f"PINSTREAM_MAPPING_FILE={str(own.mapping_file)!r}: no such file; name a TOML file, or unset it"
    if os.path.exists(own.state_dir) and not os.path.isdir(own.state_dir):
        yield f"PINSTREAM_STATE_DIR={str(own.state_dir)!r}: not a folder; name a folder, or a new path"
    for name, value in settings.registry.properties.items():
        path = value.get_secret_value() if name.endswith(".location") else ""
        if path and not os.path.exists(path):
            yield f"{registry_variable(name)}={path!r}: no such file; name a file in PEM format"


def contradictions(settings: Settings) -> Iterator[str]:
    """Yield settings that are valid each but contradict each other."""
    yield from _limit_contradictions(settings)
    yield from _topic_contradictions(settings.kafka.topics, settings.pinstream)
    yield from _address_contradictions(settings.pinstream)
    yield from _login_contradictions(settings.kafka)
    pinterest, registry = settings.pinterest, settings.registry
    if pinterest.ad_account_id and pinterest.ad_account_id in pinterest.extra_ad_account_ids:
        yield "PINTEREST_EXTRA_AD_ACCOUNT_IDS names PINTEREST_AD_ACCOUNT_ID again; list only further accounts"
    yield from _registry_contradictions(registry)


# Where the registry's client can have a token from: the properties ``bearer.auth.…`` that this needs, and those that it
# takes besides `_BEARER_ALL`.
_BEARER: Final[Mapping[str, tuple[Sequence[str], Sequence[str]]]] = {
    "OAUTHBEARER": (("client.id", "client.secret", "issuer.endpoint.url"), ("scope",)),
    "OAUTHBEARER_AZURE_IMDS": (("issuer.endpoint.query",), ("issuer.endpoint.url",)),
    "STATIC_TOKEN": (("token",), ()),
}
_BEARER_ALL: Final = ("credentials.source", "logical.cluster", "identity.pool.id")


def _registry_contradictions(registry: RegistrySettings) -> Iterator[str]:
    # The registry's client raises its errors one at a time, and some of them quote values.
    given = {name: value.get_secret_value() for name, value in registry.properties.items()}
    one = registry_variable(next(iter(given), ""))
    if given and not registry.url:
        yield f"SCHEMA_REGISTRY_URL is not set, but {one} is; set the URL too, or remove both"
    if given and registry.is_glue:
        yield (
            f"{one} has no meaning with SCHEMA_REGISTRY_URL=glue:, which is asked with AWS credentials; remove one of"
            " them"
        )
    basic, bearer = "basic.auth.user.info", sorted(name for name in given if name.startswith("bearer."))
    for name, parse in (
        ("proxy", values.parse_proxy),
        ("bearer.auth.issuer.endpoint.url", values.parse_endpoint),
    ):
        try:
            if name in given:
                parse(given[name])
        except ValueError as error:
            yield f"{registry_variable(name)}: {error}"
    if ":" not in given.get(basic, ":"):
        yield f"{registry_variable(basic)} has no colon; write user:password"
    if basic in given and bearer:
        yield f"{registry_variable(basic)} and {registry_variable(bearer[0])} are both set; keep one of them"
    yield from _token_contradictions(given, bearer)
    certificate = "ssl.certificate.location"
    # The key may be in the certificate's file, but not the other way round.
    for name in ("ssl.key.location", "ssl.key.password"):
        if name in given and certificate not in given:
            yield f"{registry_variable(name)} needs {registry_variable(certificate)}; set it"


def _token_contradictions(given: Mapping[str, str], bearer: Sequence[str]) -> Iterator[str]:
    """Yield what does not fit among the registry's properties `given` that are about tokens: those named `bearer`."""
    chosen = registry_variable("bearer.auth.credentials.source")
    source, allowed = given.get("bearer.auth.credentials.source"), ", ".join(_BEARER)
    if source is None:
        if bearer:
            yield f"{registry_variable(bearer[0])} needs {chosen}; set that to one of {allowed}"
        return
    if source not in _BEARER:
        yield f"{chosen} is none of {allowed}"
        return
    needed, taken = _BEARER[source]
    for rest in needed:
        if f"bearer.auth.{rest}" not in given:
            yield f"{chosen}={source} needs {registry_variable(f'bearer.auth.{rest}')}; set it"
    for name in bearer:
        if name.removeprefix("bearer.auth.") not in (*_BEARER_ALL, *needed, *taken):
            yield f"{registry_variable(name)} has no meaning with {chosen}={source}; remove it"


def _limit_contradictions(settings: Settings) -> Iterator[str]:
    own = settings.pinstream
    if own.batch_events > own.max_open_events:
        yield (
            f"PINSTREAM_MAX_OPEN_EVENTS={own.max_open_events} is below PINSTREAM_BATCH_EVENTS={own.batch_events}: no"
            " batch could ever fill; raise the first or lower the second"
        )
    # What was settled after the last commit is read again after a crash; its keys must still be remembered then.
    reread = COMMIT_INTERVAL + own.request_timeout
    if own.dedup_window <= reread:
        yield (
            f"PINSTREAM_DEDUP_WINDOW ({own.dedup_window:g} s) is not above PINSTREAM_REQUEST_TIMEOUT and the second"
            f" between commits ({reread:g} s): records that are read again after a crash would be sent again"
        )
    # A revoke may take the whole shutdown grace, and the group must not remove the member in the meantime.
    text = settings.kafka.client_properties().get("max.poll.interval.ms", DEFAULT_MAX_POLL_INTERVAL_MS)
    longest = own.shutdown_grace + REVOKE_MARGIN
    # Any other text is librdkafka's to judge.
    if re.fullmatch(r"[0-9]{1,18}", text) and int(text) / 1000 <= longest:
        yield (
            f"KAFKA_MAX_POLL_INTERVAL_MS={text} is not above PINSTREAM_SHUTDOWN_GRACE + {REVOKE_MARGIN:g} s"
            f" ({longest:g} s): draining on a revoke would lose the partitions; raise the first or lower the second"
        )


def _address_contradictions(own: PinstreamSettings) -> Iterator[str]:
    # The page's own address adds to the address of health and metrics; it cannot replace it.
    if own.page_address is None:
        return
    if own.http_address is None:
        yield (
            "PINSTREAM_PAGE_ADDRESS is set, but PINSTREAM_HTTP_ADDRESS is empty, which turns page, health and metrics"
            " off; set PINSTREAM_HTTP_ADDRESS too, or remove PINSTREAM_PAGE_ADDRESS"
        )
        return
    # Both cannot be listened on, as far as their text shows; names are not looked up. Port 0 is a free port each time.
    hosts = {own.page_address.host.lower(), own.http_address.host.lower()}
    same_host = len(hosts) == 1 or not hosts.isdisjoint(_ALL_ADDRESSES)
    if same_host and own.page_address.port == own.http_address.port != 0:
        yield (
            "PINSTREAM_PAGE_ADDRESS and PINSTREAM_HTTP_ADDRESS are the same port of the same address; choose another"
            " port, or remove PINSTREAM_PAGE_ADDRESS to serve everything at PINSTREAM_HTTP_ADDRESS"
        )


def _login_contradictions(kafka: KafkaSettings) -> Iterator[str]:
    if not kafka.uses_iam:
        return
    given = kafka.client_properties()
    if given.get("security.protocol", "SASL_SSL").upper() != "SASL_SSL":
        yield (
            "KAFKA_SECURITY_PROTOCOL is not SASL_SSL, and KAFKA_SASL_MECHANISM=AWS_MSK_IAM works with nothing else;"
            " remove the first"
        )
    for name in given:
        if name.startswith(("sasl.oauthbearer.", "sasl.username", "sasl.password")):
            yield (
                f"{kafka_variable(name)} has no meaning with KAFKA_SASL_MECHANISM=AWS_MSK_IAM, which"
                " logs in with AWS credentials; remove one of them"
            )


def _topic_contradictions(topics: tuple[str, ...], own: PinstreamSettings) -> Iterator[str]:
    for topic in topics:
        if topic.startswith("^"):
            continue  # its topics are not known here; the source never reads a dead-letter topic
        if own.dead_letter_topic_of(topic) in topics:
            yield (
                f"PINSTREAM_DEAD_LETTER_TOPIC={own.dead_letter_topic!r} is in KAFKA_TOPICS for the dead letters of"
                f" {topic!r}: dead letters would be read as events; choose another name"
            )
        if len(own.dead_letter_topic_of(topic)) > values.MAX_TOPIC_LENGTH:
            yield (
                f"PINSTREAM_DEAD_LETTER_TOPIC={own.dead_letter_topic!r} makes a name longer than"
                f" {values.MAX_TOPIC_LENGTH} characters for {topic[:60]!r}…; shorten it"
            )
    if own.receipts_topic in topics:
        yield (
            f"PINSTREAM_RECEIPTS_TOPIC={own.receipts_topic} is in KAFKA_TOPICS: receipts would be read as events;"
            " choose another name"
        )
    letters = re.escape(own.dead_letter_topic).replace(re.escape("{topic}"), ".+")
    if own.receipts_topic and re.fullmatch(letters, own.receipts_topic):
        yield (
            f"PINSTREAM_RECEIPTS_TOPIC={own.receipts_topic} is a dead-letter topic (PINSTREAM_DEAD_LETTER_TOPIC):"
            " choose another name"
        )
    # Also without KAFKA_TOPICS, or with patterns alone.
    if own.dead_letter_topic == "{topic}":
        yield "PINSTREAM_DEAD_LETTER_TOPIC='{topic}' is the topic itself; write {topic}.dead-letters"


def effective(settings: Settings) -> Settings:
    """Return the settings with the limits of test mode applied, and with the warnings."""
    # The warnings are about what the user has set, before test mode lowers it.
    own, warnings = settings.pinstream, tuple(_warnings(settings))
    if settings.pinterest.test_mode:
        limits = {
            "batch_events": min(own.batch_events, TEST_MODE_BATCH_EVENTS),
            "calls_per_minute": min(own.calls_per_minute, TEST_MODE_CALLS_PER_MINUTE),
        }
        own = own.model_copy(update=limits)
    return settings.model_copy(update={"pinstream": own, "warnings": warnings})


def _warnings(settings: Settings) -> Iterator[str]:
    """Yield a line for each value that is allowed but may surprise."""
    kafka, pinterest, own = settings.kafka, settings.pinterest, settings.pinstream
    proxies = (settings.network.https_proxy, settings.network.http_proxy)
    if own.proxy_credentials and not any(proxies):
        yield "PINSTREAM_PROXY_CREDENTIALS is set, but there is no proxy: HTTPS_PROXY is not"
    yield from _unused_security(kafka)
    if kafka.auto_offset_reset == "latest":
        yield "KAFKA_AUTO_OFFSET_RESET=latest: a group without offsets skips all records that are in the topics now"
    if any(topic.startswith("^") and not topic.endswith("$") for topic in kafka.topics):
        yield "KAFKA_TOPICS has a pattern without $ at its end: it matches every topic that begins like this"
    if pinterest.test_mode:
        yield "PINTEREST_TEST_MODE=true: events are validated, not recorded; 20 events per call, 600 calls per minute"
    # A warning and no error: a sandbox on loopback has no certificate.
    if urlsplit(pinterest.api_url).scheme == "http":
        yield "PINTEREST_API_URL is not https: token and events are sent unencrypted; use it for a sandbox only"
    if own.calls_per_minute > PUBLISHED_CALLS_PER_MINUTE:
        yield (
            f"PINSTREAM_CALLS_PER_MINUTE={own.calls_per_minute} is above the published limit of"
            f" {PUBLISHED_CALLS_PER_MINUTE} per ad account; the x-ratelimit headers of the answers decide"
        )
    if own.key_store.get_secret_value() == "memory:":
        yield "PINSTREAM_KEY_STORE=memory: forgets delivered keys at a restart; later duplicates are sent again"


def _unused_security(kafka: KafkaSettings) -> Iterator[str]:
    """Warn of a login or a certificate that is never used: librdkafka's default is neither, and it says nothing."""
    if kafka.uses_iam:  # which implies the protocol
        return
    given = kafka.client_properties()
    protocol = given.get("security.protocol", "PLAINTEXT").upper()
    for kind, wanted in (("SASL", "SASL_SSL"), ("SSL", "SSL or SASL_SSL")):
        unused = sorted(name for name in given if name.startswith(f"{kind.lower()}."))
        if unused and kind not in protocol.split("_"):
            yield (
                f"{kafka_variable(unused[0])} has no effect, because KAFKA_SECURITY_PROTOCOL is "
                f"{protocol[:60]}: set it to {wanted}"
            )
