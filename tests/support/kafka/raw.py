"""What no client library has a call for, done by speaking Kafka's protocol: records that none would write, and quotas.

The smallest thing that does it: one Produce request (version 3) with one record batch (magic 2), uncompressed; one
AlterClientQuotas request.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence

from tests.support.kafka.harness import WITHIN, Kafka

RawRecord = tuple[bytes | None, bytes | None, Sequence[tuple[bytes, bytes | None]]]
"""Key, value and headers, whose names are bytes."""


def produce_raw(kafka: Kafka, topic: str, records: Sequence[RawRecord], partition: int = 0) -> None:
    """Append `records` unchanged to a partition whose leader is the first bootstrap server."""
    batch = _batch(records)
    name = topic.encode()
    record_set = struct.pack(">qi", 0, len(batch)) + batch
    answer = _ask(
        kafka,
        struct.pack(">hhih", 0, 3, 1, 3) + b"raw" + struct.pack(">hhi", -1, 1, int(WITHIN * 1000))
        + struct.pack(">ih", 1, len(name)) + name
        + struct.pack(">iii", 1, partition, len(record_set)) + record_set,
    )  # fmt: skip
    # Correlation id, one topic with its name, one partition with its number; then the error code.
    [error] = struct.unpack_from(">h", answer, 4 + 4 + 2 + len(name) + 4 + 4)
    assert error == 0, f"the broker refused it: error {error}"


def set_quotas(kafka: Kafka, client_id: str, **quotas: float) -> None:
    """Give clients of this id quotas: ``consumer_byte_rate``, ``producer_byte_rate`` (bytes a second),
    ``request_percentage`` (of one thread's time)."""
    # AlterClientQuotas, version 0: confluent-kafka has no call for it.
    request = struct.pack(">hhih", 49, 0, 1, 3) + b"raw" + struct.pack(">ii", 1, 1)
    request += _text("client-id") + _text(client_id) + struct.pack(">i", len(quotas))
    for name, value in quotas.items():
        request += _text(name) + struct.pack(">db", value, 0)
    answer = _ask(kafka, request + b"\0")
    # Correlation id, throttle time, one entry; then its error code.
    [error] = struct.unpack_from(">h", answer, 4 + 4 + 4)
    assert error == 0, f"the broker refused it: error {error}"


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _ask(kafka: Kafka, request: bytes) -> bytes:
    """The answer of the first bootstrap server."""
    host, _, port = kafka.bootstrap_servers.partition(",")[0].rpartition(":")
    with socket.create_connection((host, int(port)), WITHIN) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        return _read(connection, struct.unpack(">i", _read(connection, 4))[0])


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        assert part, "the broker hung up"
        data += part
    return data


def _batch(records: Sequence[RawRecord]) -> bytes:
    body = b"".join(map(_record, range(len(records)), records))
    now = int(time.time() * 1000)
    checked = struct.pack(">hiqqqhii", 0, len(records) - 1, now, now, -1, -1, -1, len(records)) + body
    return struct.pack(">ibI", -1, 2, crc32c(checked)) + checked


def _record(number: int, record: RawRecord) -> bytes:
    key, value, headers = record
    body = b"\0" + _varint(0) + _varint(number) + _bytes(key) + _bytes(value) + _varint(len(headers))
    body += b"".join(_bytes(name) + _bytes(content) for name, content in headers)
    return _varint(len(body)) + body


def _bytes(data: bytes | None) -> bytes:
    return _varint(-1) if data is None else _varint(len(data)) + data


def _varint(number: int) -> bytes:
    left, out = (number << 1 ^ number >> 63) & (1 << 64) - 1, bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    return bytes([*out, left])


def crc32c(data: bytes) -> int:
    """The CRC-32C (Castagnoli) of some bytes, bit by bit: speed does not matter here."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
