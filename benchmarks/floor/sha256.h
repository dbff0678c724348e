/* SHA-256 of messages that fit into one block (55 bytes), many at a time: all that the floor hashes.
 *
 * With the processor's SHA instructions (compiled with -march=native where it has them): sha256.c. Without them: plain C.
 */
#include <stdint.h>
#include <string.h>

#define MAX_SHA256 55 /* bytes of a message: a block has 64, the mark takes one, the length eight */

static const uint32_t SHA256_START[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t SHA256_ROUND[64] __attribute__((aligned(64))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* Closes a block whose first `size` bytes are the message and the others zero. */
static inline void sha256_pad(uint8_t *block, unsigned size) {
  uint64_t bits = __builtin_bswap64((uint64_t)size * 8);
  block[size] = 0x80;
  memcpy(block + 56, &bits, 8);
}

#if defined(__SHA__) && defined(__SSE4_1__)
#define SHA256_INSTRUCTIONS
void sha256_all(const uint8_t (*block)[64], uint8_t (*digest)[32], int count);

#else

/* One message in each lane of a vector as wide as the processor's. */
#if defined(__AVX512F__)
#define SHA256_LANES 16
#elif defined(__AVX2__)
#define SHA256_LANES 8
#else
#define SHA256_LANES 4
#endif
typedef uint32_t Sha256Words __attribute__((vector_size(4 * SHA256_LANES)));

static inline Sha256Words sha256_turn(Sha256Words word, int bits) { return word >> bits | word << (32 - bits); }

static void sha256_lanes(const uint8_t (*block)[64], uint8_t (*digest)[32], int count) {
  Sha256Words w[64], s[8];
  for (int i = 0; i < 16; i++)
    for (int lane = 0; lane < SHA256_LANES; lane++) {
      uint32_t word = 0;
      if (lane < count) memcpy(&word, block[lane] + 4 * i, 4);
      w[i][lane] = __builtin_bswap32(word);
    }
  for (int i = 16; i < 64; i++) {
    Sha256Words a = w[i - 15], b = w[i - 2];
    a = sha256_turn(a, 7) ^ sha256_turn(a, 18) ^ a >> 3;
    b = sha256_turn(b, 17) ^ sha256_turn(b, 19) ^ b >> 10;
    w[i] = w[i - 16] + a + w[i - 7] + b;
  }
  for (int i = 0; i < 8; i++) s[i] = SHA256_START[i] - (Sha256Words){0};
#pragma GCC unroll 8
  for (int i = 0; i < 64; i++) {
    Sha256Words choice = (s[4] & s[5]) ^ (~s[4] & s[6]);
    Sha256Words majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
    Sha256Words low = sha256_turn(s[4], 6) ^ sha256_turn(s[4], 11) ^ sha256_turn(s[4], 25);
    Sha256Words high = sha256_turn(s[0], 2) ^ sha256_turn(s[0], 13) ^ sha256_turn(s[0], 22);
    Sha256Words step = s[7] + low + choice + SHA256_ROUND[i] + w[i];
    for (int j = 7; j; j--) s[j] = s[j - 1];
    s[4] += step;
    s[0] = step + high + majority;
  }
  for (int i = 0; i < 8; i++) {
    Sha256Words words = s[i] + SHA256_START[i];
    for (int lane = 0; lane < count; lane++) {
      uint32_t word = __builtin_bswap32(words[lane]);
      memcpy(digest[lane] + 4 * i, &word, 4);
    }
  }
}

static void sha256_all(const uint8_t (*block)[64], uint8_t (*digest)[32], int count) {
  for (; count > 0; count -= SHA256_LANES, block += SHA256_LANES, digest += SHA256_LANES)
    sha256_lanes(block, digest, count < SHA256_LANES ? count : SHA256_LANES);
}
#endif
