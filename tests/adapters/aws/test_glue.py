"""Writers' schemas from AWS Glue, against a stub of its API: the meaning of each answer, and the messages."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.adapters.aws import glue
from consumer.adapters.aws.glue import GlueSchemas
from consumer.adapters.schemas import LocalSchemas
from consumer.adapters.schemas_on_disk import KeptSchemas, SchemaFiles, registry_digest
from consumer.engine.messages import FetchSchema, SchemaAnswer, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import SchemaRef
from consumer.errors import SettingsError
from tests.adapters.test_schemas import PLAIN
from tests.support.aws import Glue

UNKNOWN = "00000000-0000-0000-0000-000000000000"
ANY = SchemaRef("glue", UNKNOWN)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Glue]:
    """Yield the stub, to which AWS requests of this process go."""
    found = Glue()
    for name, value in found.variables().items():
        monkeypatch.setenv(name, value)
    yield found
    found.close()


async def ask(version: str, *, timeout: float = 30.0) -> SchemaAnswer:
    """Return a new source's answer for one version."""
    source = GlueSchemas("glue:eu-west-1", timeout=timeout)
    try:
        return await source.fetch(FetchSchema(SchemaRef("glue", version)))
    finally:
        await source.close()


def reason(answer: SchemaAnswer) -> str:
    """Return why the schema is unavailable: one line, without the secret."""
    assert isinstance(answer, SchemaUnavailable)
    assert "\n" not in answer.reason
    assert "only-for-tests" not in answer.reason
    return answer.reason


VERDICTS: dict[str, SchemaFound | SchemaMissing | SchemaUnavailable] = {
    "AVAILABLE": SchemaFound(ANY, '"string"'),
    "DELETING": SchemaFound(ANY, '"string"'),  # records were written with it
    "FAILURE": SchemaMissing(ANY),
    "PENDING": SchemaUnavailable(ANY, "AWS Glue has the schema as PENDING, not as AVAILABLE"),
}


@pytest.mark.parametrize("status", VERDICTS)
async def test_what_the_status_of_a_version_means(status: str, registry: Glue) -> None:
    """A version is missing only if Glue has refused it; records wait for one that Glue still checks."""
    version = registry.add('"string"', status=status)
    assert await ask(version) == VERDICTS[status]._replace(ref=SchemaRef("glue", version))
    assert registry.asked == [version]


@pytest.mark.parametrize("kind", ["JSON", "PROTOBUF"])
async def test_a_schema_of_another_kind_is_found_with_its_kind(kind: str, registry: Glue) -> None:
    """And no text; the decoder then says that it reads only Avro."""
    version = registry.add("syntax = x", kind)
    assert await ask(version) == SchemaFound(SchemaRef("glue", version), "", kind)


async def test_what_does_not_exist_is_missing(registry: Glue) -> None:
    """A version is missing if Glue says so."""
    assert await ask(UNKNOWN) == SchemaMissing(ANY)


@pytest.mark.parametrize(
    ("failure", "refused", "said"),
    [
        ((400, "AccessDeniedException"), True, "refuses: allow glue:GetSchemaVersion to this role ("),
        ((400, "ExpiredTokenException"), True, "AWS Glue (eu-west-1) answered with an error: "),
        ((400, "ThrottlingException"), False, "AWS Glue (eu-west-1) answered with an error: "),
        ((500, "InternalServiceException"), False, "InternalServiceException of the tests"),
    ],
)
async def test_other_errors_are_no_verdict(
    failure: tuple[int, str], refused: bool, said: str, registry: Glue
) -> None:
    """Unavailable after one query; what does not pass is marked as refused. The same source finds it afterwards."""
    version = registry.add('"string"')
    command = FetchSchema(SchemaRef("glue", version))
    source = GlueSchemas("glue:eu-west-1")
    registry.fails = failure
    answer = await source.fetch(command)
    assert said in reason(answer)
    assert isinstance(answer, SchemaUnavailable)
    assert answer.refused == refused
    assert registry.asked == [version]
    registry.fails = None
    assert isinstance(await source.fetch(command), SchemaFound)
    await source.close()


@pytest.mark.parametrize("closed", [True, False])
async def test_a_glue_that_is_not_there(
    registry: Glue, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """Without a connection, or without an answer within the time limit, the schema is unavailable."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_GLUE", f"http://127.0.0.1:{silent.getsockname()[1]}")
        if not closed:
            assert "did not answer within 0.5 s" in reason(await ask(UNKNOWN, timeout=0.5))
    if closed:
        assert "could not be asked: Could not connect to the endpoint" in reason(await ask(UNKNOWN))


async def test_without_credentials(registry: Glue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing ones are marked as refused, and the reason says what to check; those that come later are found."""
    command = FetchSchema(SchemaRef("glue", registry.add('"string"')))
    source = GlueSchemas("glue:eu-west-1")
    with monkeypatch.context() as without:
        without.delenv("AWS_ACCESS_KEY_ID")
        without.delenv("AWS_SECRET_ACCESS_KEY")
        answer = await source.fetch(command)
        assert "Unable to locate credentials: check the AWS credentials" in reason(answer)
        assert isinstance(answer, SchemaUnavailable)
        assert answer.refused
        assert glue.describe_access("glue:eu-west-1") == "AWS Glue: region eu-west-1, no credentials"
    assert isinstance(await source.fetch(command), SchemaFound)
    await source.close()


async def test_ids_and_guids_are_looked_up_in_the_folder(registry: Glue, tmp_path: Path) -> None:
    """Glue does not know them; a file named by a version's UUID is found without Glue."""
    (tmp_path / f"plain.{UNKNOWN}.avsc").write_text(json.dumps(PLAIN))
    local = LocalSchemas(tmp_path)
    assert isinstance(await local.fetch(FetchSchema(SchemaRef("glue", UNKNOWN))), SchemaFound)
    files = SchemaFiles(tmp_path / "kept", registry_digest({"url": "glue:eu-west-1"}))
    source = KeptSchemas(GlueSchemas("glue:eu-west-1"), files, local.fetch)
    assert isinstance(await source.fetch(FetchSchema(SchemaRef("guid", UNKNOWN))), SchemaFound)
    assert isinstance(await source.fetch(FetchSchema(SchemaRef("id", "7"))), SchemaMissing)
    assert registry.asked == []
    await source.close()


@pytest.mark.parametrize(
    ("address", "variables", "region"),
    [
        ("glue:eu-west-3", {"AWS_REGION": "us-east-1"}, "eu-west-3"),
        ("glue:", {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "eu-west-1"}, "us-east-1"),
        ("glue:", {"AWS_DEFAULT_REGION": "eu-west-1"}, "eu-west-1"),
    ],
)
def test_where_the_region_is_from(
    address: str, variables: dict[str, str], region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The region is that of the setting, otherwise that of AWS's variables."""
    for name, value in {**variables, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(name, value)
    assert glue.describe_access(address) == f"AWS Glue: region {region}, credentials by env"


def test_without_a_region() -> None:
    """Without a region the error says in one line what to write."""
    with pytest.raises(SettingsError, match="needs a region: write glue:REGION, or set AWS_REGION"):
        GlueSchemas("glue:")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says in one line what to install."""
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(
        SettingsError,
        match=r"the extra glue is not installed: run pip install '\.\[glue\]' in a clone of pinstream$",
    ):
        GlueSchemas("glue:eu-west-1")
