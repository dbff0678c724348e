"""Find pages of an LMDB file that are in use but missing, by reading the file itself.

A file that was cut short is shorter than its last page number implies. That alone is not damage: LMDB counts pages that
it allocated and freed within one transaction and never wrote. Only LMDB's trees show whether a missing page is in use.
LMDB itself cannot check it: reading a mapped page beyond the end of the file kills the process (SIGBUS), and a page of
zeros in its place reads as an empty page or fails an assertion, which kills the process too. So this module walks the
trees, by the layout of LMDB 0.9 on a 64-bit little-endian machine (``mdb.c``: MDB_meta, MDB_page, MDB_node).
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Final

_META_PAGES: Final = 2
_ROOTS_AND_TXNID: Final = struct.Struct("<80xQ40xQ8xQ")
"""Meta page: the roots of the trees of free pages and of keys, and the id of the transaction that wrote it."""
_HEADER: Final = struct.Struct("<8x2xHHH")
"""Header of a page: flags, and the end of its table of nodes (an overflow page has its length there)."""
_NODE: Final = struct.Struct("<HHHH")
"""Node: low and high part of the size (or, with the flags, of a child's number); flags; length of the key."""
_NUMBER: Final = struct.Struct("<Q")
_BRANCH, _LEAF = 1, 2
_BIG_DATA: Final = 1
_NONE: Final = 2**64 - 1


def first_missing(path: str, page_bytes: int) -> int | None:
    """Return the number of a page that is in use and not completely in the file; None if there is none.

    A page that was never written (a power failure leaves zeros) and so is not a page of a tree counts as missing too.
    No process may write to the file meanwhile.
    """
    length = os.stat(path).st_size
    with open(path, "rb") as file:
        metas = [_ROOTS_AND_TXNID.unpack_from(_read(file, page, page_bytes)) for page in range(_META_PAGES)]
        free_root, key_root, _ = max(metas, key=lambda meta: meta[2])
        ahead = [root for root in (free_root, key_root) if root != _NONE]
        for _ in range(length // page_bytes):
            if not ahead:
                break
            number: int = ahead.pop()
            if (number + 1) * page_bytes > length:
                return number
            try:
                children, last = _parts(_read(file, number, page_bytes), page_bytes)
            except struct.error:
                return number
            if (last + 1) * page_bytes > length:
                return last
            ahead += children
    return next(iter(ahead), None)  # more pages than the file has: they form a cycle


def _parts(page: bytes, page_bytes: int) -> tuple[list[int], int]:
    """Return the pages that this page refers to, and the last overflow page of its values (0: none).

    Raises `struct.error` if it is not a page of a tree.
    """
    flags, lower, _ = _HEADER.unpack_from(page)
    children, last = [], 0
    for at in struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", page, _HEADER.size):
        low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
        if flags & _BRANCH:
            children.append(low | high << 16 | node_flags << 32)
        elif flags & _LEAF and node_flags & _BIG_DATA:
            # The value is on overflow pages, after a page header.
            [first] = _NUMBER.unpack_from(page, at + _NODE.size + key_bytes)
            last = max(last, first + (15 + (low | high << 16)) // page_bytes)
    return children, last


def _read(file: BinaryIO, number: int, page_bytes: int) -> bytes:
    file.seek(number * page_bytes)
    return file.read(page_bytes)
