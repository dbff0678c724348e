"""Sections of a mapping file: what applies to which record type on which topic, and which mistakes are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from consumer.avro.decode import Decoder
from consumer.avro.paths import SchemaPaths, Source
from consumer.conversion.computed import tables
from consumer.conversion.computed.expressions import Computed, Expression
from consumer.conversion.computed.operators import Condition
from consumer.conversion.sections import Sections
from consumer.engine.model import Filtered, Rejection
from consumer.errors import MappingError, PinstreamError, SchemaError
from tests.conversion.sections.shop import CLICK, MAPPING, ORDER, SIGNUP, UNION, loaded
from tests.support import avro

EVERY = """
[constants]
action_source = "web"
event_name = "checkout"
"""
BASE = f'{EVERY}[fields]\nevent_id = "id"\nevent_time = "at"\n'


def sources_of(sections: Sections, record: str, topic: str | None = None) -> dict[str, Expression]:
    """Return the sources of this record type on this topic."""
    number = sections.choose(record, topic)
    assert isinstance(number, int)
    return sections.all[number - 1].mapping.sources


def path_of(sections: Sections, record: str, topic: str | None, field: str) -> str:
    """Return the path that fills a field of this record type on this topic."""
    return sources_of(sections, record, topic)[field].path


def test_the_narrower_layer_wins_key_by_key(tmp_path: Path) -> None:
    """Key by key, a topic's line goes before the top of the file, a record type's before a topic's, and that of
    both together before all."""
    sections = loaded(
        tmp_path,
        f"""{BASE}
        "user_data.external_id" = "id"
        [topic."web".fields]
        "user_data.external_id" = "state"
        "custom_data.order_id" = "state"
        [record."com.shop.Order".fields]
        "user_data.external_id" = "email"
        [record."com.shop.Order".topic."web".fields]
        "user_data.external_id" = "state"
        [record."com.shop.Signup"]
        """,
    )
    assert sections.names == (
        "com.shop.Order", "com.shop.Order on web", "com.shop.Signup", "com.shop.Signup on web",
    )  # fmt: skip
    external = "user_data.external_id"
    assert path_of(sections, "com.shop.Order", "web", external) == "state"
    assert path_of(sections, "com.shop.Order", "other", external) == "email"
    assert path_of(sections, "com.shop.Order", "web", "custom_data.order_id") == "state"
    assert path_of(sections, "com.shop.Signup", "other", external) == "id"
    # A signup has no state, so the topic's line is omitted and the wider one counts.
    assert path_of(sections, "com.shop.Signup", "web", external) == "id"
    assert path_of(sections, "com.shop.Order", "web", "event_id") == "id"


def test_what_is_shared_is_a_proposal_where_a_schema_lacks_it(tmp_path: Path) -> None:
    """A shared line is omitted for record types whose schema lacks its path, and they may have a line of their own."""
    sections = loaded(tmp_path)
    assert path_of(sections, "com.shop.Click", None, "event_id") == "click"
    assert path_of(sections, "com.shop.Order", None, "user_data.em") == "email"
    assert path_of(sections, "com.shop.Signup", None, "user_data.em") == "member.mail"
    assert [section.mapping.time_unit for section in sections.all][:2] == ["milliseconds", "seconds"]


def test_a_file_without_sections_is_one_mapping_for_all(tmp_path: Path) -> None:
    """A file without sections is one mapping for PINSTREAM_SCHEMA, whatever record type is read, and a path
    that its schema lacks is an error."""
    toml = BASE + '"user_data.em" = "email"'
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order")
    assert (sections.typed, sections.names) == (False, ())
    assert [section.record for section in sections.all] == ["com.shop.Order"]
    with pytest.raises(MappingError, match="'emial' is not in the schema"):
        loaded(tmp_path, toml.replace('"email"', '"emial"'), schema_name="com.shop.Order")


def test_topics_alone_divide_the_one_record_type(tmp_path: Path) -> None:
    """With sections for topics only, all records are of PINSTREAM_SCHEMA, and a path that its schema lacks is
    an error."""
    toml = f"""{BASE}
    [topic."a".fields]
    "user_data.em" = "email"
    [topic."b".fields]
    "user_data.em" = "state"
    """
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order")
    assert path_of(sections, "com.shop.Order", "a", "user_data.em") == "email"
    assert path_of(sections, "com.shop.Order", "b", "user_data.em") == "state"
    # Schema resolution ignores the namespace.
    assert path_of(sections, "com.other.Order", "b", "user_data.em") == "state"
    assert isinstance(sections.choose("com.shop.Click", "a"), Rejection)
    with pytest.raises(MappingError, match=r'\[topic."b"\]: .*member.mail'):
        loaded(tmp_path, toml.replace('"state"', '"member.mail"'), schema_name="com.shop.Order")


def test_pinstream_schema_is_mapped_beside_sections_if_it_is_named(tmp_path: Path) -> None:
    """PINSTREAM_SCHEMA is mapped beside the sections only if it is set; otherwise the packaged schema is not needed."""
    assert loaded(tmp_path).records == ("com.shop.Order", "com.shop.Click", "com.shop.Signup")
    toml = BASE + '[record."com.shop.Signup"]'
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order", is_named=True)
    assert sections.records == ("com.shop.Order", "com.shop.Signup")


def test_record_types_of_a_union_in_the_folder_are_found(tmp_path: Path) -> None:
    """Record types are found in a file with only a union, with the types that its branches refer to."""
    assert loaded(tmp_path, MAPPING, UNION).records == ("com.shop.Order", "com.shop.Click", "com.shop.Signup")


@pytest.mark.parametrize("unknown", ["refuse", "filter"])
def test_record_types_that_no_section_maps(unknown: str, tmp_path: Path) -> None:
    """A record type without a section is refused with a code of its own and what to do, or filtered."""
    sections = loaded(tmp_path, f'unknown_record = "{unknown}"\n{MAPPING}')
    for name, said in (("com.shop.Refund", 'add [record."com.shop.Refund"]'), ("null", "the datum is null")):
        chosen = sections.choose(name, "web.orders")
        if unknown == "filter":
            assert chosen == Filtered("unknown_record")
        else:
            assert isinstance(chosen, Rejection)
            assert (chosen.stage.value, chosen.code) == ("decode", "unknown_record")
            assert said in chosen.message


def test_filtering_needs_no_sections(tmp_path: Path) -> None:
    """``unknown_record = "filter"`` works without sections: records of other types are filtered."""
    toml = f'unknown_record = "filter"\n{EVERY}[fields]\nevent_id = "id"\nevent_time = "at"'
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order")
    assert (sections.typed, sections.names) == (True, ())
    assert sections.choose("com.shop.Order", "t") == 1
    assert sections.choose("com.shop.Click", "t") == Filtered("unknown_record")
    Decoder(sections)


def test_an_alias_of_our_schema_belongs_to_its_section(tmp_path: Path) -> None:
    """Records under an alias of a schema belong to its section, so that producers may rename later."""
    sections = loaded(tmp_path)
    assert sections.choose("com.oldshop.Purchase", None) == sections.choose("com.shop.Order", None)
    assert isinstance(sections.choose("com.otherteam.Order", None), Rejection)
    twice = {**SIGNUP, "aliases": ["com.oldshop.Purchase"]}
    with pytest.raises(MappingError, match=r"com.shop.Order and com.shop.Signup both have the alias"):
        loaded(tmp_path, MAPPING, ORDER, CLICK, twice)


def test_a_record_type_may_be_mapped_on_some_topics_only(tmp_path: Path) -> None:
    """A record type may be mapped on some topics only; on others it counts as not mapped, with a warning."""
    toml = MAPPING.replace('[record."com.shop.Click".fields]', '[record."com.shop.Click".topic."web".fields]')
    sections = loaded(tmp_path, toml)
    assert isinstance(sections.choose("com.shop.Click", "web"), int)
    other = sections.choose("com.shop.Click", "other")
    assert isinstance(other, Rejection)
    assert "event_id and event_time have no source" in other.message.replace(", ", " and ")
    assert any(
        "com.shop.Click on topics that have no section of their own" in one for one in sections.warnings
    )


def test_a_missing_path_goes_before_an_operand_of_the_wrong_kind(tmp_path: Path) -> None:
    """A shared line is omitted where the schema lacks one of its paths, even if another path is of the wrong type."""
    line = '"custom_data.order_id" = { join = ["total", "state"] }'
    other = {**SIGNUP, "fields": [*SIGNUP["fields"], avro.field("total", "boolean")]}
    sections = loaded(tmp_path, MAPPING.replace("[fields]", f"[fields]\n{line}", 1), ORDER, CLICK, other)
    assert path_of(sections, "com.shop.Order", None, "custom_data.order_id") == "total, state"
    assert "custom_data.order_id" not in sources_of(sections, "com.shop.Signup")


def test_a_shared_branch_is_omitted_where_there_is_no_such_path(tmp_path: Path) -> None:
    """A shared ``branch`` is omitted where the schema lacks its path; where the path is no record, the line is
    an error."""
    line = '[topic."web".fields]\n"custom_data.order_id" = { branch = "member" }\n'
    sections = loaded(tmp_path, MAPPING + line)
    assert path_of(sections, "com.shop.Signup", "web", "custom_data.order_id") == "member"
    assert "custom_data.order_id" not in sources_of(sections, "com.shop.Order", "web")
    with pytest.raises(MappingError, match=r"'email' is no record but string; this line is of my.toml"):
        loaded(tmp_path, MAPPING + line.replace("member", "email"))


def test_a_country_of_phone_numbers_is_a_proposal_where_it_is_shared(tmp_path: Path) -> None:
    """A shared ``phone_country`` is omitted for record types without phone numbers or without its path, and a
    narrower line goes before it."""
    sections = loaded(
        tmp_path,
        f"""phone_country = "state"
        {EVERY}
        [fields]
        event_id = "id"
        event_time = "at"
        [record."com.shop.Order".fields]
        "user_data.ph" = "email"
        [record."com.shop.Order".topic."home"]
        phone_country = "AT"
        [record."com.shop.Order".topic."abroad"]
        phone_country = ""
        [record."com.shop.Signup".fields]
        "user_data.ph" = "member.mail"
        [record."com.shop.Click".fields]
        event_id = "click"
        event_time = "seconds"
        """,
    )
    assert path_of(sections, "com.shop.Order", None, "user_data.ph") == "email, state"
    assert path_of(sections, "com.shop.Order", "home", "user_data.ph") == "email"  # the country is a constant
    assert isinstance(sources_of(sections, "com.shop.Order", "home")["user_data.ph"], Computed)
    assert not isinstance(sources_of(sections, "com.shop.Order", "abroad")["user_data.ph"], Computed)
    assert path_of(sections, "com.shop.Signup", None, "user_data.ph") == "member.mail"


def test_a_shared_key_that_a_schema_lacks_makes_way_for_the_wider_one(tmp_path: Path) -> None:
    """Where a schema lacks the path of a shared dedup key, the next wider line counts; if it lacks both, there
    is no key."""
    lines = '[dedup]\nkey = "id"\n[topic."web".dedup]\nkey = "click"\n'
    sections = loaded(tmp_path, MAPPING + lines)
    keys = {one.name: one.mapping.dedup_key for one in sections.all}
    paths = {name: None if key is None else key.path for name, key in keys.items()}
    assert paths["com.shop.Click"] is None
    assert paths["com.shop.Click on web"] == "click"
    assert paths["com.shop.Order on web"] == paths["com.shop.Order"] == "id"


def test_many_sections_are_read_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearest name is not looked up for shared lines that are omitted, which would go over all paths of
    the schema for each section."""

    def checked(*_: object) -> str:
        raise AssertionError("a message was made that nobody reads")

    monkeypatch.setattr(SchemaPaths, "_nearest", checked)
    topics = "".join(f'[record."com.shop.Order".topic."t{number}"]\n' for number in range(100))
    assert len(loaded(tmp_path, MAPPING + topics).all) == 104


def test_consent_is_never_a_proposal(tmp_path: Path) -> None:
    """A shared line of consent is never omitted: a missing path is an error, since events without consent
    would be sent."""
    toml = f'{MAPPING}\n[consent]\nrequire = "consent"\n'
    with pytest.raises(
        MappingError, match=r'com.shop.Click.*\[consent\] require: .consent. is not in the schema.*""'
    ):
        loaded(tmp_path, toml)
    none = "".join(f'[record."com.shop.{name}".consent]\nrequire = ""\n' for name in ("Click", "Signup"))
    sections = loaded(tmp_path, toml + none)
    assert [section.mapping.consent is None for section in sections.all] == [False, True, True, True]


def test_values_that_are_allowed_belong_to_their_path(tmp_path: Path) -> None:
    """A section with its own path of consent does not inherit the allowed values of the wider one."""
    sections = loaded(
        tmp_path,
        f"""{BASE}
        [consent]
        require = "id"
        allowed = ["yes"]
        [record."com.shop.Signup"]
        [record."com.shop.Order".consent]
        require = "consent"
        """,
    )
    consents = {one.record: one.mapping.consent for one in sections.all}
    by_value, by_flag = consents["com.shop.Signup"], consents["com.shop.Order"]
    assert isinstance(by_value, Condition)
    assert (by_value.path, by_value.allowed) == ("id", ("yes",))
    assert isinstance(by_flag, Source)
    assert by_flag.path == "consent"


def typed(name: str, kinds: list[str], asks: list[str]) -> dict[str, Any]:
    """Return a record type whose events have these types and these answers to the question for consent."""
    kind = {"type": "enum", "name": f"{name}Kind", "symbols": kinds}
    ask = {"type": "enum", "name": f"{name}Ask", "symbols": asks}
    fields = {"id": "string", "at": "long", "kind": kind, "ask": ask}
    return {
        "type": "record",
        "name": name,
        "namespace": "com.shop",
        "fields": [avro.field(key, type_) for key, type_ in fields.items()],
    }


TYPED: Final = (typed("Order", ["PAID", "OPEN"], ["YES", "NO"]), typed("Click", ["SEEN"], ["GRANTED", "NO"]))
SHARED: Final = """
[constants]
action_source = "web"
[fields]
event_id = "id"
event_time = "at"
event_name = "kind"
[record."com.shop.Order"]
[record."com.shop.Click"]
"""


def test_values_that_sections_share_are_those_of_any_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event type or an allowed consent that sections share may be one that only some of their schemas have. For the
    others, no nearest name is looked for, which nobody would read."""

    def checked(*_: object) -> str:
        raise AssertionError("a message was made that nobody reads")

    monkeypatch.setattr(tables, "or_all", checked)
    lines = """
    [event_names]
    PAID = "checkout"
    SEEN = "page_visit"
    [consent]
    require = "ask"
    allowed = ["YES", "GRANTED"]
    """
    assert len(loaded(tmp_path, SHARED + lines, *TYPED).all) == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('[event_names]\nPAID = "checkout"\nSEN = "page_visit"',
         r"^my.toml: \[event_names\] .SEN.: no section that shares this line has .*; the nearest is .SEEN.$"),
        ('[consent]\nrequire = "ask"\nallowed = ["YES", "GRANTED", "NOO"]',
         r"^my.toml: \[consent\] allowed, 'NOO': no section that shares this line .* the nearest is 'NO'$"),
        # Without an answer that is consent, all events of this type would be filtered.
        ('[consent]\nrequire = "ask"\nallowed = ["YES"]',
         r"\(?com.shop.Click.*\[consent\] allowed: .ask. is never .YES.; known: .GRANTED., .NO."),
        ('[record."com.shop.Click".event_names]\nPAID = "checkout"',
         r'^my.toml \[record."com.shop.Click"\]: \[event_names\] .PAID.: .kind. is never .PAID.; known: .SEEN.'),
        ('[topic."web".event_names]\nPAYD = "checkout"',
         r'^my.toml \[topic."web"\]: \[event_names\] .PAYD.: no section .* the nearest is .PAID.$'),
    ],
)  # fmt: skip
def test_a_value_that_no_section_has_is_an_error(lines: str, said: str, tmp_path: Path) -> None:
    """A value that is in no schema of the sections that share it is misspelled, and so is one that is not in the schema
    of the section that names it."""
    with pytest.raises(MappingError, match=said):
        loaded(tmp_path, f"{SHARED}{lines}\n", *TYPED)


def test_a_section_may_leave_a_shared_line_out(tmp_path: Path) -> None:
    """An empty line in a section removes a shared line there only."""
    sections = loaded(tmp_path, f'{MAPPING}\n[record."com.shop.Click".fields."user_data"]\nem = ""\n')
    by_name = {section.name: section.mapping for section in sections.all}
    assert "user_data.em" not in by_name["com.shop.Click"].sources
    assert "user_data.em" in by_name["com.shop.Order"].sources


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('"user_data.ph" = "fone"', r"my.toml: \[fields\] 'user_data.ph': 'fone' is in no schema of the sections"),
        ('"user_data.ph" = "emial"', r"the nearest is 'email' \(com.shop"),
        ('[dedup]\nkey = "nothing"', r"\[dedup\] 'key': 'nothing' is in no schema"),
        ('[record."com.shop.Order".fields]\n"user_data.ph" = "page"', r'\[record."com.shop.Order"\]: .*page'),
        ('[record."com.shop.Ordr"]', r'\[record."com.shop.Ordr"\]: no .avsc file .* the nearest is .com.shop.Order'),
        ("[record.com.shop.Order.fields]", r"a name with dots is quoted: \[record.\"com.shop…\"\]"),
        ('[record."com.shop.Order".field]\nevent_id = "id"', "'field' is not a mapping key; the nearest is 'fields'"),
        ('[record."com.shop.Order"]\nunknown_record = "filter"', "for all sections: write it at the top"),
        ('[record."com.shop.Order"]\nfelds = 1', r"'felds' is not a mapping key; the nearest is 'fields'"),
        ('[record."com.shop.Order"]\nevent_id = "id"', r"write \[record.\"com.shop.Order\".fields\]"),
        ('[topic."a".record."com.shop.Order"]', "the record type first"),
        ('[topic."a"]\ntopic = 1', "a section for a topic has no topics of its own"),
        ('[topic."a".topic."b"]', "a section for a topic has no topics of its own"),
        ('[topic."a".constants]\ntime_unit = "seconds"', "or directly below the header of a section"),
        ('[record."com.shop.Order"]\ntime_unit = "sec"', r'^my.toml \[record."com.shop.Order"\]: time_unit must be'),
        ('time_unit = "sec"', r"^my.toml: time_unit must be one of"),
        ('phone_country = "DE"', r"^my.toml: phone_country has no numbers"),
        ('[topic."a"]\nphone_country = "contry"\n[topic."a".fields]\n"user_data.ph" = "email"',
         r'^my.toml \[topic."a"\]: phone_country: .contry. is in no schema of the sections'),
        ("record = 1", r"record is a table: write \[record"),
        ("[record]\nfields = 1", "'fields' is a setting of no section"),
        ('[topic."a".fields]\n"user_data.ph" = "fone"', r'\[topic."a"\]: \[fields\] .user_data.ph.: .fone. is in no'),
        ('[topic."a".fields]\n"user_data.db" = "consent"', r"takes a date.*this line is of my.toml \[topic"),
        ('[record."com.shop.Click".topic."a".fields]\nevent_id = ""', r"event_id has no source"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_reported_with_its_place(toml: str, said: str, tmp_path: Path) -> None:
    """A mistake is named with its file, section and key."""
    other = '[record."com.shop.Signup".constants]\nevent_name = "signup"\n'
    base = BASE
    click = '[record."com.shop.Click".fields]\nevent_id = "click"\nevent_time = "seconds"\n'
    order = "" if "Order" in toml else '[record."com.shop.Order"]\n'
    # Lines without a table follow [fields]; a setting has to come first.
    whole = (
        f"{toml}\n{base}{click}{order}" if toml == "record = 1" else f"{base}{toml}\n{click}{other}{order}"
    )
    if toml.startswith(("record =", "[record]")):
        whole = f"{toml}\n{base}"
    if toml.startswith(("time_unit", "phone_country")):
        whole = f"{toml}\n{base}\n{click}{other}{order}"
    with pytest.raises(PinstreamError, match=said):
        loaded(tmp_path, whole)


def test_too_many_event_names_of_all_sections(tmp_path: Path) -> None:
    """The event names of all sections together are limited to fifteen, which is what Pinterest registers for an
    advertiser."""
    names = [f'[record."com.shop.{record}".own_events]\nnames = {[f"{record}{n}" for n in range(8)]}\n'
             for record in ("Order", "Click")]  # fmt: skip
    with pytest.raises(MappingError, match="declares 16 names in all"):
        loaded(tmp_path, MAPPING + "".join(names))


def test_a_schema_that_is_not_there_names_the_section(tmp_path: Path) -> None:
    """A schema that does not exist is an error that names the section."""
    with pytest.raises(SchemaError, match=r'my.toml \[record."com.shop.Signup"\]: no .avsc file in'):
        loaded(tmp_path, MAPPING, ORDER, CLICK)
