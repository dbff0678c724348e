"""``pinstream demo`` runs everything in one command, and its last line agrees with what the sandbox counted."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import fastavro
import pytest

from tests.end_to_end.processes import Process, bare_environment, command, wait_for
from tests.end_to_end.records import SCHEMA, commerce_event
from tests.support.limits import LATE
from tests.support.switches import switched


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """What a demo gets here: no settings but an address of its own, since other tests run demos at the same time."""
    return bare_environment(folder) | {"PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0", **settings}


def document_of(stdout: str) -> dict[str, Any]:
    """Return the document on the last line; its ledger adds up, and agrees with the sandbox and all counts."""
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


def ended(folder: Path, *arguments: object, **settings: str) -> dict[str, Any]:
    """Return the document of a demo that ends by itself."""
    line = ("demo", *map(str, arguments), "--json")
    done = command(*line, env=environment(folder, **settings))
    assert done.returncode == 0, done.stderr
    return document_of(done.stdout)


def test_made_up_events_to_their_end(tmp_path: Path) -> None:
    """All are settled, committed and accepted once; the report for people is on stderr."""
    done = command("demo", "--events", "3000", "--json", env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    document = document_of(done.stdout)
    ledger = document["ledger"]
    assert (ledger["read"], ledger["open"], ledger["dead_lettered"], ledger["duplicate"]) == (3000, 0, 0, 0)
    assert document["sandbox"]["accepted_events"] == ledger["delivered"]
    assert sum(one["committed"] for one in document["partitions"]) == 3000
    assert len(done.stdout.splitlines()) == 1
    assert "how every record ended" in done.stderr
    assert re.search(rf"process: fast_path +{document['process']['fast_path']}\n", done.stderr)


def test_without_what_macos_lacks(tmp_path: Path) -> None:
    """Where the system has no `os.fdatasync` and the like, a demo settles all, and its key store has each key."""
    done = command("demo", "--events", "300", "--json", env=environment(tmp_path) | switched(macos=True))
    assert done.returncode == 0, done.stderr
    ledger = document_of(done.stdout)["ledger"]
    assert (ledger["read"], ledger["open"], ledger["dead_lettered"]) == (300, 0, 0)


def test_duplicates_broken_records_and_an_api_that_misbehaves(tmp_path: Path) -> None:
    """With faults of the sandbox the sums are the same as without."""
    arguments = ("--events", 1500, "--duplicates", 0.05, "--invalid", 0.02, "--seed", 4)
    settings = {"PINSTREAM_BATCH_EVENTS": "25", "PINSTREAM_LINGER": "50ms"}
    calm, faulty = (ended(tmp_path, *arguments, *faults, **settings) for faults in ((), ("--faults",)))
    assert faulty["ledger"] == calm["ledger"]
    assert faulty["sandbox"]["value_sum"] == calm["sandbox"]["value_sum"]
    assert faulty["ledger"]["open"] == 0
    assert 40 < faulty["ledger"]["duplicate"] < 125
    assert 12 < faulty["ledger"]["dead_lettered"] < 60
    assert faulty["sandbox"]["calls"].keys() - {"200"}, "the sandbox behaved"


def test_own_event_names(tmp_path: Path) -> None:
    """Own event names of the mapping are registered with the sandbox, and events arrive under them."""
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[own_events]\nnames = ["Loyalty joined"]\n[event_names]\njoined = "Loyalty joined"')
    with (tmp_path / "orders.avro").open("wb") as file:
        kinds = ("Loyalty joined", "joined", "app_open", "loyalty joined")
        fastavro.writer(file, SCHEMA, [commerce_event(f"e-{kind}", event_type=kind) for kind in kinds])
    document = ended(tmp_path, "--file", tmp_path / "orders.avro", PINSTREAM_MAPPING_FILE=str(mapping))
    assert document["counts"]["delivered_by_event_name"] == {"Loyalty joined": 2, "app_open": 1}
    assert document["ledger"]["dead_lettered"] == 1


def test_a_file(tmp_path: Path) -> None:
    """``--file`` sends a file's records as if they happened now, and ``--duplicates`` repeats some of them."""
    with (tmp_path / "orders.avro").open("wb") as file:
        fastavro.writer(
            file, SCHEMA, [commerce_event(f"e-{n}", occurred_at=10**12, opt_out=False) for n in range(500)]
        )
    document = ended(tmp_path, "--file", tmp_path / "orders.avro", "--duplicates", 0.1)
    assert document["ledger"]["delivered"] == 500
    assert 20 < document["ledger"]["duplicate"] < 100
    assert document["sandbox"]["value_sum"] == "750.00"


@pytest.mark.parametrize(("content", "code"), [(None, 1), (b"", 0)])
def test_a_file_that_is_missing_or_empty(tmp_path: Path, content: bytes | None, code: int) -> None:
    """A missing file is an error in one line; an empty file gives a ledger of zeros."""
    file = tmp_path / "events.ndjson"
    if content is not None:
        file.write_bytes(content)
    done = command("demo", "--file", str(file), "--json", env=environment(tmp_path))
    assert done.returncode == code
    if code:
        assert done.stdout == ""
        assert str(file) in done.stderr.splitlines()[-1]
    else:
        assert document_of(done.stdout)["ledger"]["read"] == 0


def test_the_page_stays_up(tmp_path: Path) -> None:
    """With ``--keep`` the report is printed once all is settled, and the page answers until Ctrl-C."""
    with Process(tmp_path, "demo", "--events", "200", "--keep", env=environment(tmp_path)) as process:
        process.until(lambda: "It stays up until Ctrl-C" in process.stderr, "the end of the events")
        page = process.stderr.split()[1]
        assert "how every record ended" in process.stdout
        assert read(page)["ledger"]["read"] == 200
        code, _ = process.stop(signal.SIGINT)
    assert code == 0
    assert process.stdout.count("how every record ended") == 1


def test_a_demo_without_an_end_runs_until_ctrl_c(tmp_path: Path) -> None:
    """Two at once have pages of their own; on Ctrl-C each prints the ledger, with nothing open."""
    # Both without a setting. A third party may use 8080 too, so which of them has it cannot be said.
    env = bare_environment(tmp_path)
    with (
        Process(tmp_path, "demo", "--json", env=env) as one,
        Process(tmp_path, "demo", "--json", env=env) as two,
    ):
        pages = [first_page(process) for process in (one, two)]
        assert pages[0] != pages[1]
        for process, page in zip((one, two), pages, strict=True):
            assert page.startswith("http://127.0.0.1:")
            wait_for(partial(delivered_some, page), "some deliveries")
            with urllib.request.urlopen(page + "events", timeout=10) as stream:
                assert stream.readline() == b"retry: 2000\n"
            code, seconds = process.stop(signal.SIGINT)
            assert code == 0
            assert seconds < LATE
            document = document_of(process.stdout)
            assert document["ledger"]["open"] == 0
            assert document["ledger"]["delivered"] == document["sandbox"]["accepted_events"] > 100
            assert document["sandbox"]["forgotten_event_ids"] == 0


def test_an_address_that_the_user_chose_is_not_replaced(tmp_path: Path) -> None:
    """If it is in use, the demo ends with the error and names the setting."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        done = command("demo", "--events", "1", env=environment(tmp_path, PINSTREAM_HTTP_ADDRESS=address))
    assert done.returncode == 2
    assert f"PINSTREAM_HTTP_ADDRESS: cannot listen on {address} (address already in use)" in done.stderr


def first_page(process: Process) -> str:
    """Return the address of its page, which a demo prints first."""
    return str(process.until(lambda: process.stderr.splitlines(), "its page's address")[0].split()[1])


def delivered_some(page: str) -> bool:
    """Return True if more than a hundred events are delivered."""
    return bool(read(page)["ledger"]["delivered"] > 100)


def read(page: str) -> dict[str, Any]:
    """Return the /status document."""
    with urllib.request.urlopen(page + "status", timeout=10) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def test_a_slow_shop_stops_promptly_too(tmp_path: Path) -> None:
    """It does not wait for the next event; state folder and key store that the environment names are not touched."""
    env = environment(
        tmp_path,
        PINSTREAM_STATE_DIR=str(tmp_path / "production"),
        PINSTREAM_KEY_STORE=f"disk:{tmp_path}/production/keys",
        PINSTREAM_KEY_STORE_PASSWORD_FILE=str(tmp_path / "production" / "password"),
    )
    with Process(tmp_path, "demo", "--rate", "0.01", "--json", env=env) as process:
        page = first_page(process)
        wait_for(lambda: read(page)["ledger"]["read"] == 1, "the first event")
        code, seconds = process.stop(signal.SIGINT)
    assert code == 0
    assert seconds < 2 * LATE
    document = document_of(process.stdout)
    assert document["ledger"]["delivered"] == document["sandbox"]["accepted_events"] == 1
    assert not (tmp_path / "production").exists()
