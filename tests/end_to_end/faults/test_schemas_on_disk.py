"""A start while the registry is down: records with schemas that were read before are read, others wait, and the
registry's answer decides.

As in `test_registry`, records are in Confluent's wire format, on one partition.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.end_to_end.api import Registry
from tests.end_to_end.faults.test_registry import MISMATCHED, SUBJECT, new_shop, version
from tests.end_to_end.records import SCHEMA, write
from tests.end_to_end.shop import NewShop, Service, Shop

__all__ = ["new_shop"]  # a fixture


def files(tmp_path: Path) -> list[str]:
    """The files with schemas in the state folder."""
    folder = tmp_path / "state" / "registry-schemas"
    return sorted(os.listdir(folder)) if folder.exists() else []


def run_once(shop: Shop, count: int) -> Service:
    """Run until `count` records are settled and committed."""
    with shop.run() as process:
        process.until_settled(count)
        process.until(lambda: shop.committed == count, "the commit")
    return process


def test_a_start_without_the_registry(new_shop: NewShop, registry: Registry, tmp_path: Path) -> None:
    """Known ids are delivered and the status says by what; a new id waits; the registry's answer ends both.

    Also with several workers, which share the folder.
    """
    known, new = registry.add(SUBJECT, SCHEMA), registry.add(SUBJECT, version(1))
    shop = new_shop()
    shop.write_registered(known, "before-0", "before-1")
    run_once(shop, 2)
    assert len(files(tmp_path)) == 1
    registry.down()
    shop.write_registered(known, "disk-2", "disk-3")
    shop.write_registered(new, "waits-4", schema=version(1))
    shop.write_registered(known, "disk-5")
    with shop.run() as process:
        process.until(lambda: len(shop.api.accepted()) == 5, "all of the known id")
        reported = process.until_logged("schema_from_disk")
        assert (reported["ref"], reported["level"]) == (str(known), "warning")
        assert "refuses connections" in reported["reason"]
        # What the API has accepted settles when its keys are stored.
        process.until(lambda: process.ledger()["open"] == 1, "all but what waits to settle")
        assert process.status()["schemas_from_disk"] == 1
        assert "pinstream_schemas_from_disk 1" in process.get("/metrics")[1]
        assert process.get("/readyz")[0] == process.get("/healthz")[0] == 200
        process.until(lambda: shop.committed == 4, "the commit up to what waits")
        registry.up()
        process.until(lambda: shop.committed == 6, "the commit of all")
        process.until(lambda: process.status()["schemas_from_disk"] == 0, "the registry's word")
    assert not [one for one in process.log if one.get("event") in ("schema_changed", "schemas_on_disk")]
    assert len(files(tmp_path)) == 2
    registry.down()
    shop.write_registered(known, "disk-6")
    shop.write_registered(new, "disk-7", schema=version(1))
    with shop.run("--workers", "2") as process:
        process.until(lambda: shop.committed == 8, "both ids, by two workers")
    assert set(shop.api.accepted().values()) == {1}
    assert (len(shop.api.accepted()), shop.reasons) == (8, [])


def test_a_registry_that_was_set_up_again(new_shop: NewShop, registry: Registry, tmp_path: Path) -> None:
    """The registry gives the id to another schema. Records that the old schema cannot read wait, and are read
    once the registry is up."""
    schema_id = registry.add(SUBJECT, MISMATCHED)
    shop = new_shop(PINSTREAM_SCHEMA_PATIENCE="1h")
    write(shop.kafka, shop.topic, [(None, b"\x00" + schema_id.to_bytes(4, "big") + b"\x02")])
    run_once(shop, 1)
    assert shop.reasons == [(0, "decode", "incompatible_schema")], "it does not fit ours"
    registry.down()
    registry.lose_all()
    assert registry.add(SUBJECT, SCHEMA) == schema_id
    shop.write_registered(schema_id, "anew-1", "anew-2")
    with shop.run() as process:
        process.until_logged("schema_from_disk")
        process.until(lambda: process.status()["open"]["waiting_for_schema"] == 2, "both records wait")
        assert process.ledger()["dead_lettered"] == 0
        registry.up()
        assert process.until_settled(2)["delivered"] == 2
        changed = process.until_logged("schema_changed")
        assert (changed["level"], changed["ref"], changed["now"]) == ("error", str(schema_id), "another")
        assert "was it reset?" in process.until_logged("schemas_on_disk")["text"]
    assert shop.api.accepted() == {"anew-1": 1, "anew-2": 1}
    # From here on the disk has the new one.
    registry.down()
    shop.write_registered(schema_id, "anew-3")
    with shop.run() as process:
        process.until(lambda: shop.committed == 4, "by what the disk has now")


def test_the_other_commands(new_shop: NewShop, registry: Registry, tmp_path: Path) -> None:
    """A dry replay keeps no schema, a replay does; check warns while the registry is down, and fails if it was
    never reached, or refuses the login: the service could read what it knows, but that does not recover by itself."""
    shop = new_shop(COLUMNS="200")
    shop.write_registered(registry.add(SUBJECT, SCHEMA), "a")
    shop.replay("--dry-run")
    assert "answers; 0 schemas on disk" in shop.command("check").stdout
    assert files(tmp_path) == []
    shop.replay()
    assert len(files(tmp_path)) == 1
    registry.down()
    again = shop.replay("--json", "--ignore-dedup")
    assert json.loads(again.stdout)["ledger"]["delivered"] == 1
    checked = shop.command("check").stdout
    assert "1 schema on disk" in checked
    assert "until it answers, records of the schemas on disk are read" in checked
    shop.command("dead-letters", "list", "--topic", shop.topic)
    shop.command("check", code=1, SCHEMA_REGISTRY_URL="http://127.0.0.1:9")
    registry.up()
    registry.set_credentials("pinstream:another")
    assert "the registry answered 401" in shop.command("check", code=1).stdout
