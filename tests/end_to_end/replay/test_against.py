"""``replay --dry-run --against OLD``: two mappings over the records of a topic, without sending or storing anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.records import PARTITIONS, commerce_event, ndjson
from tests.end_to_end.replay.replaying import NewReplayShop, ReplayShop

OLD, NEW = (
    "",
    '[constants]\nlanguage = "de"\n[fields]\nevent_id = "order.order_id"\n"custom_data.value" = ""\n',
)
FUNCTION = (
    "def change(record):\n    return record | {'opt_out': True} if record['event_type'] != 'drop' else None\n"
)


def order(number: int, **more: Any) -> dict[str, Any]:
    """A purchase whose order has a number of its own; it fills two kilobytes."""
    event_id = f"event-{number}"
    items = [{"sku": f"{number}-{one}", "quantity": 1} for one in range(20)]
    bought = {"order_id": f"order-{number}", "currency": "EUR", "total": f"{number}.25", "items": items}
    return commerce_event(event_id, order=bought, **more)


@pytest.fixture
def source(new_shop: NewReplayShop, tmp_path: Path) -> ReplayShop:
    """A topic and the two mappings."""
    (tmp_path / "old.toml").write_text(OLD)
    (tmp_path / "new.toml").write_text(NEW)
    return new_shop(partitions=PARTITIONS, PINSTREAM_MAPPING_FILE=str(tmp_path / "new.toml"))


def without_places(document: dict[str, Any]) -> dict[str, Any]:
    """A comparison without its examples, whose records are named otherwise."""
    changes = [{**one, "examples": len(one["examples"])} for one in document["changes"]]
    return {**{key: value for key, value in document.items() if key != "not_compared"}, "changes": changes}


@pytest.mark.parametrize("function", [False, True], ids=["fast", "with a function"])
def test_it_compares_what_explain_compares(source: ReplayShop, tmp_path: Path, function: bool) -> None:
    """Each record once, although many are read again for lack of room: the same figures as `explain` has for the same
    records in a file; nothing is sent; the user's function is taken into account."""
    settings = {"PINSTREAM_MAX_OPEN_BYTES": "1MiB", "PINSTREAM_BATCH_EVENTS": "10"}
    if function:
        (tmp_path / "own.py").write_text(FUNCTION)
        settings |= {"PINSTREAM_TRANSFORM": "own:change", "PYTHONPATH": str(tmp_path)}
    source.env |= settings
    events = [order(number) for number in range(1500)]
    events += [
        order(number, event_type="drop" if function else "cart_viewed") for number in range(1500, 1520)
    ]
    events += [order(number, channel="UNKNOWN") for number in range(1520, 1530)]
    source.place(events)
    old = str(tmp_path / "old.toml")
    replayed = source.replayed("--dry-run", "--against", old, code=1)
    found = replayed.document["against"]
    assert source.api.calls == 0
    assert (found["records"], found["changed"], found["not_compared"]) == (1530, 1500, 0)
    named = {one["field"]: one for one in found["changes"]}
    assert named.keys() == {"event_id", "language", "custom_data.value"}
    assert named["custom_data.value"]["value"]["EUR"] == {
        "before": f"{sum(range(1500)) + 375}.00",
        "after": "0.00",
    }
    assert named["event_id"]["records"] == 1500
    assert "event-" in named["event_id"]["examples"][0]["before"]
    assert named["event_id"]["examples"][0]["record"].startswith(f"{source.topic}:")
    assert "1,500 event ids change" in replayed.stderr

    samples = tmp_path / "samples.ndjson"
    samples.write_text(ndjson(events))
    explained = source.command("explain", str(samples), "--against", old, "--json", code=1)
    assert without_places(json.loads(explained.stdout.splitlines()[-1])) == without_places(found)


def test_what_cannot_be_compared_is_refused(source: ReplayShop, tmp_path: Path) -> None:
    """Without --dry-run, a file that does not exist, a wrong file, and with a function files of other sections."""
    old, lost, wrong = (str(tmp_path / name) for name in ("old.toml", "lost.toml", "wrong.toml"))
    Path(wrong).write_text('[fields]\nevent_id = "nowhere"\n')
    refused = source.replayed("--against", old, code=2)
    assert refused.error == "--against compares two mappings and sends nothing: add --dry-run"
    refused = source.replayed("--dry-run", "--against", lost, code=2)
    assert refused.error.startswith(f"--against: {lost} cannot be read (No such file or directory)")
    assert "wrong.toml" in source.replayed("--dry-run", "--against", wrong, code=2).error
    (tmp_path / "own.py").write_text(FUNCTION)
    Path(wrong).write_text('[record."commerce.v1.CommerceEvent".fields]\n')
    own = {"PINSTREAM_TRANSFORM": "own:change", "PYTHONPATH": str(tmp_path)}
    refused = source.replayed("--dry-run", "--against", wrong, code=2, **own)
    assert "sections" in refused.error
