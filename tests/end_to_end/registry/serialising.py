"""Producers of the registry tests: Confluent's own serialiser, which registers schemas as it writes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from consumer.engine.model import CommerceEvent
from tests.end_to_end.records import SCHEMA, commerce_event
from tests.support.kafka.harness import WITHIN, Kafka

PLAIN = Schema(json.dumps(SCHEMA), "AVRO")


def evolved() -> Schema:
    """The next version of our schema: one more field."""
    schema = copy.deepcopy(SCHEMA)
    schema["fields"].append({"name": "loyalty_tier", "type": ["null", "string"], "default": None})
    return Schema(json.dumps(schema), "AVRO")


def with_references(client: SchemaRegistryClient, topic: str) -> tuple[Schema, list[str]]:
    """Our schema with the types of `customer` and `order` in schemas of their own, which this registers;
    returned with their subjects."""
    schema = copy.deepcopy(SCHEMA)
    references = []
    for field in schema["fields"]:
        if field["name"] in ("customer", "order"):
            union = isinstance(field["type"], list)
            own = field["type"][-1] if union else field["type"]
            name = f"{SCHEMA['namespace']}.{own['name']}"
            subject = f"{topic}-{name}"
            apart = Schema(json.dumps({**own, "namespace": SCHEMA["namespace"]}), "AVRO")
            client.register_schema(subject, apart)
            field["type"] = ["null", name] if union else name
            references.append(SchemaReference(name, subject, 1))
    return Schema(json.dumps(schema), "AVRO", references), [str(one.subject) for one in references]


def write(
    kafka: Kafka,
    topic: str,
    client: SchemaRegistryClient,
    event_ids: Iterable[str],
    schema: Schema = PLAIN,
    **settings: Any,
) -> None:
    """Produce an event for each id with a serialiser for this schema; `settings` are the serialiser's, with
    underscores for dots."""
    config: dict[str, Any] = {"subject.name.strategy.type": "TOPIC"}
    config |= {name.replace("_", "."): value for name, value in settings.items()}
    serialise = AvroSerializer(client, schema, conf=config)
    producer = Producer({**kafka.config, "log_level": 0})
    for event_id in event_ids:
        headers: list[tuple[str, str | bytes | None]] = []
        value = serialise(_complete(commerce_event(event_id)), _context(topic, headers))
        producer.produce(topic, value, headers=headers)
    assert producer.flush(WITHIN) == 0


def _context(topic: str, headers: list[Any]) -> SerializationContext:
    return SerializationContext(topic, MessageField.VALUE, headers)


def _complete(event: CommerceEvent) -> Mapping[str, Any]:
    """An event with the fields that the serialiser would not fill in."""
    return {"opt_out": False, **event}
