"""What goes with a committed offset, in the commit's metadata: the offset map, the topic's id, the destination.

Theory of operation. A commit names one offset, that of the lowest open record; what lies above it and is settled
would be sent again after a restart or a move to another member. So each commit carries a map of it: alternately
the lengths of open and of settled runs, in offsets, from the committed offset up (as parallel-consumer does it).
Offsets that are no records (compaction, transaction markers) belong to whichever run they lie in: they never
become records.

*The topic's id.* An offset means something within one life of a topic only. Deleted and made anew under the same name,
a topic begins at offset 0 again, and what was committed in its life before names other records (`is_void`).

*The destination* (`consumer.engine.model`). Records below a committed offset are not sent again, and what was
sent to a sandbox never reached the real API: whoever starts with another destination has to hear of it.

As text: ``pinstream:2:`` and base64url of: one byte for how the runs are written and which ids follow, a checksum over
the committed offset, the partition's name and the rest, the ids, the leader epoch, the runs. The runs are written as
varints or as bits, whichever is shorter, and deflated if that helps. The broker takes 4,096 bytes at most
(``offset.metadata.max.bytes``): what does not fit is left out from the top of the map, never of the ids, and is then
sent again if it comes to that. ``pinstream:1:``, from before there were ids, is the same without them, and still read.

Two fences for the map. The checksum binds it to its offset and partition: one that was carried elsewhere is not ours.
The leader epoch is the highest of any record in the map: where a record of a higher epoch stands at or below an offset
of the map, the log was cut after the map was written (unclean leader election), and the record is another one. What is
foreign or broken is ignored, never fatal: it costs repetitions, no losses.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

MOST = 4095
"""Bytes of metadata a broker takes by default, less the NUL that librdkafka sends with them; the text is ASCII."""
_PREFIX = "pinstream:2:"
_PREFIX_WITHOUT_IDS = "pinstream:1:"
_HEAD = 5
"""Bytes before the ids: how the runs are written, and the checksum."""
_TOPIC_ID_BYTES: Final = 16
_DESTINATION_BYTES: Final = 6
_HAS_TOPIC_ID: Final = 0x80
_HAS_DESTINATION: Final = 0x40
_HOW: Final = 0x3F
"""Of the first byte: which ids follow, and how the runs are written."""
IDS_MOST: Final = len(_PREFIX) + (_HEAD + _TOPIC_ID_BYTES + _DESTINATION_BYTES + 1 + 2) // 3 * 4
"""Bytes of metadata with all ids and no map. Where there is no more room than that, no map is written."""
_MOST_BOUNDS = 1 << 17
"""Bounds a map may have; more than open events ever make."""
_LONGEST_RUNS = 9 * _MOST_BOUNDS
_LONGEST_BITS = 1 << 17
"""Bytes that each form may unfold to."""
_RUNS, _RUNS_DEFLATED, _BITS, _BITS_DEFLATED = range(4)
_SAME = re.compile("0+|1+")


def safe_window(most: int) -> int:
    """Offsets that fit into `most` bytes whatever their pattern: a bit each."""
    return max(0, (most - len(_PREFIX)) * 3 // 4 - _HEAD - _TOPIC_ID_BYTES - _DESTINATION_BYTES - 10) * 8


SAFE_WINDOW = safe_window(MOST)


class OffsetMap:
    """Settled offsets above a base. `bounds` rise: where settled runs begin and end, in turns.

    `leader_epoch`: the highest of the records in it; None where the broker tells none.
    """

    __slots__ = ("bounds", "leader_epoch")

    def __init__(self, bounds: Sequence[int], leader_epoch: int | None) -> None:
        self.bounds = bounds
        self.leader_epoch = leader_epoch

    @property
    def end(self) -> int:
        """The offset after the last settled one."""
        return self.bounds[-1]

    def settled(self, offset: int) -> bool:
        """Whether the record at `offset` was settled when the map was written."""
        return bisect_right(self.bounds, offset) % 2 == 1

    def holds_for(self, leader_epoch: int | None) -> bool:
        """Whether the map is still true where a record of this leader epoch stands in its range."""
        if leader_epoch is None or self.leader_epoch is None:
            return leader_epoch is self.leader_epoch
        return leader_epoch <= self.leader_epoch

    def from_offset(self, offset: int) -> list[int]:
        """The bounds of what is settled from `offset` on."""
        place = bisect_right(self.bounds, offset)
        return [offset, *self.bounds[place:]] if place % 2 else list(self.bounds[place:])


class CommitMetadata(NamedTuple):
    """What the metadata of a commit says. None: it does not say it. `settled`: the offset map."""

    topic_id: str | None
    destination: str | None
    settled: OffsetMap | None


def write(
    base: int,
    bounds: Sequence[int],
    leader_epoch: int | None,
    most: int = MOST,
    *,
    where: str = "",
    topic_id: str | None = None,
    destination: str | None = None,
) -> str:
    """The metadata of a commit of `base`, with as much of the map as fits into `most` bytes.

    Empty where there is nothing to say, or no room for the ids. `where`: the partition's name, which it is bound to.
    `topic_id`: as Kafka writes it, base64url of 16 bytes; `destination`: a tag.
    """
    bounds = bounds[:_MOST_BOUNDS] if most > IDS_MOST else ()
    if not most or not (bounds or topic_id or destination):
        return ""
    seal = _Seal(base, where, leader_epoch, topic_id, destination)
    text = seal.text(bounds)
    if len(text) <= most:
        return text
    fits, too_many = 0, len(bounds) // 2
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if len(seal.text(bounds[: 2 * middle])) <= most:
            fits = middle
        else:
            too_many = middle
    text = seal.text(bounds[: 2 * fits]) if fits or topic_id or destination else ""
    return text if len(text) <= most else ""


def read(text: str, base: int, *, where: str = "") -> OffsetMap | None:
    """The map that came with the committed offset `base` of the partition `where`.

    None for what is not ours, broken, or of another place, and where nothing is settled above `base`.
    """
    found = read_metadata(text, base, where=where)
    return None if found is None else found.settled


def read_metadata(text: str, base: int, *, where: str = "") -> CommitMetadata | None:
    """What came with the committed offset `base` of the partition `where`.

    None for what is not ours, broken, or of another place.
    """
    prefix = next((one for one in (_PREFIX, _PREFIX_WITHOUT_IDS) if text.startswith(one)), None)
    if prefix is None or len(text) > MOST:
        return None
    try:
        raw = base64.b64decode(text[len(prefix) :], altchars=b"-_", validate=True)
        if len(raw) < _HEAD or _checksum(base, where, raw[0], raw[_HEAD:]) != raw[1:_HEAD]:
            return None
        if prefix == _PREFIX_WITHOUT_IDS:
            settled = _read_map(raw[0], raw, _HEAD, base)
            return None if settled is None else CommitMetadata(None, None, settled)
        topic_id, at = _id(raw, _HEAD, _TOPIC_ID_BYTES if raw[0] & _HAS_TOPIC_ID else 0)
        destination, at = _id(raw, at, _DESTINATION_BYTES if raw[0] & _HAS_DESTINATION else 0)
    except (ValueError, binascii.Error):
        return None
    return CommitMetadata(topic_id, destination, _read_map(raw[0] & _HOW, raw, at, base))


def is_void(metadata: str, base: int, *, where: str, topic_id: str | None) -> bool:
    """Whether the offset `base` was committed in an earlier life of the topic that has the id `topic_id` now.

    What names no id may be of any life: it is taken as it is.
    """
    found = read_metadata(metadata, base, where=where)
    return found is not None and are_different_lives(found.topic_id, topic_id)


def are_different_lives(one: str | None, other: str | None) -> bool:
    """Whether these ids are known, and those of two topics (that may have one name, one after the other)."""
    return one is not None and other is not None and one != other


def _id(raw: bytes, at: int, size: int) -> tuple[str | None, int]:
    """The id that begins at `at`, and where what follows begins. Raises `ValueError`."""
    if at + size > len(raw):
        raise ValueError("an id ends in its middle")
    text = base64.urlsafe_b64encode(raw[at : at + size]).decode().rstrip("=")
    return text or None, at + size


def _read_map(how: int, raw: bytes, at: int, base: int) -> OffsetMap | None:
    try:
        epoch, at = _varint(raw, at)
        bounds = list(islice(_unfold(how, raw[at:], base), _MOST_BOUNDS + 1))
    except (ValueError, zlib.error):
        return None
    if not bounds or len(bounds) % 2 or len(bounds) > _MOST_BOUNDS:
        return None
    return OffsetMap(bounds, epoch - 1 if epoch else None)


class _Seal:
    """Writes the metadata of one commit, with more or less of its map."""

    def __init__(
        self, base: int, where: str, leader_epoch: int | None, topic_id: str | None, destination: str | None
    ) -> None:
        self._base = base
        self._where = where
        self._which = (_HAS_TOPIC_ID if topic_id else 0) | (_HAS_DESTINATION if destination else 0)
        self._ids = _id_bytes(topic_id, _TOPIC_ID_BYTES) + _id_bytes(destination, _DESTINATION_BYTES)
        self._epoch = _varints([0 if leader_epoch is None else leader_epoch + 1])

    def text(self, bounds: Sequence[int]) -> str:
        """All of it, however long."""
        how, runs = _shortest(self._base, bounds) if bounds else (_RUNS, b"")
        how |= self._which
        body = self._ids + (self._epoch + runs if bounds else b"\0")
        raw = bytes([how]) + _checksum(self._base, self._where, how, body) + body
        return _PREFIX + base64.urlsafe_b64encode(raw).decode()


def _id_bytes(text: str | None, size: int) -> bytes:
    if not text:
        return b""
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) != size:
        raise ValueError(f"an id of {len(raw)} bytes instead of {size}")
    return raw


def _shortest(base: int, bounds: Sequence[int]) -> tuple[int, bytes]:
    """How the runs are written, and what that gives."""
    runs = _varints(after - before for before, after in zip((base, *bounds), bounds, strict=False))
    plain, deflated, raw = _RUNS, _RUNS_DEFLATED, runs
    if (bounds[-1] - base + 7) // 8 <= min(len(runs), _LONGEST_BITS):
        plain, deflated, raw = _BITS, _BITS_DEFLATED, _bits(base, bounds)
    packed = zlib.compress(raw)
    return (deflated, packed) if len(packed) < len(raw) else (plain, raw)


def _unfold(how: int, data: bytes, base: int) -> Iterator[int]:
    if how in (_RUNS_DEFLATED, _BITS_DEFLATED):
        unpack = zlib.decompressobj()
        data = unpack.decompress(data, _LONGEST_RUNS if how == _RUNS_DEFLATED else _LONGEST_BITS)
        if not unpack.eof:
            raise ValueError("unfolds to more than anything we write")
    if how in (_BITS, _BITS_DEFLATED):
        return _bounds_of_bits(data, base)
    if how in (_RUNS, _RUNS_DEFLATED):
        return _bounds_of_runs(data, base)
    raise ValueError("written by a later version")


def _bounds_of_runs(data: bytes, base: int) -> Iterator[int]:
    at, bound, first = 0, base, True
    while at < len(data):
        length, at = _varint(data, at)
        # Only the first may be of nothing: the base itself is settled, and was not read again yet.
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


def _bits(base: int, bounds: Sequence[int]) -> bytes:
    lengths = [after - before for before, after in zip((base, *bounds), bounds, strict=False)]
    text = "".join(("1" if turn % 2 else "0") * length for turn, length in enumerate(lengths))
    return int(text[::-1], 2).to_bytes((len(text) + 7) // 8, "little")


def _checksum(base: int, where: str, how: int, body: bytes) -> bytes:
    return zlib.crc32(base.to_bytes(8, "big") + where.encode() + bytes([how]) + body).to_bytes(4, "big")


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
    """The number that begins at `at`, and where the next begins. Raises `ValueError`."""
    number = shift = 0
    while at < len(data) and shift < 63:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
    raise ValueError("a number ends in its middle, or never")
