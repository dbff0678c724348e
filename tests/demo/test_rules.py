"""The sandbox's rules: one by one, against the schema of the request, and on mutated events."""

from __future__ import annotations

import copy
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from consumer.conversion.normalise import HASHED_FIELDS
from consumer.conversion.targets import EVENT_NAMES, TARGETS
from consumer.demo import rules
from tests.demo.examples import NOW, REQUEST, SENT, digest, event, full_event

DEFINITIONS: dict[str, Any] = rules.REQUEST["$defs"]


def broken(path: str, value: Any) -> dict[str, Any]:
    """The full event with the member at the dotted `path` set to `value`."""
    changed = copy.deepcopy(full_event())
    at: Any = changed
    *parents, last = path.split(".")
    for name in parents:
        at = at[int(name)] if name.isdigit() else at[name]
    at[int(last) if last.isdigit() else last] = value
    return changed


def code_of(candidate: Any, **options: Any) -> str | None:
    """The code of the first problem, or None."""
    problem = rules.check_event(candidate, NOW, **options)
    return None if problem is None else problem.code


def accepted(candidate: dict[str, Any]) -> bool:
    """Whether a call with this one event fits the schema of the request."""
    return REQUEST.is_valid({"data": [candidate]})


def test_full_event_is_accepted() -> None:
    """An event with every part the description knows, all valid, has no problem and no warning."""
    assert accepted(full_event())
    assert rules.check_event(full_event(), NOW) is None
    assert rules.warning_for(full_event()) is None


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("extra", 1, "unknown_key"),
        ("custom_data.contents.0.sku", "1", "unknown_key"),
        ("event_name", None, "wrong_type"),
        ("event_time", 1.5, "wrong_type"),
        ("opt_out", "false", "wrong_type"),
        ("user_data.em", digest("a@example.com"), "wrong_type"),
        ("user_data.em.1", None, "wrong_type"),
        ("custom_data.value", 129.97, "wrong_type"),
        ("custom_data.contents.0", "0017", "wrong_type"),
        ("app_info.app_name", "x" * 201, "out_of_bounds"),
        ("app_info.install_time", 2**63, "out_of_bounds"),
        ("device_info.battery_level", 101, "out_of_bounds"),
        ("device_info.os_family", "amiga", "out_of_bounds"),
        ("device_info.languages", ["en"] * 101, "out_of_bounds"),
    ],
)
def test_structural_problems(path: str, value: Any, code: str) -> None:
    """What a validator of the description refuses is a structural problem, which costs the whole call."""
    assert value == 2**63 or not accepted(
        broken(path, value)
    )  # no schema has a number of that size as a bound
    problem = rules.check_event(broken(path, value), NOW)
    assert problem is not None
    assert (problem.structural, problem.code) == (True, code)


@pytest.mark.parametrize("key", rules.REQUEST["$defs"]["event"]["required"])
def test_required_keys(key: str) -> None:
    """Each required key is missed by name."""
    lacking = full_event()
    del lacking[key]
    assert not accepted(lacking)
    problem = rules.check_event(lacking, NOW)
    assert problem is not None
    assert problem.code == "missing_key"
    assert key in problem.message
    # What the sandbox may repeat is an invalid value, and not the rest of the event.
    assert problem.value is None


def test_any_number_of_mistakes_takes_little_memory() -> None:
    """A body has room for millions: they are not all told, nor kept."""
    many = dict.fromkeys(map(str, range(20_000)))
    tracemalloc.start()
    problems = [
        rules.check_event(broken("user_data.em", [1] * 20_000), NOW),
        rules.check_event({**full_event(), **many}, NOW),
    ]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [problem and problem.code for problem in problems] == ["wrong_type", "unknown_key"]
    assert peak < 4 << 20


@pytest.mark.parametrize("value", [None, []])
def test_event_that_is_no_object(value: Any) -> None:
    """An item of ``data`` that is no object is a structural problem."""
    assert code_of(value) == "wrong_type"


@pytest.mark.parametrize(
    ("path", "value", "code", "in_schema"),
    [
        ("event_name", "purchase", "event_name", False),
        ("action_source", "WEB", "action_source", True),
        ("event_id", "  ", "event_id", False),
        ("event_time", int(NOW) + 301, "future", False),
        ("event_time", int(NOW) - 7 * 86_400 - 1, "expired", False),
        ("user_data.em.1", digest("b").upper(), "digest", True),
        ("user_data.em.1", digest("b") + "\n", "digest", False),
        ("user_data.em", [digest("b")[:-1], digest("c") + "0"], "digest", True),
        ("user_data.ph", [], "empty", True),
        ("user_data.ph", [digest("")], "empty_digest", False),
        ("user_data.client_ip_address", digest("192.0.2.7"), "ip_address", False),
        ("user_data.client_ip_address", "192.0.2.7, 10.0.0.1", "ip_address", False),
        ("user_data.client_ip_address", "0.0.0.0", "ip_address", False),
        ("user_data.client_ip_address", "192.0.2.7\0", "ip_address", False),
        ("user_data.client_user_agent", digest("Mozilla"), "hashed", False),
        ("user_data.click_id", digest("dj0y").upper(), "hashed", False),
        ("user_data.click_id", "", "empty", False),
        ("user_data.customer_type", "New", "customer_type", True),
        ("custom_data.value", "-1", "amount", True),
        ("custom_data.value", "1e3", "amount", True),
        ("custom_data.value", "12\n", "amount", False),
        ("custom_data.value", "١٢", "amount", True),
        ("custom_data.predicted_ltv", "inf", "amount", True),
        ("custom_data.currency", "eur", "currency", True),
        ("custom_data.currency", "ZZZ", "currency", False),
        ("event_name", "x" * 101, "event_name", True),
        ("event_id", "", "event_id", True),
        ("custom_data.num_items", 2**63, "quantity", True),
        ("custom_data.contents.0.quantity", -1, "quantity", True),
    ],
)
def test_problems_of_one_event(path: str, value: Any, code: str, in_schema: bool) -> None:
    """What the description says in words only fails that event alone, and the message holds no value of it. Of some of
    it the schema of the request tells, too."""
    assert accepted(broken(path, value)) is not in_schema
    problem = rules.check_event(broken(path, value), NOW)
    assert problem is not None
    assert (problem.structural, problem.code) == (False, code)
    assert not (isinstance(value, str) and len(value) > 8 and value in problem.message)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("custom_data.value", "0.00"),
        ("custom_data.value", "123456789012345678901234567890.123456789"),
        ("custom_data.value", None),
        ("event_time", int(NOW) + 300),
        ("event_time", int(NOW) - 7 * 86_400),
        ("custom_data.contents.0.item_brand_id", "b-17"),
        ("user_data.customer_type", "returning"),
    ],
)
def test_edges_that_are_fine(path: str, value: Any) -> None:
    """Zero values, exact long decimals, null where null may be, and the last second of each time limit."""
    assert code_of(broken(path, value)) is None
    assert accepted(broken(path, value))


@pytest.mark.parametrize(
    ("user_data", "identifies"),
    [
        ({"em": [digest("a@example.com")]}, True),
        ({"hashed_maids": [digest("id")]}, True),
        ({"client_ip_address": "192.0.2.7", "client_user_agent": "Mozilla"}, True),
        ({"client_ip_address": "192.0.2.7"}, False),
        ({"client_user_agent": "Mozilla"}, False),
        ({"ph": [digest("1")], "external_id": [digest("2")], "click_id": "dj0y"}, False),
        ({}, False),
    ],
)
def test_identity(user_data: dict[str, Any], identifies: bool) -> None:
    """An e-mail, an advertising id, or address with agent identify; phone, external id and click id do not."""
    assert accepted(event(user_data=user_data)) is identifies
    assert code_of(event(user_data=user_data)) == (None if identifies else "identity")


def test_what_may_be_set() -> None:
    """Without a maximal age, an event of 1997 passes and one of tomorrow does not. All 22 standard names pass; one of
    the advertiser's own when it is registered."""
    assert code_of(event(event_time=852_076_800), max_age=None) is None
    assert code_of(event(event_time=int(NOW) + 86_400), max_age=None) == "future"
    assert set(DEFINITIONS["standard_event_name"]["enum"]) == rules.KNOWN_EVENT_NAMES == EVENT_NAMES
    assert len(rules.KNOWN_EVENT_NAMES) == 22
    assert code_of(event(event_name="schedule")) is None
    assert code_of(event(event_name="Store visit")) == "event_name"
    names = rules.KNOWN_EVENT_NAMES | {"Store visit"}
    assert code_of(event(event_name="Store visit"), event_names=names) is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([], "wrong_type"),
        ({}, "missing_key"),
        ({"data": {}}, "missing_key"),
        ({"data": []}, "event_count"),
        ({"data": [event()] * 1001}, "event_count"),
        ({"data": [event()], "test": True}, "unknown_key"),
        ({"data": [event()] * 1000}, None),
    ],
)
def test_envelope(body: Any, code: str | None) -> None:
    """The body is an object with only ``data``, an array of 1 to 1000."""
    problem = rules.check_envelope(body)
    assert (None if problem is None else problem.code) == code
    assert REQUEST.is_valid(body) is (code is None)


@pytest.mark.parametrize(
    ("account", "good"),
    [
        ("1", True),
        ("1" * 18, True),
        ("1" * 19, False),
        ("12a", False),
        ("١٢", False),
        ("1\n", False),
    ],
)
def test_account(account: str, good: bool) -> None:
    """An ad account's id is 1 to 18 of the digits 0-9."""
    assert rules.check_account(account) is good


@pytest.mark.parametrize(
    ("candidate", "word"),
    [
        (event(custom_data={"value": "1"}), "currency"),
        (event(event_source_url="/relative"), "event_source_url"),
        (event(event_source_url="https://x.example/", action_source="offline"), "event_source_url"),
        (event(language="en-US"), "language"),
    ],
)
def test_warnings(candidate: dict[str, Any], word: str) -> None:
    """What is accepted but not as it should be is grumbled about."""
    assert rules.check_event(candidate, NOW) is None
    assert word in str(rules.warning_for(candidate))


# Against the schema of the request


def test_the_schema_is_one_and_closed() -> None:
    """It keeps to JSON Schema 2020-12. No object takes a key that is not named: one unknown key can turn a whole call
    into a 400."""
    Draft202012Validator.check_schema(rules.REQUEST)
    objects = [one for one in (rules.REQUEST, *DEFINITIONS.values()) if one["type"] == "object"]
    assert len(objects) == 7
    assert all(one["additionalProperties"] is False for one in objects)


def test_every_target_is_in_it() -> None:
    """Every target of a mapping is a member; exactly the hashed ones are arrays of digests."""
    for name in TARGETS.keys() - {"ad_account_id"}:
        at: Any = rules.REQUEST["$defs"]["event"]
        for part in name.split("."):
            at = at["properties"][part.removesuffix("[]")]
            at = _resolved(at["items"] if part.endswith("[]") else at)
    assert {key for key, one in DEFINITIONS["user_data"]["properties"].items() if "$ref" in one} == set(
        HASHED_FIELDS
    )


def _resolved(node: dict[str, Any]) -> Any:
    return DEFINITIONS[node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def test_what_we_send_has_no_null() -> None:
    """What the platform takes as null is omitted by us: a payload is held against that."""
    assert SENT.is_valid({"data": [event(language="en")]})
    assert accepted(event(language=None))
    assert not SENT.is_valid({"data": [event(language=None)]})
    assert not SENT.is_valid({"data": [event(custom_data={"value": None})]})


WRONG_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    2**40,
    "",
    "x" * 17_000,
    [],
    [None],
    ["x"],
    {},
    {"x": 1},
)


def containers(node: Any) -> list[Any]:
    """`node` and all objects and arrays inside."""
    if isinstance(node, dict):
        return [node, *(found for member in node.values() for found in containers(member))]
    if isinstance(node, list):
        return [node, *(found for member in node for found in containers(member))]
    return []


def mutate(candidate: dict[str, Any], draws: random.Random) -> None:
    """Breaks one thing somewhere: a value replaced, a key gone, a key that should not be there."""
    at = draws.choice(containers(candidate))
    keys: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
    kind = draws.choice(("replace", "delete", "add"))
    wrong = copy.deepcopy(draws.choice(WRONG_VALUES))
    if kind == "add" or not keys:
        if isinstance(at, dict):
            at[draws.choice(("surprise", "id", "em", "value", "brand", "wifi", "np"))] = wrong
        else:
            at.append(wrong)
    elif kind == "delete":
        del at[draws.choice(keys)]
    else:
        at[draws.choice(keys)] = wrong


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 3))
@example(seed=168, times=3)  # without copies of WRONG_VALUES, one would get into itself
def test_whatever_the_schema_refuses_is_refused(seed: int, times: int) -> None:
    """On events broken at random, the rules refuse all that a validator of the schema refuses; and what they call
    structural, which costs the whole call, the schema refuses too."""
    draws = random.Random(seed)
    candidate = full_event()
    for _ in range(times):
        mutate(candidate, draws)
    refused = not accepted(candidate)
    problem = rules.check_event(candidate, NOW)
    assert problem is not None or not refused
    assert refused or problem is None or not problem.structural


@given(
    candidate=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_gets_a_verdict(candidate: Any) -> None:
    """No JSON value whatever makes the rules raise."""
    assert code_of(candidate) is not None
    assert rules.check_envelope(candidate) is not None
