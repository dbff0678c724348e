"""``pinstream demo`` runs everything in one command, and its last line agrees with what the sandbox counted."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import fastavro
import pytest

from tests.conversion.sections.shop import MAPPING, UNION, write_schemas
from tests.end_to_end.processes import Process, bare_environment, command, wait_for
from tests.end_to_end.records import SCHEMA, commerce_event
from tests.support.limits import LATE


def document_of(stdout: str) -> dict[str, Any]:
    """Return the document on the last line of stdout; assert that its ledger adds up and agrees with the
    sandbox and with all counts of deliveries."""
    document: dict[str, Any] = json.loads(stdout.strip().splitlines()[-1])
    ledger, sandbox = document["ledger"], document["sandbox"]
    parts = ("delivered", "duplicate", "filtered", "dead_lettered", "open")
    assert ledger["read"] == sum(ledger[part] for part in parts)
    assert ledger["delivered"] == sandbox["distinct_event_ids"] == document["key_store"]["keys"]
    for window in ("hour", "day"):
        covered = {name: one["events"] for name, one in document["coverage"][window].items()}
        assert covered == document["counts"]["delivered_by_event_name"]
        assert sum(covered.values()) == document["freshness"][window]["delivered"] == ledger["delivered"]
    return document


def test_made_up_events_to_their_end(tmp_path: Path) -> None:
    """All events are settled and committed, and the sandbox accepted each once. The report for people is on stderr,
    and says whether the fast path is compiled."""
    done = command("demo", "--events", "3000", "--json", env=bare_environment(tmp_path))
    assert done.returncode == 0, done.stderr
    document = document_of(done.stdout)
    ledger = document["ledger"]
    assert (ledger["read"], ledger["open"], ledger["dead_lettered"], ledger["duplicate"]) == (3000, 0, 0, 0)
    assert document["sandbox"]["accepted_events"] == ledger["delivered"]
    assert sum(one["committed"] for one in document["partitions"]) == 3000
    assert len(done.stdout.splitlines()) == 1
    assert "how every record ended" in done.stderr
    assert re.search(rf"process: fast_path +{document['process']['fast_path']}\n", done.stderr)


def test_duplicates_broken_records_and_an_api_that_misbehaves(tmp_path: Path) -> None:
    """With faults of the sandbox the sums are the same as without."""
    arguments = ("--events", "3000", "--duplicates", "0.05", "--invalid", "0.02", "--seed", "4", "--json")
    env = bare_environment(tmp_path) | {"PINSTREAM_BATCH_EVENTS": "50", "PINSTREAM_LINGER": "50ms"}
    documents = []
    for faults in ((), ("--faults",)):
        done = command("demo", *arguments, *faults, env=env)
        assert done.returncode == 0, done.stderr
        documents.append(document_of(done.stdout))
    calm, faulty = documents
    assert faulty["ledger"] == calm["ledger"]
    assert faulty["sandbox"]["value_sum"] == calm["sandbox"]["value_sum"]
    assert faulty["ledger"]["open"] == 0
    assert 80 < faulty["ledger"]["duplicate"] < 250
    assert 25 < faulty["ledger"]["dead_lettered"] < 120
    assert faulty["sandbox"]["calls"].keys() - {"200"}, "the sandbox behaved"


def test_own_event_names(tmp_path: Path) -> None:
    """Own event names of the mapping are registered with the sandbox, and events arrive under them."""
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[own_events]\nnames = ["Loyalty joined"]\n[event_names]\njoined = "Loyalty joined"')
    with (tmp_path / "orders.avro").open("wb") as file:
        kinds = ("Loyalty joined", "joined", "app_open", "loyalty joined")
        fastavro.writer(file, SCHEMA, [commerce_event(f"e-{kind}", event_type=kind) for kind in kinds])
    env = bare_environment(tmp_path) | {"PINSTREAM_MAPPING_FILE": str(mapping)}
    done = command("demo", "--file", str(tmp_path / "orders.avro"), "--json", env=env)
    document = document_of(done.stdout)
    assert document["counts"]["delivered_by_event_name"] == {"Loyalty joined": 2, "app_open": 1}
    assert document["ledger"]["dead_lettered"] == 1


def test_a_file(tmp_path: Path) -> None:
    """``--file`` sends a file's records as if they happened now, and ``--duplicates`` repeats some of them."""
    with (tmp_path / "orders.avro").open("wb") as file:
        fastavro.writer(
            file, SCHEMA, [commerce_event(f"e-{n}", occurred_at=10**12, opt_out=False) for n in range(500)]
        )
    done = command(
        "demo",
        "--file",
        str(tmp_path / "orders.avro"),
        "--duplicates",
        "0.1",
        "--json",
        env=bare_environment(tmp_path),
    )
    document = document_of(done.stdout)
    assert done.returncode == 0
    assert document["ledger"]["delivered"] == 500
    assert 20 < document["ledger"]["duplicate"] < 100
    assert document["sandbox"]["value_sum"] == "750.00"


def test_a_file_of_several_record_types(tmp_path: Path) -> None:
    """Records of several types are each converted by the section of their type, as if they happened now."""
    (tmp_path / "mapping.toml").write_text(MAPPING)
    (tmp_path / "schemas").mkdir()
    write_schemas(tmp_path / "schemas", UNION)
    lines = [
        {
            "com.shop.Order": {
                "id": "o",
                "at": "2026-03-01T12:00:00Z",
                "email": "j@example.com",
                "total": "59.90",
            }
        },
        {"com.shop.Click": {"click": "c", "seconds": 1_772_366_390, "email": "j@example.com"}},
        {"com.shop.Signup": {"id": "s", "at": "2026-03-01T12:00:10Z", "member": {"mail": "joe@example.com"}}},
    ]
    (tmp_path / "shop.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    env = bare_environment(tmp_path) | {
        "PINSTREAM_SCHEMAS_DIR": str(tmp_path / "schemas"),
        "PINSTREAM_MAPPING_FILE": str(tmp_path / "mapping.toml"),
    }
    done = command("demo", "--file", str(tmp_path / "shop.ndjson"), "--json", env=env)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert document["counts"]["by_section"] == {
        f"com.shop.{name}": {"delivered": 1} for name in ("Order", "Click", "Signup")
    }
    assert document["sandbox"]["value_sum"] == "59.90"


@pytest.mark.parametrize(("content", "code"), [(None, 1), (b"", 0)])
def test_a_file_that_is_missing_or_empty(tmp_path: Path, content: bytes | None, code: int) -> None:
    """A missing file is an error in one line; an empty file gives a ledger of zeros."""
    file = tmp_path / "events.ndjson"
    if content is not None:
        file.write_bytes(content)
    done = command("demo", "--file", str(file), "--json", env=bare_environment(tmp_path))
    assert done.returncode == code
    if code:
        assert done.stdout == ""
        assert str(file) in done.stderr.splitlines()[-1]
    else:
        assert document_of(done.stdout)["ledger"]["read"] == 0


def test_the_page_stays_up(tmp_path: Path) -> None:
    """With ``--keep`` the report is printed once all is settled, and the page answers until Ctrl-C."""
    with Process(tmp_path, "demo", "--events", "200", "--keep", env=bare_environment(tmp_path)) as process:
        process.until(lambda: "It stays up until Ctrl-C" in process.stderr, "the end of the events")
        page = process.stderr.split()[1]
        assert "how every record ended" in process.stdout
        assert read(page)["ledger"]["read"] == 200
        code, _ = process.stop(signal.SIGINT)
    assert code == 0
    assert process.stdout.count("how every record ended") == 1


def test_a_demo_without_an_end_runs_until_ctrl_c(tmp_path: Path) -> None:
    """A demo without an end runs until Ctrl-C, on another port if 8080 is taken. It then prints the ledger,
    with nothing open, beside what the sandbox counted."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with closing(holder):
        try:
            holder.bind(("127.0.0.1", 8080))
            holder.listen()
        except OSError:
            pass  # another process uses the port already, which serves as well
        with Process(tmp_path, "demo", "--json", env=bare_environment(tmp_path)) as process:
            line = process.until(lambda: next(iter(process.stderr.splitlines()), None), "its page's address")
            page = line.split()[1]
            assert page.startswith("http://127.0.0.1:")
            assert ":8080" not in page
            wait_for(lambda: read(page)["ledger"]["delivered"] > 100, "some deliveries")
            code, seconds = process.stop(signal.SIGINT)
    assert code == 0
    assert seconds < LATE
    document = document_of(process.stdout)
    assert document["ledger"]["open"] == 0
    assert document["ledger"]["delivered"] == document["sandbox"]["accepted_events"] > 100
    assert document["sandbox"]["forgotten_event_ids"] == 0


def read(page: str) -> dict[str, Any]:
    """Return the /status document."""
    with urllib.request.urlopen(page + "status", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_a_slow_shop_stops_promptly_too(tmp_path: Path) -> None:
    """Ctrl-C does not wait for the next event that ``--rate`` allows. State folder and key store that the
    environment names are not touched."""
    env = bare_environment(tmp_path) | {
        "PINSTREAM_STATE_DIR": str(tmp_path / "production"),
        "PINSTREAM_KEY_STORE": f"disk:{tmp_path}/production/keys",
        "PINSTREAM_KEY_STORE_PASSWORD_FILE": str(tmp_path / "production" / "password"),
    }
    with Process(tmp_path, "demo", "--rate", "0.01", "--json", env=env) as process:
        page = process.until(
            lambda: next(iter(process.stderr.splitlines()), None), "its page's address"
        ).split()[1]
        wait_for(lambda: read(page)["ledger"]["read"] == 1, "the first event")
        code, seconds = process.stop(signal.SIGINT)
    assert code == 0
    assert seconds < 2 * LATE
    document = document_of(process.stdout)
    assert document["ledger"]["delivered"] == document["sandbox"]["accepted_events"] == 1
    assert not (tmp_path / "production").exists()
