"""examples/recipes: what each page of docs/recipes shows is what happens, in both executors.

tests/test_pages.py holds that a page has its folder's files. What is expected is computed here a second time from the
records, without the product, where that is cheap: money, times, ids and digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.files import file_types, open_records
from consumer.app import building
from consumer.commands.explain.explaining import explanations
from consumer.engine.model import Record
from consumer.settings import load
from tests.conversion.test_compiled import Both, comparable_row
from tests.end_to_end.processes import ROOT
from tests.engine.building import Read, read_by
from tests.support.shell import bash

FOLDERS = sorted((ROOT / "examples" / "recipes").iterdir())
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
each_recipe = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def lines(path: Path) -> list[Any]:
    """The values of an NDJSON file; amounts as they are written."""
    return [json.loads(line, parse_float=Decimal) for line in path.read_text("utf-8").splitlines()]


def commands(folder: Path) -> str:
    """The commands of the recipe's page."""
    page = (ROOT / "docs" / "recipes" / f"{folder.name}.md").read_text("utf-8")
    [script] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return str(script)


@each_recipe
def test_the_commands_do_what_the_page_says(folder: Path, tmp_path: Path) -> None:
    """The page's commands, in a shell in the repository, find that the records come out as expected."""
    (tmp_path / "home").mkdir()
    os.symlink(ROOT / "examples", tmp_path / "examples")
    done = bash(commands(folder), tmp_path, {"PYTHONDONTWRITEBYTECODE": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3 of 3 records agree with expected.ndjson.\n"


@each_recipe
def test_the_records_show_three_cases(folder: Path) -> None:
    """There are three records with made-up people: the first is sent without a warning, one is filtered."""
    assert len(lines(folder / "records.ndjson")) == 3
    expected = lines(folder / "expected.ndjson")
    assert (expected[0]["outcome"], expected[0]["warnings"]) == ("deliverable", [])
    assert "filtered" in [one["outcome"] for one in expected]
    for address in re.findall(r"[\w.+-]+@[\w.-]+", (folder / "records.ndjson").read_text("utf-8")):
        assert address.lower().endswith("@example.com")


def environment(folder: Path) -> dict[str, str]:
    """The settings of a recipe."""
    schema = json.loads((folder / "schema.avsc").read_text("utf-8"))
    return {
        "PINSTREAM_SCHEMAS_DIR": str(folder),
        "PINSTREAM_SCHEMA": ".".join(filter(None, [schema.get("namespace"), schema["name"]])),
        "PINSTREAM_MAPPING_FILE": str(folder / "mapping.toml"),
    }


def plain_longs(schema: Any) -> Any:
    """The schema as some writers register it: whole numbers without logical types."""
    if isinstance(schema, list):
        return [plain_longs(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: plain_longs(one) for key, one in schema.items()}
    if kept.get("type") == "long":
        kept.pop("logicalType", None)
    return kept


@each_recipe
def test_both_executors_read_it_from_avro(folder: Path) -> None:
    """Also if the writer's schema lacks the logical types of times that our copy has."""
    schema = json.loads((folder / "schema.avsc").read_text("utf-8"))
    types = file_types(building.sections(load(environment(folder), needs=())))
    events = [record.event for record in open_records(str(folder / "records.ndjson"), types)]
    both = Both((schema, (folder / "mapping.toml").read_text("utf-8")), plain_longs(schema))
    records = [Record(at, -1, None, both.value(event), ()) for at, event in enumerate(events)]
    compiled = read_by(both.compiled, records, NOW)
    for steps in (both.two_steps, both.trimmed):
        assert [comparable_row(one) for one in read_by(steps, records, NOW)] == list(
            map(comparable_row, compiled)
        )
    payloads = [json.loads(one.body) if isinstance(one, Read) else None for one in compiled]
    expected = [json.loads(line) for line in (folder / "expected.ndjson").read_text("utf-8").splitlines()]
    assert payloads == [one["payload"] for one in expected]


def digest(text: str) -> str:
    """SHA-256 of a text, as the platform asks for it."""
    return hashlib.sha256(text.encode()).hexdigest()


def unix(text: str) -> int:
    """Whole seconds of a time in ISO 8601."""
    return int(datetime.fromisoformat(text).timestamp())


def event(
    id_: Any, name: str, at: int, email: str | None, value: Any, currency: str | None
) -> tuple[Any, ...]:
    """What is compared of an event."""
    return str(id_), name, at, email and digest(email.strip().lower()), value, currency


def of_debezium(record: Any) -> tuple[Any, ...] | None:
    """An order that becomes paid by an insert or an update."""
    before, after = record["before"], record["after"]
    if record["op"] not in ("c", "u") or after["status"] != "paid" or (before or {}).get("status") == "paid":
        return None
    paid, shipping = unix(after["paid_at"]), after["shipping"]
    digits = int.from_bytes(shipping["value"].encode("latin-1"), "big", signed=True)
    total = after["total"] + Decimal(digits).scaleb(-shipping["scale"])
    return event(after["id"], "checkout", paid, after["email"], total, after["currency"])


def of_jdbc(record: Any) -> tuple[Any, ...] | None:
    """A paid order with consent."""
    if record["status"] != "paid" or record["ads_consent"] != 1:
        return None
    [id_, at, total] = record["order_id"], record["placed_at"], record["total"]
    return event(id_, "checkout", at, record["customer_email"], total, record["currency"])


def of_commercetools(record: Any) -> tuple[Any, ...] | None:
    """An order that was created: cents by the digits of the currency."""
    if record["type"] != "OrderCreated":
        return None
    order = record["order"]
    price = order.get("taxedPrice", {}).get("totalGross") or order["totalPrice"]
    value = Decimal(price["centAmount"]).scaleb(-price["fractionDigits"])
    at, email = unix(record["createdAt"]), order["customerEmail"]
    return event(order["id"], "checkout", at, email, value, price["currencyCode"])


def of_ga4(record: Any) -> tuple[Any, ...] | None:
    """An event of somebody who allows ads; times in microseconds, parameters by their keys."""
    if record["privacy_info"]["ads_storage"] != "Yes":
        return None
    params = {one["key"]: next(iter(one["value"].values())) for one in record["event_params"]}
    made = [record[key] for key in ("user_pseudo_id", "event_timestamp", "event_name")]
    id_ = params.get("transaction_id") or ".".join(map(str, [*made, record.get("batch_event_index", 0)]))
    name = {"purchase": "checkout"}.get(record["event_name"], record["event_name"])
    at, money = record["event_timestamp"] // 1_000_000, (params["value"], params["currency"])
    return (id_, name, at, record["email_sha256"], *money)


def of_segment(record: Any) -> tuple[Any, ...] | None:
    """An order or a page."""
    if record["type"] == "identify":
        return None
    name = "checkout" if record.get("event") == "Order Completed" else "page_visit"
    properties = record.get("properties", {})
    email = record["context"].get("traits", {}).get("email")
    at, money = unix(record["timestamp"]), (properties.get("total"), properties.get("currency"))
    return event(record["messageId"], name, at, email, *money)


def of_shopify(record: Any) -> tuple[Any, ...] | None:
    """An order that is no test, with the consent that the theme wrote into the cart."""
    consent = {one["name"]: one["value"] for one in record["note_attributes"]}.get("ads_consent")
    if record["test"] or consent != "yes":
        return None
    email = record.get("email") or record["customer"]["email"]
    at, value = unix(record["processed_at"]), Decimal(record["total_price"])
    return event(record["id"], "checkout", at, email, value, record["currency"])


def of_snowplow(record: Any) -> tuple[Any, ...] | None:
    """A transaction or a page view, at the time that was derived."""
    at = unix(record["derived_tstamp"])
    if record["event_name"] == "page_view":
        return event(record["event_id"], "page_visit", at, None, None, None)
    if record["event_name"] != "snowplow_ecommerce_action":
        return None
    entity = "contexts_com_snowplowanalytics_snowplow_ecommerce_"
    [sold], [user] = record[f"{entity}transaction_1"], record[f"{entity}user_1"]
    return event(sold["transaction_id"], "checkout", at, user["email"], sold["revenue"], sold["currency"])


BY_HAND: dict[str, Callable[[Any], tuple[Any, ...] | None]] = {
    "commercetools": of_commercetools,
    "connect-jdbc": of_jdbc,
    "debezium": of_debezium,
    "ga4": of_ga4,
    "segment": of_segment,
    "shopify": of_shopify,
    "snowplow": of_snowplow,
}


@each_recipe
def test_what_is_expected_is_right(folder: Path) -> None:
    """Computed without the product; where the items' prices have their taxes, they add up to the value."""
    for record, line in zip(lines(folder / "records.ndjson"), lines(folder / "expected.ndjson"), strict=True):
        by_hand = BY_HAND[folder.name](record)
        payload = line["payload"]
        if by_hand is None or payload is None:
            assert (by_hand, payload) == (None, None)
            continue
        money = payload.get("custom_data", {})
        value = money.get("value")
        assert by_hand == (
            payload["event_id"],
            payload["event_name"],
            payload["event_time"],
            *payload["user_data"].get("em", [None]),
            value and Decimal(value),
            money.get("currency"),
        )
        items = money.get("contents", [])
        if items and folder.name != "commercetools":
            assert sum(Decimal(one["item_price"]) * one["quantity"] for one in items) == Decimal(value)


@pytest.mark.parametrize(
    ("name", "members", "becomes"),
    [
        (
            "commercetools",
            {"order": None, "type": None, "payloadNotIncluded": {"payloadType": "OrderCreated"}},
            "missing_event_id",
        ),
        ("connect-jdbc", {"status": "paid    "}, "event_name"),
        ("debezium", {"before": None}, "event_name"),
        ("ga4", {"email_sha256": None}, "no_identity"),
        ("segment", {"properties": {"total": 1.0}}, "missing_currency"),
        ("shopify", {"source_name": "580111"}, "event_name"),
        ("shopify", {"note_attributes": []}, "consent"),
        ("snowplow", {"platform": "srv"}, "unknown_action_source"),
    ],
)
def test_what_a_page_warns_of_happens(
    name: str, members: dict[str, Any], becomes: str, tmp_path: Path
) -> None:
    """The first record with other members is filtered or becomes a dead letter, as the page says."""
    folder = ROOT / "examples" / "recipes" / name
    record = json.loads((folder / "records.ndjson").read_text("utf-8").splitlines()[0])
    (tmp_path / "record.ndjson").write_text(json.dumps({**record, **members}))
    settings = load(environment(folder), needs=())
    [line] = (one.line for one in explanations(str(tmp_path / "record.ndjson"), NOW, settings))
    assert becomes == (line.get("filter") or line["error"]["code"])


def test_a_row_that_is_read_again_is_the_same_event() -> None:
    """An updated row of a table is the same event, so the key store drops it."""
    expected = lines(ROOT / "examples" / "recipes" / "connect-jdbc" / "expected.ndjson")
    assert expected[0] == expected[2]
