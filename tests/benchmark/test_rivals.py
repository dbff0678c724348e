"""The other systems do the same job: they send what the plain conversion makes of the benchmark's events."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import SCHEMA, Content, encoded_checkouts, fill_topic
from benchmarks.rivals.conversion import conversion
from benchmarks.running import Running
from benchmarks.sink import Sink
from benchmarks.systems import ROOT, SYSTEMS, Floor, Job, Pinstream, System, Unavailable
from tests.support.kafka.harness import Kafka

_CONTENT = Content(300)


@pytest.fixture(scope="module")
def topic(kafka: Kafka) -> str:
    """A topic with a few events."""
    name = f"rivals-{uuid.uuid4().hex[:8]}"
    fill_topic(kafka.bootstrap_servers, name, _CONTENT)
    return name


@pytest.mark.slow("builds and runs the other systems")
@pytest.mark.kafka
@pytest.mark.timeout(720)  # the first build of Benthos compiles all that it is made of
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.key)
def test_every_system_sends_the_same_events(kafka: Kafka, topic: str, system: System, tmp_path: Path) -> None:
    """All of the topic's events arrive, converted as the plain consumer converts them; pinstream and the floor
    normalise by field and so have other digests, and other facts in the same fields."""
    try:
        system.prepare()
    except Unavailable as error:
        pytest.skip(f"{system.name} is not installed: {error}")
    with _api() as (url, received), Sink() as unused, system.server() as server:
        address = server.url if server else ""
        job = Job(kafka.bootstrap_servers, topic, f"rivals-{uuid.uuid4().hex}", url, tmp_path, address)
        with Running(system.command(job), unused) as running:
            running.wait_for(lambda: len(received) >= _CONTENT.events, "all events", 60)
    convert = conversion(SCHEMA)
    values = encoded_checkouts(_CONTENT.events, _CONTENT.event_bytes, _CONTENT.seed)
    expected = {event["event_id"]: event for event in map(convert, values)}
    assert received.keys() == expected.keys()
    for event_id, event in received.items():
        assert _comparable(event, system) == _comparable(expected[event_id], system)


def test_what_is_installed_for_the_others_is_pinned() -> None:
    """.venv-bench is the same on every machine: exact versions, no addresses."""
    text = (ROOT / "benchmarks" / "rivals" / "requirements.txt").read_text("utf-8")
    pins = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._+!]+", line) for line in pins)
    assert {"faststream", "quixstreams", "fastavro", "aiohttp"} <= {line.partition("==")[0] for line in pins}


def _comparable(event: dict[str, Any], system: System) -> Any:
    """The whole event; for pinstream and the floor the names of its fields."""
    if not isinstance(system, Pinstream | Floor):
        return event
    return {
        key: sorted(value) if isinstance(value, dict) else ""
        for key, value in event.items()
        if key != "language"
    }


@contextmanager
def _api() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """A Conversions API that keeps the received events by their ids: its URL, and the events."""
    received: dict[str, dict[str, Any]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            events = body["data"]
            received.update({event["event_id"]: event for event in events})
            verdict = {"status": "processed", "error_message": None, "warning_message": None}
            answer = {
                "num_events_received": len(events),
                "num_events_processed": len(events),
                "events": [verdict] * len(events),
            }
            text = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v5", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
