"""SHA-256 of several texts at once: with the processor's own instructions, or in the lanes of vectors.

Theory of operation. Each round of SHA-256 waits for the one before; other texts use that time and cost little. With the
instructions two texts are hashed side by side; without them four, each in its lane, in whatever vector instructions the
compiler has. So a text may wait for others: `Digests` keeps it, and where in the page its digits belong. Nearly all
texts fit into one block of 64 bytes: at most 55 bytes, a mark, and the length. Longer ones are left to `hashlib`.
"""

cdef extern from *:
    """
    enum { MAX_HASHED = 55, LANES = 4 };

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

    typedef uint32_t Lanes __attribute__((vector_size(4 * LANES)));

    #define TURNED(word, by) ((word) >> (by) | (word) << (32 - (by)))

    /* Hash the one block of a text in each lane (FIPS 180-4, 6.2.2). */
    static void compress_four(unsigned char (*blocks)[64], uint32_t (*into)[8]) {
        Lanes words[16], state[8];
        for (int lane = 0; lane < LANES; lane++) {
            for (int at = 0; at < 8; at++) state[at][lane] = SHA_START[at];
            for (int at = 0; at < 16; at++) {
                const unsigned char *bytes = blocks[lane] + 4 * at;
                words[at][lane] = (uint32_t) bytes[0] << 24 | bytes[1] << 16 | bytes[2] << 8 | bytes[3];
            }
        }
        Lanes a = state[0], b = state[1], c = state[2], d = state[3], e = state[4], f = state[5], g = state[6], h =
        state[7];
    #pragma GCC unroll 16
        for (int round = 0; round < 64; round++) {
            Lanes *now = words + round % 16;  /* still holds the word of sixteen rounds ago */
            if (round >= 16) {
                const Lanes x = words[(round + 1) % 16], y = words[(round + 14) % 16];
                *now += (TURNED(x, 7) ^ TURNED(x, 18) ^ x >> 3) + words[(round + 9) % 16];
                *now += TURNED(y, 17) ^ TURNED(y, 19) ^ y >> 10;
            }
            const Lanes one = h + (TURNED(e, 6) ^ TURNED(e, 11) ^ TURNED(e, 25)) + (g ^ (e & (f ^ g))) +
            SHA_ROUND[round] + *now; const Lanes two = (TURNED(a, 2) ^ TURNED(a, 13) ^ TURNED(a, 22)) + ((a & b) | (c &
            (a | b))); h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
        for (int lane = 0; lane < LANES; lane++)
            for (int at = 0; at < 8; at++) into[lane][at] = state[at][lane];
    }

    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    #include <cpuid.h>
    #include <immintrin.h>

    static int has_sha_instructions(void) {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) return 0;
        return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);
    }

    /* The same in two lanes. */
    __attribute__((target("sha,sse4.1"))) static void compress_two(unsigned char (*blocks)[64], uint32_t (*into)[8]) {
        const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
        __m128i abef[2], cdgh[2], x[2], y[2], w[2][4];
        for (int lane = 0; lane < 2; lane++) {
            /* The instructions keep the state as (A, B, E, F) and (C, D, G, H), the first in the highest lane. */
            const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *) SHA_START), 0xb1);
            const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *) SHA_START + 1), 0x1b);
            x[lane] = abef[lane] = _mm_alignr_epi8(badc, hgfe, 8);
            y[lane] = cdgh[lane] = _mm_blend_epi16(hgfe, badc, 0xf0);
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
            const __m128i feba = _mm_shuffle_epi32(_mm_add_epi32(x[lane], abef[lane]), 0x1b);
            const __m128i dchg = _mm_shuffle_epi32(_mm_add_epi32(y[lane], cdgh[lane]), 0xb1);
            _mm_storeu_si128((__m128i *) into[lane], _mm_blend_epi16(feba, dchg, 0xf0));
            _mm_storeu_si128((__m128i *) into[lane] + 1, _mm_alignr_epi8(dchg, feba, 8));
        }
    }
    #else
    static int has_sha_instructions(void) { return 0; }
    static void compress_two(unsigned char (*blocks)[64], uint32_t (*into)[8]) { (void) blocks, (void) into; }
    #endif

    /* The same in the first `count` lanes; what the others hold does not matter. */
    static void compress_lanes(unsigned char (*blocks)[64], uint32_t (*into)[8], int count, int instructions) {
        if (!instructions) compress_four(blocks, into);
        else for (int lane = 0; lane < count; lane += 2) compress_two(blocks + lane, into + lane);
    }

    /* Eight digits for each word. */
    static void put_hex(const uint32_t state[8], char *into) {
        typedef uint8_t Bytes __attribute__((vector_size(8)));
        typedef uint16_t Wide __attribute__((vector_size(16)));
        typedef int8_t Digits __attribute__((vector_size(16)));
        for (int at = 0; at < 8; at += 2, into += 16) {
            uint64_t two = (uint64_t) state[at] << 32 | state[at + 1];
            Bytes bytes;
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
            two = __builtin_bswap64(two);
            memcpy(&bytes, &two, sizeof bytes);
            const Wide wide = __builtin_convertvector(bytes, Wide), halves = (wide >> 4 | wide << 8) & 0x0f0f;
    #else
            memcpy(&bytes, &two, sizeof bytes);
            const Wide wide = __builtin_convertvector(bytes, Wide), halves = (wide | wide << 4) & 0x0f0f;
    #endif
            Digits digits = (Digits) halves;
            digits += '0' + ((digits > 9) & ('a' - '9' - 1));
            memcpy(into, &digits, sizeof digits);
        }
    }
    """
    enum:
        MAX_HASHED
        LANES
    bint has_sha_instructions() noexcept
    void compress_lanes(unsigned char (*blocks)[64], uint32_t (*into)[8], int count, bint instructions) noexcept
    void put_hex(const uint32_t* state, char* into) noexcept

cdef bint HAS_SHA = has_sha_instructions()


cdef struct Digests:
    # Texts that are to be hashed, each in its block, and where in the page their digits belong.
    int count
    unsigned char block[LANES][64]
    Py_ssize_t place[LANES]


cdef inline void await_digest(Digests* digests, int size, char* page, Py_ssize_t place) noexcept:
    """Have the text of this size in the next block, zeros behind it, hashed with others, and its digits written
    there."""
    cdef unsigned char* block = digests.block[digests.count]
    block[size] = 0x80
    block[62], block[63] = <unsigned char> (size >> 5), <unsigned char> (size << 3)
    digests.place[digests.count] = place
    digests.count += 1
    if digests.count == (2 if HAS_SHA else LANES):  # as many as are hashed side by side
        hash_waiting(digests, page)


cdef void hash_waiting(Digests* digests, char* page) noexcept:
    """Hash the texts that wait, and write their digits."""
    cdef uint32_t states[LANES][8]
    cdef int at
    compress_lanes(digests.block, states, digests.count, HAS_SHA)
    for at in range(digests.count):
        put_hex(states[at], page + digests.place[at])
    digests.count = 0


def digests_of(texts):
    """Return the digits of each of these texts, which wait for each other."""
    cdef Digests digests
    cdef bytearray page = bytearray(64 * len(texts))
    cdef char* data = PyByteArray_AS_STRING(page)
    cdef Py_ssize_t place
    digests.count = 0
    for place, text in enumerate(texts):
        memset(digests.block[digests.count], 0, 64)
        memcpy(digests.block[digests.count], PyBytes_AS_STRING(text), len(text))
        await_digest(&digests, len(text), data, 64 * place)
    hash_waiting(&digests, data)
    return [page[at : at + 64].decode() for at in range(0, len(page), 64)]


def hash_with_instructions(wanted):
    """Use the processor's own instructions if they are wanted and it has them; return whether they are used."""
    global HAS_SHA
    HAS_SHA = wanted and has_sha_instructions()
    return HAS_SHA


def _is_right():
    """Return whether digests are those that `hashlib` gives."""
    texts = [bytes(range(size)) for size in range(MAX_HASHED + 1)]
    return digests_of(texts) == [hashlib.sha256(text).hexdigest() for text in texts]


if HAS_SHA and not _is_right():
    HAS_SHA = False
if not HAS_SHA and not _is_right():
    raise ImportError("SHA-256 as it was compiled here gives wrong digests: install with PINSTREAM_NO_COMPILE=1")
