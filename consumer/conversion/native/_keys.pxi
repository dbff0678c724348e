"""Hashes the key of an event: BLAKE2b with a digest of 16 bytes (RFC 7693), as hashlib does.

Theory of operation. hashlib takes an object, its digest and two calls for a key: several times what the hash itself
costs, for nearly every key is made of less than one block of 128 bytes. With AVX2 four such keys are hashed at once,
each in its own lane, in little more time than one. So keys wait until there are four (`Waiting`).
"""

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    enum { KEY_BLOCK = 128 };

    static const uint64_t IV[8] = {
        0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
        0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u,
    };
    static const uint8_t SIGMA[12][16] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
        {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
        {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
        {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
        {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
        {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
        {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
        {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
        {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
        {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
        {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    };

    static uint64_t load(const uint8_t *from) {
        uint64_t word = 0;
        for (int byte = 0; byte < 8; byte++) word |= (uint64_t) from[byte] << (8 * byte);
        return word;
    }

    #define ROTATE(word, by) ((word) >> (by) | (word) << (64 - (by)))
    #define MIX(a, b, c, d, x, y) \\
        a += b + (x); d = ROTATE(d ^ a, 32); c += d; b = ROTATE(b ^ c, 24); \\
        a += b + (y); d = ROTATE(d ^ a, 16); c += d; b = ROTATE(b ^ c, 63);
    #define ROUND(MIX) \\
        MIX(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]) \\
        MIX(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]) \\
        MIX(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]) \\
        MIX(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]) \\
        MIX(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]) \\
        MIX(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]) \\
        MIX(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]) \\
        MIX(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]])

    static void compress(uint64_t state[8], const uint8_t *block, uint64_t so_far, int is_last) {
        uint64_t m[16], v[16];
        for (int at = 0; at < 16; at++) m[at] = load(block + 8 * at);
        memcpy(v, state, 64);
        memcpy(v + 8, IV, 64);
        v[12] ^= so_far;
        if (is_last) v[14] = ~v[14];
        #pragma GCC unroll 12
        for (int round = 0; round < 12; round++) {
            const uint8_t *s = SIGMA[round];
            ROUND(MIX)
        }
        for (int at = 0; at < 8; at++) state[at] ^= v[at] ^ v[at + 8];
    }

    static void hash_key(const char *data, size_t size, char *into) {
        uint64_t state[8];
        uint8_t last[KEY_BLOCK] = {0};
        size_t done = 0;
        memcpy(state, IV, sizeof state);
        state[0] ^= 0x01010000u ^ KEY_BYTES;  /* neither key nor tree */
        for (; size - done > KEY_BLOCK; done += KEY_BLOCK)
            compress(state, (const uint8_t *) data + done, done + KEY_BLOCK, 0);
        if (size) memcpy(last, data + done, size - done);
        compress(state, last, size, 1);
        for (int at = 0; at < KEY_BYTES; at++) into[at] = (char) (state[at / 8] >> (8 * (at % 8)));
    }

    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    #include <immintrin.h>

    typedef uint64_t Four __attribute__((vector_size(32)));

    #define BYTES(word, bytes) ((Four) _mm256_shuffle_epi8((__m256i) (word), (bytes)))
    #define MIX_FOUR(a, b, c, d, x, y) \\
        a += b + (x); d = (Four) _mm256_shuffle_epi32((__m256i) (d ^ a), 0xb1); c += d; b = BYTES(b ^ c, by_24); \\
        a += b + (y); d = BYTES(d ^ a, by_16); c += d; b = ROTATE(b ^ c, 63);

    static int can_hash_four(void) { return __builtin_cpu_supports("avx2"); }

    /* Four texts of at most a block, zeros behind each. */
    __attribute__((target("avx2"))) static void hash_four(
        uint8_t (*blocks)[KEY_BLOCK], const uint64_t sizes[4], char (*into)[KEY_BYTES]
    ) {
        const __m256i by_24 = _mm256_setr_epi8(3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10,
                                               3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10);
        const __m256i by_16 = _mm256_setr_epi8(2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9,
                                               2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9);
        Four m[16], v[16], low, high;
        for (int at = 0; at < 16; at++)
            for (int lane = 0; lane < 4; lane++) m[at][lane] = load(blocks[lane] + 8 * at);
        for (int at = 0; at < 16; at++) v[at] = (Four){} + IV[at % 8];
        v[0] ^= 0x01010000u ^ KEY_BYTES;
        v[12] ^= (Four){sizes[0], sizes[1], sizes[2], sizes[3]};
        v[14] = ~v[14];
        low = v[0];
        high = v[1];
        #pragma GCC unroll 12
        for (int round = 0; round < 12; round++) {
            const uint8_t *s = SIGMA[round];
            ROUND(MIX_FOUR)
        }
        low ^= v[0] ^ v[8];  /* the rest of the digest is not used */
        high ^= v[1] ^ v[9];
        for (int lane = 0; lane < 4; lane++) {
            uint64_t words[2] = {low[lane], high[lane]};
            memcpy(into[lane], words, sizeof words);
        }
    }
    #else
    static int can_hash_four(void) { return 0; }
    static void hash_four(uint8_t (*blocks)[KEY_BLOCK], const uint64_t sizes[4], char (*into)[KEY_BYTES]) {
        (void) blocks, (void) sizes, (void) into;
    }
    #endif
    """
    enum:
        KEY_BLOCK
    void hash_key(const char* data, size_t size, char* into) noexcept nogil
    bint can_hash_four() noexcept
    void hash_four(unsigned char (*blocks)[KEY_BLOCK], const uint64_t* sizes, char (*into)[KEY_BYTES]) noexcept

cdef bint HASHES_FOUR = can_hash_four()


cdef struct Waiting:
    # Texts that are to be hashed, and where in the column their keys belong.
    int count
    unsigned char block[4][KEY_BLOCK]
    uint64_t size[4]
    Py_ssize_t place[4]


cdef void hash_keys(Waiting* waiting, char* keys) noexcept:
    """Hash the texts that wait, and write their keys."""
    cdef char found[4][KEY_BYTES]
    cdef int at
    hash_four(waiting.block, waiting.size, found)
    for at in range(waiting.count):
        memcpy(keys + waiting.place[at], found[at], KEY_BYTES)
    waiting.count = 0


def _try_four():
    """Return whether hashing four at once works here: it must give the same keys as hashing them one by one."""
    global HASHES_FOUR
    cdef Waiting waiting
    cdef char keys[4 * KEY_BYTES]
    cdef char alone[KEY_BYTES]
    cdef int size, at
    for size in range(KEY_BLOCK - 3):
        for at in range(4):
            memset(waiting.block[at], 0, KEY_BLOCK)
            memset(waiting.block[at], 97 + at, size + at)
            waiting.size[at], waiting.place[at] = size + at, KEY_BYTES * at
        waiting.count = 4
        hash_keys(&waiting, keys)
        for at in range(4):
            hash_key(<char*> waiting.block[at], size + at, alone)
            if memcmp(alone, keys + KEY_BYTES * at, KEY_BYTES) != 0:
                HASHES_FOUR = False


if HASHES_FOUR:
    _try_four()


def hashes_four_keys():
    """Return whether four keys are hashed at once: for the test."""
    return HASHES_FOUR
