"""The mapping file: what it may say, which mistakes are errors, and how it is laid over the packaged mapping."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from consumer.conversion.mapping import Mapping
from consumer.conversion.targets import EVENT_NAMES, FILTER, NEW_TARGETS, TARGETS
from consumer.errors import MappingError
from tests.support import avro
from tests.support.mapping import load_mapping

ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "commerce_event.avsc").read_text())
DEFAULT = (ROOT / "schemas" / "commerce_event.mapping.toml").read_text()


def field(name: str, kind: Any) -> dict[str, Any]:
    """Return a field of an Avro record."""
    return avro.field(name, kind)


def record(*fields: dict[str, Any], name: str = "Event") -> dict[str, Any]:
    """Return an Avro record."""
    return avro.record(name, *list(fields))


BARE = record(
    field("event_id", "string"),
    field("event_type", "string"),
    field("occurred_at", "long"),
    field("channel", "string"),
)


def load(overlay: str | None = None, schema: dict[str, Any] = SCHEMA) -> Mapping:
    """Return the packaged mapping with `overlay`, for `schema`."""
    return load_mapping(overlay, schema, default_toml=DEFAULT, overlay_name="my.toml")


def test_the_packaged_mapping_fits_the_packaged_schema() -> None:
    """Every line of the packaged mapping has its path in the packaged schema."""
    mapping = load()
    lines = [
        line
        for line in DEFAULT.partition("[fields]")[2].partition("[constants]")[0].splitlines()
        if " = " in line
    ]
    assert len(mapping.sources) == len([line for line in lines if not line.startswith("#")]) == 46
    assert set(mapping.event_names.values()) <= EVENT_NAMES | {FILTER}
    assert mapping.consent is None
    assert mapping.dedup_key is None
    assert mapping.constants == {}


def test_nothing_of_the_content_fields_has_a_default_source() -> None:
    """Names, categories and brands of content are sent only if the mapping names their source."""
    assert not {f"custom_data.content_{key}" for key in ("name", "category", "brand")} & load().sources.keys()


def test_default_paths_that_the_schema_lacks_are_dropped() -> None:
    """Packaged lines whose path the schema lacks are omitted without an error."""
    assert set(load(schema=BARE).sources) == {"event_id", "event_name", "event_time", "action_source"}


def test_tables_are_laid_over_key_by_key() -> None:
    """An overlay changes the keys that it names, removes those that it leaves empty, and keeps the others."""
    mapping = load(
        """
        unknown_event_name = "filter"
        [event_names]
        order_placed = ""
        order_completed = "!filter"
        purchase = "checkout"
        [action_sources]
        KIOSK = "offline"
        [fields]
        action_source = "language"
        language = ""
        "user_data.em" = "customer.phones"
        """
    )
    assert mapping.unknown_event_name == "filter"
    assert "order_placed" not in mapping.event_names
    assert mapping.event_names["order_completed"] == FILTER
    assert mapping.event_names["purchase"] == "checkout"
    assert mapping.event_names["page_viewed"] == "page_visit"
    assert (mapping.action_sources["kiosk"], mapping.action_sources["web"]) == ("offline", "web")
    assert "language" not in mapping.sources
    assert mapping.sources["user_data.em"].path == "customer.phones"
    assert mapping.sources["user_data.ph"].path == "customer.phones"


def test_own_events_are_names_to_be_sent_under() -> None:
    """An advertiser may have fifteen event names of a hundred printable characters each, and [event_names] and
    constants may use them."""
    names = ["Store visit", "\u00e9" * 100, *(f"own {n}" for n in range(13))]
    mapping = load(f'[own_events]\nnames = {json.dumps(names)}\n[event_names]\nx = "Store visit"')
    assert list(mapping.own_events) == names
    assert mapping.event_names["x"] == "Store visit"
    assert mapping.known_event_names == EVENT_NAMES | set(names)
    assert len(EVENT_NAMES) == 22
    assert load('[own_events]\nnames = ["y"]\n[constants]\nevent_name = "y"').constants["event_name"] == "y"
    assert load().own_events == ()


def test_what_is_new_at_the_platform_has_no_default_source() -> None:
    """Fields that are new at the platform have no packaged source, since an account that lacks one refuses the
    whole call."""
    assert not NEW_TARGETS.keys() & load().sources.keys()
    assert NEW_TARGETS.keys() <= TARGETS.keys()


LINES = field(
    "lines", avro.array(record(field("code", "string"), field("pieces", ["null", "int"]), name="Line"))
)


@pytest.mark.parametrize(
    "schema",
    [record(*BARE["fields"], LINES), {**SCHEMA, "fields": [*SCHEMA["fields"], LINES]}],
    ids=["own", "grown"],
)
def test_ids_and_their_number_follow_from_the_items(schema: dict[str, Any]) -> None:
    """Content ids and num_items follow from the items if only those are mapped. A line for them goes before,
    and "" removes them. The packaged mapping's own lines make way for items of another array."""
    items = """
    [fields]
    "custom_data.contents[].id" = "lines[].code"
    "custom_data.contents[].quantity" = "lines[].pieces"
    """
    mapping = load(items, schema)
    assert mapping.sources["custom_data.content_ids"].path == "lines[].code"
    assert mapping.sources["custom_data.num_items"].path == "lines[].pieces"
    assert not {"custom_data.content_ids", "custom_data.num_items"} & mapping.proposed
    mapping = load(f'{items}"custom_data.content_ids" = ""\n"custom_data.num_items" = ""', schema)
    assert not {"custom_data.content_ids", "custom_data.num_items"} & mapping.sources.keys()
    mapping = load(f'{items}"custom_data.content_ids" = "event_type"', schema)
    assert mapping.sources["custom_data.content_ids"].path == "event_type"


def test_the_click_id_follows_from_the_address() -> None:
    """The click id is taken from the page's address if that has a source, unless "" removes the click id."""
    assert load().click_id_from_url
    assert not load(schema=BARE).click_id_from_url
    assert load('[fields]\nevent_source_url = "event_id"', BARE).click_id_from_url
    assert not load('[fields]\n"user_data.click_id" = ""').click_id_from_url
    assert not load('[fields]\nevent_source_url = ""').click_id_from_url


def test_dotted_names_need_no_quotes() -> None:
    """A dotted name without quotes, which TOML reads as a table, and a table of that name both mean the field."""
    for overlay in (
        '[fields]\nuser_data.em = "customer.phones"',
        '[fields.user_data]\nem = "customer.phones"',
        '[fields]\nuser_data = {em = "customer.phones"}',
    ):
        assert load(overlay).sources["user_data.em"].path == "customer.phones"


def test_items_of_the_users_array_replace_the_defaults() -> None:
    """If the user's items come from another array, the packaged mapping's item fields are omitted."""
    items = avro.array(record(field("code", "string"), name="Line"))
    schema = {**SCHEMA, "fields": [*SCHEMA["fields"], field("lines", items)]}
    mapping = load('[fields]\n"custom_data.contents[].id" = "lines[].code"', schema)
    assert [name for name in mapping.sources if "contents" in name] == ["custom_data.contents[].id"]
    assert mapping.item_steps == ("lines", "")


ERRORS = {
    "not TOML": ("[fields", "not TOML"),
    "an unknown key": ('unknown_event_names = "refuse"',
     "'unknown_event_names' is not a mapping key; the nearest is 'unknown_event_name'"),
    "a key of before 0.2.0": ("newer_event_names = true",
     "'newer_event_names' has had no effect since 0.2.0: remove the line"),
    "an enum as a time": ('[fields]\nevent_time = "channel"', "takes a time, but 'channel' is enum"),
    "a list as a constant name": ("[constants]\nevent_name = []", "[constants] event_name: [] is not one"),
    "a table that is none": ('fields = "x"', "[fields]"),
    "a path that does not exist": ('[fields]\n"user_data.em" = "customer.email"',
     "'customer.email' is not in the schema; the nearest that is: 'customer.emails'"),
    "a path into an array without []": ('[fields]\n"custom_data.content_ids" = "order.items.sku"',
     "the nearest that is: 'order.items[].sku'"),
    "a path that is a record": ('[fields]\nlanguage = "customer"',
     "'customer' is a record: name one of its fields: customer.emails,"),
    "a path that is an array of records": ('[fields]\nlanguage = "order.items"',
     "'order.items' is a list: name a field of its elements: order.items[].sku, order.items[].name"),
    "[] after what is no list": ('[fields]\nlanguage = "customer[].city"',
     "'customer' is no list; the nearest that is: 'customer.city'"),
    "a path into a value": ('[fields]\nlanguage = "language.code"',
     "'language' is string and has no fields; the nearest that is: 'language'"),
    "the name of a record's type": ('[fields]\nlanguage = "Customer.city"',
     "'Customer' is the name of a type, not of a field; the nearest that is: 'customer.city'"),
    "the full name of the schema's record": ('[fields]\nlanguage = "commerce.v1.CommerceEvent.language"',
     "'commerce.v1.CommerceEvent' is the name of a type, not of a field; the nearest that is: 'language'"),
    "a path that is like no other": ('[fields]\nlanguage = "order.zzz"',
     "'order.zzz' is not in the schema; 'order' has order.order_id, "),
    "a first name that is like no other": ('[fields]\nlanguage = "zzz"', "the record has event_id, event_type"),
    "a list of paths": ('[fields]\nlanguage = ["a", "b"]',
     "'language': a list stands where one path is expected: { first = [...] } takes the first with a value"),
    "a path that is none": ('[fields]\nlanguage = "customer..x"', "is not a path"),
    "a field that the API lacks": ('[fields]\n"user_data.emails" = "customer.emails"',
     "'user_data.emails' is not a field of a conversion event; the nearest is 'user_data.em'"),
    "an object": ('[fields]\nuser_data = "customer.emails"',
     "'user_data' is not a field but an object: name one of its fields: user_data.em, user_data.ph"),
    "np": ('[fields]\n"custom_data.np" = "language"', "'custom_data.np' is never sent"),
    "a path that is no text": ("[fields]\nlanguage = 1", "must be text in quotes"),
    "a type that does not fit": ('[fields]\nlanguage = "opt_out"',
     "'language' takes a language, but 'opt_out' is boolean"),
    "a flag from a time": ('[fields]\nopt_out = "occurred_at"',
     "takes true or false, but 'occurred_at' is timestamp-millis"),
    "several for one": ('[fields]\nevent_id = "customer.emails"',
     "'customer.emails' may give several, since it is a list: name one element, 'customer.emails[0]'"),
    "items of two arrays": (
     '[fields]\n"custom_data.contents[].id" = "order.items[].sku"\n"custom_data.contents[].item_name" = "page_url"',
     "must come from one array"),
    "no source of the id": ('[fields]\nevent_id = ""', "[fields] event_id has no source"),
    "an event name that is none": ('[event_names]\nx = "purchase"',
     "'x': 'purchase' is not an event name of the platform; the nearest is 'checkout';"),
    "an own event of no letters": ('[own_events]\nnames = ["!!"]\n[event_names]\nx = "zzz"',
     "not an event name of the platform; known: !!, add_payment_info,"),
    "a tracker's word for an event": ('[event_names]\nx = "ViewItem"', "; the nearest is 'page_visit';"),
    "an event name like no other": ('[event_names]\nx = "refund"', "; known: add_payment_info, add_to_cart,"),
    "event names turned around": ('[event_names]\ncheckout = "shop.paid"',
     """'checkout' is turned around: write "shop.paid" = "checkout\""""),
    "an event type with dots and no quotes": ('[event_names]\nshop.order.paid = "checkout"',
     """[event_names] a name that holds dots is written in quotes: "shop.order.paid\""""),
    "fields turned around": ('[fields]\n"customer.emails" = "user_data.em"',
     """'customer.emails' is turned around: write "user_data.em" = "customer.emails\""""),
    "a setting below a table": ('[fields]\nunknown_event_name = "filter"',
     "[fields] 'unknown_event_name' is a setting, not a line of a table: put it above the first [table]"),
    "a setting below event names that is an event name, too": ('[event_names]\nunknown_event_name = "custom"',
     "[event_names] 'unknown_event_name' is a setting, not a line of a table"),
    "a field without its table": ('event_id = "event_id"',
     "'event_id' is a field: write [fields] on a line of its own above it"),
    "an object's field without its table": ('user_data.em = "x"', "'user_data' is a field: write [fields]"),
    "a field by another word, misspelled": ('[fields]\n"user_data.emial" = "x"',
     "'user_data.emial' is not a field of a conversion event; the nearest is 'user_data.em'"),
    "a name of thousands of parts": (f"a{'.a' * 20_000} = 1", "a name has more than 128 parts between dots"),
    "a path of thousands of steps": (f'[fields]\nlanguage = "customer{"[]" * 20_000}"',
     "is a path of more than 128 steps: write a shorter one"),
    "a channel that the schema's enum lacks": ('[action_sources]\nWEBB = "web"',
     "[action_sources] 'WEBB': 'channel' is never 'WEBB'; the nearest is 'WEB'"),
    "a consent that the schema's enum lacks": ('[consent]\nrequire = "channel"\nallowed = ["X", "WBE"]',
     "[consent] allowed: 'channel' is never 'WBE'; the nearest is 'WEB'"),
    "a consent that one of two may be": (
     '[consent]\nrequire = ["channel", "opt_out"]\nallowed = ["WEB", true, "IS"]',
     "[consent] allowed, 'IS': 'channel' is never 'IS'; the nearest is 'IOS'"),
    "a consent of another kind": ('[consent]\nrequire = "opt_out"\nallowed = ["no"]',
     "[consent] allowed: 'opt_out' is boolean, so it is never 'no'"),
    "a field by another word": ('[fields]\n"user_data.ip" = "x"', "nearest is 'user_data.client_ip_address'"),
    "a field without its object": ('[fields]\nem = "x"', "the nearest is 'user_data.em'"),
    "an item's field without []": ('[fields]\n"custom_data.contents.item_name" = "x"',
     "the nearest is 'custom_data.contents[].item_name'"),
    "a field like no other": ('[fields]\nzzz = "x"', "docs/conversion.md lists them"),
    "a path without quotes": ('[fields]\n"user_data.em" = customer.emails',
     """not TOML: Invalid value (at line 2, column 18); write the value in quotes: "customer.emails\""""),
    "[] without quotes": ('[fields]\ncustom_data.contents[].id = "x"',
     """write the name in quotes, since it holds []: "custom_data.contents[].id\""""),
    "blanks without quotes": ('[event_names]\norder paid = "x"', 'since it holds blanks: "order paid"'),
    "quotes of a word processor": ("[fields]\nevent_id = “meta.id”", 'write straight quotes: "'),
    "a quote that is missing": ('[fields]\nevent_id = "meta.id', 'a quote " is missing on this line'),
    "YAML": ('[fields]\nevent_id: "meta.id"', "write = between name and value, not a colon"),
    "JSON": ('{"fields": {}}', "this is JSON, but a mapping is TOML"),
    "a comma at the end": ('[fields]\nevent_id = "x",', "remove the comma at the end of the line"),
    "a comment with slashes": ("// a comment", "a comment begins with #"),
    "no value": ("[fields]\nevent_id =", "write a value behind the ="),
    "Python's true": ("[constants]\nopt_out = True", "true and false are written in lower case"),
    "a field of another record": ('[fields]\nlanguage = "customer.sku"',
     "'customer.sku' is not in the schema; the nearest that is: 'order.items[].sku'"),
    "a line twice": ('[fields]\nevent_id = "x"\nevent_id = "y"', "this name is there already"),
    "a table twice": ("[fields]\n[dedup]\n[fields]", "this table is there already"),
    "an own name that is not declared": ('[event_names]\nx = "loyalty"',
     "a name that you registered with Pinterest is declared in [own_events]"),
    "own events that are no list": ('[own_events]\nnames = "loyalty"', 'names = ["loyalty_joined"]'),
    "own events without the word": ("[own_events]\nloyalty = true", "'loyalty' is not a key; known: 'names'"),
    "own events that are no table": ('own_events = ["loyalty"]', "write [own_events]"),
    "an own event that is standard": ('[own_events]\nnames = ["Check" , "Checkout"]', "'Checkout' is a standard"),
    "an own event twice": ('[own_events]\nnames = ["a", "b", "a"]', "'a' is listed twice"),
    "sixteen own events": (f"[own_events]\nnames = {[f'n{n}' for n in range(16)]}", "declares 16 names"),
    "an own event of 101 characters": (f'[own_events]\nnames = ["{"é" * 101}"]', "has 101 characters"),
    "an own event with blanks around it": ('[own_events]\nnames = ["a "]', "blanks around it"),
    "an own event with a line end": ('[own_events]\nnames = ["a\\nb"]', "cannot be printed"),
    "an own event that is empty": ('[own_events]\nnames = [""]', "is no name"),
    "an event name that is no text": ("[event_names]\nx = 1", "must be text in quotes"),
    "an action source that is none": ('[action_sources]\nx = "ios"', "the nearest is 'app_ios'"),
    "a choice that is none": ('unknown_event_name = "drop"', "must be one of 'refuse', 'custom', 'filter'"),
    "a time unit that is none": ('time_unit = "ms"', "must be one of 'seconds'"),
    "a calling code with a plus": ('phone_country_code = "+49"', "must be one to three digits"),
    "a country without phone numbers": ('phone_country = "DE"\n[fields]\n"user_data.ph" = ""',
     "phone_country has no numbers: name the path of user_data.ph in [fields]"),
    "a constant id": ('[constants]\nevent_id = "x"', "cannot be a constant"),
    "a constant currency that is none": ('[constants]\n"custom_data.currency" = "DOLLAR"',
     "must be a code of ISO 4217"),
    "a constant id of unknown form": ('[constants]\n"user_data.hashed_maids" = "abc123"',
     "must be an advertising id (IDFA or GAID)"),
    "a constant flag that is none": ('[constants]\nopt_out = "maybe"', "must be true or false"),
    "a constant name that is none": ('[constants]\nevent_name = "purchase"', "'purchase' is not one"),
    "a constant list": ('[constants]\nlanguage = ["en"]', "'language' is a list, but takes one value"),
    "a consent path that does not exist": ('[consent]\nrequire = "customer.consent"',
     "[consent] require: 'customer.consent' is not in the schema; 'customer' has customer.emails,"),
    "a consent that is no boolean": ('[consent]\nrequire = "language"', "say which values will do"),
    "a consent that is false": ("[consent]\nrequire = false",
     "[consent] require: a path must be text in quotes; { value = false } is"),
    "a consent that is an empty list": ("[consent]\nrequire = []",
     '[consent] require is an empty list: name a path, or write require = "" for none'),
    "a dedup key that is false": ("[dedup]\nkey = false", "[dedup] key: a path must be text in quotes"),
    "a consent of several": ('[consent]\nrequire = "customer.emails"\nallowed = ["x"]', "may give several"),
    "allowed without require": ('[consent]\nallowed = ["x"]', "needs require"),
    "an allowed value with a fraction": ('[consent]\nrequire = "language"\nallowed = [1.5]',
     "allowed must be a list of texts, whole numbers, true or false"),
    "a number of thousands of digits": (f"[fields]\nevent_id = {'1' * 5000}", "thousands of digits"),
    "such a number in hexadecimal": (f"[fields]\nevent_id = {{ value = 0x{'1' * 5000} }}",
     "a number has thousands of digits: write a shorter one"),
    "allowed that is no list": ('[consent]\nrequire = "language"\nallowed = "x"', "must be a list"),
    "an unknown key of consent": ('[consent]\nrequires = "opt_out"',
     "'requires' is not a key; the nearest is 'require'"),
    "a dedup key that does not exist": ('[dedup]\nkey = "order.id"',
     "[dedup] key: 'order.id' is not in the schema; the nearest that is: 'order.order_id'"),
    "a dedup key that is no text": ('[dedup]\nkey = "opt_out"', "[dedup] key takes text, but 'opt_out' is boolean"),
    "a consent with an alternative that is no boolean": ('[consent]\nrequire = { first = ["opt_out", "language"] }',
     "[consent] require takes a boolean, unless you say which values will do, allowed = [...], but 'language' is"),
}  # fmt: skip


@pytest.mark.parametrize("overlay_and_words", ERRORS.values(), ids=ERRORS)
def test_each_error_names_the_file_and_what_is_wrong(overlay_and_words: tuple[str, str]) -> None:
    """A mistake is one line that names the file, the key and, where it helps, the nearest name."""
    overlay, words = overlay_and_words
    with pytest.raises(MappingError) as caught:
        load(overlay)
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    assert words in message
    assert "\n" not in message


def test_all_missing_sources_are_named_at_once() -> None:
    """Where the schema lacks all packaged fields, one error names all required lines without a source, and
    which may be constants."""
    with pytest.raises(MappingError) as caught:
        load(schema=record(field("id", "string")))
    message = str(caught.value)
    assert "event_id, event_name, event_time, action_source have no source" in message
    assert message.endswith("or a value for all events in [constants]: event_name and action_source")


def test_a_packaged_line_that_does_not_fit_is_named_as_such() -> None:
    """If a packaged line does not fit the schema, the error says that the line is the packaged mapping's, and
    how to remove it."""
    others = [one for one in SCHEMA["fields"] if one["name"] != "language"]
    schema = record(*others, field("language", avro.map_of("string")))
    with pytest.raises(
        MappingError, match=r"'language' is a map: .*language\.<key>; .* is the packaged mapping's: .*"
    ):
        load(schema=schema)
    with pytest.raises(MappingError) as caught:
        load('[fields]\nlanguage = "language"', schema=schema)
    assert "packaged" not in str(caught.value)
    assert "language" not in load('[fields]\n"language" = ""', schema=schema).sources


def test_sources_of_packaged_lines_alone_are_known() -> None:
    """The mapping knows which sources come only from packaged lines, so that `check` can show them."""
    mapping = load('[fields]\nlanguage = ""\nevent_id = "event_id"', schema=BARE)
    assert mapping.proposed == {"event_name", "event_time", "action_source"}


def test_constants_are_sent_in_normal_form() -> None:
    """A constant goes through its field's rule once, at start: it is hashed, cut or put in upper case."""
    constants = load(
        """
        [constants]
        language = "de-AT"
        opt_out = true
        action_source = "offline"
        [constants.user_data]
        country = "Germany"
        [constants.custom_data]
        currency = "eur"
        value = 27.50
        predicted_ltv = "1e3"
        """
    ).constants
    assert constants["language"] == "de"
    assert constants["opt_out"] is True
    assert constants["action_source"] == "offline"
    assert constants["user_data.country"] == [hashlib.sha256(b"de").hexdigest()]
    assert constants["custom_data.currency"] == "EUR"
    assert constants["custom_data.value"] == "27.5"
    assert constants["custom_data.predicted_ltv"] == "1000"


def test_targets_fake_payload_order() -> None:
    """A mapping has its fields in the order of a payload, whatever the order in the file."""
    names = list(load('[fields]\n"custom_data.content_name" = "page_url"').sources)
    assert names == sorted(names, key=list(TARGETS).index)


def test_the_external_id_setting_chooses_the_rule() -> None:
    """With ``as_written`` the external id is hashed in its own case; with ``lower`` in lower case."""
    lower, written = load(), load('external_id_case = "as_written"')
    rule, other = lower.target("user_data.external_id").rule, written.target("user_data.external_id").rule
    assert rule("AbC") == rule("abc") == other("abc") != other("AbC")
