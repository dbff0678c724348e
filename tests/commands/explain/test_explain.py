"""``pinstream explain`` prints a JSON line for each record, without network or settings, and its exit code
tells failures."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest
from click.testing import CliRunner, Result

from consumer.commands import main
from tests.end_to_end.processes import ROOT, bare_environment
from tests.end_to_end.records import SCHEMA, commerce_event, ndjson
from tests.support.orders import make_orders, sum_of, write_container

NOW = "2026-03-01T12:00:00Z"
HAPPENED = "2026-03-01T11:59:00Z"


def lines(text: str) -> list[dict[str, Any]]:
    """Return the JSON lines of stdout; assert that each has the shape of the contract."""
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert line["outcome"] in ("deliverable", "filtered", "rejected")
        assert {"payload", "error", "warnings"} <= line.keys()
        assert (line["payload"] is not None) == (line["outcome"] == "deliverable")
        assert (line["error"] is not None) == (line["outcome"] == "rejected")
        assert all(warning.keys() == {"code", "message", "field"} for warning in line["warnings"])
        if line["error"]:
            assert line["error"].keys() == {"stage", "code", "message"}
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
    """Deliverable, filtered and rejected records (of both stages) are printed in order; the exit code is 0 for
    all outcomes."""
    text = "\n".join(
        (
            json.dumps(MINIMAL),
            json.dumps(MINIMAL | {"event_type": "cart_viewed"}),
            json.dumps(MINIMAL | {"customer": {}}),
            "{not json",
            json.dumps({"event_type": "order_completed"}),
            json.dumps(MINIMAL | {"occurred_at": 1772366340000}),
        )
    )
    done = explain("-", "--now", NOW, env=bare_environment(tmp_path), stdin=text)
    assert (done.exit_code, done.stderr) == (0, "")
    first, filtered, anonymous, broken, incomplete, in_milliseconds = lines(done.stdout)
    assert first["payload"] == {
        "event_name": "checkout",
        "action_source": "web",
        "event_time": 1772366340,
        "event_id": "e-1",
        "opt_out": False,
        "user_data": {"em": [hashlib.sha256(b"jane.doe@example.com").hexdigest()]},
        "custom_data": {
            "currency": "EUR",
            "value": "129.970",
            "content_ids": ["007"],
            "contents": [{"id": "007", "quantity": 2}],
            "num_items": 2,
        },
    }
    assert [warning["field"] for warning in first["warnings"]] == ["user_data.ge"]
    assert filtered["outcome"] == "filtered"
    assert (anonymous["error"]["stage"], anonymous["error"]["code"]) == ("convert", "no_identity")
    assert broken["error"]["stage"] == incomplete["error"]["stage"] == "decode"
    assert in_milliseconds["payload"] == first["payload"]


def test_an_avro_container_with_its_own_schema(tmp_path: Path) -> None:
    """A container that was written with an older schema is read by Avro's rules."""
    writer = {
        "type": "record", "name": "CommerceEvent", "namespace": "commerce.v1",
        "fields": [field for field in SCHEMA["fields"] if field["name"] not in ("opt_out", "app", "device")]
        + [{"name": "added_later", "type": "string"}],
    }  # fmt: skip
    events = [commerce_event(f"e-{number}", added_later="x") for number in range(3)]
    with (tmp_path / "events.avro").open("wb") as file:
        fastavro.writer(file, writer, events, codec="deflate")
    done = explain(str(tmp_path / "events.avro"), env=bare_environment(tmp_path))
    found = lines(done.stdout)
    assert done.exit_code == 0
    assert [line["payload"]["event_id"] for line in found] == ["e-0", "e-1", "e-2"]
    assert all(line["payload"]["opt_out"] is False for line in found)


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


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    """Of a truncated container what can be read is printed, followed by one line on stderr and exit code 1."""
    whole = io.BytesIO()
    events = [commerce_event(f"e-{number}") for number in range(3000)]
    fastavro.writer(whole, SCHEMA, events, codec="null")
    (tmp_path / "cut.avro").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    done = explain(str(tmp_path / "cut.avro"), env=bare_environment(tmp_path))
    assert done.exit_code == 1
    assert 0 < len(lines(done.stdout)) < 3000
    assert done.stderr.startswith("pinstream: ")
    assert len(done.stderr.splitlines()) == 1
    assert "cut.avro" in done.stderr


@pytest.mark.parametrize("name", ["nowhere.ndjson", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    """A missing file and a folder are one line that names the path, and exit code 1."""
    done = explain(str(tmp_path / name), env=bare_environment(tmp_path))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pinstream: {tmp_path / name}".rstrip("/."))
    assert len(done.stderr.splitlines()) == 1


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


def test_a_year_and_a_half_of_orders(tmp_path: Path) -> None:
    """Thousands of orders of 1997 and 1998 are all deliverable with ``--now`` of that time, and their values
    sum up to the cent."""
    orders = make_orders(8_000)
    write_container(tmp_path / "orders.avro", orders, SCHEMA)
    env = bare_environment(tmp_path) | {"PINSTREAM_MAX_EVENT_AGE": "0"}
    done = explain(str(tmp_path / "orders.avro"), "--now", "1998-07-01", env=env)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert {line["outcome"] for line in found} == {"deliverable"}
    values = [line["payload"]["custom_data"]["value"] for line in found]
    assert [Decimal(value).scaleb(2) for value in values] == [order.cents for order in orders]
    assert str(sum(map(Decimal, values))) == sum_of(orders)
    assert [line["payload"]["event_id"] for line in found] == [order.event["event_id"] for order in orders]
    warned = [[warning["code"] for warning in line["warnings"]] for line in found]
    assert warned == [["zero_value"] if order.cents == 0 else [] for order in orders]
