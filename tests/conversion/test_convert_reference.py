"""The plain converter against another interpreter of the mapping, over generated records of any shape.

The interpreter has no `Description`: it goes through the targets and the mapping's sources for each event. Both
must have the same result, warnings included, and must never raise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.avro.paths import walk
from consumer.conversion.amounts import MAX_COUNT, amount, count, is_zero
from consumer.conversion.computed.operators import Condition
from consumer.conversion.converter import Converter
from consumer.conversion.decisions import (
    BY_CONSENT,
    BY_EVENT_NAME,
    CRAWLER,
    NOT_WEB,
    OPT_OUT_TYPE_IGNORED,
    REFUSALS,
    Decisions,
    dedup_id_of,
    id_of,
    rule_for,
    warnings_of,
    zero_warning,
)
from consumer.conversion.mapping import Mapping
from consumer.conversion.normalise import Omitted, Unrecognised
from consumer.conversion.rules import click_id_of, is_crawler, total
from consumer.conversion.targets import CONTENTS, DECIDED, TARGETS, Arity, Target
from consumer.engine.figures.delivered import written_in
from consumer.engine.model import CommerceEvent, ConversionEvent, Converted, Rejection, Warned
from tests.conversion.convert_records import SETUPS, likely, shaped, steps_of
from tests.support.mapping import load_mapping

ROOT = Path(__file__).parents[2]
DEFAULT = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text()
NOW = 1760000000.0
WEEK = 7 * 86400.0
ACCOUNTS = ("11", "22")


class RefusedReference(Exception):
    """Raised with a rejection to end the interpreter."""

    def __init__(self, rejection: Rejection) -> None:
        super().__init__(rejection.code)
        self.rejection = rejection


class Reference:
    """A slow and simple converter."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.decisions = Decisions(mapping, ACCOUNTS, WEEK, 300.0)
        self.warned: list[Warned] = []

    def convert(self, event: CommerceEvent) -> Converted:
        """Return the result for `event` at `NOW`."""
        self.warned = []
        name: object = self.decided("event_name", event, self.decisions.name_of)
        if name is BY_EVENT_NAME:
            return BY_EVENT_NAME
        if not self.consents(event):
            return BY_CONSENT
        try:
            return self.event(event, name)
        except RefusedReference as refused:
            return refused.rejection

    def consents(self, event: CommerceEvent) -> bool:
        """Return whether the record says that the event may be sent."""
        consent = self.mapping.consent
        if not isinstance(consent, Condition):
            return consent is None or self.one(event, steps_of(consent)) is True
        # The mappings here allow texts and booleans only, which are compared with their types.
        value = self.one(event, steps_of(consent.parts[0]))
        return any(type(value) is type(allowed) and value == allowed for allowed in consent.allowed)

    def event(self, event: CommerceEvent, name: Any) -> ConversionEvent:
        """Return the conversion event, or raise `RefusedReference`."""
        self.sound(name, str)
        account = self.sound(self.decided("ad_account_id", event, self.decisions.account_of), str)
        source = self.sound(self.decided("action_source", event, self.decisions.source_of), str)
        event_id = self.sound(self.decided("event_id", event, id_of), str)
        seconds = self.time(event)
        payload: dict[str, Any] = {
            "event_name": name, "action_source": source, "event_time": seconds, "event_id": event_id,
        }  # fmt: skip
        for parent in ("", "app_info", "device_info", "user_data"):
            self.fill(payload, parent, event)
        self.click(payload, event)
        agent = self.field(TARGETS["user_data.client_user_agent"], event)
        if agent is not None and is_crawler(agent):
            self.warned.append(CRAWLER)
        if "event_source_url" in payload and source != "web":
            del payload["event_source_url"]
            self.warned.append(NOT_WEB)
        user = payload.setdefault("user_data", {})
        known = [one for one in user.get("hashed_maids", ()) if not isinstance(one, Unrecognised)]
        if "em" not in user and not known:
            self.refuse_unless({"client_ip_address", "client_user_agent"} <= user.keys(), "no_identity")
        self.contents(payload, event)
        self.fill(payload, "custom_data", event)
        custom = payload.get("custom_data", {})
        self.refuse_unless("value" not in custom or "currency" in custom, "missing_currency")
        if "opt_out_type" in custom and not {"st", "country"} <= user.keys():
            self.warned.append(OPT_OUT_TYPE_IGNORED)
        key = self.mapping.dedup_key
        dedup_id = event_id if key is None else dedup_id_of(self.one(event, steps_of(key)), event_id)
        warned = tuple(dict.fromkeys(self.warned))
        return ConversionEvent(
            account, name, event_id, dedup_id, seconds, source, payload, written_in(payload), warned
        )

    def decided(self, name: str, event: CommerceEvent, decision: Any) -> Any:
        """Return what `decision` makes of the value at the source of `name`."""
        source = self.mapping.sources.get(name)
        return decision(self.one(event, steps_of(source)) if source else None)

    def time(self, event: CommerceEvent) -> int:
        """Return ``event_time``, or raise `RefusedReference`."""
        units = self.decisions.units
        value = self.one(event, steps_of(self.mapping.sources["event_time"]))
        time: int = self.sound(self.decisions.time_of(value), int)
        if NOW * units - WEEK * units <= time <= NOW * units:
            return time // units
        seconds: int = self.sound(self.decisions.outside(time, NOW * units, "web"), int)
        return seconds

    def fill(self, payload: dict[str, Any], parent: str, event: CommerceEvent) -> None:
        """Put every field of one object into the payload."""
        for name, target in TARGETS.items():
            if target.parent != parent or name in DECIDED:
                continue
            value = self.field(self.mapping.target(name), event)
            if value is None:
                value = self.mapping.constants.get(name)
            if value is not None:
                (payload.setdefault(parent, {}) if parent else payload)[target.key] = value

    def field(self, target: Target, event: CommerceEvent) -> Any:
        """Return one field's JSON value; None if it is omitted."""
        source = self.mapping.sources.get(target.name)
        if source is None:
            return None
        values = walk(event, steps_of(source))
        if target.arity is Arity.SUM:
            return self.sent(target, total(values))
        sent = []
        for value in values:
            result = self.sent(target, rule_for(target, source, self.mapping.time_unit)(value))
            if result is not None:
                sent.append(result)
                if target.arity is not Arity.ALL:
                    break
        if target.arity is Arity.ALL:
            return (list(dict.fromkeys(sent)) if target.hashed else sent[:100]) or None
        return sent[0] if sent else None

    def click(self, payload: dict[str, Any], event: CommerceEvent) -> None:
        """Add the click id of the page's address, if the record has none."""
        own = self.field(TARGETS["user_data.click_id"], event)
        address = self.field(TARGETS["event_source_url"], event)
        if own is None and address is not None and self.mapping.click_id_from_url:
            found = click_id_of(address) if payload["action_source"] == "web" else None
            if found is not None:
                payload.setdefault("user_data", {})["click_id"] = found

    def contents(self, payload: dict[str, Any], event: CommerceEvent) -> None:
        """Add the items, one by one."""
        steps = self.mapping.item_steps
        contents = []
        for item in walk(event, steps) if steps else [event]:
            content = {}
            for name, target in TARGETS.items():
                source = self.mapping.sources.get(name)
                if target.parent == CONTENTS and source is not None:
                    value = self.one(item, steps_of(source)[len(steps) :])
                    result = self.sent(target, target.rule(value) if value is not None else Omitted.BLANK)
                    if result is not None:
                        content[target.key] = result
            if content:
                contents.append(content)
        if contents:
            payload.setdefault("custom_data", {})["contents"] = contents

    def sent(self, target: Target, result: Any) -> Any:
        """Return a rule's `result`, or None if it is omitted; warn or refuse as the target says."""
        if result is None:
            raise RefusedReference(REFUSALS["negative_quantity"])
        if isinstance(result, Omitted):
            if target.refusal and result is Omitted.MALFORMED:
                raise RefusedReference(REFUSALS[target.refusal])
            self.warned += filter(None, [warnings_of(target).get(result)])
            return None
        if isinstance(result, Unrecognised):
            self.warned.append(warnings_of(target)[Unrecognised])
        if target.rule is amount and is_zero(result):
            self.warned.append(zero_warning(target))
        return result

    @staticmethod
    def one(value: Any, steps: Any) -> Any:
        """Return the one value at `steps`."""
        return next(iter(walk(value, steps)), None)

    @staticmethod
    def sound(value: Any, kind: type) -> Any:
        if not isinstance(value, kind):
            raise RefusedReference(value)
        return value

    @staticmethod
    def refuse_unless(condition: bool, code: str) -> None:
        if not condition:
            raise RefusedReference(REFUSALS[code])


def setup(name: str) -> tuple[Converter, Reference]:
    """Return the converter and the reference of a set-up."""
    schema, overlay = SETUPS[name]
    mapping = load_mapping(overlay, schema, default_toml=DEFAULT)
    converter = Converter(mapping, accounts=ACCOUNTS, max_event_age=WEEK)
    return converter, Reference(mapping)


CONVERTERS = {name: setup(name) for name in SETUPS}
RECORDS = {(name, wild): shaped(SETUPS[name][0], wild) for name in SETUPS for wild in (False, True)}


def comparable(result: Converted) -> Any:
    """Return everything that a result says, with warnings and keys in one order."""
    if not isinstance(result, ConversionEvent):
        return result
    fields = [getattr(result, slot) for slot in ConversionEvent.__slots__ if slot != "warnings"]
    return [*fields, sorted(result.warnings)]


@pytest.mark.parametrize("wild", [False, True], ids=["in-shape", "any-shape"])
@pytest.mark.parametrize("name", SETUPS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_converter_says_what_the_reference_says(name: str, wild: bool, data: st.DataObject) -> None:
    """For every record the converter and the reference agree, nothing raises, and payloads can be serialised."""
    converter, reference = CONVERTERS[name]
    event = data.draw(RECORDS[name, wild])
    if data.draw(st.sampled_from([True, True, True, False])):
        event = likely(event)
    result = converter.convert(event, NOW)
    assert comparable(result) == comparable(reference.convert(event))
    if isinstance(result, ConversionEvent):
        assert orjson.loads(orjson.dumps(result.payload)) == result.payload
        assert result.payload["event_time"] <= NOW
        assert len(result.warnings) == len(set(result.warnings))
    elif isinstance(result, Rejection):
        assert result.code != "unconvertible"


def test_the_unforeseen_is_a_refusal_that_names_its_type_only() -> None:
    """A value that raises wherever it is used refuses its event, with the type of the exception as the only detail."""

    class Hostile(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise RuntimeError("s3cr3t")

        def get(self, key: str, default: Any = None) -> Any:
            raise RuntimeError("s3cr3t")

    result = CONVERTERS["default"][0].convert(Hostile(), NOW)
    assert isinstance(result, Rejection)
    assert result.code == "unconvertible"
    assert "RuntimeError" in result.message
    assert "s3cr3t" not in result.message


def test_the_sum_of_quantities_is_never_wrong() -> None:
    """If a quantity cannot be read, or the sum does not fit int64, num_items is omitted."""
    converter, reference = CONVERTERS["default"]
    event = {
        "event_type": "checkout",
        "event_id": "e",
        "occurred_at": 1759999000123,
        "channel": "WEB",
        "customer": {"advertising_ids": ["aebe52e7-03ee-455a-b3c4-e57283966239"]},
        "order": {"items": [{"quantity": 1}, {"quantity": 1.5}]},
    }
    for quantities, wanted in (([1, 1.5], None), ([MAX_COUNT, 1], None), ([1, None, 2], 3), (["2", 3.0], 5)):
        event["order"] = {"items": [{"quantity": quantity} for quantity in quantities]}
        result = converter.convert(event, NOW)
        assert isinstance(result, ConversionEvent)
        assert result.payload["custom_data"].get("num_items") == wanted
        assert comparable(result) == comparable(reference.convert(event))
    assert count(-1) is None
