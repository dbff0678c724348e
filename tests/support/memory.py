"""The formula of docs/guarantees.md ("Memory")."""

from __future__ import annotations

from consumer.adapters.kafka.configuration import FETCH_BYTES

MIB = 2**20
EXPANSION = {"none": 1, "snappy": 22, "lz4": 255, "gzip": 1_032, "zstd": 8_192}
"""How many bytes one byte unpacks to at most; zstd has no bound, and this value is that of batches of a megabyte."""
STRANGERS = 48 * MIB
"""What strangers send to the port."""
_QUEUE = 16 * MIB


def max_resident(
    codec: str, brokers: int, *, open_bytes: int, open_events: int, concurrency: int, batch_bytes: int
) -> int:
    """Return the bytes that a process takes at most, without what strangers send."""
    return (
        160 * MIB
        + 2 * open_bytes
        + open_events * 2048
        + concurrency * batch_bytes
        + 2 * _QUEUE
        + brokers * FETCH_BYTES * EXPANSION[codec]
    )
