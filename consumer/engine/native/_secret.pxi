"""A secret of the process, mixed into a key to find its place in a table. No result depends on it.

Theory of operation. Keys are hashes, but whoever chooses event ids can choose many whose keys share bits. To choose ids
whose places are near each other, they would need the secret.
"""

from libc.stdint cimport uint64_t

from os import urandom

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t mixed(uint64_t one, uint64_t other) {
        unsigned __int128 product = (unsigned __int128) one * other;
        return (uint64_t) product ^ (uint64_t) (product >> 64);
    }
    """
    uint64_t mixed(uint64_t one, uint64_t other) noexcept nogil

cdef uint64_t ONE = int.from_bytes(urandom(8)), OTHER = int.from_bytes(urandom(8))


cdef inline uint64_t place_of(uint64_t one, uint64_t other) noexcept nogil:
    """Return where a key of these two halves belongs; its lowest bits are as good as any."""
    return mixed(one ^ ONE, other ^ OTHER)
