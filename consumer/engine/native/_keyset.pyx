"""A set of keys. Its methods take and return many keys at a time, as one run of bytes.

Theory of operation. It is a table of 16-byte keys with open addressing: a key stands in the first free slot from
its own on (`_secret`). At most half of the slots are taken. When a key is removed, those behind it move up, so that a
search may always end at the first free slot. A slot of zeros is free; the key of zeros has a flag of its own.
`consumer.engine.dedup.claims.PlainKeySet` is the same in plain Python.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

include "constants.pxi"
include "_secret.pxi"

cdef enum:
    FEWEST_SLOTS = 1024

cdef struct Key:
    uint64_t first
    uint64_t second


cdef class KeySet:
    """See `consumer.engine.dedup.claims.PlainKeySet`."""

    cdef Key* slots
    cdef Py_ssize_t mask, count
    cdef bint has_zeros

    def __cinit__(self):
        self.slots = <Key*> PyMem_Calloc(FEWEST_SLOTS, sizeof(Key))
        if self.slots == NULL:
            raise MemoryError
        self.mask, self.count, self.has_zeros = FEWEST_SLOTS - 1, 0, False

    def __dealloc__(self):
        PyMem_Free(self.slots)

    def __len__(self):
        return self.count + self.has_zeros

    def add(self, bytes keys):
        """Add a run of keys; return the positions of those that were in the set, or came earlier in the run."""
        cdef Py_ssize_t place, rows = PyBytes_GET_SIZE(keys) // KEY_BYTES
        cdef Key key
        cdef Key* slot
        known = []
        if 2 * (self.count + rows) > self.mask:
            self.resize(self.count + rows)
        for place in range(rows):
            memcpy(&key, PyBytes_AS_STRING(keys) + KEY_BYTES * place, KEY_BYTES)
            if is_zeros(&key):
                if self.has_zeros:
                    known.append(place)
                self.has_zeros = True
                continue
            slot = self.slot_of(&key)
            if is_zeros(slot):
                slot[0] = key
                self.count += 1
            else:
                known.append(place)
        return known

    def remove(self, bytes keys):
        """Remove a run of keys; return whether all of them were in the set."""
        cdef Py_ssize_t place, rows = PyBytes_GET_SIZE(keys) // KEY_BYTES
        cdef bint all_there = True
        cdef Key key
        cdef Key* slot
        for place in range(rows):
            memcpy(&key, PyBytes_AS_STRING(keys) + KEY_BYTES * place, KEY_BYTES)
            if is_zeros(&key):
                all_there = all_there and self.has_zeros
                self.has_zeros = False
                continue
            slot = self.slot_of(&key)
            if is_zeros(slot):
                all_there = False
            else:
                self.free(slot - self.slots)
        if self.mask >= 8 * FEWEST_SLOTS and 16 * self.count < self.mask:
            self.resize(2 * self.count)
        return all_there

    cdef inline Py_ssize_t own(self, const Key* key) noexcept:
        """Return the slot where a search for this key begins."""
        return <Py_ssize_t> place_of(key.first, key.second) & self.mask

    cdef Key* slot_of(self, const Key* key) noexcept:
        """Return the slot that holds this key, or the free slot where it would go."""
        cdef Py_ssize_t at = self.own(key)
        while not is_zeros(self.slots + at) and (
            self.slots[at].first != key.first or self.slots[at].second != key.second
        ):
            at = (at + 1) & self.mask
        return self.slots + at

    cdef void free(self, Py_ssize_t hole) noexcept:
        """Free a slot; keys after it that belong at or before it move up."""
        cdef Py_ssize_t at = hole, wanted
        self.count -= 1
        while True:
            at = (at + 1) & self.mask
            if is_zeros(self.slots + at):
                break
            wanted = self.own(self.slots + at)
            if ((at - wanted) & self.mask) >= ((at - hole) & self.mask):
                self.slots[hole] = self.slots[at]
                hole = at
        self.slots[hole].first = self.slots[hole].second = 0

    cdef int resize(self, Py_ssize_t keys) except -1:
        """Make room for this many keys."""
        cdef Key* before = self.slots
        cdef Py_ssize_t slots = FEWEST_SLOTS, at, many = self.mask + 1
        while slots < 4 * keys:
            slots *= 2
        self.slots = <Key*> PyMem_Calloc(slots, sizeof(Key))
        if self.slots == NULL:
            self.slots = before
            raise MemoryError
        self.mask = slots - 1
        for at in range(many):
            if not is_zeros(before + at):
                self.slot_of(before + at)[0] = before[at]
        PyMem_Free(before)
        return 0


cdef inline bint is_zeros(const Key* key) noexcept:
    return key.first == 0 and key.second == 0
