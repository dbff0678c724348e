"""Makes the parts from the settings; what more than one command needs."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from consumer import __version__, logs
from consumer.adapters.conversions_api import ConversionsApi, FileToken, FixedToken, Token
from consumer.adapters.schemas import LocalSchemas, RegistrySchemas, SchemaSource
from consumer.avro.decode import Decoder, WireFormat
from consumer.avro.paths import ALL, Asked
from consumer.avro.schema import InvalidSchema
from consumer.conversion.converter import Converter
from consumer.conversion.mapping import Mapping, load_mapping
from consumer.conversion.program import COMPILED
from consumer.conversion.reading import CompiledReading
from consumer.engine.messages import Report
from consumer.engine.model import AWAY, Policy, destination_tag
from consumer.engine.pipeline import Pipeline
from consumer.errors import MappingError, SettingsError
from consumer.settings import Settings, packaged_schemas_dir

TEST_MODE_EVENTS = 20
"""Events the API processes per call in test mode (OAS)."""
_ABSENCES_IN_A_SESSION = 3
DEFAULT_MAPPING = "commerce_event.mapping.toml"


def set_up_logs(settings: Settings) -> None:
    """Log as the settings say, and log what they warn of."""
    logs.configure(log_format=settings.pinstream.log_format, level=settings.pinstream.log_level)
    for warning in settings.warnings:
        structlog.get_logger().warning("setting", text=warning)


def log_report(report: Report) -> None:
    """A core's report becomes a log line."""
    log = structlog.get_logger()
    getattr(log, report.level)(report.event, **report.fields)


def local_schemas(settings: Settings) -> LocalSchemas:
    """The folder's schemas. Raises `SchemaError`."""
    return LocalSchemas(settings.pinstream.schemas_dir)


def writer_schemas(settings: Settings, local: LocalSchemas) -> SchemaSource:
    """Where writers' schemas come from: the registry if there is one, else the folder. Raises `RegistryError`."""
    if not settings.registry.url:
        return local
    return RegistrySchemas(settings.registry.client_configuration(), local)


def reader_schema(settings: Settings, schemas: LocalSchemas) -> dict[str, Any]:
    """The schema our mapping is written for. Raises `SchemaError`."""
    return schemas.reader(settings.pinstream.schema_name)


def mapping(settings: Settings, schema: dict[str, Any]) -> Mapping:
    """The mapping, checked against the schema. Raises `MappingError`."""
    default = (packaged_schemas_dir() / DEFAULT_MAPPING).read_text("utf-8")
    path = settings.pinstream.mapping_file
    if path is None:
        name = "PINSTREAM_MAPPING_FILE is not set, and the packaged mapping does not fit PINSTREAM_SCHEMA"
        return load_mapping(None, schema, default_toml=default, overlay_name=name)
    try:
        overlay = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(
            f"PINSTREAM_MAPPING_FILE: {path} cannot be read ({_why(error)}); correct the path"
        ) from error
    return load_mapping(overlay, schema, default_toml=default, overlay_name=str(path))


def _why(error: Exception) -> str:
    return error.strerror or "unreadable" if isinstance(error, OSError) else "it is not UTF-8"


def decoder(settings: Settings, schema: dict[str, Any], asked: Asked = ALL) -> Decoder:
    """Reads records into the shape of `schema`, as far as somebody has `asked` for it.

    Raises `SettingsError` where no record can be read so.
    """
    try:
        return Decoder(schema, wire_format=WireFormat(settings.pinstream.wire_format), asked=asked)
    except InvalidSchema as error:
        raise SettingsError(
            f"PINSTREAM_SCHEMA={settings.pinstream.schema_name!r} cannot be read as: {error}; correct the schema"
        ) from error


def converter(settings: Settings, schema: dict[str, Any], accounts: tuple[str, ...]) -> Converter:
    """Converts events of `schema` as the mapping says. Raises `MappingError`."""
    return Converter(
        mapping(settings, schema),
        schema,
        accounts=accounts,
        partner_name=settings.pinterest.partner_name,
        # 0 is how a person writes "no limit".
        max_event_age=settings.pinstream.max_event_age or math.inf,
    )


def policy(settings: Settings) -> Policy:
    """The core's limits."""
    own = settings.pinstream
    return Policy(
        accounts=len(settings.pinterest.ad_account_ids),
        batch_events=own.batch_events,
        batch_bytes=own.batch_bytes,
        linger=own.linger,
        concurrency=own.concurrency,
        calls_per_minute=own.calls_per_minute,
        max_open_events=own.max_open_events,
        max_open_bytes=own.max_open_bytes,
        commit_interval=own.commit_interval,
        halt_patience=own.halt_patience,
        stall_after=own.stall_after,
        schema_patience=own.schema_patience,
        dead_letter_share=own.dead_letter_share,
        dead_letter_sample=own.dead_letter_sample,
        away=_absence(settings),
        destination=destination_tag(settings.pinterest.api_url, settings.pinterest.test_mode),
    )


def _absence(settings: Settings) -> float:
    """Seconds of standing still after which partitions may be another's: well within the session time-out."""
    given = settings.kafka.properties.get("session.timeout.ms")
    text = given.get_secret_value() if given is not None else ""
    is_number = re.fullmatch(r"[0-9]{1,18}", text) is not None
    return min(AWAY, int(text) / 1000 / _ABSENCES_IN_A_SESSION) if is_number else AWAY


def pipeline(settings: Settings, schema: dict[str, Any], *, trace_links: int = 0) -> Pipeline:
    """The core, for one process."""
    converting = converter(settings, schema, settings.pinterest.ad_account_ids)
    decoding = decoder(settings, schema, converting.mapping.asked)
    for warning in converting.mapping.warnings:
        structlog.get_logger().warning("setting", text=warning)
    return Pipeline(
        replace(policy(settings), trace_links=trace_links),
        decoding,
        converting,
        reading=fast_reading(settings, decoding, converting),
        # Members must not back off in step; within a process the seed makes it repeatable.
        seed=time.time_ns(),
    )


def fast_reading(settings: Settings, decoding: Decoder, converting: Converter) -> CompiledReading | None:
    """The fast path, if the settings have it and the package was built with a C compiler."""
    return CompiledReading(decoding, converting) if fast_path(settings) == "compiled" else None


def fast_path(settings: Settings) -> str:
    """How records are read: ``compiled``; ``python``, where the package was built without a C compiler; ``off``."""
    if not settings.pinstream.fast_path:
        return "off"
    return "python" if COMPILED is None else "compiled"


def token(settings: Settings) -> Token:
    """Where the access token comes from. Raises `SettingsError`."""
    if settings.pinterest.access_token_file is not None:
        return FileToken(settings.pinterest.access_token_file, "PINTEREST_ACCESS_TOKEN_FILE")
    if settings.pinterest.access_token is None:
        raise SettingsError(
            "PINTEREST_ACCESS_TOKEN is not set; it is required, or PINTEREST_ACCESS_TOKEN_FILE"
        )
    return FixedToken(settings.pinterest.access_token.get_secret_value())


def conversions_api(settings: Settings) -> ConversionsApi:
    """The client of the API."""
    return ConversionsApi(
        settings.pinterest.api_url,
        token(settings),
        timeout=settings.pinstream.request_timeout,
        concurrency=settings.pinstream.concurrency,
        test_mode=settings.pinterest.test_mode,
        agent=f"pinstream/{__version__}",
    )


def make_state_folder(path: Path) -> None:
    """Make the state folder if need be, for this user alone whatever the umask. Raises `SettingsError`."""
    try:
        if not path.is_dir():
            path.mkdir(parents=True)
            path.chmod(0o700)
    except OSError as error:
        raise SettingsError(
            f"PINSTREAM_STATE_DIR: {path} cannot be created ({error.strerror}); name a folder that this user may "
            f"write to"
        ) from error
