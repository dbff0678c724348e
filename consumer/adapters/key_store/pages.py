"""Which pages of an LMDB file are in use, read from the file itself.

Theory of operation. A file that was cut short is shorter than its last page number says. That alone is no damage: LMDB
counts pages that it took and gave back within one transaction, and never wrote. Only LMDB's trees tell whether a
missing page is in use, and LMDB cannot be asked: to read a mapped page beyond the end of the file kills the process
(SIGBUS), and a page of zeros in its place either reads as an empty one or fails an assertion, which kills it too. So
the trees are walked here, by the layout of LMDB 0.9 on a 64-bit little-endian machine (``mdb.c``: MDB_meta, MDB_page,
MDB_node).
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, Final

_META_PAGES: Final = 2
_ROOTS_AND_TXNID: Final = struct.Struct("<80xQ40xQ8xQ")
"""Of a meta page: the roots of the tree of free pages and of the tree of keys, and the transaction that wrote it."""
_HEADER: Final = struct.Struct("<8x2xHHH")
"""Of a page: flags, and where its table of nodes ends (an overflow page has its length in both instead)."""
_NODE: Final = struct.Struct("<HHHH")
"""Low and high part of the size (or, with the flags, of a child's number); flags; length of the key."""
_NUMBER: Final = struct.Struct("<Q")
_BRANCH, _LEAF = 1, 2
_BIG_DATA: Final = 1
_NONE: Final = 2**64 - 1


def first_missing(path: str, page_bytes: int) -> int | None:
    """The number of a page that is in use and not wholly in the file; None: all that is in use is there.

    One that was never written (a power failure leaves zeros in its place), and is no page of a tree, is not there
    either. Nobody may write to the file meanwhile.
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
    return next(iter(ahead), None)  # more pages than there are: they lead in a circle


def _parts(page: bytes, page_bytes: int) -> tuple[list[int], int]:
    """The pages that this one leads to, and the last one that a value of it stands on (0: none does).

    Raises `struct.error` for what is no page of a tree.
    """
    flags, lower, _ = _HEADER.unpack_from(page)
    children, last = [], 0
    for at in struct.unpack_from(f"<{(lower - _HEADER.size) // 2}H", page, _HEADER.size):
        low, high, node_flags, key_bytes = _NODE.unpack_from(page, at)
        if flags & _BRANCH:
            children.append(low | high << 16 | node_flags << 32)
        elif flags & _LEAF and node_flags & _BIG_DATA:
            # Its value stands on pages of its own, behind a page header.
            [first] = _NUMBER.unpack_from(page, at + _NODE.size + key_bytes)
            last = max(last, first + (15 + (low | high << 16)) // page_bytes)
    return children, last


def _read(file: BinaryIO, number: int, page_bytes: int) -> bytes:
    file.seek(number * page_bytes)
    return file.read(page_bytes)
