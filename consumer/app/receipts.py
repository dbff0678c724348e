"""Builds the writer of receipts of a member, of a replay or of a redrive.

Theory of operation. What all receipts of a process have in common is known when it starts: the group, the destination,
the mapping, who it is and which command it runs. The ids of a record that became no event are read by the decoder of
the pipeline, which knows the writers' schemas, and by the paths of the mapping. The schema of receipts is registered
with the first of them, so that a start does not depend on the registry.
"""

from __future__ import annotations

import json
import os
import socket
from hashlib import sha256

from consumer.app import building
from consumer.app.ending import Parts
from consumer.conversion.sections import Sections
from consumer.engine import model
from consumer.engine.model import Record
from consumer.engine.pipeline import Pipeline
from consumer.ports import ReceiptWriter
from consumer.settings import Settings, packaged


def receipt_writer(
    settings: Settings, pipeline: Pipeline, mapped: Sections, by: str, parts: Parts
) -> ReceiptWriter | None:
    """Build the writer of receipts for the command `by`, which `parts` closes; None: none are wanted. Call it on the
    event loop."""
    if not pipeline.policy.receipts:
        return None
    # Imported here: without receipts nothing needs them, and they need fastavro.
    from consumer.adapters.receipts.encoding import About, ReceiptEncoder
    from consumer.adapters.receipts.writer import ReceiptProducer

    topic = str(settings.pinstream.receipts_topic)
    schema = json.loads((packaged("schemas") / "receipt.avsc").read_text("utf-8"))
    about = About(
        by=by,
        group=settings.kafka.group_id,
        destination=destination_name(settings),
        test=settings.pinterest.test_mode,
        mapping=sha256(building.mapping_text(settings).encode()).hexdigest()[:16],
        member=f"{socket.gethostname()}:{os.getpid()}",
    )
    convert = building.converter(settings, mapped, settings.pinterest.ad_account_ids)

    def read_ids(record: Record, topic: str, partition: int) -> tuple[str | None, str | None]:
        event = pipeline.decoder.decode(record, topic, partition)
        return convert.ids_of(event) if isinstance(event, dict) else (None, None)

    async def register() -> int:
        registry = building.registry(settings)
        try:
            return await registry.register(f"{topic}-value", schema)
        finally:
            await registry.close()

    # AWS Glue has no ids of Confluent's form.
    has_ids = settings.registry.url and not settings.registry.is_glue
    made = ReceiptProducer(
        settings.kafka.client_properties(),
        topic,
        lambda schema_id: ReceiptEncoder(schema, schema_id, about, read_ids),
        register if has_ids else None,
        on_error=building.log_kafka_error,
    )
    parts.add("the producer of receipts", made.close)
    return made


def destination_name(settings: Settings) -> str:
    """Return what receipts call the destination of these settings."""
    tag, _ = building.destinations(settings)
    return "pinterest" if tag == model.REAL_API else tag
