"""``pinstream check``: one row a question, all that is wrong in one run, exit code 0 or 1."""

from __future__ import annotations

from pathlib import Path

from tests.end_to_end.api import Api
from tests.end_to_end.processes import command, run_environment
from tests.end_to_end.records import new_group, new_topic
from tests.kafka.harness import Kafka

ROWS = (
    *("settings", "schema", "mapping", "brokers and topics", "dead-letter topics", "schema registry"),
    *("key store", "access token"),
)


def rows_of(table: str) -> dict[str, tuple[str, str]]:
    """First column -> verdict and text; cells that were folded over lines are put together again."""
    rows: dict[str, tuple[str, str]] = {}
    name = ""
    for line in table.splitlines():
        if not line.startswith("│"):
            continue
        what, verdict, text = (cell.strip() for cell in line.strip("│").split("│"))
        name = f"{name} {what}".strip() if what and not verdict else what or name
        if verdict:
            rows[name] = (verdict, text)
            continue
        before = rows.pop(next(reversed(rows)))
        rows[name] = (before[0], f"{before[1]} {text}")
    return rows


def test_a_configuration_that_is_fit_to_run(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Every row is there and none failed; exit code 0; the test event went through test mode and is not recorded."""
    topic = new_topic(kafka)
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url)
    done = command("check", "--send-test-event", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    rows = rows_of(done.stdout)
    assert set(rows) >= {*ROWS, "Conversions API, test mode"}
    verdicts = {name: verdict for name, (verdict, _) in rows.items()}
    assert verdicts.pop("schema registry") == "skipped"
    assert set(verdicts.values()) <= {"ok", "warning"}
    assert "processed the test event" in rows["Conversions API, test mode"][1]
    assert api.queries == ["test=true"]
    assert api.counts().accepted_events == 0
    assert env["PINTEREST_ACCESS_TOKEN"] not in done.stdout


def test_all_that_is_wrong_in_one_run(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A missing topic, a wrong token, a mapping that does not fit, a registry that is down: a failed row each."""
    (tmp_path / "m.toml").write_text('[fields]\n"user_data.em" = "customer.email"\n')
    env = run_environment(
        tmp_path, kafka, "no-such-topic", new_group(), api.url,
        PINTEREST_ACCESS_TOKEN="pina_wrong_5up3rs3cr3t",
        PINSTREAM_MAPPING_FILE=str(tmp_path / "m.toml"),
        PINSTREAM_KEY_STORE="lmdb:/dev/null/keys",
        SCHEMA_REGISTRY_URL="http://127.0.0.1:9",
    )  # fmt: skip
    done = command("check", "--send-test-event", env=env)
    assert done.returncode == 1
    rows = rows_of(done.stdout)
    failed = {name for name, (verdict, _) in rows.items() if verdict == "failed"}
    assert failed == {
        *("mapping", "brokers and topics", "schema registry", "key store", "Conversions API, test mode")
    }
    assert rows["dead-letter topics"][0] == "skipped"
    assert rows["schema"][0] == rows["access token"][0] == "ok"
    assert "customer.emails" in rows["mapping"][1]
    assert "401" in rows["Conversions API, test mode"][1]
    assert "5up3rs3cr3t" not in done.stdout + done.stderr


def test_settings_that_cannot_be(kafka: Kafka, tmp_path: Path) -> None:
    """They are a failed row, and exit code 1: nothing else can be asked."""
    env = run_environment(tmp_path, kafka, "a", "b", "http://127.0.0.1:9/v5", PINSTREAM_LINGER="[soon]")
    done = command("check", env=env)
    assert (done.returncode, done.stderr) == (1, "")
    assert rows_of(done.stdout)["settings"][0] == "failed"
    assert "[soon]" in done.stdout
