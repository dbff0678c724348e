"""The settings: the contract's names and defaults, contradictions refused, no secret shown, the clients' properties."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from confluent_kafka import Consumer

from consumer import settings
from consumer.adapters.kafka.configuration import Config, consumer_config, producer_config
from consumer.adapters.schemas import RegistrySchemas
from consumer.app.building import policy
from consumer.engine.model import AWAY
from consumer.errors import SettingsError
from consumer.settings import load, passthrough
from consumer.settings.values import HttpAddress
from tests.settings.environment import COMPLETE, refused, with_

ROOT = Path(__file__).parents[2]

IAM = {"KAFKA_SASL_MECHANISM": "AWS_MSK_IAM"}


BEARER = "SCHEMA_REGISTRY_BEARER_AUTH_"
OAUTH = {
    f"{BEARER}CREDENTIALS_SOURCE": "OAUTHBEARER",
    f"{BEARER}CLIENT_ID": "shop",
    f"{BEARER}CLIENT_SECRET": "hush",
    f"{BEARER}ISSUER_ENDPOINT_URL": "https://tokens/oauth",
}
"""What a login with tokens needs."""
STATIC = {f"{BEARER}CREDENTIALS_SOURCE": "STATIC_TOKEN"}

REFUSED: list[tuple[dict[str, str], str, str]] = [
    # What `run` needs, absent or blank.
    *(
        ({name: ""}, f"{name} is not set", "")
        for name in (
            "KAFKA_BOOTSTRAP_SERVERS",
            "KAFKA_TOPICS",
            "PINTEREST_AD_ACCOUNT_ID",
            "PINTEREST_ACCESS_TOKEN",
        )
    ),
    # Names that there are not, with the nearest one.
    ({"PINSTREAM_BATCH_EVENT": "hush"}, "PINSTREAM_BATCH_EVENT is", "PINSTREAM_BATCH_EVENTS"),
    ({"PINSTREAM_DEDUPE_WINDOW": "hush"}, "PINSTREAM_DEDUPE_WINDOW is", "PINSTREAM_DEDUP_WINDOW"),
    ({"PINTEREST_TOKEN": "hush"}, "PINTEREST_TOKEN is", "PINTEREST_ACCESS_TOKEN"),
    ({"PINTEREST_READTOKEN": "hush"}, "PINTEREST_READTOKEN is", "PINTEREST_READ_TOKEN"),
    ({"PINTEREST_ACCOUNT_ID": "hush"}, "PINTEREST_ACCOUNT_ID is", "PINTEREST_AD_ACCOUNT_ID"),
    (
        {"SCHEMA_REGISTRY_BASIC_AUTH_USERINFO": "hush"},
        "SCHEMA_REGISTRY_BASIC",
        "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO",
    ),
    # Names of earlier versions, with what took their place.
    *(
        ({name: "1s"}, f"{name} is no longer a setting: ", instead)
        for name, instead in (
            ("PINSTREAM_BATCH_BYTES", "4 MiB; remove it"),
            ("PINSTREAM_COMMIT_INTERVAL", "every second; remove it"),
            ("PINSTREAM_FAST_PATH", "fast path"),
            ("PINSTREAM_STALL_AFTER", "two minutes; remove it"),
            ("PINSTREAM_WIRE_FORMAT", "recognised; remove it"),
            ("PINTEREST_PARTNER_NAME", 'partner_name = "…" under [constants]'),
        )
    ),
    # Of Java's clients, as the examples of a registry have them.
    *(
        (
            {f"SCHEMA_REGISTRY_{name}": "hush"},
            f"SCHEMA_REGISTRY_{name} is a setting of Java's clients; set SCHEMA_REGISTRY_{ours}",
            "remove this one",
        )
        for name, ours in (
            ("BASIC_AUTH_CREDENTIALS_SOURCE", "BASIC_AUTH_USER_INFO alone, and"),
            ("SSL_TRUSTSTORE_LOCATION", "SSL_CA_LOCATION, with a file in PEM format, and"),
            ("SSL_KEYSTORE_PASSWORD", "SSL_CERTIFICATE_LOCATION, with a file in PEM format, and"),
        )
    ),
    # The environment may hold any bytes, and the clients take text.
    *(
        ({name: "caf\udce9"}, f"{name} is not UTF-8 text; correct it", "")
        for name in ("KAFKA_CLIENT_ID", "PINSTREAM_MAPPING_FILE", "KAFKA_SASL_PASSWORD_FILE")
    ),
    # Valid each, and together a contradiction.
    ({"PINSTREAM_MAX_OPEN_EVENTS": "999"}, "PINSTREAM_MAX_OPEN_EVENTS", "PINSTREAM_BATCH_EVENTS"),
    ({"PINSTREAM_DEDUP_WINDOW": "31s"}, "PINSTREAM_DEDUP_WINDOW", "PINSTREAM_REQUEST_TIMEOUT"),
    ({"PINTEREST_EXTRA_AD_ACCOUNT_IDS": "1,549755885175"}, "PINTEREST_EXTRA_AD_ACCOUNT_IDS", "again"),
    ({"KAFKA_TOPICS": "orders,orders.dead-letters"}, "PINSTREAM_DEAD_LETTER_TOPIC", "KAFKA_TOPICS"),
    ({"KAFKA_TOPICS": "x" * 245}, "PINSTREAM_DEAD_LETTER_TOPIC", "shorten"),
    (
        {"KAFKA_TOPICS": "orders,r", "PINSTREAM_RECEIPTS_TOPIC": "r"},
        "PINSTREAM_RECEIPTS_TOPIC",
        "KAFKA_TOPICS",
    ),
    ({"PINSTREAM_RECEIPTS_TOPIC": "r.dead-letters"}, "PINSTREAM_RECEIPTS_TOPIC", "dead-letter topic"),
    (
        {"SCHEMA_REGISTRY_URL": "", "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO": "u:hush"},
        "SCHEMA_REGISTRY_URL",
        "remove",
    ),
    (
        {"SCHEMA_REGISTRY_URL": "glue:", "SCHEMA_REGISTRY_TIMEOUT": "3"},
        "SCHEMA_REGISTRY_TIMEOUT",
        "no meaning",
    ),
    ({**IAM, "KAFKA_SECURITY_PROTOCOL": "PLAINTEXT"}, "KAFKA_SECURITY_PROTOCOL", "remove"),
    ({**IAM, "KAFKA_SASL_PASSWORD": "hush"}, "KAFKA_SASL_PASSWORD", "no meaning"),
    ({**IAM, "KAFKA_SASL_OAUTHBEARER_METHOD": "oidc"}, "KAFKA_SASL_OAUTHBEARER_METHOD", "no meaning"),
    # The login at the registry.
    (
        {"SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO": "hush"},
        "SCHEMA_REGISTRY_BASIC",
        "has no colon; write user:password",
    ),
    (
        {**OAUTH, "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO": "u:hush"},
        f"SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO and {BEARER}CLIENT_ID are both set",
        "keep one",
    ),
    (
        {f"{BEARER}TOKEN": "hush"},
        f"{BEARER}TOKEN needs {BEARER}CREDENTIALS_SOURCE; set that to one of",
        "OAUTHBEARER, OAUTHBEARER_AZURE_IMDS, STATIC_TOKEN",
    ),
    ({f"{BEARER}CREDENTIALS_SOURCE": "CUSTOM"}, f"{BEARER}CREDENTIALS_SOURCE is none of", "STATIC_TOKEN"),
    (STATIC, f"{BEARER}CREDENTIALS_SOURCE=STATIC_TOKEN needs", f"{BEARER}TOKEN;"),
    (
        {**STATIC, f"{BEARER}TOKEN": "hush", f"{BEARER}SCOPE": "all"},
        f"{BEARER}SCOPE has no meaning",
        "remove it",
    ),
    *(
        (
            {name: value for name, value in OAUTH.items() if name != missing},
            f"{BEARER}CREDENTIALS_SOURCE=OAUTHBEARER needs {missing}; set it",
            "",
        )
        for missing in [*OAUTH][1:]
    ),
    (
        {"SCHEMA_REGISTRY_SSL_KEY_PASSWORD": "hush"},
        "SCHEMA_REGISTRY_SSL_KEY_PASSWORD needs",
        "SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION; set it",
    ),
    (
        {"SCHEMA_REGISTRY_SSL_CA_LOCATION": "/nowhere/ca.pem"},
        "SCHEMA_REGISTRY_SSL_CA_LOCATION='/nowhere/ca.pem': no such file",
        "PEM format",
    ),
]


@pytest.mark.parametrize(("variables", "start", "part"), REFUSED)
def test_what_is_refused_is_named(variables: dict[str, str], start: str, part: str) -> None:
    """One line, which begins with the variable to change and shows no secret."""
    message = refused(**{"SCHEMA_REGISTRY_URL": "https://r", **variables})
    assert message.startswith(start)
    assert part in message
    assert "hush" not in message


class TestDefaults:
    """The defaults are those of docs/settings.md."""

    def test_contract(self) -> None:
        """They are read as they are written there, and none of them is worth a warning."""
        s = with_()
        own = s.pinstream
        assert (own.linger, own.dedup_window, own.max_open_bytes) == (0.1, 48 * 3600, 128 * 1024**2)
        assert own.dead_letter_topic_of("orders") == "orders.dead-letters"
        assert own.http_address == HttpAddress("0.0.0.0", 8080)
        assert (own.schemas_dir / "commerce_event.avsc").is_file()
        assert s.warnings == ()

    @pytest.mark.parametrize(
        ("environ", "folder"),
        [
            ({}, "/home/shop/.local/state/pinstream"),
            ({"XDG_STATE_HOME": "/state"}, "/state/pinstream"),
            ({"XDG_STATE_HOME": "relative"}, "/home/shop/.local/state/pinstream"),
            ({"PINSTREAM_STATE_DIR": "/var/lib/pinstream"}, "/var/lib/pinstream"),
        ],
    )
    def test_state_folder(self, environ: dict[str, str], folder: str) -> None:
        """The state folder follows the XDG base directory specification, and the key store lies in it."""
        own = with_(**environ).pinstream
        assert own.state_dir == Path(folder)
        assert own.key_store.get_secret_value() == f"disk:{folder}/keys"

    def test_blank_counts_as_not_set(self) -> None:
        """An empty variable, as compose files make it, means the default; for the HTTP address it means off."""
        own = with_(PINSTREAM_CONCURRENCY=" ", PINSTREAM_HTTP_ADDRESS="", KAFKA_CLIENT_ID="").pinstream
        assert own.concurrency == 8
        assert own.http_address is None


class TestNeeds:
    """A command requires only the settings that it needs."""

    def test_nothing_needed(self, tmp_path: Path) -> None:
        """`explain` needs nothing, also where no secret is mounted; `produce` the brokers alone."""
        assert load({"HOME": "/h"}, needs=()).pinterest.ad_account_id == ""
        environ = {"HOME": "/h", "KAFKA_BOOTSTRAP_SERVERS": "b:1"}
        assert load(environ, needs=("kafka",)).kafka.client_properties() == {"bootstrap.servers": "b:1"}
        environ = {"HOME": "/h", "PINTEREST_ACCESS_TOKEN_FILE": str(tmp_path / "absent")}
        assert load(environ, needs=()).pinterest.access_token == (
            "PINTEREST_ACCESS_TOKEN_FILE",
            tmp_path / "absent",
        )

    def test_all_that_is_missing_is_named_at_once(self) -> None:
        """And only what the command needs. What is set must be valid, needed or not."""
        with pytest.raises(SettingsError) as all_:
            load({"HOME": "/h"})
        assert str(all_.value) == (
            "KAFKA_BOOTSTRAP_SERVERS, KAFKA_TOPICS, PINTEREST_AD_ACCOUNT_ID and PINTEREST_ACCESS_TOKEN (or "
            "PINTEREST_ACCESS_TOKEN_FILE) are not set; they are required: see pinstream run --help for each"
        )
        with pytest.raises(SettingsError, match=r"^KAFKA_TOPICS and PINTEREST_AD_ACCOUNT_ID are not set"):
            load({"HOME": "/h", "KAFKA_BOOTSTRAP_SERVERS": "b:1", "PINTEREST_ACCESS_TOKEN": "t"})
        with pytest.raises(SettingsError, match=r"^KAFKA_BOOTSTRAP_SERVERS is not set"):
            load({"HOME": "/h"}, needs=("kafka",))
        with pytest.raises(SettingsError, match="PINTEREST_AD_ACCOUNT_ID"):
            load({"HOME": "/h", "PINTEREST_AD_ACCOUNT_ID": "abc"}, needs=())


class TestUnknown:
    """A misspelled name is an error, not a setting without effect."""

    def test_kubernetes_service_links_are_passed_over(self) -> None:
        """Nor is the build's own a setting. What only looks like such a link is refused."""
        links: dict[str, str] = {}
        for base in ("KAFKA", "PINSTREAM", "PINSTREAM_METRICS", "SCHEMA_REGISTRY"):
            links |= {
                f"{base}_SERVICE_HOST": "10.0.0.1",
                f"{base}_SERVICE_PORT": "9092",
                f"{base}_SERVICE_PORT_HTTP": "9092",
                f"{base}_PORT": "tcp://10.0.0.1:9092",
                f"{base}_PORT_9092_TCP": "tcp://10.0.0.1:9092",
                f"{base}_PORT_9092_TCP_ADDR": "10.0.0.1",
            }
        assert with_(**links) == with_()
        assert with_(PINSTREAM_NO_COMPILE="1") == with_()
        assert refused(PINSTREAM_PORT="8080").startswith("PINSTREAM_PORT is not a setting")

    def test_kafkas_own_shell_variables_are_passed_over(self) -> None:
        """Variables of Kafka's own scripts are ignored."""
        assert with_(KAFKA_HOME="/opt/kafka", KAFKA_HEAP_OPTS="-Xmx1G", KAFKA_OPTS="-D") == with_()


class TestContradictions:
    """Settings that are valid each but contradict each other."""

    @pytest.mark.parametrize(
        ("variables", "part"),
        [
            ({"KAFKA_AUTO_OFFSET_RESET": "latest"}, "KAFKA_AUTO_OFFSET_RESET"),
            ({"KAFKA_TOPICS": "^orders"}, "KAFKA_TOPICS"),
            ({"PINSTREAM_CALLS_PER_MINUTE": "5001"}, "PINSTREAM_CALLS_PER_MINUTE"),
            ({"PINSTREAM_KEY_STORE": "memory:"}, "PINSTREAM_KEY_STORE"),
            ({"PINTEREST_API_URL": "http://sandbox/v5"}, "PINTEREST_API_URL"),
            ({"PINTEREST_TEST_MODE": "true"}, "PINTEREST_TEST_MODE"),
            (
                {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": "p"},
                "KAFKA_SASL_MECHANISM has no effect, because KAFKA_SECURITY_PROTOCOL is PLAINTEXT: set it to SASL_SSL",
            ),
            (
                {"KAFKA_SSL_CA_LOCATION": "/ca.pem", "KAFKA_SECURITY_PROTOCOL": "sasl_plaintext"},
                "KAFKA_SSL_CA_LOCATION has no effect, because KAFKA_SECURITY_PROTOCOL is SASL_PLAINTEXT: set it to SSL",
            ),
        ],
    )
    def test_what_may_surprise_is_a_warning(self, variables: dict[str, str], part: str) -> None:
        """Allowed, with a warning at the start."""
        [warning] = with_(**variables).warnings
        assert part in warning

    def test_test_mode_has_smaller_limits(self) -> None:
        """Test mode lowers batches to 20 events and calls to 10 a second; a smaller setting stays."""
        own = with_(PINTEREST_TEST_MODE="true").pinstream
        assert (own.batch_events, own.calls_per_minute) == (20, 600)
        own = with_(PINTEREST_TEST_MODE="true", PINSTREAM_BATCH_EVENTS="5").pinstream
        assert own.batch_events == 5


class TestSecrets:
    """Secrets come from a variable or a file, never both, and are never shown."""

    def test_nothing_secret_in_the_repr(self, tmp_path: Path) -> None:
        """Printing the settings shows no secret."""
        (tmp_path / "s").write_text("hush\n")
        s = with_(
            PINTEREST_ACCESS_TOKEN="hush",
            PINSTREAM_HTTP_TOKEN="hush",
            KAFKA_SASL_PASSWORD_FILE=str(tmp_path / "s"),
            KAFKA_SSL_KEY_PEM="hush",
            SCHEMA_REGISTRY_URL="http://r",
            SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO="u:hush",
            PINSTREAM_KEY_STORE="redis://:hush@r/0",
        )
        assert "hush" not in repr(s) + str(s)
        assert s.kafka.client_properties()["sasl.password"] == "hush"

    def test_a_file_beside_every_secret(self, tmp_path: Path) -> None:
        """Without the line break at its end; of a token that is read again, the settings hold the path."""
        (tmp_path / "s").write_text(" p w \r\n")
        (tmp_path / "k").write_text("redis://:x@r/0\n")
        path = str(tmp_path / "s")
        s = with_(
            KAFKA_SASL_PASSWORD_FILE=path,
            KAFKA_SSL_KEY_PASSWORD_FILE=path,
            SCHEMA_REGISTRY_URL="http://r",
            SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION=path,
            SCHEMA_REGISTRY_SSL_KEY_PASSWORD_FILE=path,
            PINSTREAM_KEY_STORE_FILE=str(tmp_path / "k"),
        )
        assert s.kafka.client_properties()["ssl.key.password"] == " p w "
        assert s.registry.client_configuration()["ssl.key.password"] == " p w "
        assert s.pinstream.key_store.get_secret_value() == "redis://:x@r/0"
        (tmp_path / "token").write_text("pina_x\n")
        s = with_(PINTEREST_ACCESS_TOKEN="", PINTEREST_ACCESS_TOKEN_FILE=str(tmp_path / "token"))
        assert s.pinterest.access_token == ("PINTEREST_ACCESS_TOKEN_FILE", tmp_path / "token")
        own = with_(PINSTREAM_HTTP_TOKEN_FILE=str(tmp_path / "token")).pinstream
        assert own.http_token == ("PINSTREAM_HTTP_TOKEN_FILE", tmp_path / "token")
        properties = with_(KAFKA_SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE="/k").kafka.client_properties()
        assert properties["sasl.oauthbearer.assertion.private.key.file"] == "/k"

    @pytest.mark.parametrize(
        "name",
        [
            "PINTEREST_ACCESS_TOKEN",
            "KAFKA_SASL_PASSWORD",
            "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO",
            "PINSTREAM_KEY_STORE",
            "PINSTREAM_HTTP_TOKEN",
        ],
    )
    def test_both_is_an_error(self, name: str, tmp_path: Path) -> None:
        """Both set is an error: no one should have to guess which of them wins."""
        (tmp_path / "s").write_text("memory:")
        message = refused(
            **{name: "memory:", f"{name}_FILE": str(tmp_path / "s"), "SCHEMA_REGISTRY_URL": "http://r"}
        )
        assert "both set" in message

    @pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe", b"x" * 70000, b"two words\n"])
    def test_a_file_without_a_token_is_named(self, content: bytes | None, tmp_path: Path) -> None:
        """Absent, empty, binary, huge or prose: refused at the start with the variable and without the content."""
        path = tmp_path / "token"
        if content is not None:
            path.write_bytes(content)
        message = refused(PINTEREST_ACCESS_TOKEN="", PINTEREST_ACCESS_TOKEN_FILE=str(path))
        assert message.startswith("PINTEREST_ACCESS_TOKEN_FILE")
        assert "two words" not in message
        message = refused(PINSTREAM_HTTP_TOKEN_FILE=str(path))
        assert message.startswith("PINSTREAM_HTTP_TOKEN_FILE")
        assert "two words" not in message

    def test_a_secret_in_place_of_its_files_path_is_not_shown(self) -> None:
        """If the variable of the file holds the token itself, no message shows it."""
        for value in ("pina_AMAHUSH", "aHVzaA==/b/c", "x" * 300, "pina_a/hush"):
            for name in (
                "PINTEREST_ACCESS_TOKEN_FILE",
                "PINSTREAM_HTTP_TOKEN_FILE",
                "KAFKA_SASL_PASSWORD_FILE",
            ):
                more = {"PINTEREST_ACCESS_TOKEN": ""} if name.startswith("PINTEREST") else {}
                message = refused(**more, **{name: value})
                assert message.startswith(f"{name}: its value cannot be read"), message
                assert value not in message
        message = refused(KAFKA_SASL_PASSWORD_FILE="/tmp/there-is-no-such-secret")
        assert "'/tmp/there-is-no-such-secret' cannot be read" in message

    def test_the_page_token_is_read_only_to_serve_the_page(self, tmp_path: Path) -> None:
        """It is not read by a replay, nor if the page is turned off."""
        variables = COMPLETE | {"PINSTREAM_HTTP_TOKEN_FILE": str(tmp_path / "absent")}
        replay = load(variables, needs=("kafka", "account", "token"))
        assert replay.pinstream.http_token == ("PINSTREAM_HTTP_TOKEN_FILE", tmp_path / "absent")
        assert load(variables | {"PINSTREAM_HTTP_ADDRESS": ""}).pinstream.http_address is None


class TestPassthrough:
    """Properties of the clients themselves."""

    def test_librdkafka_takes_what_comes_out(self) -> None:
        """Dots stand for underscores, except in log_level; the registry's client takes its times as numbers."""
        variables = {
            "KAFKA_LOG_LEVEL": "0",
            "KAFKA_GROUP_PROTOCOL": "classic",
            "KAFKA_FETCH_MAX_BYTES": "1000000",
        }
        properties = with_(KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1", **variables).kafka.client_properties()
        consumer = Consumer({**properties, "group.id": "g"})
        consumer.close()
        assert properties["fetch.max.bytes"] == "1000000"
        properties = with_(KAFKA_SECURITY_PROTOCOL="SASL_SSL", KAFKA_LOG_LEVEL="3").kafka.client_properties()
        assert properties["security.protocol"] == "SASL_SSL"
        assert properties["log_level"] == "3"
        s = with_(
            SCHEMA_REGISTRY_URL="http://r:8081",
            SCHEMA_REGISTRY_TIMEOUT="2.5",
            SCHEMA_REGISTRY_SSL_CA_LOCATION=__file__,
        )
        expected = {"url": "http://r:8081", "timeout": 2.5, "ssl.ca.location": __file__}
        assert s.registry.client_configuration() == expected

    @pytest.mark.parametrize(
        "name",
        sorted(
            passthrough.REFUSED_PROPERTIES.keys() - {"group.id", "bootstrap.servers", "auto.offset.reset"}
            | {"auto.commit.enable", "auto.commit.interval.ms", "offset.store.method", "offset.store.path"}
            | {"offset.store.sync.interval.ms", "request.required.acks", "delivery.report.only.error"}
            | {
                "transactional.id",
                "message.timeout.ms",
                "plugin.library.paths",
                "test.mock.broker.rtt",
                "error_cb",
            }
        ),
    )
    def test_what_weakens_the_guarantee_is_refused_by_name(self, name: str) -> None:
        """Commits of its own, weaker writes, simulated brokers, foreign code: each with a reason."""
        variable = f"KAFKA_{name.upper().replace('.', '_')}"
        message = refused(**{variable: "true"})
        assert message.startswith(f"{variable} is refused: ")
        assert message.endswith("; remove it")
        assert len(message) > len(variable) + 40

    def test_uncommitted_reads_are_refused(self) -> None:
        """A value that changes nothing is no error."""
        assert refused(KAFKA_ISOLATION_LEVEL="read_uncommitted").startswith(
            "KAFKA_ISOLATION_LEVEL is refused"
        )
        assert with_(KAFKA_ISOLATION_LEVEL="read_committed").kafka.client_properties()

    def test_whatever_the_adapter_overrides_is_refused_here(self) -> None:
        """A user who sets such a property learns it at the start, not by its having no effect."""

        def consumer(user: Config) -> Config:
            return consumer_config(user, offset_reset="earliest", ignore=None)

        def producer(user: Config) -> Config:
            return producer_config(user, delivery_timeout=1)

        for config, least in ((consumer, 6), (producer, 3)):
            overridden = [name for name in config({}) if config({name: "7"})[name] != "7"]
            assert len(overridden) >= least
            # The consumer's limit of what is produced is that of its fetches, and it produces nothing.
            assert [name for name in overridden if not passthrough.refusal(name, "7")] in (
                [],
                ["message.max.bytes"],
            )

    def test_what_only_confluent_cloud_needs_may_be_omitted(self) -> None:
        """The client insists on a logical cluster and a scope; any other registry has neither."""

        def configuration(**given: str) -> dict[str, str | float]:
            return with_(SCHEMA_REGISTRY_URL="https://r", **given).registry.client_configuration()

        found = configuration(**OAUTH)
        assert (found["bearer.auth.logical.cluster"], found["bearer.auth.scope"]) == ("", "")
        for source, name in (("STATIC_TOKEN", "TOKEN"), ("OAUTHBEARER_AZURE_IMDS", "ISSUER_ENDPOINT_QUERY")):
            # Its client takes them.
            RegistrySchemas(configuration(**{f"{BEARER}CREDENTIALS_SOURCE": source, f"{BEARER}{name}": "x"}))
        found = configuration(**OAUTH, **{f"{BEARER}LOGICAL_CLUSTER": "lsrc-1"})
        assert found["bearer.auth.logical.cluster"] == "lsrc-1"


def test_the_page_has_the_generated_table() -> None:
    """The table in docs/settings.md is generated from the settings."""
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    found = re.search(r"<!-- settings -->\n(.*?)<!-- /settings -->", page, re.DOTALL)
    assert found is not None, "docs/settings.md has no <!-- settings --> … <!-- /settings --> markers"
    lines = ["| variable | default | unit | meaning |", "| --- | --- | --- | --- |"]
    for doc in settings.all_settings():
        in_words = " " in doc.default or doc.default in ("required", "none")
        default = doc.default if in_words else f"`{doc.default}`"
        lines.append(f"| `{doc.name}` | {default} | {doc.unit} | {doc.reason} |")
    table = "\n".join(lines)
    assert found[1].strip() == table, f"paste this there:\n{table}"


def test_the_page_names_the_secrets_that_are_read_again() -> None:
    """Whoever mounts a secret knows whether a new one needs a restart."""
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")
    rule = page.partition("- **Secrets**")[2].partition("\n- **")[0]
    assert set(re.findall("`(P[A-Z_]+)`", rule)) == {
        doc.name for doc in settings.all_settings() if doc.reread
    }


def test_every_setting_has_a_reason() -> None:
    """Each has a name, a default and a reason, and a unit if it is a number."""
    for doc in settings.all_settings():
        assert doc.reason
        assert doc.default
        assert "|" not in doc.reason
        assert not doc.secret or doc.default in ("required", "none", "disk: under the state folder")


@pytest.mark.parametrize("value", ["1" * 400, "\N{SUPERSCRIPT TWO}", "-1", "1e9"])
def test_numbers_of_librdkafka_are_left_to_it(value: str) -> None:
    """Text that is no number, or a number of any length, gives no internal error."""
    settings = with_(KAFKA_MAX_POLL_INTERVAL_MS=value, KAFKA_SESSION_TIMEOUT_MS=value)
    assert policy(settings).away == AWAY
