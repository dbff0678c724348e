"""The values of settings: text becomes a value, or one clear line that names the variable and what is allowed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer import settings
from consumer.errors import SettingsError
from consumer.settings import load
from consumer.settings.values import parse_duration, parse_size
from tests.settings.environment import COMPLETE, refused, with_

BAD_VALUES = {
    "KAFKA_BOOTSTRAP_SERVERS": ["host:port", "a b:9092", "a:9092,,b:9092", "a:99999", "a:0"],
    "KAFKA_TOPICS": ["a,,b", ",", "a b", "ümlaut", "..", "x" * 250, "^a[", "^a\\d", "^(?:a)", "^a.*?"],
    "KAFKA_AUTO_OFFSET_RESET": ["beginning", "none"],
    "SCHEMA_REGISTRY_URL": [
        *(
            "registry:8081",
            "http://",
            "http://u:hush@r:1",
            "ftp://r",
            "http://r:1,x",
            "glue:europe",
            "glue://eu-west-1",
        )
    ],
    "SCHEMA_REGISTRY_TIMEOUT": ["5s"],
    "SCHEMA_REGISTRY_PROXY": ["proxy.corp", "socks5://proxy.corp:1080"],
    "SCHEMA_REGISTRY_BEARER_AUTH_ISSUER_ENDPOINT_URL": [
        "tokens.corp/oauth",
        "http://[::1/token",
        "https://x:99999/token",
        "https://user:hu/sh@tokens.corp/token",
    ],
    "PINTEREST_AD_ACCOUNT_ID": ["abc", "1234567890123456789", "١٢", "-1", "1 2"],
    "PINTEREST_EXTRA_AD_ACCOUNT_IDS": ["1,,2", "1,x"],
    "PINTEREST_ACCESS_TOKEN": ["two words", "tökén", "a\nb"],
    "PINTEREST_READ_TOKEN": ["two words", "tökén", "a\nb"],
    "PINTEREST_API_URL": ["api.pinterest.com", "https://x?y=1", "https://a b/", "https://x:99999"],
    "PINTEREST_TEST_MODE": ["1", "yes", "tru"],
    "PINSTREAM_TRANSFORM": [
        "clean",
        "shop.events",
        "a/b.py:c",
        "a:b:c",
        "a:",
        ":b",
        "a:b()",
        "a.:b",
        "a:b.c",
    ],
    "PINSTREAM_SCHEMAS_DIR": ["/nowhere/at/all"],
    "PINSTREAM_SCHEMA": ["commerce..v1", "1x", "a-b"],
    "KAFKA_SASL_MECHANISM": ["AWS_IAM", "SCRAM"],
    "PINSTREAM_MAPPING_FILE": ["/nowhere/at/all.toml"],
    "PINSTREAM_STATE_DIR": [__file__],
    "PINSTREAM_KEY_STORE": [
        "disk:",
        "disk",
        "lmdb:/x/keys",
        "memory",
        "memory:x",
        "redis:",
        "sqlite:/x",
        "/var/keys",
    ],
    "PINSTREAM_KEY_STORE_MAX_BYTES": ["0", "4GB", "1.5GiB"],
    "PINSTREAM_DEDUP_WINDOW": ["0", "48", "-1h", "2 weeks", "91d"],
    "PINSTREAM_MAX_EVENT_AGE": ["1s", "forever"],
    "PINSTREAM_BATCH_EVENTS": ["0", "1001", "-5", "1e3", "١", "1_000"],
    "PINSTREAM_LINGER": ["500", "11m", "1h30m", "NaNs", "infs"],
    "PINSTREAM_CONCURRENCY": ["0", "many"],
    "PINSTREAM_CALLS_PER_MINUTE": ["0"],
    "PINSTREAM_REQUEST_TIMEOUT": ["0"],
    "PINSTREAM_HALT_PATIENCE": ["1ms", "x"],
    "PINSTREAM_SCHEMA_PATIENCE": ["1ms", "5"],
    "PINSTREAM_MAX_OPEN_EVENTS": ["0"],
    "PINSTREAM_MAX_OPEN_BYTES": ["0", "1", "4MB", "4 mib", "1TiB"],
    "PINSTREAM_DEAD_LETTER_TOPIC": ["{topic}", "orders", "{tpoic}.x", "{topic}{topic}", "a b", "x" * 250],
    "PINSTREAM_RECEIPTS_TOPIC": ["{topic}.receipts", "a b", "x" * 250],
    "PINSTREAM_DEAD_LETTER_SHARE": ["0", "0.0", "1.1", "2", "50%", "-0.5", "nan", "1e-1", "half", "٠.5"],
    "PINSTREAM_DEAD_LETTER_SAMPLE": ["0", "9", "1000001", "1e3"],
    "PINSTREAM_SHUTDOWN_GRACE": ["0", "0s", "2h"],
    "PINSTREAM_HTTP_ADDRESS": ["8080", ":8080", "a:99999", "::1:8080", "a:b", "http://a:1", "unix:/x"],
    "PINSTREAM_PAGE_ADDRESS": [
        *("8081", ":8081", "a:99999", "http://a:1", "0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080")
    ],
    "PINSTREAM_KEY_STORE_PASSWORD": ["hush hush", "hüsh", "hush\nhush"],
    "PINSTREAM_HTTP_TOKEN": ["hush hush", "hüsh", "hush\nhush"],
    "PINSTREAM_PROXY_CREDENTIALS": ["hush", "user:hush\nhush"],
    "PINSTREAM_CA_FILE": ["/nowhere/at/all.pem", __file__, "/dev/null"],
    "HTTPS_PROXY": [
        *(
            "proxy.corp",
            "http://proxy.corp",
            "http://:3128",
            "socks5://proxy.corp:1080",
            "http://pro xy.corp:3128",
        ),
        *("http://proxy.corp:3128/path", "http://proxy.corp:99999", "http://user:hu#sh@proxy.corp:3128"),
        "http://user:hu/sh@proxy.corp:3128",
    ],
    "HTTP_PROXY": ["proxy.corp", "ftp://proxy.corp:3128"],
    "SSL_CERT_FILE": ["/nowhere/at/all.pem", __file__],
    "PINSTREAM_DESTINATION": ["sandbox", "https://gateway.example/v5"],
    "PINSTREAM_LOG_FORMAT": ["xml"],
    "PINSTREAM_LOG_LEVEL": ["loud"],
}


class TestBadValues:
    """An invalid value is refused with the variable's name and what is allowed."""

    @pytest.mark.parametrize(
        ("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values]
    )
    def test_named(self, name: str, value: str) -> None:
        """The line starts with the variable's name."""
        registry = {"SCHEMA_REGISTRY_URL": "http://r"} if name.startswith("SCHEMA_REGISTRY_") else {}
        message = refused(**(registry | {name: value}))
        assert re.match(rf"{name}\b", message)
        assert "hush" not in message

    def test_every_setting_with_rules_is_tried(self) -> None:
        """Only free text has no invalid value above."""
        free = {"KAFKA_GROUP_ID", "KAFKA_…", "SCHEMA_REGISTRY_…", "NO_PROXY"}
        assert {doc.name for doc in settings.all_settings()} - free <= BAD_VALUES.keys()

    def test_what_is_allowed_is_said(self) -> None:
        """The bounds of a number, the forms of a duration, the words of a choice."""
        assert "allowed: 1 to 1000" in refused(PINSTREAM_BATCH_EVENTS="5000")
        assert "500ms" in refused(PINSTREAM_LINGER="5")
        assert "above 0 up to 1" in refused(PINSTREAM_DEAD_LETTER_SHARE="0")
        assert "0 for no limit" in refused(PINSTREAM_MAX_EVENT_AGE="1s")
        assert "earliest, error, latest" in refused(KAFKA_AUTO_OFFSET_RESET="none")

    def test_a_long_value_is_cut(self) -> None:
        """A long value is cut, so that the message stays readable."""
        assert len(refused(PINSTREAM_SCHEMA="-" * 5000)) < 200


GOOD_VALUES = [
    ("KAFKA_TOPICS", "b, a ,a,^orders-[0-9]+$", lambda s: s.kafka.topics, ("b", "a", "^orders-[0-9]+$")),
    ("KAFKA_BOOTSTRAP_SERVERS", "[::1]:9,SSL://a", lambda s: s.kafka.bootstrap_servers, "[::1]:9,SSL://a"),
    ("SCHEMA_REGISTRY_URL", "http://r:1/ , https://q/p", lambda s: s.registry.url, "http://r:1,https://q/p"),
    ("KAFKA_SASL_MECHANISM", "aws_msk_iam", lambda s: s.kafka.uses_iam, True),
    ("SCHEMA_REGISTRY_URL", "glue:us-gov-west-1", lambda s: s.registry.url, "glue:us-gov-west-1"),
    ("SCHEMA_REGISTRY_URL", "glue:", lambda s: s.registry.is_glue, True),
    ("PINTEREST_EXTRA_AD_ACCOUNT_IDS", "1,2", lambda s: s.pinterest.ad_account_ids[1:], ("1", "2")),
    ("PINTEREST_TEST_MODE", "TRUE", lambda s: s.pinterest.test_mode, True),
    ("PINTEREST_API_URL", "http://localhost/v5/", lambda s: s.pinterest.api_url, "http://localhost/v5"),
    ("PINSTREAM_MAX_EVENT_AGE", "0", lambda s: s.pinstream.max_event_age, 0),
    ("PINSTREAM_HALT_PATIENCE", "0", lambda s: s.pinstream.halt_patience, 0),
    ("PINSTREAM_LINGER", "0", lambda s: s.pinstream.linger, 0),
    ("PINSTREAM_LINGER", "1.5s", lambda s: s.pinstream.linger, 1.5),
    ("PINSTREAM_MAX_OPEN_BYTES", "65536", lambda s: s.pinstream.max_open_bytes, 65536),
    ("PINSTREAM_HTTP_ADDRESS", "[::1]:0", lambda s: s.pinstream.http_address, ("::1", 0)),
    ("PINSTREAM_HTTP_ADDRESS", "[::]:80", lambda s: s.pinstream.http_address, ("::", 80)),
    ("PINSTREAM_HTTP_ADDRESS", "127.0.0.1:8081", lambda s: s.pinstream.http_address, ("127.0.0.1", 8081)),
    ("PINSTREAM_HTTP_ADDRESS", "localhost:8081", lambda s: s.pinstream.http_address, ("localhost", 8081)),
    ("PINSTREAM_PAGE_ADDRESS", "127.0.0.1:8081", lambda s: s.pinstream.page_address, ("127.0.0.1", 8081)),
    ("PINSTREAM_PAGE_ADDRESS", " ", lambda s: s.pinstream.page_address, None),
    ("PINSTREAM_HTTP_TOKEN", "hush", lambda s: s.pinstream.http_token.get_secret_value(), "hush"),
    ("PINSTREAM_LOG_LEVEL", "DEBUG", lambda s: s.pinstream.log_level, "debug"),
    ("PINSTREAM_KEY_STORE", "disk:/x/k", lambda s: s.pinstream.key_store.get_secret_value(), "disk:/x/k"),
    ("PINSTREAM_KEY_STORE", "memory:", lambda s: s.pinstream.key_store.get_secret_value(), "memory:"),
    ("PINSTREAM_DEAD_LETTER_SHARE", ".25", lambda s: s.pinstream.dead_letter_share, 0.25),
    ("PINSTREAM_DEAD_LETTER_SHARE", "1.0", lambda s: s.pinstream.dead_letter_share, 1),
    ("PINSTREAM_DEAD_LETTER_SAMPLE", "10", lambda s: s.pinstream.dead_letter_sample, 10),
    ("PINSTREAM_RECEIPTS_TOPIC", "", lambda s: s.pinstream.own_topics, ("{topic}.dead-letters",)),
    ("PINSTREAM_RECEIPTS_TOPIC", "r", lambda s: s.pinstream.own_topics, ("{topic}.dead-letters", "r")),
    ("PINSTREAM_DEAD_LETTER_TOPIC", "dead", lambda s: s.pinstream.dead_letter_topic_of("orders"), "dead"),
]


@pytest.mark.parametrize(("name", "text", "read", "value"), GOOD_VALUES)
def test_good_values(name: str, text: str, read: object, value: object) -> None:
    """Each text gives its value."""
    assert callable(read)
    assert read(with_(**{name: text})) == value


@given(
    st.integers(0, 10**9), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)])
)
def test_durations(count: int, unit: tuple[str, float]) -> None:
    """Number and unit, in seconds."""
    assert parse_duration(f"{count}{unit[0]}") == count * unit[1]


@given(
    st.integers(0, 10**9),
    st.sampled_from([("", 0), ("B", 0), ("KiB", 1), ("MiB", 2), ("GiB", 3), ("TiB", 4)]),
)
def test_sizes(count: int, unit: tuple[str, int]) -> None:
    """Number and binary unit, in bytes."""
    assert parse_size(f"{count}{unit[0]}") == count * 1024 ** unit[1]


@given(st.sampled_from(sorted(BAD_VALUES)), st.text(min_size=1, max_size=30))
def test_any_text_gives_settings_or_one_line(name: str, text: str) -> None:
    """Any text of a variable gives settings, or a SettingsError of one line that names it."""
    try:
        load(COMPLETE | {name: text})
    except SettingsError as error:
        message = str(error)
        assert re.search(r"[\n\r]", message) is None
        assert re.match(r"(KAFKA|PINTEREST|PINSTREAM|SCHEMA_REGISTRY|HTTPS?|SSL)_", message)
