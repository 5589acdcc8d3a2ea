#include "digest_copy.h"

#if defined(RTP_HAS_AVX512) || defined(RTP_ISA_avx2)
#include <immintrin.h>
#endif

// The names are those of the specification (XXH3, 128 bits, seed 0, input over 240 bytes):
// stripes of a line go into eight accumulators, which are scrambled after each block.
//
// https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md

#define RTP_INLINE static inline __attribute__((always_inline))

namespace rtp::RTP_ISA_NAMESPACE {

constexpr int64_t kStripeBytes = kDigestLineBytes;
constexpr int64_t kSecretBytes = 192;
constexpr int64_t kSecretStep = 8;
constexpr int64_t kStripesPerBlock = (kSecretBytes - kStripeBytes) / kSecretStep;
constexpr int64_t kPrefetchBytes = 1024;

constexpr uint64_t kPrime32_1 = 0x9E3779B1U;
constexpr uint64_t kPrime32_2 = 0x85EBCA77U;
constexpr uint64_t kPrime32_3 = 0xC2B2AE3DU;
constexpr uint64_t kPrime64_1 = 0x9E3779B185EBCA87ULL;
constexpr uint64_t kPrime64_2 = 0xC2B2AE3D27D4EB4FULL;
constexpr uint64_t kPrime64_3 = 0x165667B19E3779F9ULL;
constexpr uint64_t kPrime64_4 = 0x85EBCA77C2B2AE63ULL;
constexpr uint64_t kPrime64_5 = 0x27D4EB2F165667C5ULL;
constexpr uint64_t kPrimeMx = 0x165667919E3779F9ULL;

alignas(64) static const unsigned char kSecret[kSecretBytes] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

RTP_INLINE uint64_t word(const unsigned char* bytes) {
  uint64_t value;
  __builtin_memcpy(&value, bytes, sizeof value);
  return value;
}

#if defined(RTP_HAS_AVX512)

struct Accumulators {
  __m512i lanes;
};

RTP_INLINE Accumulators initial() {
  return {_mm512_setr_epi64(kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3, kPrime64_4, kPrime32_2,
                            kPrime64_5, kPrime32_1)};
}

// Copies a stripe and takes it in.
RTP_INLINE void take(Accumulators& acc, char* target, const char* source,
                     const unsigned char* secret) {
  const __m512i data = _mm512_load_si512(source);
  _mm512_stream_si512(reinterpret_cast<__m512i*>(target), data);
  const __m512i keyed = _mm512_xor_si512(data, _mm512_loadu_si512(secret));
  const __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
  const __m512i swapped = _mm512_shuffle_epi32(data, _MM_PERM_BADC);
  acc.lanes = _mm512_add_epi64(product, _mm512_add_epi64(acc.lanes, swapped));
}

RTP_INLINE void scramble(Accumulators& acc, const unsigned char* secret) {
  const __m512i prime = _mm512_set1_epi64(kPrime32_1);
  __m512i mixed = _mm512_xor_si512(acc.lanes, _mm512_srli_epi64(acc.lanes, 47));
  mixed = _mm512_xor_si512(mixed, _mm512_loadu_si512(secret));
  acc.lanes = _mm512_mullo_epi64(mixed, prime);
}

RTP_INLINE void store(uint64_t (&lanes)[8], const Accumulators& acc) {
  _mm512_storeu_si512(lanes, acc.lanes);
}

RTP_INLINE void end_streaming() { _mm_sfence(); }

#elif defined(RTP_ISA_avx2)

struct Accumulators {
  __m256i lanes[2];
};

RTP_INLINE Accumulators initial() {
  return {{_mm256_setr_epi64x(kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3),
           _mm256_setr_epi64x(kPrime64_4, kPrime32_2, kPrime64_5, kPrime32_1)}};
}

// Copies a stripe and takes it in.
RTP_INLINE void take(Accumulators& acc, char* target, const char* source,
                     const unsigned char* secret) {
  for (int i = 0; i < 2; ++i) {
    const __m256i data = _mm256_load_si256(reinterpret_cast<const __m256i*>(source) + i);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(target) + i, data);
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(secret) + i);
    const __m256i keyed = _mm256_xor_si256(data, key);
    const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
    const __m256i swapped = _mm256_shuffle_epi32(data, _MM_SHUFFLE(1, 0, 3, 2));
    acc.lanes[i] = _mm256_add_epi64(product, _mm256_add_epi64(acc.lanes[i], swapped));
  }
}

RTP_INLINE void scramble(Accumulators& acc, const unsigned char* secret) {
  const __m256i prime = _mm256_set1_epi64x(kPrime32_1);
  for (int i = 0; i < 2; ++i) {
    const __m256i key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(secret) + i);
    __m256i mixed = _mm256_xor_si256(acc.lanes[i], _mm256_srli_epi64(acc.lanes[i], 47));
    mixed = _mm256_xor_si256(mixed, key);
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime);
    acc.lanes[i] = _mm256_add_epi64(_mm256_mul_epu32(mixed, prime), _mm256_slli_epi64(high, 32));
  }
}

RTP_INLINE void store(uint64_t (&lanes)[8], const Accumulators& acc) {
  __builtin_memcpy(lanes, acc.lanes, sizeof lanes);
}

RTP_INLINE void end_streaming() { _mm_sfence(); }

#else

struct Accumulators {
  uint64_t lanes[8];
};

RTP_INLINE Accumulators initial() {
  return {{kPrime32_3, kPrime64_1, kPrime64_2, kPrime64_3, kPrime64_4, kPrime32_2, kPrime64_5,
           kPrime32_1}};
}

// Copies a stripe and takes it in.
RTP_INLINE void take(Accumulators& acc, char* target, const char* source,
                     const unsigned char* secret) {
  uint64_t data[8];
  for (int i = 0; i < 8; ++i) {  // once: others may be writing there
    data[i] = reinterpret_cast<const volatile uint64_t*>(source)[i];
  }
  __builtin_memcpy(target, data, sizeof data);
  for (int i = 0; i < 8; ++i) {
    const uint64_t keyed = data[i] ^ word(secret + 8 * i);
    acc.lanes[i ^ 1] += data[i];
    acc.lanes[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32);
  }
}

RTP_INLINE void scramble(Accumulators& acc, const unsigned char* secret) {
  for (int i = 0; i < 8; ++i) {
    const uint64_t mixed = acc.lanes[i] ^ (acc.lanes[i] >> 47) ^ word(secret + 8 * i);
    acc.lanes[i] = mixed * kPrime32_1;
  }
}

RTP_INLINE void store(uint64_t (&lanes)[8], const Accumulators& acc) {
  __builtin_memcpy(lanes, acc.lanes, sizeof lanes);
}

RTP_INLINE void end_streaming() {}

#endif

RTP_INLINE uint64_t folded_product(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

static uint64_t merged(const uint64_t (&lanes)[8], const unsigned char* secret, uint64_t result) {
  for (int i = 0; i < 4; ++i) {
    result += folded_product(lanes[2 * i] ^ word(secret + 16 * i),
                             lanes[2 * i + 1] ^ word(secret + 16 * i + 8));
  }
  result = (result ^ (result >> 37)) * kPrimeMx;
  return result ^ (result >> 32);
}

Digest digest_copy(const DigestCopy& op) {
  char* target = static_cast<char*>(op.target);
  const char* source = static_cast<const char*>(op.source);
  Accumulators acc = initial();
  // The last stripe is taken in otherwise than those before it.
  const int64_t last = op.bytes / kStripeBytes - 1;
  for (int64_t stripe = 0; stripe < last; ++stripe) {
    const int64_t in_block = stripe % kStripesPerBlock;
    const int64_t offset = stripe * kStripeBytes;
    __builtin_prefetch(source + offset + kPrefetchBytes);
    take(acc, target + offset, source + offset, kSecret + in_block * kSecretStep);
    if (in_block == kStripesPerBlock - 1) scramble(acc, kSecret + kSecretBytes - kStripeBytes);
  }
  const int64_t offset = last * kStripeBytes;
  take(acc, target + offset, source + offset, kSecret + kSecretBytes - kStripeBytes - 7);
  end_streaming();
  uint64_t lanes[8];
  store(lanes, acc);
  const uint64_t bytes = static_cast<uint64_t>(op.bytes);
  return {merged(lanes, kSecret + kSecretBytes - kStripeBytes - 11, ~(bytes * kPrime64_2)),
          merged(lanes, kSecret + 11, bytes * kPrime64_1)};
}

}  // namespace rtp::RTP_ISA_NAMESPACE
