"""``pinstream draft``: right lines active, wrong ones not, nothing of a person in them, and a text that loads."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import fastavro
import pytest
from click.testing import CliRunner, Result

from consumer.commands import main
from consumer.commands.explain.explaining import explanations
from consumer.commands.explain.showing import Summary
from consumer.errors import InputError
from consumer.settings import load
from tests.commands.draft.judging import SHOPS, Shop, Verdict, active_lines, judged
from tests.support import avro

MILLIS = avro.logical("long", "timestamp-millis")
PERSONAL = (
    "email", "phone", "ip", "agent", "uuid", "digest", "first", "last", "code", "page", "city", "zip", "birthday"
)  # fmt: skip
"""Values of these names in a shop's file are those of a person."""


def draft(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["draft", *map(str, arguments)])


def repeated(count: int = 120, /, **fields: Any) -> list[dict[str, Any]]:
    """Records that differ in their id."""
    known = {"created_at": 1_772_366_340_000, "email": "a@b.com", **fields}
    return [{"id": f"o{number}", **known} for number in range(count)]


def drafted(folder: Path, schema: Any, records: list[dict[str, Any]] | None = None) -> str:
    """The draft for a schema and records, which loads."""
    path, sample = folder / "schema.avsc", folder / "sample.ndjson"
    path.write_text(json.dumps(schema))
    sample.write_text("".join(f"{json.dumps(record)}\n" for record in records or []))
    done = draft(path, *(["--sample", sample] if records else []))
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def drafts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Shop, str]]:
    """The draft for each shop."""
    found = {}
    for path in SHOPS:
        shop = Shop(path)
        schema, sample = shop.write(tmp_path_factory.mktemp(shop.name))
        done = draft(schema, "--sample", sample)
        assert done.exit_code == 0, f"{shop.name}: {done.output}"
        found[shop.name] = shop, done.stdout
    return found


def test_how_much_of_the_drafts_is_right(drafts: dict[str, tuple[Shop, str]]) -> None:
    """Of all active lines 97 % are right, of all right lines 90 % are active; in each shop 90 % and 75 %."""
    verdicts = {name: judged(shop, text) for name, (shop, text) in drafts.items()}
    total = Verdict(sum(one.right for one in verdicts.values()))
    for name, one in verdicts.items():
        assert one.precision >= 0.90, (name, one.wrong)
        assert one.recall >= 0.75, (name, one.missing)
        total.wrong |= {f"{name} {key}": value for key, value in one.wrong.items()}
        total.missing |= {f"{name} {key}": value for key, value in one.missing.items()}
    assert len(verdicts) >= 12
    assert total.precision >= 0.97, total.wrong
    assert total.recall >= 0.90, total.missing


@pytest.mark.parametrize("name", [path.stem for path in SHOPS])
def test_consent_and_money_are_never_guessed(drafts: dict[str, tuple[Shop, str]], name: str) -> None:
    """Every candidate for consent is a comment, and none is in force; money is right, or not in force."""
    shop, text = drafts[name]
    assert "[consent]" not in [line.strip() for line in text.splitlines()]
    for path in shop.consents:
        assert f'# require = "{path.rpartition(":")[2]}"' in text
    wrong = judged(shop, text).wrong
    assert not [key for key in wrong if key.endswith(("value", "price", "currency"))]
    assert not active_lines(text).keys() & {*shop.unclear}


@pytest.mark.parametrize("name", [path.stem for path in SHOPS])
def test_nothing_of_a_person_is_in_a_draft(drafts: dict[str, tuple[Shop, str]], name: str) -> None:
    """No value of a path that holds ids, addresses, names or numbers of people is printed."""
    shop, text = drafts[name]
    values = (value for kind in PERSONAL for value in shop.values.get(kind, ()))
    held = {value for value in values if isinstance(value, str) and len(value) > 3}
    assert held
    assert [value for value in held if value in text] == []


def test_a_draft_is_the_same_each_time(drafts: dict[str, tuple[Shop, str]], tmp_path: Path) -> None:
    """Neither the clock nor an order of sets changes it, and it ends with what explain says of the sample."""
    shop, text = drafts["camel"]
    schema, sample = shop.write(tmp_path)
    mapping = tmp_path / "mapping.toml"
    assert draft(schema, "--sample", sample, "--output", mapping).exit_code == 0
    assert mapping.read_text() == text
    assert "#:schema" not in text
    total = Summary()
    env = {"PINSTREAM_SCHEMAS_DIR": str(tmp_path), "PINSTREAM_SCHEMA": "com.acme.TrackingEvent", "HOME": str(tmp_path),
           "PINSTREAM_MAPPING_FILE": str(mapping), "PINSTREAM_MAX_EVENT_AGE": "0"}  # fmt: skip
    for _ in total.count(explanations(str(sample), 1_772_366_340, load(env, needs=()))):
        pass
    said = total.document()
    assert said["outcomes"]["deliverable"] > 100
    assert f"#   {', '.join(f'{key} {count}' for key, count in said['outcomes'].items())}" in text
    for key, count in said["codes"]["rejected"].items():
        assert f"#   rejected {key}: {count}" in text
    for key, row in said["coverage"].items():
        assert f"#   {key} {row['events']}: " in text
    assert "# Worth adding first:" in text


def test_a_schema_alone_is_enough(drafts: dict[str, tuple[Shop, str]], tmp_path: Path) -> None:
    """Without values the draft loads, and money without a clear unit is a comment."""
    for shop, _ in drafts.values():
        path = tmp_path / shop.name
        path.mkdir()
        done = draft(shop.write(path)[0])
        assert done.exit_code == 0, f"{shop.name}: {done.output}"
        found = active_lines(done.stdout)
        values = {key: value for key, value in found.items() if "custom_data.value" in key}
        assert not [key for key, value in values.items() if value not in shop.right.get(key, [])]


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    """An existing --output is an error of usage, and stays as it is."""
    schema, sample = Shop(SHOPS[0]).write(tmp_path)
    mapping = tmp_path / "mapping.toml"
    mapping.write_text("# mine")
    done = draft(schema, "--sample", sample, "--output", mapping)
    assert (done.exit_code, mapping.read_text()) == (2, "# mine")


def test_values_are_shown_of_few_texts_in_many_records_alone(tmp_path: Path) -> None:
    """Ten different texts in a hundred records are shown; eleven, or fewer records, or an e-mail address, are not."""
    schema = avro.record("Event", id="string", created_at=MILLIS, type="string", consent="string")
    for count, kinds, is_shown in ((100, 10, True), (99, 10, False), (200, 11, False)):
        records = repeated(count, consent="c@example.com")
        records = [{**one, "type": f"kind{number % kinds}x"} for number, one in enumerate(records)]
        text = drafted(tmp_path, schema, records)
        assert ('# kind0x = "!filter"' in text) is ("kind0x" in text) is is_shown
        assert "event_names" in text
        assert "@example.com" not in text


@pytest.mark.parametrize(("codes", "currency"), [(["EUR"], "EUR"), (["eur", "jpy"], "eur"), (["ALL"], None)])
def test_minor_units_of_a_small_sample(tmp_path: Path, codes: list[str], currency: str | None) -> None:
    """Their currencies are not shown: the table is that of currencies in use, and others have no value then."""
    records = [
        {**one, "currency": codes[n % len(codes)]} for n, one in enumerate(repeated(60, total_minor=5990))
    ]
    text = drafted(tmp_path, _order(avro.field("total_minor", "long")), records)
    (path, factor) = active_lines(text)["custom_data.value"]["multiply"]
    assert (path, factor["of"], len(factor["table"])) == ("total_minor", "currency", 27)
    assert currency is None or factor["table"][currency] == 0.01
    assert currency is not None or "deliverable 60" in text


def test_few_values_are_no_ids(tmp_path: Path) -> None:
    """What names itself a customer's number, and has few values in many records, is a comment."""
    schema = avro.record("Order", id="string", created_at=MILLIS, email="string", customer_number="string")
    records = [{**one, "customer_number": f"tier{n % 3}"} for n, one in enumerate(repeated())]
    assert "user_data.external_id" not in active_lines(drafted(tmp_path, schema, records))
    records = [{**one, "customer_number": f"c{n}"} for n, one in enumerate(records)]
    assert active_lines(drafted(tmp_path, schema, records))["user_data.external_id"] == "customer_number"


def test_units_and_nanos_are_one_amount(tmp_path: Path) -> None:
    """Money in whole units and billionths is their sum."""
    money = avro.record("Money", currency_code="string", units="long", nanos="int")
    schema = avro.record("Order", id="string", created_at=MILLIS, email="string", total=money)
    total = {"currency_code": "EUR", "units": 59, "nanos": 900_000_000}
    parts = ["total.units", {"multiply": ["total.nanos", {"value": 0.000000001}]}]
    text = drafted(tmp_path, schema, repeated(total=total))
    assert active_lines(text)["custom_data.value"] == {"add": parts}


def _order(*amounts: dict[str, Any]) -> Any:
    return avro.record("Order", avro.field("id", "string"), avro.field("created_at", MILLIS),
                       avro.field("email", "string"), avro.field("currency", "string"), *amounts)  # fmt: skip


def _minor(path: str, **factors: float) -> Any:
    return {"multiply": [path, {"of": "currency", "table": factors}]}


@pytest.mark.parametrize(
    ("field", "value", "codes", "expected"),
    [
        (avro.field("total", avro.decimal(12, 2)), 59.90, "EUR", "total"),
        (avro.field("total", "double"), 59.90, "EUR", "total"),
        (avro.field("total", "string"), "59.90", "EUR", "total"),
        # Whole numbers: euros or cents?
        (avro.field("total", "double"), 5990, "EUR", None),
        (avro.field("total", "string"), "5990", "EUR", None),
        (avro.field("total", "long"), 5990, "EUR", None),
        (avro.field("total", avro.decimal(12, 0)), 5990, "EUR", None),
        (avro.field("total", "string"), "59,90", "EUR", None),
        (avro.field("total", "long", doc="Total in cents."), 5990, "EUR", _minor("total", EUR=0.01)),
        (avro.field("total_cents", "long"), 5990, "EUR,usd", _minor("total_cents", EUR=0.01, usd=0.01)),
        (avro.field("total_minor", "long"), 5990, "KWD", _minor("total_minor", KWD=0.001)),
        (avro.field("total_minor", "long"), 5990, "EUR,JPY", _minor("total_minor", EUR=0.01, JPY=1)),
        (avro.field("total", "long"), 5990, "JPY", "total"),
        (avro.field("total_micros", "long"), 59900000, "EUR", {"multiply": ["total_micros", {"value": 0.000001}]}),
        # What contradicts itself.
        (avro.field("total", "double"), 39.9, "JPY", None),
        (avro.field("total", "double"), 39.9, "JPY,EUR", None),
        (avro.field("total_cents", "long"), 5990, "JPY", None),
        (avro.field("total_cents", "long"), 5990, "EUR,JPY", None),
        (avro.field("total", avro.decimal(12, 2), doc="Total in cents."), 59.90, "EUR", None),
        (avro.field("total_cents", "double"), 59.90, "EUR", None),
        (avro.field("total_cents", "long", doc="Total in euros."), 5990, "EUR", None),
        (avro.field("total_usd", "double"), 59.90, "EUR", None),
        # What is no total.
        (avro.field("shipping_total", "double"), 59.90, "EUR", None),
        (avro.field("total_discount", "double"), 59.90, "EUR", None),
        (avro.field("total_items", "double"), 59.90, "EUR", None),
        (avro.field("refund_total", "double"), 59.90, "EUR", None),
        (avro.field("total_distance", "double"), 59.90, "EUR", None),
        (avro.field("total_hours", "double"), 59.90, "EUR", None),
        (avro.field("volume_total", "double"), 59.90, "EUR", None),
        (avro.field("total", "double", doc="Points redeemed."), 59.90, "EUR", None),
        (avro.field("total", "double", doc="Total weight in kg."), 59.90, "EUR", None),
        (avro.field("total_net", "double"), 59.90, "EUR", None),
        (avro.field("amount", "double", doc="Amount of paint in liters."), 59.90, "EUR", None),
        (avro.field("total", "double", doc="Total incl. VAT and shipping."), 59.90, "EUR", "total"),
    ],
)  # fmt: skip
def test_the_unit_of_money(
    tmp_path: Path, field: dict[str, Any], value: Any, codes: str, expected: Any
) -> None:
    """An amount is in force only where its unit is clear, and is computed where it counts another one."""
    currencies = codes.split(",") * 120
    records = [{**one, "currency": currencies[n], field["name"]: value} for n, one in enumerate(repeated())]
    text = drafted(tmp_path, _order(field), records)
    assert active_lines(text).get("custom_data.value") == expected
    assert expected is not None or field["name"] not in str(active_lines(text))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"currency": "EUR"}, "currency"),
        ({"currency": "EUR", "payout_currency": "USD"}, "currency"),
        ({"order_currency": "EUR", "cart_currency": "EUR"}, "order_currency"),
        ({"order_currency": "EUR", "payment_currency": "USD"}, None),
        ({"presentment_currency": "EUR", "settlement_currency": "USD"}, None),
        ({"shop_currency": "EUR"}, None),
        ({"cashier": "EUR"}, None),
        ({"route": "EUR"}, None),
        ({"size": "EUR"}, None),
    ],
)
def test_the_currency_is_named(tmp_path: Path, values: dict[str, str], expected: str | None) -> None:
    """Three letters are no currency, of several that differ none is right, and without one there is no value."""
    schema = _order(avro.field("total", "double"), *(avro.field(name, "string") for name in values))
    schema["fields"] = [one for at, one in enumerate(schema["fields"]) if at != 3]
    found = active_lines(drafted(tmp_path, schema, repeated(total=59.9, **values)))
    assert found.get("custom_data.currency") == expected
    assert found.get("custom_data.value") == ("total" if expected else None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agent_email", "a@b.com"),
        ("broker", "a@b.com"),
        ("f7|E-mail address of the broker.", "a@b.com"),
        ("to_email", "a@b.com"),
        ("broker_phone", "+4915112345678"),
        ("doctor_last_name", "Kim"),
        ("departure_city", "Bonn"),
        ("manufacturer_country", "DE"),
        ("childs_birthday", "1990-01-02"),
        ("agent.email", "a@b.com"),
        ("emergency_contact.phone", "+4915112345678"),
    ],
)
def test_another_person_is_not_the_customer(tmp_path: Path, name: str, value: str) -> None:
    """A word that may say whose it is keeps a line of [user_data] a comment."""
    name, _, doc = name.partition("|")
    parent, _, inner = name.rpartition(".")
    kind = avro.record("Of", **{inner: "string"}) if parent else "string"
    schema = avro.record("Event", avro.field(parent or inner, kind, doc=doc), id="string", created_at=MILLIS,
                         type="string")  # fmt: skip
    held = {"type": "signup", parent or inner: {inner: value} if parent else value}
    text = drafted(tmp_path, schema, repeated(**held))
    assert not [key for key in active_lines(text) if key.startswith("user_data.")]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("optedOut", "true means no"),
        ("unsubscribed", "true means no"),
        ("do_not_sell", "true means no"),
        ("limit_ad_tracking", "true means no"),
        ("userNoAds", "true means no"),
        ("mail_blocked", "true means no"),
        ("werbewiderspruch", "true means no"),
        ("mo|Whether the customer opted out of ads.", "true means no"),
        ("email_consent|False after the customer opted out.", "which values are consent"),
        ("analytics_cookies", ""),
        ("rgpd_ok", ""),
        ("aceptaPublicidad", ""),
        ("toestemmingReclame", ""),
        ("zgodaMarketingowa", ""),
        ("marketing_opt_in", ""),
    ],
)
def test_an_opt_out_is_not_inverted(tmp_path: Path, field: str, expected: str) -> None:
    """What says no is listed so that removing the # requires it to be false; what says both has no default."""
    name, _, doc = field.partition("|")
    text = drafted(tmp_path, _order(avro.field(name, "boolean", doc=doc)))
    line, after = text.partition("# [consent]\n")[2].splitlines(), ["# allowed = [false]"]
    assert line[0].startswith(f'# require = "{name}"  # ')
    assert (line[1:] == after) == (expected == "true means no")
    assert expected in "".join(line)
    assert expected or not line[1:]


def test_a_name_beside_consent_is_not_shown(tmp_path: Path) -> None:
    """Of texts that may be consent only plain words are shown."""
    texts = {"consent_given_by": "Jane Smith", "consent_state": "granted", "consent_choice": "Opted In"}
    schema = _order(*(avro.field(name, "string") for name in texts))
    text = drafted(tmp_path, schema, repeated(currency="EUR", **texts))
    assert '"consent_given_by"' in text
    assert "Jane" not in text
    assert "granted 100%" in text
    assert "Opted In 100%" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("OrderPlaced", "checkout"),
        ("RefundIssued", "should not be sent"),
        ("OrderCancelled", "should not be sent"),
        ("PaymentFailed", "should not be sent"),
        ("Chargeback", "should not be sent"),
        ("AccountDeleted", "should not be sent"),
        ("Whatever", "name the event"),
    ],
)
def test_a_record_whose_event_nothing_says(tmp_path: Path, name: str, expected: str) -> None:
    """Its name is a comment, and the draft does not load without it."""
    path = tmp_path / "schema.avsc"
    path.write_text(json.dumps({**_order(), "name": name}))
    done = draft(path)
    assert expected in done.stdout
    assert done.exit_code == (0 if expected == "checkout" else 1)
    assert ("event_name" in active_lines(done.stdout)) == (done.exit_code == 0)
    assert done.exit_code == 0 or "event_name has no source" in done.stderr


def test_unions_maps_and_containers(tmp_path: Path) -> None:
    """Records of a union in a container get a section each; keys of a map are paths, unless they are many."""
    texts, numbers = avro.map_of("string"), avro.map_of("long")
    viewed = avro.record("ItemViewed", uuid="string", ts="long", props=texts, counts=numbers)
    paid = avro.record("OrderPaid", uuid="string", paid_at=MILLIS, mails=avro.array("string"))
    schema = [{**one, "namespace": "a"} for one in (viewed, paid, avro.record("Heartbeat", host="string"))]
    records, now = list[tuple[str, dict[str, Any]]](), 1_772_366_340_000
    for n in range(60):
        props = {"page_url": f"https://shop.example/{n}?epik=x", "useragent": "Mozilla/5.0 (X11)"}
        records += [
            ("a.ItemViewed", {"uuid": f"v{n}", "ts": now, "counts": {f"user{n}": 1}, "props": props}),
            ("a.OrderPaid", {"uuid": f"o{n}", "paid_at": now, "mails": [f"p{n}@example.com"]}),
            ("a.Heartbeat", {"host": f"h{n}"}),
        ]
    path, sample = tmp_path / "all.avsc", tmp_path / "sample.avro"
    path.write_text(json.dumps(schema))
    with sample.open("wb") as file:
        fastavro.writer(file, schema, records)
    done = draft(path, "--sample", sample)
    assert done.exit_code == 0, done.output
    found = active_lines(done.stdout)
    assert found["ItemViewed:event_source_url"] == "props.page_url"
    assert found["ItemViewed:event_name"] == "page_visit"
    assert found["OrderPaid:user_data.em"] == "mails"
    assert found["OrderPaid:event_name"] == "checkout"
    for part in (
        "URL, 100% with epik",
        "# a.Heartbeat has no section",
        "deliverable 60, filtered 0, rejected 60",
    ):
        assert part in done.stdout
    assert "user7" not in done.stdout


SUM = "The sum of all line item prices, discounts, shipping, taxes, and tips in the shop currency."


@pytest.mark.parametrize("doc", ["", SUM])
def test_the_total_of_an_order_like_shopifys(tmp_path: Path, doc: str) -> None:
    """The order's total comes before the one that refunds lower. It is a comment if the two differ, or if its
    documentation lists the parts of it.
    """
    names = ("current_total_price", "subtotal_price", "total_tax", "total_discounts")
    schema = avro.record("Order", id="string", created_at=MILLIS, email="string", currency="string",
                         **dict.fromkeys(names, "string"))  # fmt: skip
    schema["fields"].append({"name": "total_price", "type": "string", "doc": doc})
    parts = {"subtotal_price": "50.40", "total_tax": "9.50", "total_discounts": "0.00", "currency": "EUR"}
    same = drafted(tmp_path, schema, repeated(**parts, total_price="59.90", current_total_price="59.90"))
    assert ('# "custom_data.value" = "total_price"' in same) == bool(doc)
    if not doc:
        assert active_lines(same)["custom_data.value"] == "total_price"
        text = drafted(tmp_path, schema, repeated(**parts, total_price="59.90", current_total_price="9.90"))
        assert '# "custom_data.value" = "total_price"' in text


def changes(tmp_path: Path, row: dict[str, Any], values: dict[str, Any]) -> dict[str, str]:
    """The active lines for changes of a table, each the first state of a row."""
    source = avro.record("Source", ts_ms="long", txId="long", table="string")
    block = avro.record("Block", id="string", total_order="long")
    schema = avro.record("Envelope", after=["null", avro.record("Value", **row)], source=source, op="string",
                         ts_ms="long", transaction=["null", block])  # fmt: skip
    records = [
        {
            "after": {key: f"{value}{n}" if value == "k" else value for key, value in values.items()},
            "source": {"ts_ms": 1_772_366_340_000 + n, "txId": n, "table": "orders"},
            "op": "c",
            "ts_ms": 1_772_366_341_000 + n,
            "transaction": {"id": f"{n}:9", "total_order": 1},
        }
        for n in range(120)
    ]
    text = drafted(tmp_path, schema, records)
    return {**active_lines(text), "text": text}


def test_a_row_with_an_id_and_a_time_needs_no_envelope(tmp_path: Path) -> None:
    """The id and the time of a change are not even a comment, and its transaction is no order."""
    row = {"id": "string", "created_at": MILLIS, "email": "string"}
    found = changes(tmp_path, row, {"id": "k", "created_at": 1_772_366_340_000, "email": "a@b.com"})
    assert (found["event_id"], found["event_time"]) == ("after.id", "after.created_at")
    assert not any(
        f'"{path}"' in found["text"] for path in ("transaction.id", "source.txId", "ts_ms", "source.ts_ms")
    )


def test_a_row_without_an_id_or_a_time_has_the_envelopes(tmp_path: Path) -> None:
    """What a row lacks is still proposed from the change around it."""
    found = changes(tmp_path, {"email": "string"}, {"email": "a@b.com"})
    assert found["event_id"] in ("source.txId", "transaction.id")
    assert found["event_time"] == "ts_ms"


def test_lists_of_pairs_and_decimals_of_any_scale(tmp_path: Path) -> None:
    """A key of a list of keys and values is a path; so is Connect's decimal; a list of one record is read as one."""
    kinds = {"text": "string", "number": "double", "whole": "long"}
    value = avro.record("Value", *(avro.optional(name, kind) for name, kind in kinds.items()))
    pair, contact = avro.record("Pair", key="string", value=value), avro.record("Contact", email="string")
    scaled = avro.record("Scaled", scale="int", value="bytes")
    schema = avro.record("Event", event_id="string", event_name="string", ts="long", params=avro.array(pair),
                         contacts=avro.array(contact), fee=scaled, order_total="Scaled")  # fmt: skip
    records = []
    for n in range(120):
        price: dict[str, Any] = {"number": 59.9 + n} if n % 2 else {"whole": 60 + n}
        pairs = {
            "page_url": {"text": f"https://shop.example/{n}"},
            "currency": {"text": "EUR"},
            "item_price": price,
        }
        records.append({"event_id": f"e{n}", "event_name": "purchase", "ts": 1_772_366_340_000_000 + n,
                        "params": [{"key": key, "value": one} for key, one in pairs.items()],
                        "contacts": [{"email": f"p{n}@example.com"}], "fee": {"scale": 2, "value": "a"},
                        "order_total": {"scale": 2, "value": "\u0017\u0000"}})  # fmt: skip
    assert (
        active_lines(drafted(tmp_path, schema, records)).items()
        >= {
            "event_source_url": "params[key='page_url'].value.text",
            "custom_data.currency": "params[key='currency'].value.text",
            "user_data.em": "contacts[0].email",
            "custom_data.value": "order_total",
            "time_unit": "microseconds",
        }.items()
    )


def test_a_path_of_the_packaged_mapping_that_is_a_record(tmp_path: Path) -> None:
    """Its line is taken away, so that the draft loads."""
    total = avro.record("Total", amount="long", currency="string")
    order = avro.record("Order", order_id="string", total=total, items=avro.record("Items", number="int"))
    schema = avro.record("OrderPlaced", event_id="string", occurred_at=MILLIS, order=order)
    assert 'custom_data.value" = ""' in drafted(tmp_path, schema)


def test_a_folder_of_schemas_is_its_record_types(tmp_path: Path) -> None:
    """Each file that no other one refers to is a record type of its own."""
    (tmp_path / "a.avsc").write_text(json.dumps(avro.record("Buyer", email="string")))
    order = avro.record("OrderPlaced", id="string", placed_at=MILLIS, buyer="Buyer")
    (tmp_path / "b.avsc").write_text(json.dumps(order))
    signup = avro.record("CustomerRegistered", id="string", at=MILLIS, mail="string")
    (tmp_path / "c.avsc").write_text(json.dumps(signup))
    found = tomllib.loads(draft(tmp_path).stdout)["record"]
    assert found.keys() == {"OrderPlaced", "CustomerRegistered"}
    assert found["OrderPlaced"]["fields"]["user_data.em"] == "buyer.email"


@pytest.mark.parametrize("name", ["camel", "several"])
def test_the_next_command_runs_as_printed(
    drafts: dict[str, tuple[Shop, str]], tmp_path: Path, name: str
) -> None:
    """It finds draft and records, whatever the names of folders, and no record is too old; editors have their file."""
    folder = tmp_path / "a folder's"
    folder.mkdir()
    (folder / "mapping.schema.json").write_text("{}")
    schema, sample = drafts[name][0].write(folder)
    done = draft(schema, "--sample", sample, "--output", folder / "mapping.toml")
    words = shlex.split(done.stderr.partition("records: ")[2])
    env = dict(word.split("=", 1) for word in words[: words.index("pinstream")])
    command = words[words.index("pinstream") + 1 :]
    explained = CliRunner().invoke(main, [*command, "--summary"], env=env)
    assert explained.exit_code == 0, explained.output
    assert "deliverable" in explained.stdout
    assert "expired" not in explained.stdout
    assert (folder / "mapping.toml").read_text().startswith("#:schema ./mapping.schema.json\n")
    done = CliRunner().invoke(main, ["draft", str(schema), "--sample", "-"], input=sample.read_text())
    assert "pinstream explain '<records>'" in done.stderr


def test_what_cannot_be_drafted_is_said(tmp_path: Path) -> None:
    """A schema without an id, records of another schema, and both sources of records are one line each."""
    path, sample = tmp_path / "s.avsc", tmp_path / "s.ndjson"
    path.write_text(json.dumps(avro.record("Order", email="string")))
    done = draft(path)
    assert done.exit_code == 1
    assert "event_id has no source" in done.stderr
    assert '"user_data.em" = "email"' in done.stdout
    assert 'event_time = "@timestamp"' in done.stdout
    sample.write_text('{"other": 1}\n')
    done = draft(path, "--sample", sample)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "misfit 1" in done.stderr
    assert "; misfit: " in done.stderr
    assert draft(path, "--sample", sample, "--topic", "t").exit_code == 2
    assert draft(tmp_path / "no.avsc").exit_code == 2
    assert draft(path, "--sample", tmp_path / "no.ndjson").exit_code == InputError.exit_code
