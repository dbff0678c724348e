"""What goes with a committed offset, in the commit's metadata: the offset map, the topic's id, who committed it.

Theory of operation. A commit names one offset, that of the lowest open record. Records settled above it would be sent
again after a restart or by another member. So each commit carries a map: the lengths of open and of settled runs, in
turns, from the committed offset on (as parallel-consumer does it). Offsets without a record (compaction, transaction
markers) belong to the run around them.

*The topic's id.* An offset means something under one id of a topic only. A topic that was deleted and created again
begins at offset 0, and an offset that was committed before that names another record (`is_void`).

*The destination* (`consumer.engine.model`). Records below a committed offset are not sent again, but events sent to a
sandbox never reached the real API. So a start with another destination must be noticed. *The fingerprint* (there, too)
shows a member with another mapping. It stands behind deflated runs, where versions that do not know it do not look, so
they read the map.

The text is ``pinstream:2:`` and base64url of: one byte (how the runs are written, and which ids follow), a checksum
over the committed offset, the partition's name and the rest, the ids, the leader epoch, the runs, the fingerprint.
Runs are written as varints or as bits, whichever is shorter, and deflated if that helps. A broker takes 4,096 bytes by
default (``offset.metadata.max.bytes``). Runs that do not fit are omitted, from the top of the map, and may be sent
again. ``pinstream:1:``, the earlier form without ids, is still read.

Two things protect the map. The checksum binds it to its offset and partition, so a copied map is ignored. And it has
the highest leader epoch of its records: if a record in its range has a higher epoch, the log was cut after the map was
written (unclean leader election), and the record is another one. A foreign or broken map is ignored, which costs
repetitions but loses nothing.
"""

from __future__ import annotations

import base64
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import Final, NamedTuple

from consumer.engine.model import FINGERPRINT_BYTES, METADATA_BYTES, Position, TopicPartition

_PREFIX = "pinstream:2:"
_PREFIX_WITHOUT_IDS = "pinstream:1:"  # as long
# Bytes before the ids: how the runs are written, and the checksum.
_HEAD = 5
# Bits of the first byte: for each id whether it follows, topic id and destination, in this order; how runs are written.
_HAS_ID: Final = (0x80, 0x40)
_HOW: Final = 0x3F
# Bytes of each id.
_ID_BYTES: Final = (16, 6)
# Bytes of the fingerprint and of deflated nothing before it.
_BEHIND: Final = len(zlib.compress(b"")) + FINGERPRINT_BYTES
# Bytes of metadata with all ids and no map. With no more room than that, no map is written.
MAX_IDS: Final = len(_PREFIX) + (_HEAD + sum(_ID_BYTES) + 1 + _BEHIND + 2) // 3 * 4
# Bounds that a map may have: more than open events can make.
_MAX_BOUNDS = 1 << 17
# Bytes that each form may inflate to.
_LONGEST_RUNS = 9 * _MAX_BOUNDS
_LONGEST_BITS = 1 << 17
# How runs are written: flags. Without either they are varints.
_DEFLATED, _BITS = 1, 2
_SAME = re.compile("0+|1+")


@cache  # asked before each fetch, for one value
def safe_window(limit: int) -> int:
    """Return how many offsets fit into `limit` bytes, whatever their pattern: one bit each."""
    return max(0, (limit - len(_PREFIX)) * 3 // 4 - _HEAD - sum(_ID_BYTES) - _BEHIND - 10) * 8


@dataclass(frozen=True, slots=True)
class OffsetMap:
    """Settled offsets above a base."""

    # Where settled runs begin and end, in turns and in order.
    bounds: Sequence[int]
    # The highest leader epoch of its records; None if the broker does not say it.
    leader_epoch: int | None

    @property
    def end(self) -> int:
        """The offset after the last settled one."""
        return self.bounds[-1]

    def settled(self, offset: int) -> bool:
        """Return True if the record at `offset` was settled when the map was written."""
        return bisect_right(self.bounds, offset) % 2 == 1

    def count(self, begin: int, end: int) -> int:
        """Return how many offsets from `begin` to before `end` were settled."""
        runs = zip(self.bounds[::2], self.bounds[1::2], strict=True)
        return sum(max(0, min(last, end) - max(first, begin)) for first, last in runs)

    def holds_for(self, leader_epoch: int | None) -> bool:
        """Return True if the map is valid although a record of this leader epoch is in its range."""
        if leader_epoch is None or self.leader_epoch is None:
            return leader_epoch is self.leader_epoch
        return leader_epoch <= self.leader_epoch

    def from_offset(self, offset: int) -> list[int]:
        """Return the bounds of what is settled from `offset` on."""
        place = bisect_right(self.bounds, offset)
        return [offset, *self.bounds[place:]] if place % 2 else list(self.bounds[place:])


class CommitMetadata(NamedTuple):
    """What the metadata of a commit says; None: it does not say it. `settled`: the offset map."""

    topic_id: str | None
    destination: str | None
    fingerprint: str | None
    settled: OffsetMap | None


NOTHING_SAID: Final = CommitMetadata(None, None, None, None)


def write_map(
    tp: TopicPartition,
    base: int,
    bounds: Sequence[int],
    leader_epoch: int | None,
    limit: int = METADATA_BYTES,
    *,
    topic_id: str | None = None,
    destination: str | None = None,
    fingerprint: str | None = None,
) -> str:
    """Return the metadata of a commit of `base` in a partition, with as much of the map as fits into `limit` bytes.

    Empty if there is nothing to say, or no room for the ids. `topic_id`: as Kafka writes it, base64url of 16 bytes;
    `destination` and `fingerprint`: see `consumer.engine.model.Policy`.
    """
    bounds = bounds[:_MAX_BOUNDS] if limit > MAX_IDS else ()
    if not limit or not (bounds or topic_id or destination or fingerprint):
        return ""
    which, ids = 0, b""
    for flag, text, size in zip(_HAS_ID, (topic_id, destination), _ID_BYTES, strict=True):
        if text:
            which, ids = which | flag, ids + _raw(text, size)
    sender = _raw(fingerprint, FINGERPRINT_BYTES) if fingerprint else b""
    epoch = _varints([0 if leader_epoch is None else leader_epoch + 1])

    def sealed(runs: int) -> str:
        """Return the metadata with the lowest `runs` settled runs of the map."""
        how, written = _shortest(base, bounds[: 2 * runs]) if runs else (0, b"")
        if sender and not how & _DEFLATED:
            how, written = how | _DEFLATED, zlib.compress(written)
        how |= which
        body = ids + (epoch if runs else b"\0") + written + sender
        raw = bytes([how]) + _checksum(tp, base, how, body) + body
        return _PREFIX + base64.urlsafe_b64encode(raw).decode()

    runs = len(bounds) // 2
    found = sealed(runs)
    if len(found) > limit:
        runs = bisect_right(range(1, runs), limit, key=lambda some: len(sealed(some)))
        found = sealed(runs)
    return found if len(found) <= limit and (runs or ids or sender) else ""


@dataclass(slots=True)
class MetadataWriter:
    """Writes the metadata of our commits. `limit`: bytes that it may take; less where the broker takes less."""

    limit: int
    destination: str | None
    fingerprint: str | None

    def write(
        self, tp: TopicPartition, base: int, bounds: Sequence[int], epoch: int | None, topic_id: str | None
    ) -> str:
        """Return the metadata of a commit: see `write_map`."""
        return write_map(
            tp, base, bounds, epoch, self.limit,
            topic_id=topic_id, destination=self.destination, fingerprint=self.fingerprint,
        )  # fmt: skip

    def refused(self, with_maps: bool) -> None:
        """Write less, because it was too large for the broker: no maps, or, if it had none, nothing."""
        self.limit = MAX_IDS if with_maps else 0


def read_map(position: Position) -> CommitMetadata:
    """Return what the metadata of a committed position says: `NOTHING_SAID` itself if there is none, or if it is not
    ours, broken, or of another place."""
    text = position.metadata
    # The earlier form is the same without ids.
    if not text.startswith((_PREFIX, _PREFIX_WITHOUT_IDS)) or len(text) > METADATA_BYTES:
        return NOTHING_SAID
    tp, base = TopicPartition(*position[:2]), position.next_offset
    try:
        raw = base64.b64decode(text[len(_PREFIX) :], altchars=b"-_", validate=True)
        if len(raw) < _HEAD or _checksum(tp, base, raw[0], raw[_HEAD:]) != raw[1:_HEAD]:
            return NOTHING_SAID
    except ValueError:  # not base64
        return NOTHING_SAID
    ids: list[str | None] = []
    at = _HEAD
    for flag, size in zip(_HAS_ID, _ID_BYTES, strict=True):
        end = at + size if raw[0] & flag else at
        ids.append(_text(raw[at:end]))
        at = end
    if at > len(raw):
        return NOTHING_SAID  # an id ends in its middle
    topic_id, destination = ids
    return CommitMetadata(topic_id, destination, *_read_rest(raw[0] & _HOW, raw, at, base))


def is_void(position: Position, topic_id: str | None) -> bool:
    """Return True if `position` was committed before the topic was recreated, whose id is `topic_id` now.

    Metadata without an id may be of any topic of this name: the offset is used as it is.
    """
    return are_different_topics(read_map(position).topic_id, topic_id)


def are_different_topics(one: str | None, other: str | None) -> bool:
    """Return True if both ids are known and differ: they belong to two topics, perhaps of one name."""
    return one is not None and other is not None and one != other


@lru_cache(maxsize=64)
def _raw(text: str, size: int) -> bytes:
    """Return the bytes of an id; each commit asks for the same few, once a partition."""
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) != size:
        raise ValueError(f"an id of {len(raw)} bytes instead of {size}")
    return raw


def _text(raw: bytes) -> str | None:
    """Return an id; None: there is none."""
    return base64.urlsafe_b64encode(raw).decode().rstrip("=") or None


def _read_rest(how: int, raw: bytes, at: int, base: int) -> tuple[str | None, OffsetMap | None]:
    """Return the fingerprint, and the map that begins at `at`; None: it is broken, empty, or of a later version."""
    fingerprint = None
    try:
        epoch, at = _varint(raw, at)
        data = raw[at:]
        if how & ~(_DEFLATED | _BITS):
            return None, None  # a later version
        if how & _DEFLATED:
            unpack = zlib.decompressobj()
            data = unpack.decompress(data, _LONGEST_BITS if how & _BITS else _LONGEST_RUNS)
            if not unpack.eof:
                return None, None  # it inflates to more than we ever write
            fingerprint = _text(unpack.unused_data[:FINGERPRINT_BYTES])
        found = (_bounds_of_bits if how & _BITS else _bounds_of_runs)(data, base)
        bounds = list(islice(found, _MAX_BOUNDS + 1))
    except (ValueError, zlib.error):
        return fingerprint, None
    if not bounds or len(bounds) % 2 or len(bounds) > _MAX_BOUNDS:
        return fingerprint, None
    return fingerprint, OffsetMap(bounds, epoch - 1 if epoch else None)


def _shortest(base: int, bounds: Sequence[int]) -> tuple[int, bytes]:
    """Return the shortest form of the runs, and the runs in this form."""
    lengths = [after - before for before, after in zip((base, *bounds), bounds, strict=False)]
    how, raw = 0, _varints(lengths)
    if (bounds[-1] - base + 7) // 8 <= min(len(raw), _LONGEST_BITS):
        # A bit for each offset, the lowest first: 1 is settled.
        text = "".join(("1" if turn % 2 else "0") * length for turn, length in enumerate(lengths))
        how, raw = _BITS, int(text[::-1], 2).to_bytes((len(text) + 7) // 8, "little")
    # A short map seldom becomes shorter, so both forms exist.
    packed = zlib.compress(raw)
    return (how | _DEFLATED, packed) if len(packed) < len(raw) else (how, raw)


def _bounds_of_runs(data: bytes, base: int) -> Iterator[int]:
    at, bound, first = 0, base, True
    while at < len(data):
        length, at = _varint(data, at)
        # Only the first run may be empty: then the base itself is settled.
        if not length and not first:
            raise ValueError("a run of nothing")
        bound += length
        first = False
        yield bound


def _bounds_of_bits(data: bytes, base: int) -> Iterator[int]:
    # Lowest bit first; the last run is of ones, so leading zeros say nothing.
    text = format(int.from_bytes(data, "little"), "b")[::-1]
    if text.startswith("1"):
        yield base
    if text != "0":
        for run in _SAME.finditer(text):
            yield base + run.end()


def _checksum(tp: TopicPartition, base: int, how: int, body: bytes) -> bytes:
    where = f"{tp.topic}-{tp.partition}".encode()
    return zlib.crc32(base.to_bytes(8, "big") + where + bytes([how]) + body).to_bytes(4, "big")


def _varints(numbers: Iterable[int]) -> bytes:
    out = bytearray()
    for number in numbers:
        rest = number
        while rest > 127:
            out.append(rest & 127 | 128)
            rest >>= 7
        out.append(rest)
    return bytes(out)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where it ends. Raises `ValueError`."""
    number = shift = 0
    while at < len(data) and shift < 63:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise ValueError("a number ends in its middle, or never")
