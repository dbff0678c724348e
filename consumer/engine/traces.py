"""Which traces records were written in: the W3C ``traceparent`` in their headers.

Theory of operation. Producers that trace give each record the span it was written in. A batch has many, so of some of
them our spans say so, as links. Only what is well-formed counts: a header may hold anything, and what does not parse
is as good as none. A span that its producer keeps is worth more than one it threw away: a link to that leads nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from consumer.engine.model import Record, TraceParent

HEADER = "traceparent"
_FORM = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL
)
_SAMPLED = 1
_FLAG = slice(54, 55)
"""Where the digit stands whose lowest bit is `_SAMPLED`, in every version."""
_ODD = b"13579bdf"


def trace_parents(records: Iterable[Record | None], most: int) -> tuple[TraceParent, ...]:
    """At most `most` different ones, those that are kept first; None is a record that is gone."""
    kept: dict[TraceParent, None] = {}
    others: dict[TraceParent, None] = {}
    for record in records:
        text = _header(record) if record is not None and record.headers else None
        if text is None or (len(others) >= most and text[_FLAG] not in _ODD):
            # Most producers keep one trace in a hundred: those they do not keep must cost next to nothing.
            continue
        parent = read_trace_parent(text)
        if parent is None:
            continue
        if parent.flags & _SAMPLED:
            kept[parent] = None
            if len(kept) >= most:
                break
        else:
            others[parent] = None
    return (*kept, *others)[:most]


def read_trace_parent(text: bytes) -> TraceParent | None:
    """What a header's value says; None if it is no traceparent."""
    found = _FORM.fullmatch(text)
    if found is None or (found[1] == b"00" and found[5] is not None):
        return None
    return TraceParent(int(found[2], 16), int(found[3], 16), int(found[4], 16))


def _header(record: Record) -> bytes | None:
    """Of several headers the last one counts, as with Kafka's own clients."""
    text = None
    for name, value in record.headers:
        if name == HEADER:
            text = value
    return text
