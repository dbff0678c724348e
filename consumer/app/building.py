"""Build the parts of a member from the settings. Several commands use it."""

from __future__ import annotations

import contextlib
import json
import math
import re
import resource
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from typing import Final

import structlog
from pydantic import SecretStr

import consumer
from consumer import __version__, logs
from consumer.adapters.aws.glue import GlueSchemas
from consumer.adapters.conversions_api import ConversionsApi, Token, TokenFile, Tokens
from consumer.adapters.kafka.configuration import variable
from consumer.adapters.kafka.dead_letters import DeadLetterProducer
from consumer.adapters.key_store import open_key_store
from consumer.adapters.network import Network, client_certificate
from consumer.adapters.schemas import LocalSchemas, RegistrySchemas
from consumer.adapters.schemas_on_disk import KeptSchemas, SchemaFiles, registry_digest
from consumer.adapters.transform import TransformThread
from consumer.app.ending import Parts
from consumer.avro.decode import Decoder
from consumer.avro.paths import NOTHING, ORIGIN, Asked
from consumer.avro.schema import InvalidSchema
from consumer.conversion.converter import Converter
from consumer.conversion.program import COMPILED
from consumer.conversion.reading import CompiledReading
from consumer.conversion.sections import Sections, is_divided, load_sections
from consumer.conversion.transform import Transformer, load_transform
from consumer.engine import model
from consumer.engine.figures.outside import CertificateStatistics
from consumer.engine.messages import BrokerStats, Report
from consumer.engine.model import Announcement, Chunk, Policy
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import Converting, Reading, SchemaLearner
from consumer.errors import NO_FILES, MappingError, PinstreamError, SettingsError
from consumer.ports import Api, DeadLetterWriter, KeyStore, ReceiptWriter, RecordSource
from consumer.service import Service
from consumer.settings import COMMIT_INTERVAL, DEFAULT_SCHEMA, Settings, packaged
from consumer.settings.passthrough import read_secret_file, registry_variable
from consumer.settings.values import SecretFile, parse_header_text, parse_login
from consumer.web.listening import MAX_CONNECTIONS

DEFAULT_MAPPING = "commerce_event.mapping.toml"
# Bytes of a call at most. Pinterest documents no limit; other clients stay under 4 MB.
_BATCH_BYTES: Final = 4 << 20
# Seconds without a settled record, although there is work, after which a stall is reported.
_STALL_AFTER: Final = 120.0
# In the state folder: the answers of the schema registry.
KEPT_SCHEMAS = "registry-schemas"
# Without calls and the page: 44 were counted, with one broker.
_OPEN_FILES: Final = 64
_ADDRESS_SPACE: Final = 1 << 30  # where a process that ran for a while had 1.3 GB, of which it used 90 MB


def set_up_logs(settings: Settings) -> None:
    """Set up the log as the settings say, and log their warnings."""
    logs.configure(log_format=settings.pinstream.log_format, level=settings.pinstream.log_level)
    # Not while the settings are read, because they say how to log.
    for warning in settings.warnings:
        structlog.get_logger().warning("setting", text=warning)


def require_limits(settings: Settings) -> None:
    """Raise this process's limit of open files where it is low. Raises `PinstreamError` if the system forbids that, or
    leaves too little address space."""
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    # librdkafka may crash where it cannot make a thread.
    if resource.RLIM_INFINITY != space < _ADDRESS_SPACE:
        raise PinstreamError(
            f"the address space is limited to {space >> 20:,} MiB, and pinstream needs {_ADDRESS_SPACE >> 20:,} MiB or "
            "more, most of which is never used: raise the limit (ulimit -v, or LimitAS= of a systemd unit), and limit "
            "the memory instead"
        )
    # A process without free files can neither send events nor answer a probe.
    least = _OPEN_FILES + settings.pinstream.concurrency
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= least + MAX_CONNECTIONS:
        return
    soft = least + MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(least + MAX_CONNECTIONS, hard)
    if soft < least:
        raise PinstreamError(
            f"{soft} files may be open at once, and pinstream needs {least} or more: {NO_FILES}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def log_report(report: Report) -> None:
    """Log what the engine reports."""
    # The engine does no I/O: its commands say what to log as they say what to send.
    getattr(structlog.get_logger(), report.level)(report.event, **report.fields)


def log_kafka_error(code: str, text: str) -> None:
    """Log a problem that librdkafka handles by itself."""
    structlog.get_logger().warning("kafka_trouble", code=code, text=text)


def log_token_error(text: str) -> None:
    """Log that a token's file has no token any more."""
    structlog.get_logger().warning("token_trouble", text=text)


@dataclass(frozen=True)
class Wraps:
    """What a command puts around parts of the service, or in their place. By itself it changes nothing."""

    api: Callable[[Api], Api] = lambda api: api
    """Returns what is called in place of the API."""
    fetched: Callable[[Sequence[Chunk]], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    """Returns a context for the handling of fetched chunks."""
    dry_run: Api | None = None
    """Takes the API's place: no call is made, and nothing is written."""
    letters: DeadLetterWriter | None = None
    """Where dead letters go; None: to the dead-letter topics."""
    receipts: ReceiptWriter | None = None
    """Where receipts go, if they are wanted (`Policy.receipts`)."""


def service(
    settings: Settings,
    pipeline: Pipeline,
    connect: Callable[[Service], RecordSource],
    keys: KeyStore,
    schemas: LocalSchemas,
    function: Transformer | None,
    parts: Parts,
    wraps: Wraps,
) -> Service:
    """Build the service that moves records from the source that `connect` makes through `pipeline`, and open
    the other parts that it uses; `parts` closes these, but not the source and `keys`. Raises `PinstreamError`.

    `function`: the user's, see `transformer`.
    """
    # `parts` closes what is opened here in reverse order.
    api = wraps.api(_connected_api(settings, parts)) if wraps.dry_run is None else wraps.dry_run
    letters, producer = wraps.letters, None
    if letters is None:
        letters = producer = DeadLetterProducer(
            settings.kafka.client_properties(),
            topic=settings.pinstream.dead_letter_topic,
            on_error=log_kafka_error,
        )
        parts.add("the producer of dead letters", producer.close)
    # A dry run writes nothing, so it keeps no schemas either.
    writers = writer_schemas(settings, schemas, keeps=wraps.dry_run is None)
    parts.add("the source of schemas", writers.close)
    thread = None if function is None else TransformThread(function)
    if thread is not None:
        parts.add("the thread of PINSTREAM_TRANSFORM", thread.close)
    made = Service(
        pipeline,
        connect=connect,
        api=api,
        key_store=keys,
        schemas=writers,
        dead_letters=letters,
        receipts=wraps.receipts,
        transform=thread,
        report=log_report,
        grace=settings.pinstream.shutdown_grace,
        around_fetched=wraps.fetched,
        certificates=client_certificates(settings),
        log_lines_dropped=logs.lines_dropped,
    )
    # Only now, because the producer's reports about its brokers go to the engine, which `made` has.
    if producer is not None:
        producer.on_brokers = lambda stats: made.feed(BrokerStats("producer", stats))
    return made


def _connected_api(settings: Settings, parts: Parts) -> Api:
    client = ConversionsApi(
        settings.pinterest.api_url,
        open_token(settings),
        account=settings.pinterest.ad_account_ids[0],
        timeout=settings.pinstream.request_timeout,
        concurrency=settings.pinstream.concurrency,
        test_mode=settings.pinterest.test_mode,
        agent=f"pinstream/{__version__}",  # so that the platform's support can tell our calls
        network=network(settings),
    )
    parts.add("the connections to the API", client.close)
    return client


def local_schemas(settings: Settings) -> LocalSchemas:
    """Read the schemas of PINSTREAM_SCHEMAS_DIR. Raises `SchemaError`."""
    return LocalSchemas(settings.pinstream.schemas_dir)


def writer_schemas(
    settings: Settings, local: LocalSchemas, *, keeps: bool = False
) -> LocalSchemas | KeptSchemas:
    """Return the source of writers' schemas: the registry if there is one, else the folder. Raises `RegistryError`
    and `SettingsError`.

    While the registry does not answer, its earlier answers are read from the state folder. `keeps`: answers are stored
    there.
    """
    if not settings.registry.url:
        return local
    config = settings.registry.client_configuration()
    # A start must not depend on the registry, so its answers are kept on disk.
    files = SchemaFiles(settings.pinstream.state_dir / KEPT_SCHEMAS, registry_digest(config))
    asked = GlueSchemas(settings.registry.url) if settings.registry.is_glue else registry(settings)

    def on_error(text: str) -> None:
        structlog.get_logger().warning("schemas_on_disk", text=text)

    return KeptSchemas(asked, files, local.fetch, on_error, writes=keeps)


def registry(settings: Settings, *, url: str | None = None) -> RegistrySchemas:
    """Return the registry of SCHEMA_REGISTRY_URL, or what is at `url` with the same login. Raises `RegistryError`."""
    config = settings.registry.client_configuration()
    return RegistrySchemas({**config, "url": url or settings.registry.url}, network=network(settings))


def client_certificates(settings: Settings) -> Sequence[CertificateStatistics]:
    """Return the certificates with which this process shows who it is, as far as they can be read."""
    # Of each client: what names the setting of one of its properties, and these.
    clients: list[tuple[Callable[[str], str], Mapping[str, str | float]]] = [
        (variable, settings.kafka.client_properties())
    ]
    if settings.registry.url and not settings.registry.is_glue:
        clients.append((registry_variable, settings.registry.client_configuration()))
    if settings.pinstream.shares_key_store:
        # Imported here: without a shared store nothing needs it.
        from consumer.adapters.key_store.shared.address import parse_address

        address = parse_address(settings.pinstream.key_store.get_secret_value())
        clients.append((lambda _: "PINSTREAM_KEY_STORE", {"ssl.certificate.location": address.cert or ""}))
    found = [(setting, client_certificate(properties)) for setting, properties in clients]
    return [CertificateStatistics(setting(one[0]), one[1]) for setting, one in found if one is not None]


def network(settings: Settings) -> Network:
    """Build the way out: proxies, their login, and the authorities that are trusted. Raises `SettingsError`."""
    shared, own = settings.network, settings.pinstream
    login = secret(own.proxy_credentials, parse_login)
    return Network(
        https_proxy=shared.https_proxy.get_secret_value(),
        http_proxy=shared.http_proxy.get_secret_value(),
        no_proxy=shared.no_proxy,
        login=login or (lambda: ""),  # then that of the proxy's URL counts
        authorities=own.ca_file,
        on_error=log_token_error,
    )


def secret(
    given: SecretStr | SecretFile | None, parse: Callable[[str], str] = parse_header_text
) -> Callable[[], str] | None:
    """Return the source of a secret that may be a setting or in a file; None: it is neither.

    A file is read again when it changes, so that a mounted secret takes effect without a restart. Raises
    `SettingsError` if it cannot be read at first.
    """
    if isinstance(given, SecretFile):
        return token_file(given, parse).value
    return None if given is None else given.get_secret_value


def token_file(file: SecretFile, parse: Callable[[str], str] = parse_header_text) -> TokenFile:
    """Return the token in a file. Raises `SettingsError` if it cannot be read at first."""
    return TokenFile(file.path, partial(read_secret_file, file.variable, parse=parse), log_token_error)


def sections(settings: Settings, local: LocalSchemas | None = None) -> Sections:
    """Load the mapping file and check it against the schemas, of `local` if these are read already.

    Raises `MappingError` and `SchemaError`.
    """
    own = settings.pinstream
    overlay = _mapping_file(settings)
    # Messages begin with this. Without a file, the mapping that does not fit is the packaged one.
    name = "PINSTREAM_MAPPING_FILE is not set, and the packaged mapping does not fit PINSTREAM_SCHEMA"
    return load_sections(
        overlay,
        local or local_schemas(settings),
        default_toml=packaged_mapping(),
        overlay_name=name if overlay is None else str(own.mapping_file),
        schema_name=own.schema_name or DEFAULT_SCHEMA,
        is_named=own.schema_name is not None,
    )


def has_sections(settings: Settings) -> bool:
    """Return True if the mapping file has sections, as far as it can be read."""
    # The caller has reported an invalid file already.
    with contextlib.suppress(MappingError):
        overlay = _mapping_file(settings)
        return overlay is not None and is_divided(overlay)
    return False


def packaged_mapping() -> str:
    """Return the text of the packaged mapping, over which a user's is laid."""
    return (packaged("schemas") / DEFAULT_MAPPING).read_text("utf-8")


def _mapping_file(settings: Settings) -> str | None:
    path = settings.pinstream.mapping_file
    try:
        # Read once: a change of the file takes effect at the next start.
        return None if path is None else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # Only an `OSError` has a `strerror`.
        why = getattr(error, "strerror", "it is not UTF-8") or "unreadable"
        raise MappingError(
            f"PINSTREAM_MAPPING_FILE: {path} cannot be read ({why}); correct the path"
        ) from error


def decoder(
    mapped: Sections,
    function: Transformer | None = None,
    *,
    whole: bool = False,
    origins: Iterable[Asked] = repeat(NOTHING),
) -> Decoder:
    """Build the decoder that reads records as the schemas of the mapping: of each record what the mapping asks for.

    `whole`: it reads all fields; `origins`: see `Decoder`. Raises `SettingsError` if no record can be read as such a
    schema.
    """
    try:
        if function is not None and function.takes_origin:
            origins = repeat(((ORIGIN,),))
        return Decoder(mapped, whole=whole or function is not None, origins=origins)
    except InvalidSchema as error:
        # Where there are sections, the message names the type.
        name = "" if mapped.names else f"PINSTREAM_SCHEMA={mapped.all[0].record!r} "
        raise SettingsError(f"{name}cannot be read as: {error}; correct the schema") from error


def converter(settings: Settings, mapped: Sections, accounts: tuple[str, ...]) -> Converter:
    """Build the converter of the events that `decoder` makes."""
    return Converter(
        *(section.mapping for section in mapped.all),
        accounts=accounts,
        # In the settings, 0 is "no limit".
        max_event_age=settings.pinstream.max_event_age or math.inf,
    )


def transformer(settings: Settings, mapped: Sections) -> Transformer | None:
    """Import the function of PINSTREAM_TRANSFORM, for the records that are mapped; None: there is none.

    Raises `SettingsError`.
    """
    name = settings.pinstream.transform
    if name is None:
        return None
    # The function's results are checked against the schema of the record's type.
    return Transformer(load_transform(name), name, *(section.schema for section in mapped.all))


def policy(settings: Settings, rate: float | None = None) -> Policy:
    """Return the limits of the engine; a replay may have a `rate`, in events a second."""
    own = settings.pinstream
    return Policy(
        accounts=len(settings.pinterest.ad_account_ids),
        # Then a refused token halts its own account alone.
        token_by_account=settings.pinterest.token_by_account,
        batch_events=own.batch_events,
        batch_bytes=min(_BATCH_BYTES, own.max_open_bytes),
        linger=own.linger,
        concurrency=own.concurrency,
        calls_per_minute=own.calls_per_minute,
        max_open_events=own.max_open_events,
        max_open_bytes=own.max_open_bytes,
        commit_interval=COMMIT_INTERVAL,
        halt_patience=own.halt_patience,
        schema_patience=own.schema_patience,
        # A slow call is no stall.
        stall_after=max(_STALL_AFTER, 2 * (own.linger + own.request_timeout)),
        dedup_window=own.dedup_window,
        dead_letter_share=own.dead_letter_share,
        dead_letter_sample=own.dead_letter_sample,
        events_per_second=rate or math.inf,
        lease=_lease(settings),
        # The engine never begins a call that could outlast its lease.
        call_timeout=own.request_timeout,
        away=_absence(settings),
        transform=own.transform or "",
        receipts=own.receipts_topic is not None,
        destination=destinations(settings)[0],
        earlier_destination=destinations(settings)[1],
    )


def destinations(settings: Settings) -> tuple[str, str | None]:
    """Return the tag of the destination, and the one that its URL has by itself; None: it is the same."""
    # Events that test mode accepted were not recorded: they are new to the real API.
    own = model.destination_tag(settings.pinterest.api_url, settings.pinterest.test_mode)
    if settings.pinstream.destination is None:
        return own, None
    platform = model.destination_tag(model.PLATFORM_URL, settings.pinterest.test_mode)
    return platform, None if own == platform else own


def quota_members(settings: Settings) -> int:
    """Return the number of members that divide the quota at least; 0: a shared key store counts the calls of all."""
    return 0 if settings.pinstream.shares_key_store else settings.workers


def _lease(settings: Settings) -> float:
    """Return the seconds for which claims in a shared key store hold without a renewal; 0: it is not shared.

    Longer than a call, so that a call may begin while the store does not answer for a moment. As short as that allows,
    because copies of events that a killed member had in flight wait for the end of its lease.
    """
    own = settings.pinstream
    return max(10.0, 2 * own.request_timeout) if own.shares_key_store else 0.0


def _absence(settings: Settings) -> float:
    """Return the seconds without a sign of life after which another member may own our partitions."""
    # By the consumer protocol (KIP-848) the broker sets the time-out, and the property is not there.
    given = settings.kafka.properties.get("session.timeout.ms")
    text = given.get_secret_value() if given is not None else ""
    # librdkafka itself refuses a value that is not a number, with a better message.
    if not re.fullmatch(r"[0-9]{1,18}", text):
        return model.AWAY
    # Well within the session time-out, so that the engine stops before the group removes the member.
    return min(model.AWAY, int(text) / 1000 / 3)


def pipeline(
    settings: Settings,
    mapped: Sections,
    limits: Policy,
    *,
    decoding: Callable[[SchemaLearner], SchemaLearner] | None = None,
    converting: Callable[[Converting], Converting] | None = None,
    around: Callable[[Reading], Reading] | None = None,
    fast: bool = True,
) -> Pipeline:
    """Build the engine of one process. Raises `PinstreamError` if compiled modules are out of date.

    `decoding`, `converting`, `around`: what a command puts around the decoder, the converter, or the way through both,
    to leave records out or to read them in another way. Not `fast`: all records take the two steps.
    """
    decode, convert, reading = reading_parts(settings, mapped, fast=fast)
    return Pipeline(
        limits,
        decode if decoding is None else decoding(decode),
        convert if converting is None else converting(convert),
        reading=reading,
        around=around,
        # Processes must not back off in step, so each has a seed of its own.
        seed=time.time_ns(),
        sections=mapped.names,
    )


def reading_parts(
    settings: Settings, mapped: Sections, *, fast: bool = True
) -> tuple[Decoder, Converter, CompiledReading | None]:
    """Build a mapping's decoder and converter, and where it can be had the fast path through both.

    Raises `PinstreamError` if compiled modules are out of date.
    """
    # The function may look at any field; without one, only what the mapping asks for is read.
    decode = decoder(mapped, transformer(settings, mapped))
    convert = converter(settings, mapped, settings.pinterest.ad_account_ids)
    if fast:
        require_current_modules()
        # A function of the user's gets the decoded record, which the fast path never makes.
        if fast_path(settings) == "compiled":
            return decode, convert, CompiledReading(decode, convert, divided=bool(mapped.names))
    return decode, convert, None


def require_current_modules() -> None:
    """Raise `PinstreamError` if a compiled module was made of other sources than stand beside it."""
    package = Path(consumer.__file__).parent
    folders = (*package.glob("*/native"), *package.glob("*/*/native"))
    # As `hatch_build.sources_digest`. An installed package may come without them.
    sources = sorted(
        file for folder in folders for end in ("pyx", "pxi") for file in folder.glob(f"_*.{end}")
    )
    digest = sha256(b"".join(file.read_bytes() for file in sources)).hexdigest()[:32]
    for name, module in sorted(sys.modules.items()):
        # It would load, but fail beside newer Python code: every record would take the two steps, at a hidden cost.
        if name.startswith("consumer.") and sources and getattr(module, "SOURCES", digest)[-32:] != digest:
            raise PinstreamError(f"{name} was compiled from other sources than these: run `make setup`")


def fast_path(settings: Settings) -> str:
    """Say how records are read: ``compiled``; ``python`` in a package built without a C compiler; ``off``."""
    if settings.pinstream.transform is not None:
        return "off"
    return "python" if COMPILED is None else "compiled"


def open_token(settings: Settings) -> Tokens:
    """Return the source of the access token, or of each account's. Raises `SettingsError`."""
    token = settings.pinterest.access_token
    if isinstance(token, SecretFile):
        if settings.pinterest.token_by_account:
            return {
                account: token_file(token._replace(path=token.path / account))
                for account in settings.pinterest.ad_account_ids
            }
        return token_file(token)
    if token is None:
        raise SettingsError(
            "PINTEREST_ACCESS_TOKEN is not set; it is required, or PINTEREST_ACCESS_TOKEN_FILE"
        )
    return Token(token.get_secret_value())


def fingerprint_of(settings: Settings, mapped: Sections) -> str:
    """Return the fingerprint of what decides what is sent: mapping, schemas and function, without any secret."""
    mapping = mapping_text(settings)
    schemas = json.dumps([(one.record, one.schema) for one in mapped.all], sort_keys=True)
    name = settings.pinstream.transform or ""
    # Its source as well: a function is changed more often than it is renamed.
    source = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None)
    function = "" if source is None else sha256(Path(source).read_bytes()).hexdigest()
    return model.settings_digests(mapping, schemas, f"{name} {function}")


def mapping_text(settings: Settings) -> str:
    """Return the mapping file and what it is laid over, as one text that depends on their content alone."""
    files = (_mapping_file(settings) or "", packaged_mapping())
    return json.dumps([*map(tomllib.loads, files)], sort_keys=True, default=str)


def announcement_of(settings: Settings, mapped: Sections) -> Announcement:
    """Return what these settings announce to members that share the key store."""
    group = sha256(settings.kafka.group_id.encode()).hexdigest()[:8]
    accounts = tuple(settings.pinterest.ad_account_ids)
    return Announcement(group, fingerprint_of(settings, mapped), destinations(settings)[0], accounts)


def service_key_store(settings: Settings, announcement: Announcement | None = None) -> KeyStore:
    """Open the service's key store, and make its state folder. Where members share it, it makes the announcement.

    Raises `SettingsError`, `KeyStoreError`.
    """
    own = settings.pinstream
    make_state_folder(own.state_dir)
    return open_key_store(
        own.key_store.get_secret_value(),
        window=own.dedup_window,
        max_bytes=own.key_store_max_bytes,
        lease=_lease(settings),
        # None: it is in the URL, or none is needed.
        password=secret(own.key_store_password),
        announcement=announcement,
    )


def make_state_folder(path: Path) -> None:
    """Create the state folder if it is missing. Raises `SettingsError`."""
    try:
        if not path.is_dir():
            path.mkdir(parents=True)
            # It holds keys of people's events: readable only by this user, whatever the umask is.
            path.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"PINSTREAM_STATE_DIR: {path} cannot be created ({error.strerror}); name a folder that this user may "
            f"write to"
        ) from error
