"""``pinstream explain`` prints a JSON line for each record, without network or settings; failures have exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastavro
from click.testing import CliRunner, Result

from consumer.commands import main
from tests.end_to_end.processes import ROOT, bare_environment
from tests.end_to_end.records import SCHEMA, commerce_event, ndjson

NOW = "2026-03-01T12:00:00Z"
HAPPENED = "2026-03-01T11:59:00Z"


def lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON lines of stdout; assert that each has the shape of the contract."""
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert {"payload", "error", "warnings"} <= line.keys()
        held = ("deliverable", line["payload"]), ("rejected", line["error"])
        assert line["outcome"] == next((name for name, value in held if value is not None), "filtered")
        assert all(warning.keys() == {"code", "message", "field"} for warning in line["warnings"])
        assert line["error"] is None or line["error"].keys() == {"stage", "code", "message"}
    return found


def explain(*arguments: str, env: dict[str, str], stdin: str = "") -> Result:
    """Run `explain` in this process, with only these variables: starting one takes longer than the run."""
    return CliRunner(env=dict.fromkeys(os.environ) | env).invoke(main, ["explain", *arguments], input=stdin)


MINIMAL = {
    "event_id": "e-1",
    "event_type": "order_completed",
    "occurred_at": HAPPENED,
    "channel": "WEB",
    "customer": {"emails": [" Jane.Doe@Example.com "], "gender": "unsaid"},
    "order": {"currency": "eur", "total": "129.970", "items": [{"sku": "007", "quantity": 2}]},
}


def test_each_outcome_from_standard_input(tmp_path: Path) -> None:
    """Deliverable, filtered and rejected records (of both stages) are printed in order; the exit code is 0 for all."""
    records = [
        MINIMAL,
        MINIMAL | {"event_type": "cart_viewed"},
        MINIMAL | {"customer": {}},
        {"event_type": "order_completed"},
        MINIMAL | {"occurred_at": 1772366340000},
    ]
    text = "\n".join(["{not json", *map(json.dumps, records)])
    done = explain("-", "--now", NOW, env=bare_environment(tmp_path), stdin=text)
    assert (done.exit_code, done.stderr) == (0, "")
    broken, first, filtered, anonymous, incomplete, in_milliseconds = lines(done.stdout)
    items = {"content_ids": ["007"], "contents": [{"id": "007", "quantity": 2}], "num_items": 2}
    assert first["payload"] == {
        "event_name": "checkout",
        "action_source": "web",
        "event_time": 1772366340,
        "event_id": "e-1",
        "opt_out": False,
        "user_data": {"em": [hashlib.sha256(b"jane.doe@example.com").hexdigest()]},
        "custom_data": {"currency": "EUR", "value": "129.970", **items},
    }
    assert [warning["field"] for warning in first["warnings"]] == ["user_data.ge"]
    assert filtered["outcome"] == "filtered"
    assert (anonymous["error"]["stage"], anonymous["error"]["code"]) == ("convert", "no_identity")
    assert broken["error"]["stage"] == incomplete["error"]["stage"] == "decode"
    assert in_milliseconds["payload"] == first["payload"]


def test_an_avro_container_with_its_own_schema(tmp_path: Path) -> None:
    """An older schema is resolved; of a file that breaks off, what can be read is printed, then one line."""
    writer = {
        "type": "record", "name": "CommerceEvent", "namespace": "commerce.v1",
        "fields": [field for field in SCHEMA["fields"] if field["name"] not in ("opt_out", "app", "device")]
        + [{"name": "added_later", "type": "string"}],
    }  # fmt: skip
    file, env = tmp_path / "events.avro", bare_environment(tmp_path)
    events = [commerce_event(f"e-{number}", added_later="x") for number in range(300)]
    with file.open("wb") as out:
        fastavro.writer(out, writer, events, codec="deflate", sync_interval=1)
    done = explain(str(file), env=env)
    found = lines(done.stdout)
    assert done.exit_code == 0
    assert [line["payload"]["event_id"] for line in found] == [event["event_id"] for event in events]
    assert all(line["payload"]["opt_out"] is False for line in found)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    done = explain(str(file), env=env)
    assert done.exit_code == 1
    assert 0 < len(lines(done.stdout)) < 300
    assert done.stderr.startswith("pinstream: ")
    assert len(done.stderr.splitlines()) == 1
    assert "events.avro" in done.stderr


def test_the_clock_decides_on_age(tmp_path: Path) -> None:
    """``--now`` is the time by which ages are judged; a date alone is midnight in UTC."""
    for now, outcome in [
        ("2026-03-01T11:54:00Z", "deliverable"),
        ("2026-03-01T11:53:00+00:00", "rejected"),
        ("2026-03-08", "deliverable"),
        ("2026-03-09", "rejected"),
    ]:
        done = explain("-", "--now", now, env=bare_environment(tmp_path), stdin=json.dumps(MINIMAL))
        assert [line["outcome"] for line in lines(done.stdout)] == [outcome], now


def test_a_pipe_that_is_closed_early(tmp_path: Path) -> None:
    """With ``pinstream explain … | head -1`` there is no traceback and no complaint."""
    (tmp_path / "many.ndjson").write_text(ndjson(commerce_event(f"e-{number}") for number in range(5000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "consumer", "explain", str(tmp_path / "many.ndjson")],
        env=bare_environment(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert json.loads(process.stdout.readline())["outcome"] == "deliverable"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) in (0, 1)


def test_mapping_and_account_settings_count(tmp_path: Path) -> None:
    """The mapping and the accounts that the environment sets are used."""
    (tmp_path / "m.toml").write_text(
        '[event_names]\norder_completed = "lead"\n[constants]\npartner_name = "ss-shop"\n'
    )
    env = bare_environment(tmp_path) | {
        "PINSTREAM_MAPPING_FILE": str(tmp_path / "m.toml"),
        "PINTEREST_AD_ACCOUNT_ID": "1",
    }
    text = ndjson([commerce_event("e-1"), commerce_event("e-2", ad_account_id="2")])
    done = explain("-", env=env, stdin=text)
    first, stranger = lines(done.stdout)
    assert first["payload"]["event_name"] == "lead"
    assert first["payload"]["partner_name"] == "ss-shop"
    assert stranger["outcome"] == "rejected"
