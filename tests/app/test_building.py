"""Messages about mistakes that show when the parts are built from the settings."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from consumer.app import building
from consumer.app.run import member
from consumer.conversion.program import COMPILED
from consumer.engine.model import PLATFORM_URL, REAL_API, destination_tag, differing
from consumer.errors import PinstreamError, SchemaError, SettingsError
from consumer.settings import PinstreamSettings, load
from consumer.settings.values import SecretFile
from tests.settings.environment import with_


async def test_what_a_mapping_should_change_is_logged_at_start(tmp_path: Path) -> None:
    """A record type that is mapped on one topic only is accepted, and a line says so."""
    file = tmp_path / "mapping.toml"
    file.write_text(
        '[fields]\nevent_id = ""\n'
        '[record."commerce.v1.CommerceEvent".topic."web".fields]\nevent_id = "event_id"'
    )
    settings = with_(HOME=str(tmp_path), PINSTREAM_MAPPING_FILE=str(file), PINSTREAM_KEY_STORE="memory:")
    with capture_logs() as lines:
        async with member(settings):
            pass
    [line] = [line for line in lines if line["event"] == "setting"]
    assert line["log_level"] == "warning"
    assert "on topics that have no section of their own have no mapping" in line["text"]


LIMITS = {
    "batch_events": ("400", 400),
    "linger": ("2s", 2.0),
    "concurrency": ("3", 3),
    "calls_per_minute": ("77", 77),
    "max_open_events": ("900", 900),
    "max_open_bytes": ("2MiB", 2 << 20),
    "halt_patience": ("3m", 180.0),
    "schema_patience": ("4m", 240.0),
    "dedup_window": ("7h", 25_200.0),
    "dead_letter_share": ("0.3", 0.3),
    "dead_letter_sample": ("60", 60),
}
"""Settings that limit the engine: a text unlike the default, and what the engine gets."""


def test_the_engine_has_the_limits_of_the_settings(tmp_path: Path) -> None:
    """Each limit of the engine is what was set, and no setting that the engine knows by the same name is omitted."""
    texts = {f"PINSTREAM_{name.upper()}": text for name, (text, _) in LIMITS.items()}
    limits = asdict(building.policy(load({"HOME": str(tmp_path), **texts}, needs=())))
    assert {name: limits[name] for name in LIMITS} == {name: value for name, (_, value) in LIMITS.items()}
    # These two are not limits.
    assert PinstreamSettings.model_fields.keys() & limits.keys() == LIMITS.keys() | {
        "destination",
        "transform",
    }


def test_what_is_no_setting_follows_the_settings(tmp_path: Path) -> None:
    """A call is never larger than the budget, and a slow call is no stall."""
    limits = building.policy(load({"HOME": str(tmp_path)}, needs=()))
    assert (limits.batch_bytes, limits.commit_interval, limits.stall_after) == (4 << 20, 1.0, 120.0)
    texts = {
        "PINSTREAM_MAX_OPEN_BYTES": "64KiB",
        "PINSTREAM_REQUEST_TIMEOUT": "10m",
        "PINSTREAM_LINGER": "1m",
    }
    limits = building.policy(load({"HOME": str(tmp_path), **texts}, needs=()))
    assert (limits.batch_bytes, limits.stall_after) == (64 << 10, 1320.0)


def test_modules_that_were_compiled_from_other_sources_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They would load, and leave every record to the slower path, which only the cost would show."""
    if COMPILED is None:
        pytest.skip("the package was built without a C compiler")
    settings = load({"HOME": str(tmp_path)}, needs=())
    building.pipeline(settings, building.sections(settings), building.policy(settings))
    monkeypatch.setattr(COMPILED, "SOURCES", "0" * 64)
    with pytest.raises(
        PinstreamError, match=r"native\._events was compiled from other sources .* `make setup`"
    ):
        building.pipeline(settings, building.sections(settings), building.policy(settings))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_state_folder_is_for_its_user_alone(umask: int, tmp_path: Path) -> None:
    """Whatever the umask is. One that is there keeps its mode: a volume may be shared with a group on purpose."""
    before = os.umask(umask)
    try:
        building.make_state_folder(tmp_path / "state")
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    (tmp_path / "state").chmod(0o750)
    building.make_state_folder(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o750


def decoder_of(field: object, folder: Path) -> None:
    """Make a decoder for a schema with this field."""
    needed = ("event_id", "event_type", "channel", "occurred_at")
    fields = [field, *({"name": name, "type": "string"} for name in needed)]
    schema = {"type": "record", "name": "E", "fields": fields}
    (folder / "e.avsc").write_text(json.dumps(schema))
    environ = {"PINSTREAM_SCHEMAS_DIR": str(folder), "PINSTREAM_SCHEMA": "E", "HOME": str(folder)}
    settings = load(environ, needs=())
    building.decoder(building.sections(settings))


@pytest.mark.parametrize(
    ("field", "error", "why"),
    [
        # Valid Avro, and refused since its records would have no bound.
        (
            {"name": "a", "type": {"type": "array", "items": "null"}},
            SettingsError,
            r"PINSTREAM_SCHEMA='E' cannot be read as: an array of null",
        ),
        # JSON can write half a character, which no text can hold.
        (
            {"name": "\ud800", "type": "int"},
            SchemaError,
            r"e\.avsc: a name in it contains a lone surrogate",
        ),
    ],
)
def test_a_schema_that_no_record_can_be_read_as_is_one_line(
    field: object, error: type[PinstreamError], why: str, tmp_path: Path
) -> None:
    """It names the setting, or the file."""
    with pytest.raises(error, match=why):
        decoder_of(field, tmp_path)


def test_a_secret_in_a_file_is_read_again_and_its_loss_is_logged(tmp_path: Path) -> None:
    """The proxy's login, the page's token and the key store's password have one rule: the last readable value
    stays in force."""
    file = tmp_path / "secret"
    file.write_text("s3cret-one\n")
    read = building.secret(SecretFile("PINSTREAM_HTTP_TOKEN_FILE", file))
    assert read is not None
    file.write_text("s3cret-the-second")
    assert read() == "s3cret-the-second"
    file.unlink()
    with capture_logs() as lines:
        assert [read(), read()] == ["s3cret-the-second"] * 2
    [line] = lines
    assert (line["event"], line["log_level"]) == ("token_trouble", "warning")
    assert "PINSTREAM_HTTP_TOKEN_FILE" in line["text"]
    assert "s3cret" not in line["text"]
    assert building.secret(None) is None


def test_a_secret_in_place_of_its_file_is_in_no_error(tmp_path: Path) -> None:
    """A secret that is given as its own path is not shown; a path that leads nowhere is."""
    with pytest.raises(
        SettingsError, match=r"^PINSTREAM_KEY_STORE_PASSWORD_FILE: its value cannot be read"
    ) as wrong:
        building.secret(SecretFile("PINSTREAM_KEY_STORE_PASSWORD_FILE", Path("s3cret-one")))
    assert "s3cret" not in str(wrong.value)
    with pytest.raises(
        SettingsError, match=f"^PINSTREAM_HTTP_TOKEN_FILE: {str(tmp_path / 'gone')!r} cannot be read"
    ):
        building.secret(SecretFile("PINSTREAM_HTTP_TOKEN_FILE", tmp_path / "gone"))


def test_the_fingerprint_changes_with_what_is_sent_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping's lines and the source of the function change their part of the fingerprint; its
    comments, and a token, change none."""
    (tmp_path / "shop_events.py").write_text("def clean(record):\n    return record\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "mapping.toml"

    def made(mapping: str, **more: str) -> str:
        file.write_text(mapping)
        settings = load({"HOME": str(tmp_path), "PINSTREAM_MAPPING_FILE": str(file), **more}, needs=())
        mapped = building.sections(settings)
        building.transformer(settings, mapped)
        return building.fingerprint_of(settings, mapped)

    before = made('[constants]\nlanguage = "en"\n')
    assert made('# English\n[constants]\nlanguage = "en"\n', PINTEREST_ACCESS_TOKEN="pina_x") == before
    assert differing(before, made('[constants]\nlanguage = "de"\n')) == ("mapping",)
    function = {"PINSTREAM_TRANSFORM": "shop_events:clean"}
    with_function = made('[constants]\nlanguage = "en"\n', **function)
    assert differing(before, with_function) == ("function",)
    (tmp_path / "shop_events.py").write_text("def clean(record):\n    return None\n")
    assert differing(with_function, made('[constants]\nlanguage = "en"\n', **function)) == ("function",)


def test_a_gateway_that_is_declared_has_the_platform_s_tag(tmp_path: Path) -> None:
    """With PINSTREAM_DESTINATION=pinterest the tag is the platform's, in live and in test mode, and the URL's own tag
    is the earlier one; without it, or for the platform's own URL, there is none."""
    gateway = {"HOME": str(tmp_path), "PINTEREST_API_URL": "https://gateway.example/v5"}
    own = destination_tag("https://gateway.example/v5", test_mode=False)
    declared = {"PINSTREAM_DESTINATION": "Pinterest"}

    def tags(**environ: str) -> tuple[str, str | None]:
        return building.destinations(load(environ, needs=()))

    assert tags(**gateway) == (own, None)
    assert tags(**gateway, **declared) == (REAL_API, own)
    assert tags(HOME=str(tmp_path), **declared) == (REAL_API, None)
    tested = tags(**gateway, **declared, PINTEREST_TEST_MODE="true")
    assert tested[0] == destination_tag(PLATFORM_URL, test_mode=True)
    with pytest.raises(SettingsError, match="PINSTREAM_DESTINATION"):
        tags(**gateway, PINSTREAM_DESTINATION="sandbox")
