"""``pinstream sandbox``: the sandbox of the Conversions API, alone."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.processes import Process, bare_environment, command
from tests.support.limits import LATE


def ask(url: str, body: dict[str, Any] | None = None, token: str = "sandbox") -> tuple[int, dict[str, Any]]:
    """Return status and JSON of an answer."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_until_reported_and_says_what_it_counted(tmp_path: Path, number: signal.Signals) -> None:
    """It refuses a wrong token and an unknown account; when stopped it ends with 0."""
    arguments = ("sandbox", "--port", "0", "--account", "549755885175", "--own-event", "Store visit")
    with Process(tmp_path, *arguments, env=bare_environment(tmp_path)) as process:
        line = process.until(lambda: next(iter(process.stderr.splitlines()), None), "its address")
        url = line.partition("PINTEREST_API_URL=")[2].split()[0]
        event = {
            "event_name": "page_visit", "action_source": "web", "event_time": int(time.time()), "event_id": "e-1",
            "user_data": {"em": ["a" * 64]},
        }  # fmt: skip
        events = f"{url}/ad_accounts/549755885175/events"
        own, unknown = ({**event, "event_name": name} for name in ("Store visit", "Shop visit"))
        assert ask(events, {"data": [event, event]})[1]["num_events_processed"] == 2
        assert ask(events, {"data": [own, unknown]})[1]["num_events_processed"] == 1
        assert ask(events, {"data": [event]}, token="other")[0] == 401
        assert ask(f"{url}/ad_accounts/1/events", {"data": [event]})[0] == 404
        counts = ask(line.split()[-1])[1]
        assert (counts["accepted_events"], counts["distinct_event_ids"]) == (3, 2)
        code, seconds = process.stop(number)
    assert code == 0
    assert seconds < LATE
    assert process.stderr.splitlines()[-1] == "accepted 3 events, 2 distinct"


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """A port that is taken is exit code 2 and one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = command("sandbox", "--port", port, env=bare_environment(tmp_path))
    assert done.returncode == 2
    assert port in done.stderr
    assert len(done.stderr.splitlines()) == 1
