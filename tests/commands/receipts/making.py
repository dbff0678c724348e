"""Receipts made by their schema, as `pinstream run` writes them, and the commands that read them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from consumer.avro.encode import Encoder
from consumer.commands.receipts import FoundReceipt, receipt_key
from tests.end_to_end.processes import ACCOUNT, ROOT, bare_environment, command
from tests.support.kafka.harness import WITHIN, Kafka

SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "receipt.avsc").read_text())
GROUP = "pinstream"
NOW = int(time.time() * 1000)


def made(place: str, outcome: str = "delivered", **fields: Any) -> FoundReceipt:
    """Return the receipt of the record at TOPIC:PARTITION:OFFSET, of an order of 12.50 EUR; `fields` replace others."""
    topic, partition, offset = place.split(":")
    receipt: FoundReceipt = {
        **{field["name"]: field.get("default") for field in SCHEMA["fields"]},
        "outcome": outcome,
        "by": "run",
        "at": NOW,
        "group": GROUP,
        "destination": "pinterest",
        "test": False,
        "topic": topic,
        "partition": int(partition),
        "offset": int(offset),
        "ad_account": ACCOUNT,
        "event_name": "checkout",
        "event_id": f"event-{offset}",
        "order_id": f"order-{offset}",
        "event_time": NOW - 5000,
        "action_source": "web",
        "value": "12.50",
        "currency": "EUR",
        "attempts": 1,
        "mapping": "a1b2c3d4",
        "member": "shop-1/17",
        "schema_id": "00112233aabbccdd",
    }
    if outcome == "delivered":
        receipt |= {"request_id": "request-1", "http_status": 200, "answered_at": NOW}
    return receipt | fields


def write_receipts(kafka: Kafka, topic: str, receipts: Iterable[FoundReceipt]) -> None:
    """Write receipts in single-object encoding, with their keys."""
    encoder, producer = Encoder(SCHEMA), Producer({**kafka.config, "linger.ms": 20, "log_level": 0})
    for number, one in enumerate(receipts):
        key = json.dumps(receipt_key(one), separators=(",", ":")).encode()
        producer.produce(topic, encoder.encode(one), key)
        if number % 10_000 == 0:
            producer.flush(WITHIN)
    assert producer.flush(WITHIN) == 0


def environment(folder: Path, kafka: Kafka, receipts: str | None, **settings: str) -> dict[str, str]:
    """Return the environment of a command that reads receipts; of Pinterest it has nothing."""
    own = {} if receipts is None else {"PINSTREAM_RECEIPTS_TOPIC": receipts}
    kafka_only = {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "KAFKA_GROUP_ID": GROUP}
    return {
        **bare_environment(folder),
        **kafka_only,
        "PINSTREAM_STATE_DIR": str(folder / "state"),
        **own,
        **settings,
    }


def answered(*arguments: str, env: dict[str, str], code: int = 0) -> dict[str, Any]:
    """Return the document that a command prints with ``--json``; assert its exit code."""
    done = command(*arguments, "--json", env=env)
    assert done.returncode == code, done.stderr or done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found
