// bf16 weights in twelve bits each, without loss.
//
// The upper byte of a weight, its sign and most of its exponent, is one of few in the weights of a
// strip: weights of a layer differ by no more than some powers of two, but for one in thousands.
// Four bits say which of the strip's fifteen most frequent ones it is, or that the whole weight, an
// escape, comes from a list. The lower byte stays as it is.
//
//   strip     [16]                   upper bytes by code
//             uint32 [2]             the strip's escapes, from the first to before the second
//             bits [groups]          which groups have escapes; then zeros up to a cache line
//             [ceil(k / 4)][3][64]   groups of four k: lower bytes of two pairs of k; codes of
//                                    both, the first pair's in the lower four bits
//   escapes   bf16, strip by strip, in the order of k pairs, then outputs, then k
//
// Of the 64 weights of a pair of k, [32 outputs][2], number i is byte coded_place(i): bytes are
// interleaved with their upper ones by 16 (VPUNPCKLBW, VPUNPCKHBW). What is beyond k has any value.
#pragma once

#include "gemm.h"

namespace rtp {

constexpr int64_t kCodedGroup = 4;  // k
constexpr int64_t kPairWeights = 2 * kStripOutputs;
constexpr int64_t kCodedGroupBytes = 3 * kPairWeights;
constexpr int kEscapeCode = 15;

constexpr int64_t coded_groups(int64_t k) { return (k + kCodedGroup - 1) / kCodedGroup; }
constexpr int64_t coded_head_bytes(int64_t k) {
  return (24 + (coded_groups(k) + 63) / 64 * 8 + 63) / 64 * 64;
}
constexpr int64_t coded_strip_bytes(int64_t k) {
  return coded_head_bytes(k) + coded_groups(k) * kCodedGroupBytes;
}

constexpr int coded_place(int i) { return i / 32 * 8 + i % 32 / 8 * 16 + i % 8; }

// A strip's parts.
struct CodedStrip {
  const uint8_t* uppers;  // [16]
  const bf16 *escapes, *end;
  const uint64_t* escaped;  // a bit a group
  const uint8_t* groups;

  RTP_ALWAYS_INLINE CodedStrip(const void* strip, const bf16* all_escapes, int64_t k)
      : uppers(static_cast<const uint8_t*>(strip)),
        escaped(reinterpret_cast<const uint64_t*>(uppers + 24)),
        groups(uppers + coded_head_bytes(k)) {
    uint32_t own[2];
    __builtin_memcpy(own, uppers + 16, sizeof own);
    escapes = all_escapes + own[0];
    end = all_escapes + own[1];
  }
};

// Bytes from a strip of a weight to the next, and where one is.
RTP_ALWAYS_INLINE int64_t strip_bytes(const PackedMatrix& weight) {
  if (weight.escapes) return coded_strip_bytes(weight.k);
  const bool is_bf16 = weight.dtype == DType::kBf16;
  return kStripOutputs * (is_bf16 ? (weight.k + 1) / 2 * 4 : weight.k * 4);
}
RTP_ALWAYS_INLINE const char* strip_of(const PackedMatrix& weight, int64_t index) {
  return static_cast<const char*>(weight.data) + index * strip_bytes(weight);
}

}  // namespace rtp
