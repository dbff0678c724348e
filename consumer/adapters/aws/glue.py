"""Writers' schemas from the AWS Glue Schema Registry: ``SCHEMA_REGISTRY_URL=glue:`` or ``glue:REGION``.

A record of its serialisers names the version of its schema by a UUID, which needs neither the name of the registry nor
that of the schema: one question, ``GetSchemaVersion``, and one right, ``glue:GetSchemaVersion``. What Glue answers:

======================================  ==========================================
a version, ``AVRO``                     found
a version, ``JSON`` or ``PROTOBUF``     found, of that kind: its records are refused
a version that is ``PENDING``           unavailable: it is being checked
a version that is ``FAILURE``           missing: it was refused, and stays so
``EntityNotFoundException``             missing
any other error, or none of Glue's      unavailable: asked again, the records wait
======================================  ==========================================

One attempt each, as with every registry; the engine decides when to ask again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from consumer.adapters.aws import find_region, new_session, one_line
from consumer.adapters.thread import run_blocking
from consumer.engine.messages import FetchSchema, SchemaAnswer, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import SchemaRef
from consumer.errors import SettingsError, missing_extra

_SCHEME: Final = "glue:"
_TIMEOUT: Final = 10.0
# Errors of Glue that do not pass by waiting.
_REFUSALS: Final = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "UnrecognizedClientException",
    }
)


class GlueSchemas:
    """The Glue Schema Registry of one region, asked with the AWS credentials of this machine or pod.

    `address`: ``glue:`` or ``glue:REGION``. `timeout`: seconds for one fetch. Raises `SettingsError` without the extra
    or a region.
    """

    kinds: frozenset[str] = frozenset({"glue"})
    """Kinds of `SchemaRef` that it answers: Glue has no ids, GUIDs and fingerprints."""

    def __init__(self, address: str, *, timeout: float = _TIMEOUT) -> None:
        self._region = _region(address)
        self._name = f"AWS Glue ({self._region})"
        self._timeout = timeout
        self._client: Any = None

    async def fetch(self, command: FetchSchema) -> SchemaAnswer:
        """Ask Glue once. Never raises."""
        ref = command.ref
        try:
            async with asyncio.timeout(self._timeout):
                return _verdict(ref, await run_blocking("pinstream-glue", self._ask, ref.value))
        except TimeoutError:
            return SchemaUnavailable(ref, f"{self._name} did not answer within {self._timeout:g} s")
        except Exception as error:  # botocore has some forty kinds of errors
            self._client = None  # the next attempt looks for credentials again
            return self._explained(ref, error)

    async def close(self) -> None:
        """Close the client's connections."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _ask(self, version: str) -> Mapping[str, Any]:
        from botocore.config import Config

        if self._client is None:
            once = Config(retries={"total_max_attempts": 1})
            self._client = new_session().create_client("glue", region_name=self._region, config=once)
        answer: Mapping[str, Any] = self._client.get_schema_version(SchemaVersionId=version)
        return answer

    def _explained(self, ref: SchemaRef, error: Exception) -> SchemaAnswer:
        said = getattr(error, "response", {}).get("Error", {})
        code, words = str(said.get("Code", "")), one_line(error)
        if code == "EntityNotFoundException":
            return SchemaMissing(ref)
        if code == "AccessDeniedException":
            reason = f"{self._name} refuses: allow glue:GetSchemaVersion to this role ({words})"
        elif code:
            reason = f"{self._name} answered with an error: {words}"
        else:
            reason = f"{self._name} could not be asked: {words}: check the AWS credentials and the network"
        return SchemaUnavailable(ref, reason, refused=code in _REFUSALS or "credentials" in words)


def describe_access(address: str) -> str:
    """Return region and kind of credentials, as text for people. Blocks. Raises `SettingsError`."""
    region = _region(address)
    try:
        found = new_session().get_credentials()
    except Exception as error:  # a role that cannot be assumed, a file that cannot be parsed
        return f"AWS Glue: region {region}, no credentials ({one_line(error)})"
    return f"AWS Glue: region {region}, {'no credentials' if found is None else f'credentials by {found.method}'}"


def _region(address: str) -> str:
    try:
        new_session()  # also if the address has the region: a missing extra must show at the start
    except ImportError:
        raise SettingsError(f"SCHEMA_REGISTRY_URL names AWS Glue, and {missing_extra('glue')}") from None
    region = address.removeprefix(_SCHEME) or find_region("SCHEMA_REGISTRY_URL=glue:")
    if not region:
        raise SettingsError("SCHEMA_REGISTRY_URL=glue: needs a region: write glue:REGION, or set AWS_REGION")
    return region


def _verdict(ref: SchemaRef, said: Mapping[str, Any]) -> SchemaAnswer:
    status, kind, text = said.get("Status"), str(said.get("DataFormat")), said.get("SchemaDefinition")
    if status == "FAILURE":
        return SchemaMissing(ref)
    # Records were written with a version that is being deleted, too.
    if status not in ("AVAILABLE", "DELETING"):
        return SchemaUnavailable(ref, f"AWS Glue has the schema as {str(status)[:20]}, not as AVAILABLE")
    if kind in ("JSON", "PROTOBUF"):
        return SchemaFound(ref, "", kind)
    if kind != "AVRO" or not isinstance(text, str) or not text:
        return SchemaUnavailable(ref, "the answer of AWS Glue contains no schema")
    return SchemaFound(ref, text)
