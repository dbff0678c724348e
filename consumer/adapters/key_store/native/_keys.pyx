"""Operations on many keys at once: find, insert, sort, merge, check. `plain` has the same, with descriptions.

Theory of operation. The table is a hash table with linear probing (for the place of a key see `_secret`). A segment is
sorted, and has a directory: for each value of a key's first bits, the number of its first entry. A search is one step
into the directory and a walk over a few entries; where many keys share these bits, halving leads to the few. Most of a
search's time is waiting for memory, so it goes through the keys in groups and requests the memory that a group needs
next (`prefetch`) before it uses any.

A block of a segment is compared with its checksum before it is used for the first time. No byte outside of a segment is
ever read, whatever its content.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memcmp, memcpy

from consumer.adapters.key_store.interface import Damage

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #define prefetch(address) __builtin_prefetch(address)
    static inline uint64_t word(const unsigned char *at) { uint64_t value; memcpy(&value, at, 8); return value; }
    static inline uint32_t big(const unsigned char *at) {
        return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
    }
    static inline uint32_t little(const unsigned char *at) {
        return (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
    }
    """
    void prefetch(const void* address) noexcept nogil
    uint64_t word(const unsigned char* at) noexcept nogil
    uint32_t big(const unsigned char* at) noexcept nogil
    uint32_t little(const unsigned char* at) noexcept nogil

include "constants.pxi"
include "consumer/engine/native/_secret.pxi"

cdef enum:
    GROUP = 32
    FEW = 64
    AHEAD = 8
    FIRST_ROOM = 1024

cdef uint32_t CRC[8][256]


cdef void _make_crc() noexcept:
    cdef uint32_t value
    cdef int byte, row, bit
    for byte in range(256):
        value = byte
        for bit in range(8):
            value = (value >> 1) ^ (0xEDB88320 if value & 1 else 0)
        CRC[0][byte] = value
    for byte in range(256):
        for row in range(1, 8):
            CRC[row][byte] = (CRC[row - 1][byte] >> 8) ^ CRC[0][CRC[row - 1][byte] & 0xFF]


_make_crc()


cdef uint32_t crc32(uint32_t crc, const uint8_t* at, Py_ssize_t size) noexcept nogil:
    """The same as `zlib.crc32`, eight bytes at a time."""
    cdef uint32_t one, two
    crc = ~crc
    while size >= 8:
        one, two = crc ^ little(at), little(at + 4)
        crc = (
            CRC[7][one & 0xFF] ^ CRC[6][one >> 8 & 0xFF] ^ CRC[5][one >> 16 & 0xFF] ^ CRC[4][one >> 24]
            ^ CRC[3][two & 0xFF] ^ CRC[2][two >> 8 & 0xFF] ^ CRC[1][two >> 16 & 0xFF] ^ CRC[0][two >> 24]
        )
        at += 8
        size -= 8
    while size:
        crc = (crc >> 8) ^ CRC[0][(crc ^ at[0]) & 0xFF]
        at += 1
        size -= 1
    return ~crc


cdef inline uint32_t first_bits(const uint8_t* key, int bits) noexcept nogil:
    return big(key) >> (32 - bits) if bits else 0


cdef int compare(const void* one, const void* other) noexcept nogil:
    return memcmp(one, other, ENTRY_BYTES)


cdef struct Slot:
    uint8_t key[KEY_BYTES]
    uint32_t stamp
    uint32_t used


cdef class KeyTable:
    cdef Slot* slots
    cdef Py_ssize_t room, count

    def __cinit__(self):
        self.room, self.count = FIRST_ROOM, 0
        self.slots = <Slot*> calloc(self.room, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)

    def __len__(self):
        return self.count

    cdef inline Py_ssize_t own(self, const uint8_t* key) noexcept nogil:
        """Return the slot where a search for this key begins."""
        return <Py_ssize_t> place_of(word(key), word(key + 8)) & (self.room - 1)

    cdef inline Slot* place(self, const uint8_t* key) noexcept nogil:
        """Return where the key is, or where it would be inserted."""
        cdef Py_ssize_t mask = self.room - 1, at = self.own(key)
        while self.slots[at].used and memcmp(self.slots[at].key, key, KEY_BYTES):
            at = (at + 1) & mask
        return self.slots + at

    cdef inline void fetch(self, const uint8_t* key) noexcept nogil:
        prefetch(self.slots + self.own(key))

    cdef int grow(self) except -1:
        cdef Slot* before = self.slots
        cdef Py_ssize_t room = self.room, at
        self.slots = <Slot*> calloc(2 * room, sizeof(Slot))
        if self.slots == NULL:
            self.slots = before
            raise MemoryError
        self.room = 2 * room
        for at in range(room):
            if before[at].used:
                self.place(before[at].key)[0] = before[at]
        free(before)
        return 0

    def insert(self, const uint8_t[::1] keys, uint32_t stamp):
        cdef Py_ssize_t number, count = keys.shape[0] // KEY_BYTES
        cdef Slot* slot
        for number in range(count):
            if 4 * self.count >= 3 * self.room:
                self.grow()
            if number + AHEAD < count:
                self.fetch(&keys[(number + AHEAD) * KEY_BYTES])
            slot = self.place(&keys[number * KEY_BYTES])
            if not slot.used:
                memcpy(slot.key, &keys[number * KEY_BYTES], KEY_BYTES)
                slot.used, slot.stamp = 1, stamp
                self.count += 1
            elif slot.stamp < stamp:
                slot.stamp = stamp

    def find(self, bytes keys, uint32_t oldest, uint8_t[::1] found):
        cdef const uint8_t* column = <const uint8_t*> PyBytes_AS_STRING(keys)
        cdef Py_ssize_t number
        cdef Slot* slot
        cdef Py_ssize_t count = PyBytes_GET_SIZE(keys) // KEY_BYTES if self.count else 0
        for number in range(count):
            if number + AHEAD < count:
                self.fetch(column + (number + AHEAD) * KEY_BYTES)
            slot = self.place(column + number * KEY_BYTES)
            if slot.used and slot.stamp >= oldest:
                found[number] = FOUND_DELIVERED

    def sorted(self):
        cdef int bits = 0
        while self.count >> bits > 16 and bits < 24:
            bits += 1
        cdef Py_ssize_t* ends = <Py_ssize_t*> calloc((1 << bits) + 1, sizeof(Py_ssize_t))
        if ends == NULL:
            raise MemoryError
        cdef bytes made = PyBytes_FromStringAndSize(NULL, self.count * ENTRY_BYTES)
        cdef uint8_t* to = <uint8_t*> PyBytes_AS_STRING(made)
        with nogil:
            self._sort(to, ends, bits)
        free(ends)
        return made

    cdef void _sort(self, uint8_t* to, Py_ssize_t* ends, int bits) noexcept nogil:
        """Distribute the entries by their first bits, then sort each of these small parts."""
        cdef Py_ssize_t at, begin
        cdef Slot* slot
        cdef uint8_t* entry
        for at in range(self.room):
            if self.slots[at].used:
                ends[first_bits(self.slots[at].key, bits) + 1] += 1
        for at in range(1 << bits):
            ends[at + 1] += ends[at]
        for at in range(self.room):
            slot = self.slots + at
            if slot.used:
                entry = to + ends[first_bits(slot.key, bits)] * ENTRY_BYTES
                ends[first_bits(slot.key, bits)] += 1  # moves from the beginning of the part to its end
                memcpy(entry, slot.key, KEY_BYTES)
                entry[16], entry[17] = slot.stamp >> 24, slot.stamp >> 16 & 0xFF
                entry[18], entry[19] = slot.stamp >> 8 & 0xFF, slot.stamp & 0xFF
        begin = 0
        for at in range(1 << bits):
            qsort(to + begin * ENTRY_BYTES, ends[at] - begin, ENTRY_BYTES, &compare)
            begin = ends[at]


cdef struct Body:
    const uint8_t* data
    const uint8_t* checks
    uint8_t* checked  # for each block, whether it was checked
    Py_ssize_t entries, size, blocks
    int bits
    bint all_checked


cdef bint is_whole(Body* body, Py_ssize_t first, Py_ssize_t last) noexcept nogil:
    """Check the blocks that hold the bytes from `first` to `last`, if that was not done before."""
    cdef Py_ssize_t block, begin
    if body.all_checked:  # saves a wait for memory in each search: `checked` does not fit into the caches
        return True
    for block in range(first // BLOCK_BYTES, last // BLOCK_BYTES + 1):
        if not body.checked[block]:
            begin = block * BLOCK_BYTES
            if crc32(0, body.data + begin, min(BLOCK_BYTES, body.size - begin)) != little(body.checks + 4 * block):
                return False
            body.checked[block] = 1
    return True


cdef class Segment:
    cdef Body body
    cdef const uint8_t[::1] view

    def __cinit__(self, const uint8_t[::1] data, Py_ssize_t entries, int bits):
        self.view = data
        if entries < 0 or entries > data.shape[0] // ENTRY_BYTES or bits < 0 or bits > MAX_BITS:
            raise Damage("has another length than it was written with")
        self.body.entries, self.body.bits, self.body.all_checked = entries, bits, False
        self.body.size = entries * ENTRY_BYTES + ((1 << bits) + 1) * 4
        self.body.blocks = (self.body.size + BLOCK_BYTES - 1) // BLOCK_BYTES
        if data.shape[0] != self.body.size + 4 * self.body.blocks:
            raise Damage("has another length than it was written with")
        self.body.data = &data[0]
        self.body.checks = self.body.data + self.body.size
        self.body.checked = <uint8_t*> calloc(self.body.blocks, 1)
        if self.body.checked == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.body.checked)

    def check(self):
        cdef bint whole
        with nogil:
            whole = is_whole(&self.body, 0, self.body.size - 1)
        if not whole:
            raise Damage("is not as it was written")
        self.body.all_checked = True

    def find(self, bytes keys, uint32_t oldest, uint8_t[::1] found, bint beside):
        cdef const uint8_t* column = <const uint8_t*> PyBytes_AS_STRING(keys)
        cdef Py_ssize_t count = PyBytes_GET_SIZE(keys) // KEY_BYTES
        cdef bint whole
        if not count:
            return
        if beside:
            with nogil:
                whole = self._find(column, count, oldest, &found[0])
        else:
            whole = self._find(column, count, oldest, &found[0])
        if not whole:
            raise Damage("is not as it was written")

    cdef bint _find(self, const uint8_t* keys, Py_ssize_t count, uint32_t oldest, uint8_t* found) noexcept nogil:
        cdef Body* body = &self.body
        cdef const uint8_t* directory = body.data + body.entries * ENTRY_BYTES
        cdef Py_ssize_t start, number, place
        cdef uint32_t low[GROUP]
        cdef uint32_t high[GROUP]
        for start in range(0, count, 32):  # `GROUP`: Cython wants a literal here
            for number in range(min(GROUP, count - start)):
                low[number] = first_bits(keys + (start + number) * KEY_BYTES, body.bits)
                prefetch(directory + low[number] * 4)
            for number in range(min(GROUP, count - start)):
                place = low[number] * 4
                if not is_whole(body, directory - body.data + place, directory - body.data + place + 7):
                    return False
                low[number], high[number] = little(directory + place), little(directory + place + 4)
                if low[number] > high[number] or high[number] > body.entries:
                    return False
                for place in range(low[number] * ENTRY_BYTES, high[number] * ENTRY_BYTES, 64):
                    prefetch(body.data + place)
                    if place > low[number] * ENTRY_BYTES + 256:
                        break
            for number in range(min(GROUP, count - start)):
                if low[number] < high[number] and not found[start + number]:
                    if not self._walk(keys + (start + number) * KEY_BYTES, low[number], high[number], oldest,
                                      found + start + number):
                        return False
        return True

    cdef inline bint _walk(
        self, const uint8_t* key, Py_ssize_t low, Py_ssize_t high, uint32_t oldest, uint8_t* found
    ) noexcept nogil:
        cdef Body* body = &self.body
        cdef uint64_t one = word(key), two = word(key + 8)
        cdef const uint8_t* entry
        cdef Py_ssize_t middle
        while high - low > FEW:  # happens only if keys were chosen
            middle = (low + high) // 2
            if not is_whole(body, middle * ENTRY_BYTES, middle * ENTRY_BYTES + ENTRY_BYTES - 1):
                return False
            if memcmp(body.data + middle * ENTRY_BYTES, key, KEY_BYTES) <= 0:
                low = middle
            else:
                high = middle
        if not is_whole(body, low * ENTRY_BYTES, high * ENTRY_BYTES - 1):
            return False
        for middle in range(low, high):
            entry = body.data + middle * ENTRY_BYTES
            if word(entry) == one and word(entry + 8) == two:
                found[0] = FOUND_DELIVERED if big(entry + KEY_BYTES) >= oldest else FOUND_NEW
                break
        return True


cdef class Builder:
    cdef uint32_t* directory
    cdef uint32_t* checks
    cdef uint32_t crc
    cdef Py_ssize_t size, blocks, room
    cdef int bits
    cdef readonly Py_ssize_t entries

    def __cinit__(self, int bits):
        self.bits, self.entries, self.size, self.blocks, self.room, self.crc = bits, 0, 0, 0, 0, 0
        self.checks = NULL
        self.directory = <uint32_t*> calloc((1 << bits) + 1, 4)
        if self.directory == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.directory)
        free(self.checks)

    def add(self, bytes piece):
        cdef const uint8_t* data = <const uint8_t*> PyBytes_AS_STRING(piece)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(piece), at
        self.make_room(size)
        with nogil:
            for at in range(size // ENTRY_BYTES):
                self.directory[first_bits(data + at * ENTRY_BYTES, self.bits) + 1] += 1
            self.check(data, size)
        self.entries += size // ENTRY_BYTES

    def finish(self):
        cdef Py_ssize_t size = ((1 << self.bits) + 1) * 4, at
        self.make_room(size)
        with nogil:
            for at in range(1 << self.bits):
                self.directory[at + 1] += self.directory[at]
            self.check(<uint8_t*> self.directory, size)
        if self.size % BLOCK_BYTES:
            self.checks[self.blocks] = self.crc
            self.blocks += 1
        return PyBytes_FromStringAndSize(<char*> self.directory, size), PyBytes_FromStringAndSize(
            <char*> self.checks, 4 * self.blocks
        )

    cdef int make_room(self, Py_ssize_t size) except -1:
        """Make room for the checksums of this many more bytes."""
        cdef Py_ssize_t blocks = (self.size + size) // BLOCK_BYTES + 1
        cdef uint32_t* larger
        if blocks > self.room:
            larger = <uint32_t*> realloc(self.checks, 4 * (2 * blocks + 16))
            if larger == NULL:
                raise MemoryError
            self.checks, self.room = larger, 2 * blocks + 16
        return 0

    cdef void check(self, const uint8_t* data, Py_ssize_t size) noexcept nogil:
        cdef Py_ssize_t part
        while size:
            part = min(size, BLOCK_BYTES - self.size % BLOCK_BYTES)
            self.crc = crc32(self.crc, data, part)
            self.size += part
            if self.size % BLOCK_BYTES == 0:
                self.checks[self.blocks] = self.crc
                self.blocks += 1
                self.crc = 0
            data += part
            size -= part


cdef struct Head:
    Body* body
    Py_ssize_t at


cdef class Merger:
    cdef tuple segments
    cdef Head* heads
    cdef int count
    cdef uint8_t last[ENTRY_BYTES]
    cdef bint begun

    def __cinit__(self, segments):
        self.segments, self.count, self.begun = tuple(segments), 0, False
        self.heads = <Head*> calloc(len(self.segments) or 1, sizeof(Head))
        if self.heads == NULL:
            raise MemoryError
        cdef Segment segment
        for segment in self.segments:
            self.heads[self.count].body = &segment.body
            self.count += 1

    def __dealloc__(self):
        free(self.heads)

    def take(self, Py_ssize_t maximum):
        cdef bytes made = PyBytes_FromStringAndSize(NULL, maximum * ENTRY_BYTES)
        cdef uint8_t* to = <uint8_t*> PyBytes_AS_STRING(made)
        cdef Py_ssize_t count
        with nogil:
            count = self._take(to, maximum)
        if count < 0:
            raise Damage("is not as it was written")
        return made[:count * ENTRY_BYTES]

    cdef Py_ssize_t _take(self, uint8_t* to, Py_ssize_t maximum) noexcept nogil:
        """Merge up to `maximum` entries; of a key that several bodies have, the latest counts. Return -1 if a block is
        damaged."""
        cdef Py_ssize_t made = 0
        cdef const uint8_t* least
        cdef const uint8_t* entry
        cdef int number, chosen
        while made < maximum:
            chosen = -1
            for number in range(self.count):
                if self.heads[number].at == self.heads[number].body.entries:
                    continue
                entry = self.heads[number].body.data + self.heads[number].at * ENTRY_BYTES
                # The latest stamp of a key comes first: it is kept, and the others are skipped.
                if chosen < 0 or self._before(entry, least):
                    chosen, least = number, entry
            if chosen < 0:
                break
            entry = self.heads[chosen].body.data + self.heads[chosen].at * ENTRY_BYTES
            if not is_whole(self.heads[chosen].body, entry - self.heads[chosen].body.data,
                            entry - self.heads[chosen].body.data + ENTRY_BYTES - 1):
                return -1
            self.heads[chosen].at += 1
            if self.begun and memcmp(entry, self.last, KEY_BYTES) == 0:
                continue
            memcpy(self.last, entry, ENTRY_BYTES)
            self.begun = True
            memcpy(to + made * ENTRY_BYTES, entry, ENTRY_BYTES)
            made += 1
        return made

    cdef inline bint _before(self, const uint8_t* one, const uint8_t* other) noexcept nogil:
        cdef int order = memcmp(one, other, KEY_BYTES)
        return order < 0 or (order == 0 and memcmp(one + KEY_BYTES, other + KEY_BYTES, 4) > 0)
