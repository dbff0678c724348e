"""The benchmark's input has the size and the form that it should have."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import pytest

from benchmarks.events import checkouts
from benchmarks.load import SCHEMA, encoded_checkouts, stamped
from benchmarks.rivals.conversion import conversion
from benchmarks.sink import Sink
from consumer.avro.encode import Encoder
from tests.support.kafka.broker import wait_until


@pytest.mark.parametrize("event_bytes", [200, 395, 1_000, 4_000, 20_000])
def test_events_are_about_as_large_as_asked(event_bytes: int) -> None:
    """Within a tenth, on average."""
    values = encoded_checkouts(50, event_bytes, 1)
    assert sum(map(len, values)) / len(values) == pytest.approx(event_bytes, rel=0.1)


def test_events_are_encoded_as_the_product_encodes_them() -> None:
    """Byte for byte, apart from the time."""
    encoder = Encoder(json.loads(SCHEMA.read_text()))
    convert = conversion(SCHEMA)
    [value] = encoded_checkouts(1, 395, 7)
    [event] = checkouts(1, 7, int(time.time() * 1000))
    ours = encoder.encode(event)
    assert (value[:10], len(value)) == (ours[:10], len(ours))
    assert {**convert(value), "event_time": 0} == {**convert(ours), "event_time": 0}


@pytest.mark.parametrize("event_bytes", [200, 395, 4_000])
def test_a_live_event_says_when_it_was_produced(event_bytes: int) -> None:
    """The stamp is the first sixteen digits of the event id; the rest is unchanged."""
    [value] = encoded_checkouts(1, event_bytes, 1)
    convert = conversion(SCHEMA)
    before, after = convert(value), convert(stamped(value))
    micros = re.fullmatch(r"(\d{16})-0", after["event_id"])
    assert micros is not None
    assert abs(int(micros[1]) / 1e6 - time.time()) < 60
    assert {**after, "event_id": before["event_id"]} == before


def test_the_timed_sink_reports_ages() -> None:
    """An event acknowledged a second after its production is a second old."""
    produced = int((time.time() - 1) * 1e6)
    with Sink(timed=True) as sink:
        answer = _post(sink.url, [f"{produced:016d}-{number}" for number in range(3)])
        assert wait_until(lambda: sink.count == 3, 10)  # it answers first, and counts then
        assert answer["num_events_processed"] == len(sink.ages()) == 3
        assert all(1 <= age < 30 for age in sink.ages())


def test_the_timed_sink_reports_the_ages_since_an_event() -> None:
    """Those of one rate are told apart from those before."""
    now = time.time()
    with Sink(timed=True) as sink:
        for age in (1_000, 0):
            _post(sink.url, [f"{int((now - age) * 1e6):016d}-{number}" for number in range(500)])
        assert wait_until(lambda: sink.count == 1_000, 10)
        assert sum(age > 500 for age in sink.ages()) == 500
        assert all(age < 500 for age in sink.ages(500))


def _post(url: str, ids: list[str]) -> dict[str, int]:
    body = json.dumps({"data": [{"event_id": one} for one in ids]}).encode()
    request = urllib.request.Request(f"{url}/ad_accounts/1/events", body, method="POST")
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, int] = json.load(answer)
        return found
