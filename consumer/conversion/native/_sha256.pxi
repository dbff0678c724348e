"""SHA-256 with the processor's own instructions, two texts at once.

Theory of operation. Each round of SHA-256 waits for the one before; a second text uses that time and costs little. So a
text may wait for a second one: `Digests` keeps it, and where in the page its digits belong. Nearly all texts fit into
one block of 64 bytes: at most 55 bytes, a mark, and the length. `_usual` hashes longer ones, and all texts on a
processor without the instructions (`HAS_SHA`).
"""


cdef extern from *:
    """
    enum { MOST_HASHED = 55 };

    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    #include <cpuid.h>
    #include <immintrin.h>

    static const uint32_t SHA_START[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    static const uint32_t SHA_ROUND[64] __attribute__((aligned(64))) = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
    };

    static int has_sha_instructions(void) {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) return 0;
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);
    }

    /* Two blocks. */
    __attribute__((target("sha,sse4.1"))) static void hash_two(unsigned char blocks[2][64], unsigned char digests[2][32]) {
        const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
        /* The instructions keep the state as (A, B, E, F) and (C, D, G, H), the first in the highest lane. */
        const uint32_t *s = SHA_START;
        const __m128i abef = _mm_set_epi32(s[0], s[1], s[4], s[5]), cdgh = _mm_set_epi32(s[2], s[3], s[6], s[7]);
        __m128i x[2], y[2], w[2][4];
        for (int lane = 0; lane < 2; lane++) {
            x[lane] = abef;
            y[lane] = cdgh;
            for (int part = 0; part < 4; part++)
                w[lane][part] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *) blocks[lane] + part), big_endian);
        }
    #pragma GCC unroll 16
        for (int four = 0; four < 16; four++) {
            const __m128i constants = _mm_load_si128((const __m128i *) SHA_ROUND + four);
    #pragma GCC unroll 2
            for (int lane = 0; lane < 2; lane++) {
                __m128i *words = w[lane], *now = words + four % 4;
                if (four >= 4) {  /* `now` still holds the words of sixteen rounds ago */
                    const __m128i last = words[(four + 3) % 4];
                    const __m128i seven_ago = _mm_alignr_epi8(last, words[(four + 2) % 4], 4);
                    *now = _mm_add_epi32(_mm_sha256msg1_epu32(*now, words[(four + 1) % 4]), seven_ago);
                    *now = _mm_sha256msg2_epu32(*now, last);
                }
                const __m128i sum = _mm_add_epi32(*now, constants);
                y[lane] = _mm_sha256rnds2_epu32(y[lane], x[lane], sum);
                x[lane] = _mm_sha256rnds2_epu32(x[lane], y[lane], _mm_shuffle_epi32(sum, 0x0e));
            }
        }
        for (int lane = 0; lane < 2; lane++) {
            const __m128i feba = _mm_shuffle_epi32(_mm_add_epi32(x[lane], abef), 0x1b);
            const __m128i dchg = _mm_shuffle_epi32(_mm_add_epi32(y[lane], cdgh), 0xb1);
            const __m128i first_half = _mm_blend_epi16(feba, dchg, 0xf0), second_half = _mm_alignr_epi8(dchg, feba, 8);
            _mm_storeu_si128((__m128i *) digests[lane], _mm_shuffle_epi8(first_half, big_endian));
            _mm_storeu_si128((__m128i *) digests[lane] + 1, _mm_shuffle_epi8(second_half, big_endian));
        }
    }

    __attribute__((target("sha,sse4.1"))) static void put_hex(const unsigned char *digest, char *into) {
        const __m128i digits = _mm_setr_epi8('0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f');
        const __m128i four_bits = _mm_set1_epi8(15);
        for (int half = 0; half < 2; half++) {
            const __m128i bytes = _mm_loadu_si128((const __m128i *) digest + half);
            const __m128i high = _mm_and_si128(_mm_srli_epi16(bytes, 4), four_bits), low = _mm_and_si128(bytes, four_bits);
            __m128i *const put = (__m128i *) into + 2 * half;
            _mm_storeu_si128(put, _mm_shuffle_epi8(digits, _mm_unpacklo_epi8(high, low)));
            _mm_storeu_si128(put + 1, _mm_shuffle_epi8(digits, _mm_unpackhi_epi8(high, low)));
        }
    }
    #else
    static int has_sha_instructions(void) { return 0; }
    static void put_hex(const unsigned char *digest, char *into) { (void) digest, (void) into; }
    static void hash_two(unsigned char blocks[2][64], unsigned char digests[2][32]) { (void) blocks, (void) digests; }
    #endif
    """
    enum:
        MOST_HASHED
    bint has_sha_instructions() noexcept
    void hash_two(unsigned char (*blocks)[64], unsigned char (*digests)[32]) noexcept
    void put_hex(const unsigned char* digest, char* into) noexcept

cdef bint HAS_SHA = has_sha_instructions()


cdef struct Digests:
    # Up to two texts that are to be hashed, each in its block, and where in the page their digits belong.
    int count
    unsigned char block[2][64]
    Py_ssize_t place[2]


cdef inline void close_block(unsigned char* block, int size) noexcept:
    """Write the end of a block after its text: a mark, zeros, and the number of bits."""
    block[size] = 0x80
    block[62], block[63] = <unsigned char> (size >> 5), <unsigned char> (size << 3)


cdef void hash_waiting(Digests* digests, char* page) noexcept:
    """Hash the texts that wait, and write their digits."""
    cdef unsigned char found[2][32]
    cdef int at
    hash_two(digests.block, found)
    for at in range(digests.count):
        put_hex(found[at], page + digests.place[at])
    digests.count = 0


def _try_instructions():
    """Return whether the instructions work here: they must give the digests that `hashlib` gives."""
    global HAS_SHA
    cdef Digests digests
    cdef char page[128]
    cdef int size, each
    for size in range(MOST_HASHED + 1):
        for each in range(2):
            memset(digests.block[each], 0, 64)
            memset(digests.block[each], 97 + each, size)
            close_block(digests.block[each], size)
            digests.place[each] = 64 * each
        digests.count = 2
        hash_waiting(&digests, page)
        expected = b"".join([hashlib.sha256(letter * size).hexdigest().encode() for letter in (b"a", b"b")])
        if page[:128] != expected:
            HAS_SHA = False
            return


if HAS_SHA:
    _try_instructions()


def hashes_with_instructions():
    """Return whether the processor's own instructions are used: for the test."""
    return HAS_SHA
