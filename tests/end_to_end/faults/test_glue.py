"""Records of AWS Glue's serialisers, with schemas from a stub of Glue: through `check`, `run`, `replay` and `show`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from consumer.avro.encode import Encoder
from tests.end_to_end.records import SCHEMA, commerce_event, write
from tests.end_to_end.shop import NewShop
from tests.support.aws import Glue, glue_value

_HEAD = 10  # of single-object encoding, before the datum


@pytest.fixture
def glue() -> Iterator[Glue]:
    """The stub, with no schema."""
    found = Glue()
    yield found
    found.close()


def value(version: str, event_id: str, *, zipped: bool = False) -> tuple[None, bytes]:
    """A record of Glue's serialiser."""
    datum = Encoder(SCHEMA).encode(commerce_event(event_id))[_HEAD:]
    return None, glue_value(version, datum, zipped=zipped)


def test_records_of_glue(new_shop: NewShop, glue: Glue) -> None:
    """While Glue is down its records wait; then both compressions are delivered, and other formats become dead
    letters that say why. A later start while Glue is down uses the schemas on disk."""
    shop = new_shop(partitions=1, PINSTREAM_SCHEMA_PATIENCE="2s", **glue.variables())
    ours, json_schema = glue.add(SCHEMA), glue.add("{}", "JSON")
    records = [value(ours, f"plain-{at}") for at in range(20)]
    records += [value(ours, f"zlib-{at}", zipped=True) for at in range(20)]
    bomb = (None, glue_value(ours, bytes(32 << 20), zipped=True))
    unknown = value(str(uuid.uuid4()), "unknown")
    write(shop.kafka, shop.topic, [*records, value(json_schema, "json"), unknown, bomb])

    glue.fails = (400, "ThrottlingException")
    with shop.run() as service:
        service.until(
            lambda: any("ThrottlingException" in str(line.get("reason")) for line in service.log),
            "the trouble",
        )
        assert service.ledger()["open"] > 0
        assert shop.committed == 0
        assert service.get("/healthz")[0] == 200
        glue.fails = None
        ledger = service.until_settled(43)
    assert (ledger["delivered"], ledger["dead_lettered"]) == (40, 3)
    assert shop.api.counts().distinct_event_ids == 40
    said = {one["code"]: one["message"] for _, one in shop.letters}
    assert (
        said["incompatible_schema"] == f"schema glue {json_schema}: it is a JSON schema; pinstream reads Avro"
    )
    assert "does not exist" in said["no_such_schema"]
    assert "unpacks to more than 16 MiB" in said["too_large"]

    text = " ".join(shop.command("check").stdout.split())
    assert "answers; 1 schema on disk" in text
    assert "AWS Glue: region eu-west-1, credentials by env" in text
    places = [f"{shop.topic}.dead-letters:0:{at}" for at in range(3)]
    shown = [shop.command("dead-letters", "show", one, "--payload", "--json").stdout for one in places]
    assert any(f'"schema":"glue {json_schema}"' in one for one in shown), shown

    glue.fails = (400, "AccessDeniedException")
    write(shop.kafka, shop.topic, [value(ours, "later", zipped=True)])
    with shop.run() as service:
        service.until(lambda: shop.api.counts().distinct_event_ids == 41, "the event")
    refused = shop.command("check", code=1)
    assert "allow glue:GetSchemaVersion to this role" in " ".join(refused.stdout.split())

    glue.fails = None
    bounds = ("--topic", shop.topic, "--from", "offset:0", "--to", "offset:40", "--ignore-dedup")
    shop.command("replay", *bounds)
    assert shop.api.accepted()["zlib-3"] == 2
