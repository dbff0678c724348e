"""Receipts made by their schema, as `pinstream run` writes them, and the commands that read them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from consumer.avro.encode import Encoder
from consumer.commands.receipts import FoundReceipt, receipt_key
from tests.end_to_end.processes import ACCOUNT, ROOT, bare_environment, command, the_one_line
from tests.support.kafka.harness import WITHIN, Kafka, commit, create_topic, produce

SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas" / "receipt.avsc").read_text())
GROUP = "pinstream"
NOW = int(time.time() * 1000)


def made(place: str, outcome: str = "delivered", **fields: Any) -> FoundReceipt:
    """Return the receipt of the record at TOPIC:PARTITION:OFFSET, of an order of 12.50 EUR; `fields` replace others."""
    topic, partition, offset = place.split(":")
    receipt: FoundReceipt = {
        **{field["name"]: field.get("default") for field in SCHEMA["fields"]},
        "outcome": outcome, "by": "run", "at": NOW, "group": GROUP, "destination": "pinterest", "test": False,
        "topic": topic, "partition": int(partition), "offset": int(offset), "ad_account": ACCOUNT,
        "event_name": "checkout", "event_id": f"event-{offset}", "order_id": f"order-{offset}",
        "event_time": NOW - 5000, "action_source": "web", "value": "12.50", "currency": "EUR", "attempts": 1,
        "mapping": "a1b2c3d4", "member": "shop-1/17", "schema_id": "00112233aabbccdd",
    }  # fmt: skip
    if outcome == "delivered":
        receipt |= {"request_id": "request-1", "http_status": 200, "answered_at": NOW}
    return receipt | fields


class Receipts:
    """A topic of receipts, one of orders, and the commands that read them."""

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        self.kafka = kafka
        self.topic, self.orders = create_topic(kafka, 2), create_topic(kafka, 2)
        self.env = {
            **bare_environment(folder),
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "KAFKA_GROUP_ID": GROUP,
            "PINSTREAM_STATE_DIR": str(folder / "state"),
            "PINSTREAM_RECEIPTS_TOPIC": self.topic,
        }

    def made(
        self, offset: int, outcome: str = "delivered", partition: int = 0, **fields: Any
    ) -> FoundReceipt:
        """Return the receipt of a record of the orders."""
        return made(f"{self.orders}:{partition}:{offset}", outcome, **fields)

    def write(self, *receipts: FoundReceipt) -> None:
        """Write receipts in single-object encoding, with their keys."""
        encoder, producer = Encoder(SCHEMA), Producer({**self.kafka.config, "linger.ms": 20, "log_level": 0})
        for one in receipts:
            key = json.dumps(receipt_key(one), separators=(",", ":")).encode()
            producer.produce(self.topic, encoder.encode(one), key)
        assert producer.flush(WITHIN) == 0

    def settled(self, records: int, partition: int = 0) -> None:
        """Write records to a partition of the orders; the group has settled them."""
        produce(self.kafka, self.orders, [b"x"] * records, partition=partition)
        commit(self.kafka, GROUP, self.orders, records, partition)

    def answered(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Return the document that a command prints with ``--json``; assert its exit code."""
        return answered(*arguments, env=self.env, code=code)

    def printed(self, *arguments: str, code: int = 0) -> str:
        """Return what a command prints; assert its exit code."""
        done = command(*arguments, env=self.env)
        assert done.returncode == code, done.stderr or done.stdout
        return done.stdout

    def refused(self, *arguments: str, **settings: str) -> str:
        """Return the one line with which a command ends with exit code 2."""
        done = command(*arguments, env={**self.env, **settings})
        assert (done.returncode, done.stdout) == (2, "")
        return the_one_line(done.stderr)


def answered(*arguments: str, env: dict[str, str], code: int = 0) -> dict[str, Any]:
    """Return the document that a command prints with ``--json``; assert its exit code."""
    done = command(*arguments, "--json", env=env)
    assert done.returncode == code, done.stderr or done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found
