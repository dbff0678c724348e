"""``pinstream check``: a row for each question, all problems in one run, and exit code 0 or 1."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import web

from consumer.commands.check import api as questions
from consumer.commands.check import local
from consumer.commands.check.local import page
from consumer.commands.check.rows import CheckContext, Severity
from consumer.engine.model import TopicPartition, destination_tag
from consumer.engine.records import offset_map
from consumer.errors import SettingsError
from consumer.settings import load
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import ACCOUNT, Process, command, run_environment
from tests.end_to_end.records import commerce_event, new_group, new_topic, write_events
from tests.support.kafka.harness import Kafka, commit, create_topic, produce

ROWS = (
    *("settings", "schema", "mapping", "state folder", "key store", "page address", "brokers and topics"),
    *("consumer group", "dead-letter topics", "schema registry", "access token"),
)
NEW_FIELDS = """
"custom_data.contents[].item_brand_id" = "order.items[].brand"
"user_data.customer_type" = "customer.partner_id"
"""
VERDICTS = "ok|warning|failed|skipped"


class Table(NamedTuple):
    """What the command printed, and its exit code."""

    rows: dict[str, list[tuple[str, str]]]
    """Verdict and text of each row, by the question in the first column."""
    summary: str
    code: int

    def verdicts(self, name: str) -> list[str]:
        """Return the verdicts on one question."""
        return [verdict for verdict, _ in self.rows[name]]

    def text(self, name: str, verdict: str) -> str:
        """Return the text of the one row of this question with this verdict."""
        [text] = [text for one, text in self.rows[name] if one == verdict]
        return text

    def names(self, verdict: str) -> set[str]:
        """Return the questions that have a row with this verdict."""
        return {name for name, rows in self.rows.items() if verdict in dict(rows)}


def check(env: Mapping[str, str], *arguments: str) -> Table:
    """Run `check` on a screen so wide that each row is one line, and read what it prints."""
    done = command("check", *arguments, env={**env, "COLUMNS": "1000"})
    assert done.stderr == ""
    assert env["PINTEREST_ACCESS_TOKEN"] not in done.stdout
    return Table(*read(done.stdout), done.returncode)


def read(shown: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
    """Return the rows, by question, and the last line."""
    *lines, summary = shown.strip().splitlines()
    rows: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in lines:
        match = re.fullmatch(rf"(\S.*?)? +({VERDICTS}) +(.*?) *", line)
        if match is not None:
            name = match[1] or name
            rows.setdefault(name, []).append((match[2], match[3]))
    return rows, summary


def test_a_configuration_that_is_fit_to_run(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """With a configuration that is fit to run every row is there, none failed, and the exit code is 0. The test
    events are sent in test mode and not recorded."""
    topic = new_topic(kafka)
    found = check(run_environment(tmp_path, kafka, topic, new_group(), api.url), "--send-test-event")
    assert set(found.rows) == {*ROWS, "test view", "test events"}
    assert "open its test view before you run this: it has no history" in found.text("test view", "ok")
    assert found.code == 0
    assert found.names("failed") == set()
    assert found.names("skipped") == {"schema registry"}
    assert found.names("warning") == {"settings"}, "the sandbox is not https"
    assert found.summary == "Fit to run, 1 warning."
    assert api.queries == ["test=true"]
    assert api.counts().accepted_events == 0


class TestMapping:
    """The rows about the mapping file, asked for in this process and without the other questions."""

    def said(self, folder: Path, toml: str) -> tuple[str, list[str]]:
        """Return the answer, and its warnings."""
        file = folder / "mapping.toml"
        file.write_text(toml)
        kafka = Kafka("127.0.0.1:9", "none")
        env = run_environment(
            folder, kafka, "orders", "group", "http://127.0.0.1:9/v5", PINSTREAM_MAPPING_FILE=str(file)
        )
        found = CheckContext(load(env))
        asyncio.run(local.schema(found))
        said, *warnings = asyncio.run(local.mapping(found))
        assert found.sections is not None
        assert all(answer.verdict is Severity.WARNING for answer in warnings)
        return said.text, [answer.text for answer in warnings]

    def test_own_events_are_counted(self, tmp_path: Path) -> None:
        """Own events are named and counted against the fifteen that an advertiser may register."""
        text, warnings = self.said(tmp_path, '[own_events]\nnames = ["loyalty_joined", "Store visit"]')
        assert (
            "own events: 2 of the 15 that may be registered with Pinterest: loyalty_joined, Store visit"
            in text
        )
        assert warnings == []
        text, _ = self.said(tmp_path, "")
        assert "own events" not in text

    def test_a_setting_without_effect_is_told(self, tmp_path: Path) -> None:
        """A setting of older versions that has no effect any more, `newer_event_names`, is a warning."""
        _, [warning] = self.said(tmp_path, "newer_event_names = true")
        assert "newer_event_names has no effect any more" in warning

    def test_what_is_new_at_the_platform_is_told(self, tmp_path: Path) -> None:
        """Fields that are new at the platform are a warning, which says how to find out whether it accepts them."""
        _, [warning] = self.said(tmp_path, f"[fields]\n{NEW_FIELDS}")
        assert "custom_data.contents[].item_brand_id (since 5.28)" in warning
        assert "user_data.customer_type (as one reading of 5.31 has it)" in warning
        assert "--send-test-event" in warning


def test_what_opentelemetry_is_asked_for_has_a_row(tmp_path: Path) -> None:
    """What OpenTelemetry would export has a row; a mistake in its variables is a warning, since events are
    delivered all the same."""
    env = run_environment(tmp_path, Kafka("127.0.0.1:9", "none"), "a", "b", "http://127.0.0.1:9/v5")
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_METRIC_EXPORT_INTERVAL": "1m"}
    found = check(env | asked)
    assert "traces would be exported" in found.text("OpenTelemetry", "ok")
    assert "OTEL_METRIC_EXPORT_INTERVAL is not a number of milliseconds" in found.text(
        "OpenTelemetry", "warning"
    )


def test_the_function_is_loaded(tmp_path: Path) -> None:
    """The row for PINSTREAM_TRANSFORM names the function and says what it costs, or why it cannot be loaded;
    without the setting there is no row."""
    env = run_environment(tmp_path, Kafka("127.0.0.1:9", "none"), "orders", "group", "http://127.0.0.1:9/v5")
    found = CheckContext(load(env | {"PINSTREAM_TRANSFORM": "copy:copy"}))
    assert (
        "copy:copy takes each record; so the fast path is not used"
        in asyncio.run(local.transform(found))[0].text
    )
    with pytest.raises(
        SettingsError, match=r"PINSTREAM_TRANSFORM='copy:copi': copy has no 'copi'; did you mean copy\?"
    ):
        asyncio.run(local.transform(CheckContext(load(env | {"PINSTREAM_TRANSFORM": "copy:copi"}))))
    assert asyncio.run(local.transform(CheckContext(load(env)))) == []


def test_divided_by_workers(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """With ``--workers`` a row says what each worker would have, or why the settings cannot be divided."""
    env = run_environment(tmp_path, kafka, new_topic(kafka), new_group(), api.url)
    found = check(env, "--workers", "4")
    assert found.code == 0
    assert found.text("workers", "ok") == (
        "4; each has 2 requests in flight, 5,000 open events and 32 MiB of them; "
        "and 1,250 of the 5,000 calls a minute, fewer if more members hold partitions"
    )
    shared = check({**env, "PINSTREAM_KEY_STORE": "redis://127.0.0.1:1"}, "--workers", "4")
    assert shared.text("workers", "ok") == (
        "4; each has 2 requests in flight, 5,000 open events and 32 MiB of them; "
        "together with all other members they make 5,000 calls a minute (shared key store)"
    )
    found = check(env, "--workers", "30")
    assert found.code == 1
    assert "PINSTREAM_CONCURRENCY=8 is below --workers 30" in found.text("workers", "failed")


def test_it_leaves_nothing_behind(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """After `check` no probe file is left in the state folder."""
    env = run_environment(tmp_path, kafka, new_topic(kafka), new_group(), api.url)
    assert check(env).code == 0
    assert not [one for one in (tmp_path / "state").rglob("*") if one.name.startswith(".check-")]


def test_all_that_is_wrong_in_one_run(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A missing topic, a wrong token, a mapping that does not fit and a registry that is down are a failed row
    each, in one run."""
    (tmp_path / "m.toml").write_text('[fields]\n"user_data.em" = "customer.email"\n')
    env = run_environment(
        tmp_path, kafka, "no-such-topic", new_group(), api.url,
        PINTEREST_ACCESS_TOKEN="pina_wrong_5up3rs3cr3t",
        PINSTREAM_MAPPING_FILE=str(tmp_path / "m.toml"),
        PINSTREAM_KEY_STORE="disk:/dev/null/keys",
        PINSTREAM_HTTP_ADDRESS="203.0.113.1:8080",
        SCHEMA_REGISTRY_URL="http://127.0.0.1:9",
    )  # fmt: skip
    found = check(env, "--send-test-event")
    assert found.code == 1
    assert found.names("failed") == {
        *("mapping", "key store", "page address", "brokers and topics", "schema registry", "test events")
    }
    assert found.names("skipped") == {"consumer group", "dead-letter topics", "writers' schemas"}
    assert "customer.emails" in found.text("mapping", "failed")
    assert "create it, grant READ on it, or correct its name (KAFKA_TOPICS, or --topic)" in found.text(
        "brokers and topics", "failed"
    )
    assert found.text("test events", "failed").startswith(
        f"{ACCOUNT}: the access token is refused: set a valid"
    )
    assert re.search(r"\(HTTP 401, request id \d+, code 2\)$", found.text("test events", "failed"))
    assert found.summary == "Not fit to run: 6 failed, 1 warning."


def test_settings_that_cannot_be_read(kafka: Kafka, tmp_path: Path) -> None:
    """Settings that cannot be read are one failed row with exit code 1, and no other question is asked."""
    env = run_environment(tmp_path, kafka, "a", "b", "http://127.0.0.1:9/v5", PINSTREAM_LINGER="[soon]")
    found = check(env)
    assert (found.code, set(found.rows)) == (1, {"settings"})
    assert "[soon]" in found.text("settings", "failed")
    assert found.summary == "Not fit to run: 1 failed."


def test_it_reads_well_on_a_narrow_screen(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """At 80 columns no line is longer, and the columns of questions and verdicts hold nothing else."""
    env = run_environment(tmp_path, kafka, "no-such-topic", new_group(), api.url, COLUMNS="80")
    done = command("check", env=env)
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    [header] = [line for line in lines if "verdict" in line]
    column = header.index("found")
    assert all(re.fullmatch(rf".*({VERDICTS}) +", line[:column]) for line in lines if line[:1].isalpha() and
               line.split(" ")[0] in {name.split(" ")[0] for name in ROWS})  # fmt: skip
    assert "\x1b" not in done.stdout, "no colours but on a terminal"


class TestGroup:
    """The row about the consumer group, which says where reading would begin."""

    def test_a_new_group(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """A new group begins at the beginning and reads all records."""
        topic = new_topic(kafka)
        write_events(kafka, topic, [commerce_event(str(number)) for number in range(7)])
        env = run_environment(tmp_path, kafka, topic, group := new_group(), api.url)
        text = check(env).text("consumer group", "ok")
        assert text.startswith(f"{group}: new, begins at the beginning: 7 records; ")

    def test_a_group_that_was_here_before(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """A known group goes on at its offsets; a partition without one is read from its beginning."""
        topic, group = new_topic(kafka), new_group()
        produce(kafka, topic, [b"1", b"2", b"3"], partition=0)
        produce(kafka, topic, [b"4", b"5"], partition=1)
        commit(kafka, group, topic, 2)
        env = run_environment(tmp_path, kafka, topic, group, api.url)
        text = check(env).text("consumer group", "ok")
        expected = (
            "goes on where it was, 1 record behind, and begins 3 new partitions at the beginning (2 records)"
        )
        assert text.startswith(f"{group}: {expected}; ")

    def test_a_group_without_offsets_under_error(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """With KAFKA_AUTO_OFFSET_RESET=error a group without offsets is not fit to run, since a run would end
        at once."""
        env = run_environment(
            tmp_path, kafka, new_topic(kafka), new_group(), api.url, KAFKA_AUTO_OFFSET_RESET="error"
        )
        found = check(env)
        assert found.code == 1
        assert "`pinstream offsets set`" in found.text("consumer group", "failed")

    def test_latest_says_what_it_skips(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """With ``latest`` the row of a new group says how many records will not be read."""
        topic = new_topic(kafka)
        produce(kafka, topic, [b"1", b"2", b"3"])
        env = run_environment(tmp_path, kafka, topic, new_group(), api.url, KAFKA_AUTO_OFFSET_RESET="latest")
        assert "begins at the end: 3 records will not be read" in check(env).text("consumer group", "ok")

    @pytest.mark.real_kafka
    def test_latest_skips_nothing_of_a_group_that_has_offsets(
        self, kafka: Kafka, api: Api, tmp_path: Path
    ) -> None:
        """With ``latest`` a group that has offsets of another topic reads new topics from their beginning."""
        other, topic, group = new_topic(kafka), new_topic(kafka), new_group()
        produce(kafka, topic, [b"1", b"2", b"3"])
        commit(kafka, group, other, 0)
        env = run_environment(tmp_path, kafka, topic, group, api.url, KAFKA_AUTO_OFFSET_RESET="latest")
        expected = f"{group}: new to these topics, begins at the beginning: 3 records; "
        assert check(env).text("consumer group", "ok").startswith(expected)

    def test_what_was_committed_for_another_destination(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """Offsets that were committed for another destination, such as a sandbox, are a warning, since the
        records before them are not sent to this one. Offsets of this destination are not."""
        topic, group = new_topic(kafka), new_group()
        produce(kafka, topic, [b"1", b"2", b"3"])
        env = run_environment(tmp_path, kafka, topic, group, api.url)
        for url, told in ((api.url, False), ("http://sandbox.example/v5", True)):
            tag = destination_tag(url, test_mode=False)
            metadata = offset_map.write_map(TopicPartition(topic, 0), 2, [], None, destination=tag)
            commit(kafka, group, topic, 2, metadata=metadata)
            found = check(env)
            assert ("consumer group" in found.names("warning")) is told
        text = found.text("consumer group", "warning")
        assert text.startswith(f"{topic}[0]: committed for another PINTEREST_API_URL or PINTEREST_TEST_MODE")

    def test_an_offset_beyond_the_end(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """An offset beyond the end is a warning: the topic was created again, or it is another cluster."""
        topic, group = new_topic(kafka), new_group()
        commit(kafka, group, topic, 500)
        found = check(run_environment(tmp_path, kafka, topic, group, api.url))
        assert found.code == 0
        text = found.text("consumer group", "warning")
        assert text.startswith(
            f"{topic}[0]: the committed offset is beyond the end: the topic was created again"
        )


class TestDeadLetters:
    """The row about dead-letter topics, which says whether dead letters can be stored whole."""

    def test_a_topic_that_is_missing(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """A dead-letter topic that is missing is no problem: it is created with the first letter."""
        topic = create_topic(kafka, 1)
        found = check(run_environment(tmp_path, kafka, topic, new_group(), api.url))
        assert found.text("dead-letter topics", "ok").endswith(f": {topic}.dead-letters")
        assert "created with the first" in found.text("dead-letter topics", "ok")

    @pytest.mark.real_kafka
    def test_a_compacted_topic(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """A compacted dead-letter topic is a warning, since letters without a key cannot be stored there."""
        topic = create_topic(kafka, 1)
        create_topic(kafka, 1, f"{topic}.dead-letters", cleanup_policy="compact,delete")
        found = check(run_environment(tmp_path, kafka, topic, new_group(), api.url))
        assert found.code == 0
        text = found.text("dead-letter topics", "warning")
        assert text.startswith(f"{topic}.dead-letters is compacted (cleanup.policy)")
        assert text.endswith(f"--entity-name {topic}.dead-letters --add-config cleanup.policy=delete`")

    @pytest.mark.real_kafka
    def test_a_topic_that_takes_less_than_its_origin(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """A dead-letter topic that takes smaller records than its origin is a warning, since letters would lose
        their value; it has the setting that corrects it."""
        topic = create_topic(kafka, 1, max_message_bytes="2000000")
        create_topic(kafka, 1, f"{topic}.dead-letters", max_message_bytes="1000000")
        found = check(run_environment(tmp_path, kafka, topic, new_group(), api.url))
        assert found.code == 0
        assert found.text("dead-letter topics", "warning").endswith(
            f"--entity-name {topic}.dead-letters --add-config max.message.bytes=4000000`"
        )


class TestPageAddress:
    """The row about the page's address, which says whether the page can be served."""

    def test_another_program_has_it(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """An address that another program uses is a failed row, since a run would end at once."""
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            address = f"127.0.0.1:{other.getsockname()[1]}"
            env = run_environment(
                tmp_path, kafka, new_topic(kafka), new_group(), api.url, PINSTREAM_HTTP_ADDRESS=address
            )
            found = check(env)
        assert found.code == 1
        assert f"{address} is used by another program" in found.text("page address", "failed")

    def test_this_member_runs_already(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """An address that this member uses already is no problem: the runbook says to run `check` beside a
        running member."""
        topic, group = new_topic(kafka), new_group()
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_HTTP_ADDRESS=address)
        with Process(tmp_path, "run", env=env) as process:
            process.until_settled(0)
            found = check(env)
            assert process.stop()[0] == 0
        assert found.code == 0
        assert "another pinstream uses it already" in found.text("page address", "ok")

    def test_it_is_turned_off(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """With the page turned off the row is skipped."""
        env = run_environment(
            tmp_path, kafka, new_topic(kafka), new_group(), api.url, PINSTREAM_HTTP_ADDRESS=""
        )
        assert check(env).verdicts("page address") == ["skipped"]

    def test_both_addresses_are_tried(self, tmp_path: Path) -> None:
        """Both addresses are tried. The one that is not free is named, and so are two that cannot be used together."""
        env = run_environment(
            tmp_path, Kafka("127.0.0.1:9", "none"), "orders", "group", "http://127.0.0.1:9/v5"
        )
        env["PINSTREAM_PAGE_ADDRESS"] = "localhost:0"
        [said] = asyncio.run(page(CheckContext(load(env))))
        assert said.text == "127.0.0.1, any free port; localhost, any free port"
        with closing(socket.create_server(("127.0.0.1", 0))) as other:
            port = other.getsockname()[1]
            env["PINSTREAM_PAGE_ADDRESS"] = f"127.0.0.1:{port}"
            with pytest.raises(
                SettingsError, match=f"^PINSTREAM_PAGE_ADDRESS: 127.0.0.1:{port} is used by another"
            ):
                asyncio.run(page(CheckContext(load(env))))
        env["PINSTREAM_HTTP_ADDRESS"] = f"localhost:{port}"
        with pytest.raises(
            SettingsError, match=r"^PINSTREAM_PAGE_ADDRESS: cannot listen on .*already in use"
        ):
            asyncio.run(page(CheckContext(load(env))))

    @pytest.mark.parametrize(
        ("settings", "text"),
        [
            ({"PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0"}, "127.0.0.1, any free port"),
            ({"PINSTREAM_HTTP_ADDRESS": "0.0.0.0:0"}, "everyone who reaches it may read it"),
            (
                {"PINSTREAM_HTTP_ADDRESS": "0.0.0.0:0", "PINSTREAM_HTTP_TOKEN": "5ecret"},
                "everything but health requires",
            ),
        ],
    )
    def test_it_says_who_may_look(self, tmp_path: Path, settings: dict[str, str], text: str) -> None:
        """For an address that is not local, the row says who may read the page, with a token and without."""
        url = "http://127.0.0.1:9/v5"
        env = run_environment(tmp_path, Kafka("127.0.0.1:9", "none"), "orders", "group", url, **settings)
        assert text in asyncio.run(page(CheckContext(load(env))))[0].text


def test_a_state_folder_that_cannot_be_written(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A state folder that cannot be written is a failed row that names the variable."""
    env = run_environment(
        tmp_path, kafka, new_topic(kafka), new_group(), api.url,
        PINSTREAM_STATE_DIR="/proc/pinstream", PINSTREAM_KEY_STORE="memory:",
    )  # fmt: skip
    assert "PINSTREAM_STATE_DIR: /proc/pinstream" in check(env).text("state folder", "failed")


def test_a_key_store_without_room_to_grow(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A disk without room for the key store to grow is a warning before it is full."""
    env = run_environment(
        tmp_path, kafka, new_topic(kafka), new_group(), api.url, PINSTREAM_KEY_STORE_MAX_BYTES="1TiB"
    )
    found = check(env)
    assert found.code == 0
    assert "lower PINSTREAM_KEY_STORE_MAX_BYTES" in found.text("key store", "warning")


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

    def rows(self, folder: Path, url: str, **settings: str) -> list[tuple[str, str]]:
        """Return verdict and text of each row, asked for in this process and without the other questions."""
        env = run_environment(folder, Kafka("127.0.0.1:9", "none"), "orders", "group", url, **settings)
        answers = asyncio.run(questions.test_events(CheckContext(load(env), sends=True)))
        return [(answer.verdict.value, answer.text) for answer in answers]

    def test_each_event_has_its_answer(self, verdicts: tuple[str, Verdicts], tmp_path: Path) -> None:
        """Each test event has a row with its status, error or warning and the platform's id of the request,
        without values of the event."""
        url, server = verdicts
        server.outcomes = [
            {"status": "processed", "error_message": None, "warning_message": "em {em} is thin"},
            {"status": "failed", "error_message": "ip {client_ip_address} is odd", "warning_message": None},
        ]
        rows = self.rows(tmp_path, url)
        assert [verdict for verdict, _ in rows] == ["warning", "failed"]
        assert rows[0][1].startswith(
            f"{ACCOUNT}: page_visit processed (HTTP 200, request id 4711); warning: em "
        )
        assert rows[1][1].startswith(
            f"{ACCOUNT}: checkout failed (HTTP 200, request id 4711); error: ip *** is odd"
        )
        assert "973dfe" not in rows[0][1]

    def test_every_account_is_tried(self, api: Api, tmp_path: Path) -> None:
        """Test events are sent for each account, also those of PINTEREST_EXTRA_AD_ACCOUNT_IDS."""
        rows = self.rows(tmp_path, api.url, PINTEREST_EXTRA_AD_ACCOUNT_IDS="549755885176")
        assert {verdict for verdict, _ in rows} == {"ok"}
        assert [text.split(" (")[0] for _, text in rows] == [
            f"{account}: {event} processed"
            for account in (ACCOUNT, "549755885176")
            for event in ("page_visit", "checkout")
        ]

    def test_what_is_new_goes_in_a_call_of_its_own(self, api: Api, tmp_path: Path) -> None:
        """Fields that are new at the platform are sent in a call of their own if the mapping has them, so that
        their refusal fails nothing else."""
        file = tmp_path / "mapping.toml"
        file.write_text(f"[fields]\n{NEW_FIELDS}")
        kafka = Kafka("127.0.0.1:9", "none")
        env = run_environment(tmp_path, kafka, "orders", "group", api.url, PINSTREAM_MAPPING_FILE=str(file))
        found = CheckContext(load(env), sends=True)
        asyncio.run(local.schema(found))
        rows = asyncio.run(questions.test_events(found))
        assert [row.text.split(" (")[0] for row in rows] == [
            f"{ACCOUNT}: {event} processed" for event in ("page_visit", "checkout", "checkout")
        ]
        assert api.queries == ["test=true", "test=true"]
        [_, _, newer] = api.events
        assert newer["user_data"]["customer_type"] == "new"
        assert newer["custom_data"]["contents"][0]["item_brand_id"] == "pinstream-check"

    @pytest.mark.parametrize(
        ("status", "verdict", "advice"),
        [
            (401, "failed", "PINTEREST_ACCESS_TOKEN"),
            (403, "failed", "grant it access at Pinterest"),
            (404, "failed", "PINTEREST_AD_ACCOUNT_ID"),
            (413, "failed", "this is a bug, please report it"),
            (422, "failed", "this is a bug, please report it"),
            (429, "warning", "later"),
            (500, "failed", "try again later"),
        ],
    )
    def test_each_refusal_says_what_to_do(
        self,
        verdicts: tuple[str, Verdicts],
        tmp_path: Path,
        status: int,
        verdict: str,
        advice: str,
    ) -> None:
        """A refused call is one row for the account with what to do, since no event has an answer of its own."""
        url, server = verdicts
        server.status = status
        server.given = {"events": None, "code": 2, "message": "no"}
        [(found, text)] = self.rows(tmp_path, url)
        assert found == verdict
        assert advice in text
        assert f"HTTP {status}, request id 4711" in text

    @pytest.mark.parametrize(
        ("url", "advice"),
        [
            ("http://127.0.0.1:9/v5", "nothing answers there: correct PINTEREST_API_URL"),
            ("http://no-such-host.invalid/v5", "its name cannot be resolved: correct PINTEREST_API_URL"),
        ],
    )
    def test_no_answer_says_what_to_do(self, tmp_path: Path, url: str, advice: str) -> None:
        """Without an answer the row says why none came, and what to do."""
        [(verdict, text)] = self.rows(tmp_path, url)
        assert verdict == "failed"
        assert advice in text
