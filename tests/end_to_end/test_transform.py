"""``PINSTREAM_TRANSFORM`` in the whole system: a function between Kafka and the API, and its page in docs/."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.processes import ROOT, bare_environment, command
from tests.end_to_end.records import commerce_event
from tests.end_to_end.shop import NewShop, Shop

PAGE = (ROOT / "docs" / "transform.md").read_text("utf-8")
CLEAN = """
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).parent


def clean(record):
    what = record["order"]["order_id"]
    if what == "staff":
        return None
    if what == "raises":
        raise ValueError(record["customer"]["emails"][0])
    if what == "leaves":
        sys.exit(record["customer"]["emails"][0])
    if what == "nonsense":
        record["order"]["total"] = 1.5
    if what == "hangs":
        (HERE / "hangs").touch()
        while not (HERE / "go").exists():
            pass
    record["order"]["total"] = record["order"]["total"] + "0" if what == "more" else record["order"]["total"]
    return record
"""


def blocks(language: str) -> list[str]:
    """The page's code blocks in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def environment(folder: Path) -> dict[str, str]:
    """The settings for a function of the tests, in a module in `folder`."""
    (folder / "own_code.py").write_text(CLEAN)
    return {"PYTHONPATH": str(folder), "PINSTREAM_TRANSFORM": "own_code:clean"}


def of(what: str, number: int = 0) -> dict[str, object]:
    """An event for which the function does that."""
    order = {"order_id": what, "currency": "EUR", "total": "1.50", "items": []}
    return commerce_event(f"{what}-{number}", order=order)


def test_the_example_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    """Its module, its records and its commands, copied as a user would."""
    module, typed = blocks("python")
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "events.py").write_text(module + typed)
    (tmp_path / "records.ndjson").write_text(blocks("json")[0])
    [script] = blocks("sh")
    program = f'pinstream() {{ "{sys.executable}" -m consumer "$@"; }}\n'
    env = {**bare_environment(tmp_path), "HERE": str(ROOT)}
    # The package is not installed where the tests run: Python finds it in the repository.
    lines = script.replace("PYTHONPATH=$PWD", 'PYTHONPATH="$PWD:$HERE"')
    done = subprocess.run(
        ["sh", "-ec", program + lines], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["payload"]["custom_data"]["value"] == "59.85"
    assert (second["outcome"], second["filter"]) == ("filtered", "transform")


def test_explain_takes_it_into_account(tmp_path: Path) -> None:
    """Each outcome is shown; neither stdout nor stderr has a value of a record that was refused."""
    env = bare_environment(tmp_path) | environment(tmp_path)
    text = "".join(json.dumps(of(what)) + "\n" for what in ("more", "staff", "raises", "leaves", "nonsense"))
    done = command("explain", "-", env=env, stdin=text)
    assert (done.returncode, done.stderr) == (0, "")
    more, staff, raises, leaves, nonsense = (json.loads(line) for line in done.stdout.splitlines())
    assert more["payload"]["custom_data"]["value"] == "1.500"
    assert staff["filter"] == "transform"
    assert raises["error"] == {
        "stage": "convert",
        "code": "transform_failed",
        "message": "PINSTREAM_TRANSFORM own_code:clean raised ValueError at own_code:14",
    }
    assert leaves["error"]["message"].endswith("raised SystemExit at own_code:16")
    assert nonsense["error"]["code"] == "transform_misfit"
    assert "field order.total: expected text" in nonsense["error"]["message"]
    assert "example.com" not in done.stdout.replace(json.dumps(more["payload"]), "")


def test_what_it_prints_is_no_line_of_explain(tmp_path: Path) -> None:
    """Stdout has one line for each record, for other programs; what the function prints goes to stderr."""
    (tmp_path / "own_code.py").write_text("print('imported')\n\n\ndef clean(record):\n    print('called')\n")
    env = bare_environment(tmp_path) | {
        "PYTHONPATH": str(tmp_path),
        "PINSTREAM_TRANSFORM": "own_code:clean",
    }
    done = command("explain", "-", env=env, stdin=json.dumps(of("more")))
    assert [json.loads(line)["filter"] for line in done.stdout.splitlines()] == ["transform"]
    assert (done.returncode, done.stderr) == (0, "imported\ncalled\n")


@pytest.fixture
def new_shop(new_shop: NewShop, tmp_path: Path) -> NewShop:
    """Shops whose records go through the function."""

    def make(**settings: Any) -> Shop:
        shop = new_shop(**settings)
        shop.env |= environment(tmp_path)
        return shop

    return make


@pytest.mark.kafka
def test_every_record_goes_through_it(new_shop: NewShop) -> None:
    """Changed, filtered, failed and unfit records end as they must, beside two hundred that the function leaves
    unchanged."""
    shop = new_shop(PINSTREAM_DEAD_LETTER_SHARE="1")
    kinds = ["more", "staff", "raises", "leaves", "nonsense"]
    shop.write(*map(of, kinds), *(of("plain", number) for number in range(200)))
    with shop.run() as process:
        ledger = process.until_settled(205)
        assert (ledger["delivered"], ledger["filtered"], ledger["dead_lettered"]) == (201, 1, 3)
        status = process.status()
        assert status["process"]["transform"] == "own_code:clean"
        assert status["process"]["fast_path"] == "off"
        assert status["counts"]["filtered"] == {"transform": 1}
    assert "example.com" not in process.stderr
    letters = {headers["code"]: headers for _, headers in shop.letters}
    assert letters.keys() == {"transform_failed", "transform_misfit"}
    assert not any("example.com" in text for headers in letters.values() for text in headers.values())
    sent = {one["custom_data"]["value"] for one in shop.api.events if one["event_id"] == "more-0"}
    assert sent == {"1.500"}
    assert shop.committed == 205


@pytest.mark.kafka
def test_a_function_that_hangs_is_named_while_it_does(new_shop: NewShop, tmp_path: Path) -> None:
    """Page and log name the function and the record; the member stays in its group, and continues when the function
    returns. A stop does not wait for it: the record was never read, and the next start reads it again."""
    shop = new_shop(
        partitions=1,
        # The shortest limit of polls: a member that did not poll would be excluded while the function hangs.
        KAFKA_MAX_POLL_INTERVAL_MS="9000",
        KAFKA_SESSION_TIMEOUT_MS="6000",
        PINSTREAM_SHUTDOWN_GRACE="3s",
    )
    shop.write(of("plain"), of("hangs"))
    with shop.run() as process:
        line = process.until_logged("transform_slow")
        assert (line["function"], line["topic"], line["offset"]) == ("own_code:clean", shop.topic, 1)
    with shop.run() as process:
        slow = process.until(
            lambda: (found := process.status()["slow_transform"]) and found["seconds"] > 11 and found,
            "a call that is longer than the limit of polls",
        )
        assert (slow["topic"], slow["offset"]) == (shop.topic, 1)
        assert len(process.status()["partitions"]) == 1
        assert shop.api.accepted() == {"plain-0": 1}
        (tmp_path / "go").touch()
        process.until(lambda: shop.api.accepted() == {"plain-0": 1, "hangs-0": 1}, "the record's delivery")
        process.until_logged("transform_returned")
