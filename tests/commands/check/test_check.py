"""``pinstream check``: a row for each question, all problems in one run, and exit code 0 or 1."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from consumer.commands.check import api as questions
from consumer.commands.check import kafka as brokers
from consumer.commands.check import local
from consumer.commands.check.rows import Row, Severity
from consumer.engine.model import TopicPartition, destination_tag
from consumer.engine.records import offset_map
from tests.commands.check.asking import VERDICTS, asked, check, nowhere, the_text
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import ACCOUNT, Process, command, run_environment
from tests.end_to_end.records import commerce_event, new_group, new_topic, write_events
from tests.support.kafka.harness import Kafka, commit, create_topic, produce

ROWS = (
    *("settings", "schema", "mapping", "state folder", "key store", "page address", "brokers and topics"),
    *("consumer group", "dead-letter topics", "schema registry", "access token", "known to Pinterest"),
)
NEW_FIELDS = """
"custom_data.contents[].item_brand_id" = "order.items[].brand"
"user_data.customer_type" = "customer.partner_id"
"""
OK, WARNING, FAILED, SKIPPED = Severity.OK, Severity.WARNING, Severity.FAILED, Severity.SKIPPED
GrantedPermits = Callable[..., dict[str, str]]


@pytest.fixture
def given(kafka: Kafka, api: Api, tmp_path: Path) -> GrantedPermits:
    """Return what `run` needs: an environment with a topic, a group and these settings."""

    def environment(topic: str = "", group: str = "", **settings: str) -> dict[str, str]:
        topic, group = topic or new_topic(kafka), group or new_group()
        return run_environment(tmp_path, kafka, topic, group, api.url, **settings)

    return environment


def test_a_configuration_that_is_fit_to_run(given: GrantedPermits, api: Api, tmp_path: Path) -> None:
    """Every row is there, none failed; test events are not recorded, and no probe file is left in the state folder."""
    found = check(given(), "--send-test-event")
    assert set(found.rows) == {*ROWS, "test view", "test events"}
    assert "open its test view before you run this: it has no history" in found.text("test view", "ok")
    assert found.code == 0
    assert found.names("failed") == set()
    assert found.names("skipped") == {"schema registry", "known to Pinterest"}
    assert found.names("warning") == {"settings"}, "the sandbox is not https"
    assert found.summary == "Fit to run, 1 warning."
    assert api.queries == ["test=true"]
    assert api.counts().accepted_events == 0
    assert not [one for one in (tmp_path / "state").rglob("*") if one.name.startswith(".check-")]


@pytest.mark.parametrize(
    ("toml", "said", "warned"),
    [
        ('[own_events]\nnames = ["a", "Store visit"]', "own events: 2 of the 15 that may be registered", ()),
        (
            f"[fields]\n{NEW_FIELDS}",
            "",
            (
                "contents[].item_brand_id (since 5.28), user_data.customer_type (as one reading",
                "--send-test-event",
            ),
        ),
    ],
)
def test_the_mapping(tmp_path: Path, toml: str, said: str, warned: tuple[str, ...]) -> None:
    """Own events are counted; fields that are new at the platform are warnings."""
    (tmp_path / "mapping.toml").write_text(toml)
    env = nowhere(tmp_path, PINSTREAM_MAPPING_FILE=str(tmp_path / "mapping.toml"))
    row, *warnings = asked(env, local.schema, local.mapping)
    assert said in row.text
    assert ("own events" in row.text) is bool(said)
    assert [one.verdict for one in warnings] == ([WARNING] if warned else [])
    assert all(text in one.text for one in warnings for text in warned)


def test_what_opentelemetry_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be exported has a row; a mistake in its variables is a warning: events are delivered anyway."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "1m")
    rows = asked(nowhere(tmp_path), local.telemetry)
    assert "traces would be exported" in the_text(rows, OK)
    assert "OTEL_METRIC_EXPORT_INTERVAL is not a number of milliseconds" in the_text(rows, WARNING)


def test_the_function_is_loaded(tmp_path: Path) -> None:
    """The row names the function and its cost, or why it cannot be loaded; without the setting there is none."""
    assert asked(nowhere(tmp_path), local.transform) == []
    [good] = asked(nowhere(tmp_path, PINSTREAM_TRANSFORM="copy:copy"), local.transform)
    assert good.text.startswith("copy:copy takes each record; so the fast path is not used")
    [bad] = asked(nowhere(tmp_path, PINSTREAM_TRANSFORM="copy:copi"), local.transform)
    assert bad.verdict is FAILED
    assert "PINSTREAM_TRANSFORM='copy:copi': copy has no 'copi'; did you mean copy?" in bad.text


@pytest.mark.parametrize(
    ("number", "store", "row"),
    [
        ("4", "", Row(OK, "4; each has 2 requests in flight, 5,000 open events and 32 MiB of them; and 1,250 "
            "of the 5,000 calls a minute, fewer if more members hold partitions")),
        ("4", "redis://127.0.0.1:1", Row(OK, "4; each has 2 requests in flight, 5,000 open events and 32 MiB of "
            "them; together with all other members they make 5,000 calls a minute (shared key store)")),
        ("30", "", Row(FAILED, "PINSTREAM_CONCURRENCY=8 is below --workers 30")),
    ],
)  # fmt: skip
def test_divided_by_workers(tmp_path: Path, number: str, store: str, row: Row) -> None:
    """With ``--workers`` a row says what each worker would have, or why the settings cannot be divided."""
    [found] = asked(nowhere(tmp_path, PINSTREAM_KEY_STORE=store), local.workers, workers=number)
    assert found.verdict is row.verdict
    assert found.text.startswith(row.text)


def test_all_that_is_wrong_in_one_run(given: GrantedPermits, tmp_path: Path) -> None:
    """Each of eight mistakes is a failed row, in one run."""
    (tmp_path / "m.toml").write_text('[fields]\n"user_data.em" = "customer.email"\n')
    env = given(
        "no-such-topic",
        PINTEREST_ACCESS_TOKEN="pina_wrong_5up3rs3cr3t",
        PINSTREAM_MAPPING_FILE=str(tmp_path / "m.toml"),
        PINSTREAM_STATE_DIR="/proc/pinstream",
        PINSTREAM_KEY_STORE="disk:/dev/null/keys",
        PINSTREAM_HTTP_ADDRESS="203.0.113.1:8080",
        SCHEMA_REGISTRY_URL="http://127.0.0.1:9",
    )
    found = check(env, "--send-test-event", "--workers", "30")
    assert found.code == 1
    assert found.names("failed") == {
        *("workers", "mapping", "state folder", "key store", "page address", "brokers and topics"),
        *("schema registry", "test events"),
    }
    skipped = {"consumer group", "dead-letter topics", "writers' schemas", "known to Pinterest"}
    assert found.names("skipped") == skipped
    assert "customer.emails" in found.text("mapping", "failed")
    assert "PINSTREAM_STATE_DIR: /proc/pinstream" in found.text("state folder", "failed")
    how = "create it, grant READ on it, or correct its name (KAFKA_TOPICS, or --topic)"
    assert how in found.text("brokers and topics", "failed")
    refused = found.text("test events", "failed")
    assert refused.startswith(f"{ACCOUNT}: the access token is refused: set a valid")
    assert re.search(r"\(HTTP 401, request id \d+, code 2\)$", refused)
    assert found.summary == "Not fit to run: 8 failed, 1 warning."


def test_settings_that_cannot_be_read(tmp_path: Path) -> None:
    """Settings that cannot be read are one failed row with exit code 1, and no other question is asked."""
    found = check(nowhere(tmp_path, PINSTREAM_LINGER="[soon]"))
    assert (found.code, set(found.rows)) == (1, {"settings"})
    assert "[soon]" in found.text("settings", "failed")
    assert found.summary == "Not fit to run: 1 failed."


def test_it_reads_well_on_a_narrow_screen(given: GrantedPermits) -> None:
    """At 80 columns no line is longer, and the columns of questions and verdicts hold nothing else."""
    lines = (shown := command("check", env=given("no-such-topic", COLUMNS="80")).stdout).splitlines()
    assert max(map(len, lines)) <= 80
    [header] = [line for line in lines if "verdict" in line]
    column, words = header.index("found"), {name.split(" ")[0] for name in ROWS}
    named = [line[:column] for line in lines if line[:1].isalpha() and line.split(" ")[0] in words]
    assert all(re.fullmatch(rf".*({VERDICTS}) +", line) for line in named)
    assert "\x1b" not in shown, "no colours but on a terminal"


class TestGroup:
    """The row about the consumer group, which says where reading would begin."""

    def rows(self, env: dict[str, str]) -> list[Row]:
        """Return the answers about the group."""
        return asked(env, brokers.cluster, brokers.group)

    def test_a_new_group(self, kafka: Kafka, given: GrantedPermits) -> None:
        """It reads from the beginning; ``latest`` says how many are not read; ``error`` is not fit to run."""
        topic, group = new_topic(kafka), new_group()
        write_events(kafka, topic, [commerce_event(str(number)) for number in range(7)])
        text = the_text(self.rows(given(topic, group)), OK)
        assert text.startswith(f"{group}: new, begins at the beginning: 7 records; ")
        text = the_text(self.rows(given(topic, group, KAFKA_AUTO_OFFSET_RESET="latest")), OK)
        assert "begins at the end: 7 records will not be read" in text
        [row] = self.rows(given(topic, group, KAFKA_AUTO_OFFSET_RESET="error"))
        assert row.verdict is FAILED
        assert "`pinstream offsets set`" in row.text

    def test_a_group_that_was_here_before(self, kafka: Kafka, given: GrantedPermits) -> None:
        """A known group goes on at its offsets; a partition without one is read from its beginning."""
        topic, group = new_topic(kafka), new_group()
        produce(kafka, topic, [b"1", b"2", b"3"], partition=0)
        produce(kafka, topic, [b"4", b"5"], partition=1)
        commit(kafka, group, topic, 2)
        expected = (
            "goes on where it was, 1 record behind, and begins 3 new partitions at the beginning (2 records)"
        )
        assert the_text(self.rows(given(topic, group)), OK).startswith(f"{group}: {expected}; ")

    @pytest.mark.real_kafka
    def test_latest_skips_nothing_of_a_group_that_has_offsets(
        self, kafka: Kafka, given: GrantedPermits
    ) -> None:
        """With ``latest`` a group that has offsets of another topic reads new topics from their beginning."""
        topic, group = new_topic(kafka), new_group()
        produce(kafka, topic, [b"1", b"2", b"3"])
        commit(kafka, group, new_topic(kafka), 0)
        text = the_text(self.rows(given(topic, group, KAFKA_AUTO_OFFSET_RESET="latest")), OK)
        assert text.startswith(f"{group}: new to these topics, begins at the beginning: 3 records; ")

    def test_what_was_committed_for_another_destination(
        self, kafka: Kafka, api: Api, given: GrantedPermits
    ) -> None:
        """It is a warning, since the records before it are not sent to this one."""
        topic, group = new_topic(kafka), new_group()
        produce(kafka, topic, [b"1", b"2", b"3"])
        env = given(topic, group)
        for url, warned in ((api.url, False), ("http://sandbox.example/v5", True)):
            tag = destination_tag(url, test_mode=False)
            metadata = offset_map.write_map(TopicPartition(topic, 0), 2, [], None, destination=tag)
            commit(kafka, group, topic, 2, metadata=metadata)
            rows = self.rows(env)
            assert (WARNING in {row.verdict for row in rows}) is warned
        begin = f"{topic}[0]: committed for another PINTEREST_API_URL or PINTEREST_TEST_MODE"
        assert the_text(rows, WARNING).startswith(begin)


class TestDeadLetters:
    """The row about dead-letter topics, which says whether dead letters can be stored whole."""

    def rows(self, env: dict[str, str]) -> list[Row]:
        """Return the answers about the dead-letter topics."""
        return asked(env, brokers.cluster, brokers.dead_letter_topics)

    def test_a_topic_that_is_missing(self, kafka: Kafka, given: GrantedPermits) -> None:
        """A dead-letter topic that is missing is no problem: it is created with the first letter."""
        topic = create_topic(kafka, 1)
        text = the_text(self.rows(given(topic)), OK)
        assert "created with the first" in text
        assert text.endswith(f": {topic}.dead-letters")

    @pytest.mark.real_kafka
    @pytest.mark.parametrize(
        ("config", "begins", "setting"),
        [
            ({"cleanup_policy": "compact,delete"}, " is compacted (cleanup.policy)", "cleanup.policy=delete"),
            ({"max_message_bytes": "1000000"}, " takes batches up to 1,000,0", "max.message.bytes=4000000"),
        ],
    )
    def test_a_topic_that_does_not_take_all(
        self, kafka: Kafka, given: GrantedPermits, config: dict[str, str], begins: str, setting: str
    ) -> None:
        """One that is compacted, or takes smaller records than its origin: a warning with the command."""
        topic = create_topic(kafka, 1, max_message_bytes="2000000")
        create_topic(kafka, 1, f"{topic}.dead-letters", **{"max_message_bytes": "4000000", **config})
        text = the_text(self.rows(given(topic)), WARNING)
        assert text.startswith(f"{topic}.dead-letters{begins}")
        assert text.endswith(f"--entity-name {topic}.dead-letters --add-config {setting}`")


class TestPageAddress:
    """The row about the page's address, which says whether the page can be served."""

    def test_what_uses_it_already(self, given: GrantedPermits, tmp_path: Path) -> None:
        """A running member does no harm; another program, or an address that two settings name, is a failed row."""
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        env = given(PINSTREAM_HTTP_ADDRESS=address)
        with Process(tmp_path, "run", env=env) as process:
            process.until_settled(0)
            found = check(env)
            assert process.stop()[0] == 0
        assert found.code == 0
        assert "another pinstream uses it already" in found.text("page address", "ok")
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            port = other.getsockname()[1]
            for setting in ("PINSTREAM_HTTP_ADDRESS", "PINSTREAM_PAGE_ADDRESS"):
                [row] = asked(nowhere(tmp_path, **{setting: f"127.0.0.1:{port}"}), local.page)
                begin = f"{setting}: 127.0.0.1:{port} is used by another program"
                assert (row.verdict, row.text[: len(begin)]) == (FAILED, begin)
        both = {"PINSTREAM_HTTP_ADDRESS": f"localhost:{port}", "PINSTREAM_PAGE_ADDRESS": f"127.0.0.1:{port}"}
        [row] = asked(nowhere(tmp_path, **both), local.page)
        assert re.match(r"PINSTREAM_PAGE_ADDRESS: cannot listen on .*already in use", row.text)

    @pytest.mark.parametrize(
        ("main", "more", "verdict", "text"),
        [
            ("127.0.0.1:0", {}, OK, "127.0.0.1, any free port"),
            ("127.0.0.1:0", {"PINSTREAM_PAGE_ADDRESS": "localhost:0"}, OK, "port; localhost, any free port"),
            ("0.0.0.0:0", {}, OK, "everyone who reaches it may read it"),
            ("0.0.0.0:0", {"PINSTREAM_HTTP_TOKEN": "5ecret"}, OK, "everything but health requires"),
            ("", {}, SKIPPED, "PINSTREAM_HTTP_ADDRESS is empty"),
        ],
    )
    def test_who_may_check(
        self, tmp_path: Path, main: str, more: dict[str, str], verdict: Severity, text: str
    ) -> None:
        """The row says where the page is, and who may read it if it is not local; off, it is skipped."""
        [row] = asked(nowhere(tmp_path, PINSTREAM_HTTP_ADDRESS=main, **more), local.page)
        assert row.verdict is verdict
        assert text in row.text


def test_a_key_store_without_room_to_grow(tmp_path: Path) -> None:
    """A disk without room for the key store to grow is a warning before it is full."""
    env = nowhere(tmp_path, PINSTREAM_KEY_STORE_MAX_BYTES="1TiB")
    rows = asked(env, local.state_folder, local.key_store)
    assert "lower PINSTREAM_KEY_STORE_MAX_BYTES" in the_text(rows, WARNING)


class Verdicts:
    """An API that gives the answers set by the test; their texts may quote fields of the event's user data."""

    def __init__(self) -> None:
        self.status = 200
        self.outcomes: list[dict[str, Any]] = []
        self.given: dict[str, Any] = {}

    async def start(self) -> str:
        """Listen, and return the base URL."""
        application = web.Application()
        application.router.add_post("/v5/ad_accounts/{account}/events", self._answer)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v5"

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        events = (await request.json())["data"]
        entries = [
            {
                name: text.format(**event["user_data"]) if isinstance(text, str) else text
                for name, text in outcome.items()
            }
            for event, outcome in zip(events, self.outcomes, strict=False)
        ]
        processed = sum(one["status"] == "processed" for one in entries)
        whole = {"num_events_received": len(events), "num_events_processed": processed, "events": entries}
        return web.json_response(
            {**whole, **self.given}, status=self.status, headers={"x-pinterest-rid": "4711"}
        )


@pytest.fixture
def verdicts(servers: Loop) -> Iterator[tuple[str, Verdicts]]:
    """The API's base URL, and the API, which gives the answers set by the test."""
    server = Verdicts()
    yield servers.call(server.start()), server
    servers.call(server.stop())


class TestTestEvents:
    """The rows about the test events, which have the API's answers."""

    def rows(self, folder: Path, url: str, **settings: str) -> list[Row]:
        """Return the answers of the API at this URL."""
        env = nowhere(folder, PINTEREST_API_URL=url, **settings)
        return asked(env, local.schema, questions.test_events)

    def test_each_event_has_its_answer(self, verdicts: tuple[str, Verdicts], tmp_path: Path) -> None:
        """Its status, error or warning and the platform's id of the request, without values of the event."""
        url, server = verdicts
        server.outcomes = [
            {"status": "processed", "error_message": None, "warning_message": "em {em} is thin"},
            {"status": "failed", "error_message": "ip {client_ip_address} is odd", "warning_message": None},
        ]
        [first, second] = self.rows(tmp_path, url)
        request = "(HTTP 200, request id 4711)"
        assert (first.verdict, second.verdict) == (WARNING, FAILED)
        assert first.text.startswith(f"{ACCOUNT}: page_visit processed {request}; warning: em ")
        assert second.text.startswith(f"{ACCOUNT}: checkout failed {request}; error: ip *** is odd")
        assert "973dfe" not in first.text

    def test_every_account_is_tried(self, api: Api, tmp_path: Path) -> None:
        """Test events are sent for each account, also those of PINTEREST_EXTRA_AD_ACCOUNT_IDS."""
        rows = self.rows(tmp_path, api.url, PINTEREST_EXTRA_AD_ACCOUNT_IDS="549755885176")
        assert [(row.verdict, row.text.split(" (")[0]) for row in rows] == [
            (OK, f"{account}: {event} processed")
            for account in (ACCOUNT, "549755885176")
            for event in ("page_visit", "checkout")
        ]

    def test_what_is_new_goes_in_a_call_of_its_own(self, api: Api, tmp_path: Path) -> None:
        """So that their refusal fails nothing else."""
        (tmp_path / "mapping.toml").write_text(f"[fields]\n{NEW_FIELDS}")
        rows = self.rows(tmp_path, api.url, PINSTREAM_MAPPING_FILE=str(tmp_path / "mapping.toml"))
        events = ("page_visit", "checkout", "checkout")
        assert [row.text.split(" (")[0] for row in rows] == [f"{ACCOUNT}: {one} processed" for one in events]
        assert api.queries == ["test=true", "test=true"]
        [_, _, newer] = api.events
        assert newer["user_data"]["customer_type"] == "new"
        assert newer["custom_data"]["contents"][0]["item_brand_id"] == "pinstream-check"

    @pytest.mark.parametrize(
        ("status", "verdict", "advice"),
        [
            (401, FAILED, "PINTEREST_ACCESS_TOKEN"),
            (403, FAILED, "grant it access at Pinterest"),
            (404, FAILED, "PINTEREST_AD_ACCOUNT_ID"),
            (413, FAILED, "this is a bug, please report it"),
            (422, FAILED, "this is a bug, please report it"),
            (429, WARNING, "later"),
            (500, FAILED, "try again later"),
        ],
    )
    def test_each_refusal_says_what_to_do(
        self, verdicts: tuple[str, Verdicts], tmp_path: Path, status: int, verdict: Severity, advice: str
    ) -> None:
        """A refused call is one row for the account with what to do, since no event has an answer of its own."""
        url, server = verdicts
        server.status = status
        server.given = {"events": None, "code": 2, "message": "no"}
        [row] = self.rows(tmp_path, url)
        assert row.verdict is verdict
        assert advice in row.text
        assert f"HTTP {status}, request id 4711" in row.text

    @pytest.mark.parametrize(
        ("url", "advice"),
        [
            ("http://127.0.0.1:9/v5", "nothing answers there: correct PINTEREST_API_URL"),
            ("http://no-such-host.invalid/v5", "its name cannot be resolved: correct PINTEREST_API_URL"),
        ],
    )
    def test_no_answer_says_what_to_do(self, tmp_path: Path, url: str, advice: str) -> None:
        """Without an answer the row says why none came, and what to do."""
        [row] = self.rows(tmp_path, url)
        assert row.verdict is FAILED
        assert advice in row.text
