"""Masking: no value of the event passes, and the rest of the message stays readable."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.sending.masking import MASK, kind, mask
from tests.engine.building import PROPERTY

EVENT: dict[str, Any] = {
    "event_name": "checkout",
    "action_source": "web",
    "event_id": "order 17",
    "event_time": 1700000000,
    "event_source_url": "https://shop.example/thanks?mail=jane@example.org",
    "user_data": {
        "em": ["5c1f9d2b" * 8],
        "client_ip_address": "203.0.113.7",
        "client_user_agent": "ShopApp/3 (Jane's  phone)",
        "click_id": "epik.AbC-1",
    },
    "custom_data": {
        "currency": "EUR",
        "value": "19.95",
        "contents": [{"id": "sku-9", "item_name": "Jane Doe mug"}],
    },
}
BODY = orjson.dumps(EVENT)


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        ("'em' is missing", "'em' is missing"),
        ("currency EUR is not supported for checkout", "currency EUR is not supported for checkout"),
        ("click_id epik.AbC-1 is malformed", "click_id *** is malformed"),
        ("bad agent ShopApp/3 (Jane's  phone)!", "bad agent ***!"),
        ("bad agent ShopApp/3 (Jane's phone)!", "bad agent ***!"),
        ("item 'Jane Doe mug' of sku-9: 19.95 is odd", "item '***' of ***: *** is odd"),
        ("event order 17 at 1700000000 is too old", "event *** at *** is too old"),
        ("item JANE DOE MUG is odd", "item *** is odd"),
    ],
)
def test_values_of_the_event_are_masked_and_the_rest_stays(message: str, masked: str) -> None:
    """Values of the event are masked, in any case; field names and names from closed sets stay readable."""
    assert mask(message, BODY) == masked


@pytest.mark.parametrize(
    ("message", "masked"),
    [
        ("mail jane.doe+tag@example.org is bad", "mail *** is bad"),
        ("digest " + "0aF3" * 16, "digest ***"),
        ("ip 198.51.100.23 or 2001:db8::8a2e:370:7334", "ip *** or ***"),
        ("token pina_AbC123.x-y and Bearer abc.def", "token *** and ***"),
        ("call +49 (151) 234-567-89 now", "call *** now"),
        ("see https://shop.example/?u=jane", "see ***"),
        ("agent Mozilla/5.0 (X11; Linux x86_64) Gecko", "agent ***"),
        ("at most 1000 events in 60 s, code 4196", "at most 1000 events in 60 s, code 4196"),
    ],
)
def test_what_looks_personal_is_masked_without_knowing_the_event(message: str, masked: str) -> None:
    """Without an event, addresses, digests, tokens and long numbers are masked by their form."""
    assert mask(message) == masked


def test_a_message_becomes_one_short_line() -> None:
    """A message becomes one line of bounded length, fit for a header, a log line and a metric."""
    assert mask("a\n b\t c\r\n") == "a b c"
    assert len(mask("word " * 1000)) <= 300
    assert len(kind("word " * 1000, b"")) <= 80
    assert kind("Jane Doe mug is odd", BODY) == "*** is odd"
    assert kind("event 12 of 1000 failed", b"") == kind("event 7 of 999 failed", b"")


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"null", b'"x"'])
def test_a_body_that_is_no_event_masks_by_checks_alone(body: bytes) -> None:
    """A body that is no event raises nothing; the message is masked by form alone."""
    assert mask("jane@example.org is bad", body) == "*** is bad"


WORDS = st.text(
    st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="*"), min_size=3, max_size=12
)
VALUES = st.recursive(
    WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abcde"), inner, max_size=3),
    max_leaves=8,
)


def texts(value: object) -> list[str]:
    """Return all text values within `value`, as they stand in a message on one line."""
    if isinstance(value, str):
        return [" ".join(value.split())]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in texts(one)]


@PROPERTY
@given(
    st.dictionaries(st.sampled_from(["user_data", "custom_data", "event_id"]), VALUES, min_size=1), st.data()
)
def test_no_value_of_the_event_passes(event: dict[str, Any], data: st.DataObject) -> None:
    """No value of three characters or more passes, at any place of the message."""
    values = [text for text in texts(event) if len(text) >= 3]
    echoed = data.draw(st.lists(st.sampled_from(values or ["nothing"]), max_size=5))
    glue = data.draw(st.sampled_from([" ", "", ", ", " is not ", "'"]))
    masked = mask(glue.join(["Error:", *echoed, "refused"]), orjson.dumps(event))
    assert not [value for value in values if value in masked.removeprefix("Error:").removesuffix("refused")]


@PROPERTY
@given(st.text(max_size=400), st.binary(max_size=40))
def test_any_text_gives_one_line(message: str, body: bytes) -> None:
    """Any text becomes at most 300 characters without a line break; masking again masks or keeps it."""
    masked = mask(message, body)
    assert len(masked) <= 300
    assert len(masked.splitlines()) <= 1
    assert mask(masked) == " ".join(masked.split()) or MASK in mask(masked)


def test_the_same_message_is_masked_alike_in_every_process() -> None:
    """Masking does not depend on the order of a set: same seed, same commands (docs/architecture.md, rule 10)."""
    code = (
        "from consumer.engine.sending.masking import mask\n"
        'print(mask("abcdefghij", b\'{"x":["abcd","bcde","cdef","defg","efgh","fghi","ghij"]}\'))'
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in range(6)
    }
    assert len(results) == 1


def test_a_huge_message_costs_little() -> None:
    """Masking a huge message costs little CPU time, so that a huge answer does not block the event loop."""
    begin = time.process_time()
    mask("x" * 30_000)
    assert time.process_time() - begin < 0.5
