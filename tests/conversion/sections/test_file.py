"""Sections of a mapping file: what applies to which record type on which topic, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumer.avro.decode import Decoder
from consumer.avro.paths import SchemaPaths
from consumer.conversion.computed.expressions import Computed
from consumer.conversion.sections import Sections
from consumer.engine.model import Filtered, Rejection
from consumer.errors import MappingError, PinstreamError, SchemaError
from tests.conversion.sections.shop import CLICK, MAPPING, ORDER, SIGNUP, UNION, loaded

EVERY = """
[constants]
action_source = "web"
event_name = "checkout"
"""


def path_of(sections: Sections, record: str, topic: str | None, field: str) -> str:
    """The path that fills a field of this record type on this topic."""
    number = sections.choose(record, topic)
    assert isinstance(number, int)
    return sections.all[number - 1].mapping.sources[field].path


def test_the_narrower_layer_wins_key_by_key(tmp_path: Path) -> None:
    """Topic over top, record type over topic, both together over all; other keys stay."""
    sections = loaded(
        tmp_path,
        f"""{EVERY}
        [fields]
        event_id = "id"
        event_time = "at"
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
    # A signup has no state: the topic's line is a proposal there, and the wider one stands.
    assert path_of(sections, "com.shop.Signup", "web", external) == "id"
    assert path_of(sections, "com.shop.Order", "web", "event_id") == "id"


def test_what_is_shared_is_a_proposal_where_a_schema_lacks_it(tmp_path: Path) -> None:
    """The top of the file names paths of some record types; the others go without, or have their own."""
    sections = loaded(tmp_path)
    assert path_of(sections, "com.shop.Click", None, "event_id") == "click"
    assert path_of(sections, "com.shop.Order", None, "user_data.em") == "email"
    assert path_of(sections, "com.shop.Signup", None, "user_data.em") == "member.mail"
    assert [section.mapping.time_unit for section in sections.all][:2] == ["milliseconds", "seconds"]


def test_a_file_without_sections_is_one_mapping_for_all(tmp_path: Path) -> None:
    """As it always was: for PINSTREAM_SCHEMA, whatever record type is read."""
    toml = EVERY + '[fields]\nevent_id = "id"\nevent_time = "at"\n"user_data.em" = "email"'
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order")
    assert (sections.typed, sections.names) == (False, ())
    assert [section.record for section in sections.all] == ["com.shop.Order"]
    with pytest.raises(MappingError, match="'emial' is not in the schema"):
        loaded(tmp_path, toml.replace('"email"', '"emial"'), schema_name="com.shop.Order")


def test_topics_alone_divide_the_one_record_type(tmp_path: Path) -> None:
    """Without sections for record types, all that is read is PINSTREAM_SCHEMA; its lines must hold."""
    toml = f"""{EVERY}
    [fields]
    event_id = "id"
    event_time = "at"
    [topic."a".fields]
    "user_data.em" = "email"
    [topic."b".fields]
    "user_data.em" = "state"
    """
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order")
    assert path_of(sections, "com.shop.Order", "a", "user_data.em") == "email"
    assert path_of(sections, "com.shop.Order", "b", "user_data.em") == "state"
    # A name that resolution takes for the same.
    assert path_of(sections, "com.other.Order", "b", "user_data.em") == "state"
    assert isinstance(sections.choose("com.shop.Click", "a"), Rejection)
    with pytest.raises(MappingError, match=r'\[topic."b"\]: .*member.mail'):
        loaded(tmp_path, toml.replace('"state"', '"member.mail"'), schema_name="com.shop.Order")


def test_pinstream_schema_is_mapped_beside_sections_if_it_is_named(tmp_path: Path) -> None:
    """What nobody asked for is not mapped: then the packaged schema need not be there."""
    assert loaded(tmp_path).records == ("com.shop.Order", "com.shop.Click", "com.shop.Signup")
    toml = EVERY + '[fields]\nevent_id = "id"\nevent_time = "at"\n[record."com.shop.Signup"]'
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order", is_named=True)
    assert sections.records == ("com.shop.Order", "com.shop.Signup")


def test_record_types_of_a_union_in_the_folder_are_found(tmp_path: Path) -> None:
    """One file with the union is enough; a type that its branches refer to comes with it."""
    assert loaded(tmp_path, MAPPING, UNION).records == ("com.shop.Order", "com.shop.Click", "com.shop.Signup")


@pytest.mark.parametrize("unknown", ["refuse", "filter"])
def test_record_types_that_no_section_maps(unknown: str, tmp_path: Path) -> None:
    """Refused with a code of its own that says what to do, or filtered."""
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
    """One mapping, and what is of another record type is not sent."""
    toml = f'unknown_record = "filter"\n{EVERY}[fields]\nevent_id = "id"\nevent_time = "at"'
    sections = loaded(tmp_path, toml, schema_name="com.shop.Order")
    assert (sections.typed, sections.names) == (True, ())
    assert sections.choose("com.shop.Order", "t") == 1
    assert sections.choose("com.shop.Click", "t") == Filtered("unknown_record")
    Decoder(sections)


def test_an_alias_of_our_schema_belongs_to_its_section(tmp_path: Path) -> None:
    """A producer that has not renamed its record yet goes on to be read."""
    sections = loaded(tmp_path)
    assert sections.choose("com.oldshop.Purchase", None) == sections.choose("com.shop.Order", None)
    assert isinstance(sections.choose("com.otherteam.Order", None), Rejection)
    twice = {**SIGNUP, "aliases": ["com.oldshop.Purchase"]}
    with pytest.raises(MappingError, match=r"com.shop.Order and com.shop.Signup both have the alias"):
        loaded(tmp_path, MAPPING, ORDER, CLICK, twice)


def test_a_record_type_may_be_mapped_on_some_topics_only(tmp_path: Path) -> None:
    """It is complete there; elsewhere it counts as not mapped, which start and `check` tell."""
    toml = MAPPING.replace('[record."com.shop.Click".fields]', '[record."com.shop.Click".topic."web".fields]')
    sections = loaded(tmp_path, toml)
    assert isinstance(sections.choose("com.shop.Click", "web"), int)
    elsewhere = sections.choose("com.shop.Click", "other")
    assert isinstance(elsewhere, Rejection)
    assert "event_id and event_time have no source" in elsewhere.message.replace(", ", " and ")
    assert any(
        "com.shop.Click on topics that have no section of their own" in one for one in sections.warnings
    )


def test_a_missing_path_goes_before_an_operand_of_the_wrong_kind(tmp_path: Path) -> None:
    """A shared line is left out where the schema lacks one of its paths, whatever it has at the others."""
    line = '"custom_data.order_id" = { join = ["total", "state"] }'
    other = {**SIGNUP, "fields": [*SIGNUP["fields"], {"name": "total", "type": "boolean"}]}
    sections = loaded(tmp_path, MAPPING.replace("[fields]", f"[fields]\n{line}", 1), ORDER, CLICK, other)
    assert path_of(sections, "com.shop.Order", None, "custom_data.order_id") == "total, state"
    number = sections.choose("com.shop.Signup", None)
    assert isinstance(number, int)
    assert "custom_data.order_id" not in sections.all[number - 1].mapping.sources


def test_a_shared_branch_is_left_out_where_there_is_no_such_path(tmp_path: Path) -> None:
    """As every shared line; where the path ends at no record, the line is a mistake."""
    line = '[topic."web".fields]\n"custom_data.order_id" = { branch = "member" }\n'
    sections = loaded(tmp_path, MAPPING + line)
    assert path_of(sections, "com.shop.Signup", "web", "custom_data.order_id") == "member"
    number = sections.choose("com.shop.Order", "web")
    assert isinstance(number, int)
    assert "custom_data.order_id" not in sections.all[number - 1].mapping.sources
    with pytest.raises(MappingError, match=r"'email' is no record but string; this line is of my.toml"):
        loaded(tmp_path, MAPPING + line.replace("member", "email"))


def test_a_country_of_phone_numbers_is_a_proposal_where_it_is_shared(tmp_path: Path) -> None:
    """A record type without numbers, or without the country, goes without; a narrower one goes before."""
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
    assert path_of(sections, "com.shop.Order", "home", "user_data.ph") == "email"  # with a country for all
    number = sections.choose("com.shop.Order", "home")
    assert isinstance(number, int)
    assert isinstance(sections.all[number - 1].mapping.sources["user_data.ph"], Computed)
    number = sections.choose("com.shop.Order", "abroad")
    assert isinstance(number, int)
    assert not isinstance(sections.all[number - 1].mapping.sources["user_data.ph"], Computed)
    assert path_of(sections, "com.shop.Signup", None, "user_data.ph") == "member.mail"


def test_a_shared_key_that_a_schema_lacks_makes_way_for_the_wider_one(tmp_path: Path) -> None:
    """As every shared line does; a record type that has neither goes without."""
    lines = '[dedup]\nkey = "id"\n[topic."web".dedup]\nkey = "click"\n'
    sections = loaded(tmp_path, MAPPING + lines)
    keys = {one.name: one.mapping.dedup_key for one in sections.all}
    paths = {name: None if key is None else key.path for name, key in keys.items()}
    assert paths["com.shop.Click"] is None
    assert paths["com.shop.Click on web"] == "click"
    assert paths["com.shop.Order on web"] == paths["com.shop.Order"] == "id"


def test_many_sections_are_read_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a proposal would be mistaken for is not looked for: it takes a look at every path of the schema."""

    def looked(*_: object) -> str:
        raise AssertionError("a message was made that nobody reads")

    monkeypatch.setattr(SchemaPaths, "_nearest", looked)
    topics = "".join(f'[record."com.shop.Order".topic."t{number}"]\n' for number in range(100))
    assert len(loaded(tmp_path, MAPPING + topics).all) == 104


def test_consent_is_never_a_proposal(tmp_path: Path) -> None:
    """Else events of shoppers who did not consent would be sent, wherever the path is missing."""
    toml = f'{MAPPING}\n[consent]\nrequire = "consent"\n'
    with pytest.raises(
        MappingError, match=r'com.shop.Click.*\[consent\] require: .consent. is not in the schema.*""'
    ):
        loaded(tmp_path, toml)
    none = "".join(f'[record."com.shop.{name}".consent]\nrequire = ""\n' for name in ("Click", "Signup"))
    sections = loaded(tmp_path, toml + none)
    assert [section.mapping.consent is None for section in sections.all] == [False, True, True, True]


def test_values_that_are_allowed_belong_to_their_path(tmp_path: Path) -> None:
    """A section with another path of consent does not inherit the values of the wider one."""
    sections = loaded(
        tmp_path,
        f"""{EVERY}
        [fields]
        event_id = "id"
        event_time = "at"
        [consent]
        require = "id"
        allowed = ["yes"]
        [record."com.shop.Signup"]
        [record."com.shop.Order".consent]
        require = "consent"
        """,
    )
    consents = {one.record: one.mapping.consent for one in sections.all}
    assert consents["com.shop.Signup"] is not None
    assert consents["com.shop.Signup"].allowed == ("yes",)
    assert consents["com.shop.Order"] is not None
    assert consents["com.shop.Order"].allowed == ()


def test_a_section_may_leave_a_shared_line_out(tmp_path: Path) -> None:
    """An empty line takes it away there only."""
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
def test_what_is_wrong_is_told_with_its_place(toml: str, said: str, tmp_path: Path) -> None:
    """File, section and key are named, and what to do."""
    other = '[record."com.shop.Signup".constants]\nevent_name = "signup"\n'
    base = f'{EVERY}\n[fields]\nevent_id = "id"\nevent_time = "at"\n'
    click = '[record."com.shop.Click".fields]\nevent_id = "click"\nevent_time = "seconds"\n'
    order = "" if "Order" in toml else '[record."com.shop.Order"]\n'
    # Lines without a table go on with [fields]; a setting stands first.
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
    """Pinterest registers fifteen for the advertiser, not for a record type."""
    names = [f'[record."com.shop.{record}".own_events]\nnames = {[f"{record}{n}" for n in range(8)]}\n'
             for record in ("Order", "Click")]  # fmt: skip
    with pytest.raises(MappingError, match="all sections declare 16 names"):
        loaded(tmp_path, MAPPING + "".join(names))


def test_a_schema_that_is_not_there_names_the_section(tmp_path: Path) -> None:
    """With the name that is spelled most like it."""
    with pytest.raises(SchemaError, match=r'my.toml \[record."com.shop.Signup"\]: no .avsc file in'):
        loaded(tmp_path, MAPPING, ORDER, CLICK)
