"""The event's name from the branch of a union: the name of the record type that the datum has."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.engine.model import ConversionEvent, Rejection
from consumer.errors import MappingError
from tests.conversion.computed.test_values import converted
from tests.conversion.convert_records import shaped
from tests.conversion.test_compiled import Both
from tests.conversion.test_convert import DEFAULT, NOW
from tests.support import avro
from tests.support.mapping import load_mapping


def record_type(name: str, **fields: Any) -> dict[str, Any]:
    """Return a record type of this name."""
    return avro.record(name, *[avro.field(key, kind) for key, kind in fields.items()])


VIEWED = record_type("Viewed", url="string")
ADDED = record_type("Added", url="string", tags=avro.array("string"))
PAID = record_type("Paid", url="string", number=["null", "long"])


def shop(*branches: Any) -> dict[str, Any]:
    """Return a schema whose payload is a union of these branches."""
    return record_type(
        "Event",
        id="string",
        at=avro.logical("long", "timestamp-millis"),
        mail=["null", "string"],
        payload=list(branches),
    )


MAPPING = """
[fields]
event_id = "id"
event_time = "at"
event_name = { branch = "payload" }
action_source = ""
"user_data.em" = "mail"
"custom_data.order_id" = "payload.number"
[event_names]
Viewed = "page_visit"
Added = "add_to_cart"
Paid = "checkout"
[constants]
action_source = "web"
"""
SCHEMA = shop("null", VIEWED, ADDED, PAID, "string")
BOTH = Both((SCHEMA, MAPPING))
RECORDS = shaped(SCHEMA, wild=False)


def event(payload: Any) -> dict[str, Any]:
    """Return a deliverable event with this payload."""
    return {"id": "e-1", "at": int(NOW * 1000) - 5, "mail": "a@b.de", "payload": payload}


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (("Viewed", {"url": "/"}), "page_visit"),
        (("Added", {"url": "/", "tags": ["a"]}), "add_to_cart"),
        (("Added", {"url": "/", "tags": []}), "add_to_cart"),
        (("Paid", {"url": "/", "number": 7}), "checkout"),
        (("Paid", {"url": "/", "number": None}), "checkout"),
    ],
)
def test_the_name_of_the_branch(payload: Any, name: str) -> None:
    """In both executors the branch's name gives the event's name, whatever its fields hold."""
    result = converted(BOTH, event(payload))
    assert isinstance(result, ConversionEvent)
    assert result.name == name


@pytest.mark.parametrize("payload", [None, "text"])
def test_no_record_has_no_name(payload: Any) -> None:
    """Null and branches that are no record have no name, so the event is refused."""
    result = converted(BOTH, event(payload))
    assert isinstance(result, Rejection)
    assert result.code == "missing_event_name"


@pytest.mark.parametrize(
    ("writer", "payload"),
    [
        (shop("null", PAID), {"url": "/", "number": 7}),
        (shop(PAID), {"url": "/", "number": 7}),
        (shop(VIEWED, PAID), ("Paid", {"url": "/", "number": 7})),
        (shop("null", PAID, ADDED), ("Paid", {"url": "/", "number": 7})),
    ],
    ids=["null, one", "one", "two", "null, two"],
)
def test_an_older_writer_with_fewer_branches(writer: dict[str, Any], payload: Any) -> None:
    """With an older writer that has fewer branches, the name is that of the reader's branch."""
    result = converted(Both((SCHEMA, MAPPING), writer), event(payload))
    assert isinstance(result, ConversionEvent)
    assert result.name == "checkout"


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_both_executors_say_the_same(data: st.DataObject) -> None:
    """Both executors have the same result for any record."""
    value = BOTH.value(data.draw(RECORDS))
    if value is not None:
        BOTH.check(value)


def test_one_type_only() -> None:
    """A union of one record type and null gives that type's name, and null gives none."""
    lines = MAPPING.replace('Viewed = "page_visit"\nAdded = "add_to_cart"\n', "")
    both = Both((shop("null", PAID), lines))
    assert converted(both, event({"url": "/", "number": 7})).name == "checkout"
    assert converted(both, event(None)).code == "missing_event_name"


@pytest.mark.parametrize(
    ("schema", "said", "message"),
    [
        (shop(PAID, {**PAID, "name": "Sent"}), "payload", "'Paid' and 'Sent' have fields of the same names"),
        (SCHEMA, "id", "'id' is no record but string"),
        (SCHEMA, "payloda", "'payloda' is not in the schema; the nearest that is: "),
    ],
)
def test_branches_that_cannot_be_distinguished_are_an_error(
    schema: dict[str, Any], said: str, message: str
) -> None:
    """A branch that cannot be told from another, is no record or is not in the schema is an error at start, in
    one line."""
    overlay = MAPPING.replace('branch = "payload"', f'branch = "{said}"').replace("payload.number", "id")
    with pytest.raises(MappingError) as error:
        load_mapping(overlay, schema, default_toml=DEFAULT, overlay_name="my.toml")
    assert str(error.value).startswith("my.toml: [fields] 'event_name': ")
    assert message in str(error.value)
