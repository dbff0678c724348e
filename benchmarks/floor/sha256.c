/* SHA-256 with the processor's SHA instructions. Two blocks run side by side: one round waits for the one before, so a
 * second message fills the gap and costs little.
 *
 * A file of its own, compiled without AVX (-mno-avx): the SHA instructions have no form that goes with AVX. While AVX
 * code has left something in the upper half of a vector register, each of them takes forty times as long on some processors.
 * Before a call into another file, the compiler clears the upper halves (vzeroupper).
 */
#include "sha256.h"

#ifdef SHA256_INSTRUCTIONS
#include <immintrin.h>

static inline __attribute__((always_inline)) void sha256_lanes(const uint8_t (*block)[64], uint8_t (*digest)[32],
                                                               const int lanes) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  /* The instructions keep the state as (A, B, E, F) and (C, D, G, H), the first in the highest lane. */
  const uint32_t *s = SHA256_START;
  const __m128i abef = _mm_set_epi32(s[0], s[1], s[4], s[5]), cdgh = _mm_set_epi32(s[2], s[3], s[6], s[7]);
  __m128i x[lanes], y[lanes], w[lanes][4];
  for (int lane = 0; lane < lanes; lane++) {
    x[lane] = abef;
    y[lane] = cdgh;
    for (int part = 0; part < 4; part++)
      w[lane][part] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)block[lane] + part), big_endian);
  }
#pragma GCC unroll 16
  for (int four = 0; four < 16; four++) {
    const __m128i constants = _mm_load_si128((const __m128i *)SHA256_ROUND + four);
#pragma GCC unroll 2
    for (int lane = 0; lane < lanes; lane++) {
      __m128i *words = w[lane], *now = words + four % 4;
      if (four >= 4) { /* the message schedule: `now` still holds the words of sixteen rounds ago */
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
  for (int lane = 0; lane < lanes; lane++) {
    const __m128i feba = _mm_shuffle_epi32(_mm_add_epi32(x[lane], abef), 0x1b);
    const __m128i dchg = _mm_shuffle_epi32(_mm_add_epi32(y[lane], cdgh), 0xb1);
    const __m128i first = _mm_blend_epi16(feba, dchg, 0xf0), second = _mm_alignr_epi8(dchg, feba, 8);
    _mm_storeu_si128((__m128i *)digest[lane], _mm_shuffle_epi8(first, big_endian));
    _mm_storeu_si128((__m128i *)digest[lane] + 1, _mm_shuffle_epi8(second, big_endian));
  }
}

void sha256_all(const uint8_t (*block)[64], uint8_t (*digest)[32], int count) {
  int done = 0;
  for (; done + 2 <= count; done += 2) sha256_lanes(block + done, digest + done, 2);
  if (done < count) sha256_lanes(block + done, digest + done, 1);
}
#endif
